"""Ridge regression against closed forms, rows that are read by maps that never saw them, and two kinds of rows."""

import torch
from torch.distributions import MultivariateNormal

from iwm.regression import Evidence, Normal, cross_validate, fit_ridges


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


def test_densities_are_those_of_torch_but_for_the_constant():
    mixing = torch.randn(3, 3, dtype=torch.float64)
    rows = torch.randn(4000, 3, dtype=torch.float64) @ mixing + 2.0
    normal = Normal.fit(rows)
    expected = MultivariateNormal(normal.mean, normal.covariance).log_prob(rows)
    found = normal.log_density(rows)
    torch.testing.assert_close(found - found[0], expected - expected[0])
    torch.testing.assert_close(normal.covariance, torch.cov(rows.T), atol=0, rtol=0.01)


def test_evidence_is_the_logarithm_of_how_much_likelier_the_second_kind_is():
    first = MultivariateNormal(torch.zeros(2), torch.eye(2))
    second = MultivariateNormal(torch.ones(2), torch.tensor([[4.0, 1.0], [1.0, 2.0]]))
    evidence = Evidence(*(Normal(m.mean, m.covariance_matrix) for m in (first, second)))
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, -2.0]])
    torch.testing.assert_close(evidence(rows), second.log_prob(rows) - first.log_prob(rows))


def test_a_few_rows_have_a_density():
    rows = torch.randn(3, 8, dtype=torch.float64)
    rows[:, 0] = 1.0
    assert Normal.fit(rows).log_density(rows).isfinite().all()
