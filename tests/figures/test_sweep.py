"""Sweeps of one parameter, against a loop over the grid."""

import json
import re

import numpy as np
import pytest
import torch

from iwm.actions import Action
from iwm.config import ActionConfig, PhotometryDistribution
from iwm.errors import InvalidActionError, InvalidConfigError, UntrainedActionWarning, WeightsUnavailableError
from iwm.figures.sweep import PARAMETERS, Sweep, check_sweep, sweep
from iwm.figures.sweep_picture import save_sweeps
from iwm.world_model import WorldModel


def make(parameter="hue", asked=(-0.4, 0.0, 0.4), found=(-0.4, 0.1, 0.3), blind=0.0, decoded=None):
    views = [np.full((3, 8, 8), value, dtype=np.float32) for value in (0.2, 0.4, 0.6)]
    return Sweep(
        parameter=parameter, source=views[0], asked=list(asked), found=list(found), distances=[1.0] * 3,
        blind=blind, bank_size=9, true_views=views, found_views=views, decoded=decoded,
    )  # fmt: skip


def test_found_is_what_a_loop_over_the_grid_finds(acting_model, images):
    result = sweep(acting_model, images[0], "brightness", 0.6, 1.4, steps=5, bank_size=20)
    assert result.asked == pytest.approx([0.6, 0.8, 1.0, 1.2, 1.4])
    assert result.bank_size == 21
    pixels = acting_model.preprocess.one(images[0])
    clean = acting_model.encode(pixels)
    grid = [0.6 + 0.04 * i for i in range(21)]
    encoded = [acting_model.encode(Action(brightness=value).apply(pixels)).tokens for value in grid]

    def nearest(tokens):
        distances = [(tokens - view).norm().item() for view in encoded]
        return min(range(21), key=distances.__getitem__), min(distances)

    for place, value in enumerate(result.asked):
        best, distance = nearest(acting_model.apply_action(clean, Action(brightness=value)).tokens)
        assert result.found[place] == pytest.approx(grid[best], abs=1e-6)
        assert result.distances[place] == pytest.approx(distance, rel=1e-4)
        found = Action(brightness=result.found[place]).apply(pixels)
        np.testing.assert_array_equal(result.found_views[place], found.numpy())
        np.testing.assert_array_equal(
            result.true_views[place], Action(brightness=value).apply(pixels).numpy()
        )
    assert result.blind == pytest.approx(1.0)
    assert result.blind_error == pytest.approx(0.24)
    assert result.error == pytest.approx(np.mean([abs(f - a) for f, a in zip(result.found, result.asked, strict=True)]))  # fmt: skip
    assert result.error > 0


def test_a_model_that_acts_perfectly_is_never_off(acting_model, images, monkeypatch):
    pixels = acting_model.preprocess.one(images[1])
    monkeypatch.setattr(
        WorldModel, "apply_action", lambda self, _, actions: self.encode([a.apply(pixels) for a in actions])
    )
    for parameter in PARAMETERS:
        result = sweep(acting_model, images[1], parameter, steps=4, bank_size=10)
        assert result.found == result.asked
        assert (result.error, result.blind_error > 0) == (0.0, True)


def test_the_range_is_that_of_training(acting_model, images):
    ends = {"brightness": (0.5, 1.5), "saturation": (0.6, 1.4), "hue": (-0.2, 0.2), "blur": (0.0, 2.0)}
    for parameter, (low, high) in ends.items():
        result = sweep(acting_model, images[0], parameter, steps=2, bank_size=2)
        assert result.asked == pytest.approx([low, high])
    assert sweep(acting_model, images[0], "hue", stop=0.1, steps=2, bank_size=2).asked == [-0.2, 0.1]


def test_outside_the_range_it_warns(acting_model, images):
    with pytest.warns(UntrainedActionWarning, match=r"hue -0\.4"):
        sweep(acting_model, images[0], "hue", -0.4, 0.0, steps=2, bank_size=2)


def test_hues_go_around():
    assert make(asked=(-0.4, 0.0, 0.4), found=(0.4, 0.1, -0.5)).error == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert make("blur", (0.0, 1.0, 2.0), (0.0, 0.0, 0.5)).error == pytest.approx(2.5 / 3)
    assert make(blind=-0.5).blind_error == pytest.approx((0.1 + 0.5 + 0.1) / 3)


def test_numbers_are_plain_json():
    told = json.loads(json.dumps(make().to_dict()))
    assert told["found"] == [-0.4, 0.1, 0.3]
    assert told["error"] == pytest.approx(0.2 / 3)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("brigthness",), InvalidActionError, 'Did you mean "brightness"'),
        (("grayscale",), InvalidActionError, "on or off and cannot be swept. Choose from: brightness"),
        (("hue", -0.7), InvalidActionError, r"hue is -0\.7; it must be -0\.5 to 0\.5 turns"),
        (("blur", float("nan")), InvalidActionError, "blur is nan"),
        (("hue", 0.2, 0.2), InvalidConfigError, "the first must be the smaller"),
        (("hue", None, None, 1), InvalidConfigError, "at least 2"),
        (("hue", None, None, 7, 6), InvalidConfigError, "at least the 7 steps"),
    ],
)
def test_what_cannot_be_swept(words, error, message):
    with pytest.raises(error, match=message):
        check_sweep(*words)


def test_a_start_beyond_the_trained_end(acting_model, images):
    with pytest.raises(InvalidConfigError, match=r"hue from 0\.4 to 0\.2"):
        sweep(acting_model, images[0], "hue", 0.4)


def test_ends_of_a_parameter_that_was_never_trained(tiny_config, images):
    jitter = ActionConfig(distribution=PhotometryDistribution().without_destructive())
    model = WorldModel(tiny_config().replace(actions=jitter))
    with pytest.raises(InvalidConfigError, match="was not trained on blur; say from where to where"):
        sweep(model, images[0], "blur", 0.0)
    with pytest.warns(UntrainedActionWarning, match="blur"):
        assert sweep(model, images[0], "blur", 0.0, 2.0, steps=3, bank_size=3).asked == [0.0, 1.0, 2.0]


def test_decoding_needs_a_decoder(acting_model, images):
    with pytest.raises(WeightsUnavailableError, match="has no decoder"):
        sweep(acting_model, images[0], "hue", decode=True)


def test_decoded_is_what_the_decoder_makes_of_predictions(acting_model, images, monkeypatch):
    monkeypatch.setattr(WorldModel, "load_decoder", lambda self: None)
    monkeypatch.setattr(WorldModel, "decode", lambda self, latent: latent.tokens[:, :3].expand(-1, 3, 48))
    result = sweep(acting_model, images[0], "hue", steps=3, bank_size=3, decode=True)
    clean = acting_model.encode(images[0])
    expected = [acting_model.apply_action(clean, Action(hue=hue)).tokens[0, :3] for hue in result.asked]
    torch.testing.assert_close(torch.from_numpy(np.stack(result.decoded)), torch.stack(expected))


def test_the_picture_says_what_was_asked_and_found(tmp_path):
    views = [np.zeros((3, 8, 8), dtype=np.float32)] * 3
    save_sweeps([make(), make("contrast", (0.5, 1.0, 1.5), (0.6, 1.0, 1.4))], tmp_path / "a.svg")
    save_sweeps([make(decoded=views)], tmp_path / "b.svg")
    plain, decoded = ((tmp_path / name).read_text(encoding="utf-8") for name in ("a.svg", "b.svg"))
    words = re.findall(r"<!-- (.+?) -->", plain)
    minus, times = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
    hues = [f"{minus}0.40", f"{minus}0.40", "0", "+0.10", "+0.40", "+0.30"]
    factors = [times + value for value in ("0.50", "0.60", "1.00", "1.00", "1.50", "1.40")]
    shown = [word for word in words if word[0] in f"0+{minus}{times}"]
    assert sorted(shown) == sorted(hues + factors)
    assert {"hue", "contrast", "view asked for", "retrieved"} <= set(words)
    assert (plain.count("<image"), decoded.count("<image")) == (12, 9)
    assert ("decoded" in words, "<!-- decoded -->" in decoded) == (False, True)


def test_sweeps_of_different_lengths_do_not_fit(tmp_path):
    for sweeps in ([], [make(), make(asked=(0.1, 0.2), found=(0.1, 0.2))]):
        with pytest.raises(InvalidConfigError, match="as many steps"):
            save_sweeps(sweeps, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
