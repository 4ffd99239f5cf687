"""The tabs *Act* and *Grid*, computed: against the library's own functions."""

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.actions import CLEAN, Action, Photometry
from iwm.bank import Bank
from iwm.config import DecoderConfig
from iwm.decoder import Decoder
from iwm.evaluation.mrr import draw_views
from iwm.images import to_pil
from iwm.ui.acting import act, sweep
from iwm.ui.photo import encode_photo
from iwm.ui.places import Views
from iwm.ui.sliders import sliders

VIEW = Photometry(brightness=1.3, hue=0.1)


def same(a, b):
    return a.size == b.size and np.array_equal(np.array(a), np.array(b))


def test_the_nearest_are_those_of_a_bank_of_the_same_views(acting_model, photo, views):
    shown = act(acting_model, photo, VIEW, views, k=4)
    params = draw_views(acting_model, 15, seed=0, index=0)
    actions = [Action.between(CLEAN, Photometry.from_params(row)) for row in params] + [
        Action.between(CLEAN, VIEW)
    ]
    bank = Bank.from_views(acting_model, photo.pixels, actions)
    expected = bank.search(acting_model.predict(photo.pixels, actions[-1]), 16)
    order = expected.ids[0]
    assert [hit.distance for hit in shown.found.hits] == pytest.approx(
        expected.distances[0, :4].tolist(), abs=1e-3
    )
    assert [hit.right for hit in shown.found.hits] == [i == 15 for i in order[:4]]
    assert shown.found.size == 16
    assert shown.found.rank == order.index(15) + 1
    for hit, i in zip(shown.found.hits, order, strict=False):
        assert same(hit.picture, to_pil(actions[i].apply(photo.pixels)))


def test_the_control_is_the_true_transformation(acting_model, photo, views):
    shown = act(acting_model, photo, VIEW, views)
    assert same(shown.true, to_pil(Action.between(CLEAN, VIEW).apply(photo.pixels)))
    assert same(shown.source, to_pil(photo.pixels))
    assert not same(shown.source, shown.true)
    assert shown.imagined is None


def test_nothing_asked_for_finds_the_photograph_itself(acting_model, photo, views):
    shown = act(acting_model, photo, CLEAN, views)
    assert shown.found.rank == 1
    assert shown.found.hits[0].right
    assert shown.found.hits[0].distance == pytest.approx(0, abs=1e-3)


def test_with_a_decoder_the_prediction_is_shown(acting_model, photo, views):
    decoder = Decoder(
        DecoderConfig(space=acting_model.space, width=32, depth=1, heads=2), acting_model.config
    )
    acting_model.add_decoder(decoder)
    imagined = act(acting_model, photo, VIEW, views).imagined
    predicted = acting_model.apply_action(photo.latent, Action.between(CLEAN, VIEW))
    assert same(imagined, to_pil(acting_model.decode(predicted)[0]))


def test_a_grid_has_a_row_a_value(acting_model, photo, views):
    rows = {slider.name: slider for slider in sliders(acting_model)}
    grid = sweep(acting_model, photo, rows["saturation"], views)
    assert [row.view for row in grid] == [Photometry(saturation=s) for s in (0.6, 0.8, 1.0, 1.2, 1.4)]
    assert all(len(row.found.hits) == 3 for row in grid)
    switched = sweep(acting_model, photo, rows["solarize"], views)
    assert [row.view for row in switched] == [CLEAN, Photometry(solarize=True)]


def test_a_slider_costs_no_encoding_of_the_photograph(acting_model, photo, views, monkeypatch):
    encoded = []
    original = acting_model.encode
    monkeypatch.setattr(
        acting_model, "encode", lambda image, *a: encoded.append(image) or original(image, *a)
    )
    act(acting_model, photo, VIEW, views)
    assert len(encoded) == 1  # The control, without which there is no rank.
    assert not torch.equal(encoded[0], photo.pixels)


def test_the_embedded_model_finds_most_of_what_is_asked_for(tiny):
    photo = encode_photo(tiny, Image.effect_noise((160, 128), 60).convert("RGB").resize((160, 128)), "noise")
    views = Views(tiny, photo, 63)
    ranks = [act(tiny, photo, Photometry(brightness=b), views).found.rank for b in (0.6, 0.8, 1.2, 1.4)]
    assert sorted(ranks)[1] <= 3
