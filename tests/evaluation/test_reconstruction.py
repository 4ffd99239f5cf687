"""Scores of decoders, against scikit-image on a plain loop."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from iwm.actions import CLEAN, Action, Photometry
from iwm.config import DecoderConfig
from iwm.decoder import Decoder
from iwm.errors import InvalidConfigError, InvalidDataError, WeightsUnavailableError
from iwm.evaluation.mrr import draw_views
from iwm.evaluation.reconstruction import reconstruction
from iwm.world_model import WorldModel


@pytest.fixture
def model(tiny_config):
    model = WorldModel(tiny_config())
    decoder = Decoder(DecoderConfig(space=model.space, width=32, depth=1, heads=2), model.config)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.add_decoder(decoder)
    return model


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)) for _ in range(2)]


def test_scores_are_those_of_a_plain_loop(model, images):
    found = {"encoded": [], "predicted": [], "transformed": [], "untouched": []}

    def note(name, latent, reference):
        image, reference = model.decode(latent)[0].numpy(), reference.numpy()
        found[name].append(
            (
                peak_signal_noise_ratio(reference, image, data_range=1),
                structural_similarity(reference, image, data_range=1, channel_axis=0),
            )
        )

    for index, image in enumerate(images):
        pixels = model.preprocess.one(image)
        latent = model.encode(pixels)
        note("encoded", latent, pixels)
        for row in draw_views(model, 3, distribution="jitter", seed=5, index=index):
            action = Action.between(CLEAN, Photometry.from_params(row))
            view = action.apply(pixels)
            note("predicted", model.apply_action(latent, action), view)
            note("transformed", model.encode(view), view)
            note("untouched", latent, view)
    report = reconstruction(model, images, actions=3, seed=5)
    for name, pairs in found.items():
        scores = getattr(report, name)
        assert (scores.psnr, scores.ssim) == pytest.approx(tuple(np.mean(pairs, axis=0)), rel=1e-4)
    assert (report.images, report.actions, report.seed) == (2, 3, 5)
    assert report.to_dict()["predicted"]["psnr"] == report.predicted.psnr


def test_what_cannot_be(model, images, tiny_config, monkeypatch):
    with pytest.raises(InvalidDataError, match="at least one image"):
        reconstruction(model, [])
    with pytest.raises(WeightsUnavailableError, match="no decoder"):
        reconstruction(WorldModel(tiny_config()), images)
    monkeypatch.setitem(__import__("sys").modules, "skimage.metrics", None)
    with pytest.raises(InvalidConfigError, match=r"pip install \"iwm\[demo\]\""):
        reconstruction(model, images)
