"""What a model was trained on, and what lies outside of it."""

import torch

from iwm.actions import Action, draw_photometry, stack_actions
from iwm.config import STRENGTHS, ActionConfig
from iwm.ranges import outside, trained_range

STRONG = ActionConfig(encoding="pair", distribution=STRENGTHS["strong"], symmetric=True)


def test_every_draw_lies_inside():
    for strength in STRENGTHS.values():
        config = ActionConfig(distribution=strength, symmetric=True)
        drawn = draw_photometry(strength, seed=0, keys=[(0, i) for i in range(2000)])
        assert outside(torch.stack((drawn, drawn), dim=1), config) is None
        known = trained_range(config)
        assert ((drawn - known.low).amin(0) < 0.1).all()
        assert ((known.high - drawn).amin(0) < 0.1).all()


def test_the_words():
    said = outside(stack_actions([Action(brightness=1.2), Action(hue=0.3)]), STRONG)
    assert said.startswith("hue 0.3 in the target view; trained range: brightness 0.5 to 1.5, ")
    assert said.endswith("hue -0.2 to 0.2, grayscale, blur 0 to 2, solarize")


def test_targets_of_jitter_alone_may_be_undone_but_not_applied():
    config = ActionConfig(symmetric=False)
    action = Action(grayscale=True)
    assert outside(stack_actions([action]), config).startswith("grayscale in the target view")
    assert outside(stack_actions([action.inverse()]), config) is None
