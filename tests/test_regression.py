"""Ridge regression against closed forms, and rows that are read by maps that never saw them."""

import torch

from iwm.regression import cross_validate, fit_ridges


def data(rows=60):
    inputs = 3.0 + torch.randn(rows, 4, dtype=torch.float64)
    targets = inputs @ torch.randn(4, 2, dtype=torch.float64) + 5.0
    return inputs, targets


def test_a_linear_map_is_found_and_a_penalty_draws_it_to_the_mean():
    inputs, targets = data()
    small, large = fit_ridges(inputs, targets, [1e-9, 1e12])
    torch.testing.assert_close(small(inputs), targets)
    torch.testing.assert_close(large(inputs), targets.mean(0).expand_as(targets), atol=1e-6, rtol=0)


def test_rows_are_read_by_maps_that_were_not_fitted_to_their_group():
    inputs, targets = data()
    targets += torch.randn_like(targets)
    groups = torch.arange(60) % 3
    penalty, read = cross_validate(inputs, targets, groups, [1.0, 1e6])
    assert penalty == 1.0
    for group in range(3):
        out = groups == group
        (ridge,) = fit_ridges(inputs[~out], targets[~out], [penalty])
        torch.testing.assert_close(read[out], ridge(inputs[out]))
