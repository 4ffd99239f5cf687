"""Schedules against closed formulas and against torch's own schedulers."""

import math

import pytest
import torch

from iwm.training.config import OptimConfig
from iwm.training.schedules import ema_momentum, learning_rate, weight_decay

STEPS = 60
CONFIG = OptimConfig(lr=1e-3, lr_start=2e-4, warmup=0.2, stretch=1.25)
WARMUP = 12


def _torch_rates(make, count):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=CONFIG.lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warmup_is_torchs_linear_scheduler():
    expected = _torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(
            o, start_factor=CONFIG.lr_start / CONFIG.lr, total_iters=WARMUP
        ),
        WARMUP + 1,
    )
    got = [learning_rate(step, STEPS, CONFIG) for step in range(WARMUP + 1)]
    assert got == pytest.approx(expected, rel=1e-9)
    assert (got[0], got[-1]) == (CONFIG.lr_start, CONFIG.lr)


def test_decay_is_torchs_cosine_over_the_stretched_run():
    period = round(CONFIG.stretch * STEPS) - WARMUP
    expected = _torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=period), STEPS - WARMUP
    )
    got = [learning_rate(step, STEPS, CONFIG) for step in range(WARMUP, STEPS)]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_stretch_keeps_the_last_rate_above_zero(steps):
    config = OptimConfig(warmup=0.1, stretch=1.25)
    warmup = round(0.1 * steps)
    progress = (steps - 1 - warmup) / max(1.25 * steps - warmup, 1)
    last = learning_rate(steps - 1, steps, config)
    assert last == pytest.approx(config.lr * math.cos(math.pi / 2 * progress) ** 2, rel=1e-9)
    assert last > 0.08 * config.lr


def test_without_stretch_the_rate_reaches_zero_at_the_end():
    config = OptimConfig(warmup=0.0, stretch=1.0)
    assert learning_rate(0, 100, config) == config.lr
    assert learning_rate(50, 100, config) == pytest.approx(config.lr / 2)
    assert learning_rate(100, 100, config) == pytest.approx(0.0, abs=1e-18)


def test_a_run_of_warmup_alone_rises_at_every_step():
    config = OptimConfig(lr_start=0.0, warmup=1.0)
    assert [learning_rate(step, 4, config) for step in range(4)] == pytest.approx([0.0, 2.5e-4, 5e-4, 7.5e-4])


def test_weight_decay_is_a_cosine_from_low_to_high_over_the_stretched_run():
    config = OptimConfig(weight_decay=0.04, weight_decay_end=0.4, stretch=1.25)
    got = [weight_decay(step, STEPS, config) for step in range(STEPS)]
    expected = [0.04 + 0.36 * math.sin(math.pi / 2 * step / (1.25 * STEPS)) ** 2 for step in range(STEPS)]
    assert got == pytest.approx(expected, rel=1e-9)
    assert got[0] == pytest.approx(0.04)
    assert got == sorted(got)
    assert weight_decay(75, STEPS, config) == pytest.approx(0.4)


def test_equal_ends_give_constant_weight_decay():
    config = OptimConfig(weight_decay=0.04, weight_decay_end=0.04)
    assert {weight_decay(step, STEPS, config) for step in range(STEPS)} == {0.04}


def test_ema_momentum_is_linear_from_start_to_one():
    got = [ema_momentum(step, STEPS, 0.996) for step in range(STEPS + 1)]
    assert got == pytest.approx(
        torch.linspace(0.996, 1.0, STEPS + 1, dtype=torch.float64).tolist(), rel=1e-12
    )
    assert got[STEPS - 1] < 1.0


def test_a_linear_fall_is_torchs_linear_scheduler():
    config = OptimConfig(lr=CONFIG.lr, warmup=0.0, stretch=1.0, schedule="linear")
    expected = _torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=STEPS),
        STEPS,
    )
    assert [learning_rate(step, STEPS, config) for step in range(STEPS)] == pytest.approx(expected, rel=1e-9)
    warmed = OptimConfig(lr_start=0.0, warmup=0.5, stretch=1.0, schedule="linear")
    rates = [learning_rate(step, 4, warmed) for step in range(5)]
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 5e-4, 0.0])
