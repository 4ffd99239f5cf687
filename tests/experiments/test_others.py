"""Experiments with source tokens and readers of edits."""

import pytest
import torch
from adapter_parts import shake

import iwm
from iwm.config import VECTOR_SIZE


@pytest.mark.parametrize("conditioning", ["feature", "adaln"])
@pytest.mark.parametrize("fused", [True, False])
def test_shared_source_tokens_are_those_of_the_source_alone(script, tiny_config, conditioning, fused):
    """What the library's own blocks make of them, without mask tokens and without an action."""
    config = tiny_config(layout="append", conditioning=conditioning)
    predictor = script("shared_source").SharedSourcePredictor(config).eval().requires_grad_(False)
    shake(predictor, 0.2)
    for block in predictor.blocks:
        block.attn.fused_attn = fused
    grid, source = (4, 4), torch.randn(1, 16, config.encoder.width)
    actions = torch.randn(2, VECTOR_SIZE[config.actions.encoding])
    x, read = predictor._sequence(source, actions, grid)
    alone = x[:1, : read.start]
    for block in predictor.blocks:
        alone = (
            block(alone, torch.zeros(1, config.predictor.width)) if conditioning == "adaln" else block(alone)
        )
    shared = predictor._run(x, actions)[-1][:, : read.start]
    assert torch.allclose(shared, alone.expand(2, -1, -1), atol=1e-5)
    predicted = predictor(source, actions, grid)
    moved = source + torch.eye(16)[0][:, None]  # One token: all that are predicted see it.
    assert (predictor(moved, actions, grid) - predicted).abs().amax((0, 2)).min() > 1e-3
    assert (predicted[0] - predicted[1]).abs().max() > 1e-2


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
