"""Undoing edits that nobody wrote down, learned from references that the world model moves."""

import math

import pytest
import torch

import iwm
from iwm.actions import CLEAN, Action, stack_actions
from iwm.edits import in_words
from iwm.errors import IncompatibleLatentError, InvalidActionError, InvalidDataError
from iwm.latent import Latent
from iwm.regression import Evidence, Normal, Ridge
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
    reports = reader.read(acting_model, moved)
    dark, blurred, gray = (report.photometry for report in reports)
    assert dark.brightness < 0.85 < 1.15 < min(blurred.brightness, gray.brightness)
    assert gray.contrast < 0.8 < dark.contrast
    assert (dark.solarize, blurred.solarize, gray.solarize) == (True, True, False)
    assert blurred.blur > 0.5 > max(dark.blur, gray.blur)
    chances = [report.chances["grayscale"] for report in reports]
    assert min(chances[0], chances[2]) > 0.3 > chances[1]


def test_undoing_comes_nearer_to_what_it_was(acting_model, latents):
    latent, edit = latents[70], Action(brightness=0.6, solarize=True)
    moved = acting_model.apply_action(latent, edit)
    undone, report = acting_model.undo(moved, latents[:64])
    assert difference(undone, latent) < difference(moved, latent)
    assert report.action == Action.between(report.photometry, CLEAN)
    assert torch.equal(undone.tokens, acting_model.apply_action(moved, report.action).tokens)
    assert report.evidence > report.cutoff
    assert report.references == 64
    assert set(report.to_dict()) == {"words", "photometry", "evidence", "cutoff", "chances", "references"}
    assert str(report).splitlines()[1].startswith("evidence")


class Shifting(WorldModel):
    """A world model whose actions have exact inverses: each parameter moves all latents its own way."""

    def apply_action(self, latent, action):
        actions = [action] * len(latent) if isinstance(action, Action) else action
        source, target = stack_actions(actions).unbind(1)
        ways = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
        moves = torch.cat(((target[:, :3] / source[:, :3]).log(), (target - source)[:, 3:]), dim=1) @ ways
        return Latent(latent.tokens + 0.2 * moves.unsqueeze(1), latent.grid, latent.space)


def test_what_has_an_inverse_comes_back(acting_model, latents):
    model = Shifting(acting_model.config)
    own = Latent(latents.tokens, latents.grid, model.space)
    reader = EditReader.fit(model, own[:64])
    for edit in (
        Action(brightness=0.6, solarize=True),
        Action(contrast=1.4, grayscale=True),
        Action(hue=-0.2, solarize=True),
    ):
        moved = model.apply_action(own[70], edit)
        undone, _ = model.undo(moved, reader)
        assert difference(undone, own[70]) < 0.1 * difference(moved, own[70])


def difference(found, truth):
    return float((found.tokens - truth.tokens).square().mean())


@pytest.mark.parametrize(("brightness", "words"), [(0.9, "no change"), (0.5, "brightness x0.50, grayscale")])
def test_what_is_within_the_readings_error_is_left_alone(acting_model, latents, brightness, words):
    """A reader that reads the same from every image: half a standard error, and five."""
    reader = fixed(acting_model, [math.log(brightness), 0, 0, 0, float(brightness < 0.6), 0, 0, 0])
    undone, report = acting_model.undo(latents[0], reader)
    assert in_words(report.photometry) == words
    assert (report.evidence < 1) == (words == "no change") == torch.equal(undone.tokens, latents[0].tokens)


def fixed(model, read, cutoff=1.0):
    """A reader that reads the same from every image."""

    def constant(width):
        weights = torch.zeros(width + 1, 8, dtype=torch.float64)
        weights[-1] = torch.tensor(read)
        return Ridge(weights, torch.zeros(width), torch.ones(width))

    zero, one = torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    evidence = Evidence(Normal(zero, 0.04 * one), Normal(zero, one))
    return EditReader(constant(48), constant(96), evidence, cutoff, 64, model.space)


def test_untouched_photographs_are_left_alone(acting_model):
    """Images of many kinds, so that an edit is hard to tell from a kind."""
    pixels = torch.rand(600, 3, 1, 1) * 0.8 + 0.2 * torch.rand(600, 3, 32, 32)
    latents = acting_model.encode(pixels)
    reader = EditReader.fit(acting_model, latents[:200])
    again = EditReader.fit(acting_model, latents[:200])
    assert again.cutoff == reader.cutoff
    called = [not r.photometry.is_clean for r in reader.read(acting_model, latents[200:])]
    assert 0.01 < sum(called) / 400 < 0.1
    reports = reader.read(acting_model, latents[200:])
    kept = next(i for i, r in enumerate(reports) if r.photometry.is_clean)
    undone, _ = acting_model.undo(latents[200 + kept], reader)
    assert torch.equal(undone.tokens, latents[200 + kept].tokens)


def test_the_chance_of_a_blur_is_no_sigma(acting_model, latents):
    reader = fixed(acting_model, [0, 0, 0, 0, 0, 1.3, 0, 0.6])
    (report,) = reader.read(acting_model, latents[0])
    assert report.chances == {"grayscale": 0.0, "blur": 0.6, "solarize": 0.0}
    assert report.photometry.blur == pytest.approx(1.3)
    (report,) = fixed(acting_model, [0, 0, 0, 0, 0, 1.3, 0, 0.4]).read(acting_model, latents[0])
    assert (report.chances["blur"], report.photometry.blur) == (0.4, 0.0)
    reader = EditReader.fit(acting_model, latents[:64], actions=8)
    moved = acting_model.apply_action(latents[70], [Action(blur=1.0), Action(blur=1.8), Action(hue=0.1)])
    weak, strong, none = (r.chances["blur"] for r in reader.read(acting_model, moved))
    assert strong > 0.5
    assert strong > weak > 0.3 > none


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
    with pytest.raises(InvalidDataError, match=r"^1 reference; undoing"):
        acting_model.undo(images[0], images[:1])
    with pytest.raises(
        InvalidDataError, match="undo needs references: pass some hundred untouched photographs"
    ):
        acting_model.undo(images[0])
    with pytest.raises(InvalidActionError, match="undo takes one image, not 3; fit an EditReader"):
        acting_model.undo(images, images)
    with pytest.raises(InvalidActionError, match="tiny knows no actions"):
        WorldModel(tiny_config(conditioning="none")).undo(images[0], images)


def test_a_reader_belongs_to_the_model_it_was_learned_with(acting_model):
    other = WorldModel(acting_model.config)
    reader = fixed(acting_model, [0.0] * 8)
    with pytest.raises(
        IncompatibleLatentError, match=r"learned with another model .* learn again: EditReader"
    ):
        other.undo(torch.rand(3, 32, 32), reader)
    with pytest.raises(IncompatibleLatentError, match="learned with another model"):
        reader.read(other, other.encode(torch.rand(3, 32, 32)))
    with pytest.raises(IncompatibleLatentError, match="made by another encoder"):
        reader.read(acting_model, other.encode(torch.rand(3, 32, 32)))
