"""Learning rate, weight decay and EMA momentum as pure functions of the step.

The learning rate rises linearly and then follows a cosine, or a line, that is stretched, so that
it has not reached zero when training ends; weight decay follows a cosine from low to high
[arXiv 2403.00504, App. A.1]; the teacher's momentum rises linearly, as in I-JEPA,
and to 1 at the last step, where theirs is stretched too.
"""

import math

from iwm.training.config import OptimConfig


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of `step` in 0 .. steps - 1."""
    total = config.stretch * steps
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    if config.schedule == "linear":
        return config.lr * max(1.0 - progress, 0.0)
    return 0.5 * config.lr * (1.0 + math.cos(math.pi * progress))


def weight_decay(step: int, steps: int, config: OptimConfig) -> float:
    """Weight decay of `step`, stretched like the learning rate."""
    progress = step / (config.stretch * steps)
    span = config.weight_decay_end - config.weight_decay
    return config.weight_decay_end - 0.5 * span * (1.0 + math.cos(math.pi * progress))


def ema_momentum(step: int, steps: int, start: float, end: float = 1.0) -> float:
    """Share of the teacher that an update keeps, stretched over exactly `steps`."""
    return start + (end - start) * step / steps
