"""Undoing edits that nobody wrote down, learned from references that the world model moves."""

import math

import pytest
import torch

import iwm
from iwm.actions import CLEAN, Action
from iwm.edits import in_words
from iwm.errors import InvalidActionError, InvalidDataError
from iwm.undoing import EditReader, undo
from iwm.world_model import WorldModel


@pytest.fixture
def latents(acting_model):
    """Of images that are alike, so that what differs between two views is the edit."""
    images = 0.5 + 0.02 * torch.randn(80, 3, 32, 32)
    return acting_model.encode(images.clamp(0, 1))


def test_what_was_learned_from_some_is_read_from_others(acting_model, latents):
    reader = EditReader.fit(acting_model, latents[:64], actions=8)
    edits = [
        Action(brightness=0.6, solarize=True, grayscale=True),
        Action(brightness=1.4, solarize=True, blur=2.0),
        Action(brightness=1.4, contrast=0.6, grayscale=True),
    ]
    moved = acting_model.apply_action(latents[70], edits)
    dark, blurred, gray = (r.photometry for r in reader.read(acting_model, moved))
    assert dark.brightness < 0.85 < 1.15 < min(blurred.brightness, gray.brightness)
    assert gray.contrast < 0.8 < dark.contrast
    assert (dark.solarize, blurred.solarize, gray.solarize) == (True, True, False)
    assert (dark.grayscale, blurred.grayscale, gray.grayscale) == (True, False, True)
    assert blurred.blur > 0.5 > max(dark.blur, gray.blur)


def test_undoing_comes_nearer_to_what_it_was(acting_model, latents):
    latent, edit = latents[70], Action(brightness=0.6, solarize=True)
    moved = acting_model.apply_action(latent, edit)
    undone, report = acting_model.undo(moved, latents[:64])
    assert report.action == Action.between(report.photometry, CLEAN)
    assert torch.equal(undone.tokens, acting_model.apply_action(moved, report.action).tokens)
    assert report.evidence > 1
    assert report.references == 64
    assert set(report.to_dict()) == {"words", "photometry", "evidence", "chances", "references"}
    assert str(report).splitlines()[1].startswith("evidence")


@pytest.mark.parametrize(("brightness", "words"), [(0.9, "no change"), (0.5, "brightness x0.50, grayscale")])
def test_what_is_within_the_readings_error_is_left_alone(acting_model, latents, brightness, words):
    """A reader that reads the same from every image: half a standard error, and five."""
    weights = torch.zeros(49, 7, dtype=torch.float64)
    weights[-1, 0], weights[-1, 4] = math.log(brightness), float(brightness < 0.6)
    reader = EditReader(weights, torch.zeros(48), torch.ones(48), torch.full((7,), 0.2), 64)
    undone, report = acting_model.undo(latents[0], reader)
    assert in_words(report.photometry) == words
    assert (report.evidence < 1) == (words == "no change") == torch.equal(undone.tokens, latents[0].tokens)


def test_banks_images_and_readers_are_references(acting_model):
    images = list(torch.rand(20, 3, 32, 32))
    by_images = acting_model.undo(images[0], images)[1]
    bank = iwm.Bank.from_images(acting_model, images)
    reader = EditReader.fit(acting_model, bank)
    assert acting_model.undo(images[0], bank)[1] == by_images == undo(acting_model, images[0], reader)[1]


def test_references_and_models_that_do_not_do(acting_model, tiny_config):
    images = torch.rand(3, 3, 32, 32)
    with pytest.raises(InvalidDataError, match="3 references; undoing needs at least 16 untouched"):
        acting_model.undo(images[0], images)
    with pytest.raises(InvalidActionError, match="undo takes one image, not 3; fit an EditReader"):
        acting_model.undo(images, images)
    with pytest.raises(InvalidActionError, match="tiny knows no actions"):
        WorldModel(tiny_config(conditioning="none")).undo(images[0], images)
