"""Experiments with readers of edits."""

import pytest
import torch

import iwm


def test_every_reader_is_asked_for_a_sigma(script, acting_model):
    """Where an edit is read as unblurred, sigma is that of the best hypothesis with a blur."""
    pytest.importorskip("sklearn")
    read_edits = script("read_edits")
    before = acting_model.encode(torch.rand(2, 3, 32, 32))
    after = acting_model.apply_action(before, [iwm.Action(brightness=0.7), iwm.Action(blur=1.5)])
    plain, blurred = acting_model.infer_actions(before, after, steps=20)
    assert plain.action.target.blur == 0 < blurred.action.target.blur
    best = next(h.photometry.blur for h in plain.runner_ups if h.photometry.blur > 0)
    read = torch.stack([read_edits.numbers(plain), read_edits.numbers(blurred)])
    assert read[:, 5].tolist() == pytest.approx([-best, blurred.action.target.blur])
    truth = torch.tensor([iwm.Photometry(blur=v).params for v in (1.5, 1.5)])
    errors, _ = read_edits.score(read, truth)
    assert errors["blur"] < 1.5
