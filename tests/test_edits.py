"""Reading edits: from latents the world model made, and from photographs by the embedded model."""

import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import iwm
from iwm.actions import CLEAN, Action, Photometry
from iwm.edits import confidence, in_words
from iwm.errors import (
    IncompatibleLatentError,
    InvalidActionError,
    InvalidConfigError,
    InvalidImageError,
)
from iwm.latent import Latent
from iwm.world_model import WorldModel

EDITS = [
    Action(brightness=0.7, hue=0.1),
    Action(contrast=1.3, solarize=True),
    Action(brightness=1.2, grayscale=True, blur=1.5),
]


@pytest.fixture(scope="module")
def embedded():
    return iwm.load().requires_grad_(False)


@pytest.fixture(scope="module")
def photo():
    """Coloured shapes on a smooth ground: enough of a scene for the embedded model."""
    rng = np.random.default_rng(3)
    ground = Image.fromarray(rng.integers(40, 200, (5, 5, 3), dtype=np.uint8)).resize((160, 160), 3)
    for _ in range(12):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        size = rng.integers(12, 50, 2).tolist()
        ground.paste(colour, (*rng.integers(0, 130, 2).tolist(), *np.add(size, 60).tolist()))
    return ground


@pytest.mark.parametrize("solver", ["gradient", "cem"])
def test_what_the_world_model_did_is_read(acting_model, solver):
    before = acting_model.encode(torch.rand(3, 3, 32, 32))
    after = acting_model.apply_action(before, EDITS)
    reports = acting_model.infer_actions(before, after, solver=solver, steps=60)
    for report, edit in zip(reports, EDITS, strict=True):
        found, wanted = report.action.target, edit.target
        assert report.action.source == CLEAN
        assert (found.grayscale, found.blur > 0, found.solarize) == (
            wanted.grayscale, wanted.blur > 0, wanted.solarize,
        )  # fmt: skip
        assert found.brightness == pytest.approx(wanted.brightness, abs=0.08)
        assert found.contrast == pytest.approx(wanted.contrast, abs=0.08)
        assert report.residual < 0.02 < report.unmoved
        assert report.same_scene
        assert 0.5 < report.confidence <= 1
        assert report.runner_ups[0].residual >= report.residual


def test_a_pair_is_the_same_alone_and_among_others(acting_model):
    before = acting_model.encode(torch.rand(3, 3, 32, 32))
    after = acting_model.apply_action(before, EDITS)
    many = acting_model.infer_actions(before, after, steps=10)
    action, report = acting_model.infer_action(before[1], after[1], steps=10)
    assert report.action == action
    assert report.residual == pytest.approx(many[1].residual, rel=1e-3)


def test_edits_are_read_inside_inference_mode(acting_model):
    """Of latents, and by a model, that were made there."""
    pixels = torch.rand(1, 3, 32, 32)
    expected = acting_model.infer_action(pixels, 0.7 * pixels, steps=6)[1]
    with torch.inference_mode():
        before, after = acting_model.encode(pixels), acting_model.encode(0.7 * pixels)
        model = WorldModel(acting_model.config)
        model.load_state_dict(acting_model.state_dict())
        for report in (
            acting_model.infer_action(before, after, steps=6)[1],
            model.infer_action(pixels, 0.7 * pixels, steps=6)[1],
        ):
            assert report == expected
    assert acting_model.infer_action(before, after, steps=6)[1] == expected


def test_models_that_only_undo_read_in_that_direction(acting_model):
    config = acting_model.config
    acting_model.config = config.replace(actions=iwm.config.ActionConfig(encoding="pair", symmetric=False))
    after = acting_model.encode(torch.rand(1, 3, 32, 32))
    edit = Action(brightness=0.7, grayscale=True)
    before = acting_model.apply_action(after, edit.inverse())
    action, report = acting_model.infer_action(before, after, steps=60)
    assert action.target.grayscale
    assert action.target.brightness == pytest.approx(0.7, abs=0.05)
    assert report.mismatch < 0.1


def test_nothing_was_done(embedded, photo):
    action, report = embedded.infer_action(photo, photo, steps=2)
    assert action == Action()
    assert (report.residual, report.confidence) == (0.0, 1.0)
    assert str(report).startswith("no change\n")


def test_photographs(embedded, photo):
    edit = Action(brightness=0.65, grayscale=True)
    action, report = embedded.infer_action(photo, edit.apply(photo), starts=1, steps=12)
    assert action.target.grayscale
    assert not action.target.solarize
    assert action.target.brightness == pytest.approx(0.65, abs=0.12)
    assert report.same_scene
    assert str(report).startswith("brightness x0.")
    assert "grayscale" in str(report).splitlines()[0]
    assert json.loads(json.dumps(report.to_dict()))["photometry"]["grayscale"] is True


def test_another_scene_is_said_to_be_one(embedded, photo):
    other = photo.transpose(Image.Transpose.ROTATE_180)
    _, report = embedded.infer_action(photo, other, starts=1, steps=4)
    assert report.mismatch > 0.6
    assert not report.same_scene
    assert "no action explains the second image" in report.notes[0]
    assert "note: no action explains" in str(report)


def test_images_of_another_shape_are_noted(embedded, photo):
    wide = photo.resize((240, 160))
    _, report = embedded.infer_action(photo, wide, starts=1, steps=1)
    assert "the images are 160 x 160 and 240 x 160, of different shape" in report.notes[-1]
    _, report = embedded.infer_action(photo, photo.resize((320, 320)), starts=1, steps=1)
    assert not report.notes


def test_images_that_a_camera_turned_are_of_one_shape(embedded, photo):
    upright = photo.resize((120, 180))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[ExifTags.Base.Orientation] = 6
    _, report = embedded.infer_action(upright, turned, starts=1, steps=1)
    assert not report.notes


def test_words():
    assert (
        in_words(Action(brightness=0.71, hue=0.06, grayscale=True))
        == "brightness x0.71, hue +0.06, grayscale"
    )
    assert (
        in_words(Photometry(contrast=1.2, blur=1.24, solarize=True)) == "contrast x1.20, blur 1.2, solarize"
    )
    assert in_words(Action(saturation=1.01)) == "no change"
    there = Action.between(Photometry(hue=-0.1), Photometry())
    assert in_words(there) == "from (hue -0.10) to (no change)"


def test_confidence_is_a_probability():
    assert confidence([0.1]) == 1.0
    assert confidence([0.1, 0.1]) == pytest.approx(0.5)
    assert confidence([0.1, 0.2]) > 0.99
    assert confidence([0.0, 1.0]) == 1.0


def test_pairs_that_are_none(acting_model, tiny_config, tmp_path):
    z = acting_model.encode(torch.rand(3, 3, 32, 32))
    with pytest.raises(InvalidActionError, match="2 images before and 3 after do not pair up"):
        acting_model.infer_actions(z[:2], z)
    with pytest.raises(InvalidActionError, match=r"3 pairs; write model\.infer_actions"):
        acting_model.infer_action(z, z, steps=1)
    with pytest.raises(InvalidConfigError, match=r'Did you mean "cem"'):
        acting_model.infer_action(z[0], z[1], solver="cemm")
    with pytest.raises(InvalidImageError, match="No such image file"):
        acting_model.infer_action(tmp_path / "a.jpg", z[0])
    with pytest.raises(InvalidImageError, match="are lists, not generators"):
        acting_model.infer_actions((p for p in torch.rand(1, 3, 32, 32)), [torch.rand(3, 32, 32)])
    for slip in ([None], [5], ["a\0b"]):
        with pytest.raises(InvalidImageError):
            acting_model.infer_actions(slip, slip)
    with pytest.raises(InvalidImageError, match="Cannot read a NoneType as an image"):
        acting_model.infer_action(torch.rand(3, 32, 32), None)
    other = Latent(torch.rand(1, 4, 48), (2, 2), acting_model.space)
    with pytest.raises(IncompatibleLatentError, match="encode images of one size"):
        acting_model.infer_action(z[0], other)
    stranger = Latent(z.tokens[:1], z.grid, "stranger")
    with pytest.raises(IncompatibleLatentError, match="another encoder"):
        acting_model.infer_action(z[0], stranger)
    blind = WorldModel(tiny_config(conditioning="none"))
    with pytest.raises(InvalidActionError, match="invariant by construction: it knows no actions"):
        blind.infer_action(torch.rand(3, 32, 32), torch.rand(3, 32, 32))
