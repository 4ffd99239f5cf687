"""The solvers: gradients, convergence on known costs, and the space they search."""

import numpy as np
import pytest
import torch

from iwm.actions import Photometry
from iwm.config import STRENGTHS, ActionConfig
from iwm.costs import latent_cost
from iwm.errors import InvalidConfigError
from iwm.planning import SearchSpace, search

STRONG = ActionConfig(encoding="pair", distribution=STRENGTHS["strong"], symmetric=True)
WANTED = Photometry(brightness=0.7, contrast=1.3, saturation=0.8, hue=-0.1, blur=1.2, solarize=True)


@pytest.fixture
def space():
    return SearchSpace(STRONG)


def bowl(space):
    """A cost that is least at `WANTED`, in the units of the cube, one for a wrong switch."""
    goal = torch.tensor(WANTED.params)
    point = space.points(goal)

    def cost(params):
        switched = (params[..., [4, 6]] - goal[[4, 6]]).square().sum(-1)
        blurred = ((params[..., 5] > 0) != (goal[5] > 0)).to(params)
        return (space.points(params) - point).square().sum(-1) + switched + blurred

    return cost


@pytest.mark.parametrize("solver", ["gradient", "cem"])
def test_solvers_find_the_least_cost(space, solver):
    found = search(bowl(space), space, 3, solver=solver, steps=60)
    assert len(found) == 3
    for hypotheses in found:
        best = hypotheses[0].photometry
        torch.testing.assert_close(
            torch.tensor(best.params), torch.tensor(WANTED.params), atol=0.03, rtol=0.03
        )
        assert [h.residual for h in hypotheses] == sorted(h.residual for h in hypotheses)
        switches = {
            (h.photometry.grayscale, h.photometry.blur > 0, h.photometry.solarize) for h in hypotheses
        }
        assert len(switches) == len(hypotheses) >= 4


def test_the_same_seed_finds_the_same(space):
    first, again = (search(bowl(space), space, 1, solver="cem", seed=5) for _ in range(2))
    assert first == again


def test_every_point_is_a_photometry_in_the_trained_range(space):
    points, switches = torch.rand(500, 5), space.switches[torch.arange(500) % 8]
    params = space.params(points, switches)
    for row in params:
        Photometry.from_params(row)
    assert (params >= torch.tensor([0.5, 0.5, 0.6, -0.2, 0, 0, 0]) - 1e-6).all()
    assert (params <= torch.tensor([1.5, 1.5, 1.4, 0.2, 1, 2, 1]) + 1e-6).all()
    gray = switches[:, 0] > 0
    assert (params[gray, 2] == 1).all()
    assert (params[gray, 3] == 0).all()
    assert ((params[:, 5] == 0) == (switches[:, 1] == 0)).all()
    assert (params[params[:, 5] > 0, 5] >= 0.5).all()
    kept = ~gray & (switches[:, 1] > 0)
    torch.testing.assert_close(space.points(params)[kept], points[kept], atol=1e-5, rtol=0)


def test_models_of_jitter_alone_are_searched_for_jitter_alone():
    assert SearchSpace(STRONG, jitter_alone=True).switches.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_are_finite_differences(acting_model, space, symmetric):
    """Of the cost of a double-precision model, by every continuous parameter."""
    config = ActionConfig(encoding="pair", distribution=STRENGTHS["strong"], symmetric=symmetric)
    model = acting_model.double()
    model.config = model.config.replace(actions=config)
    before, after = (model.encode(torch.rand(2, 3, 32, 32)) for _ in range(2))
    cost = latent_cost(model, before, after)
    switches = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).expand(2, -1, -1).double()
    # The cost compares in float32, so the steps are not small.
    points = (0.2 + 0.6 * torch.rand(2, 2, 5)).double().requires_grad_()
    costs = cost(space.params(points, switches))
    assert costs.shape == (2, 2)
    (gradient,) = torch.autograd.grad(costs.sum(), points)
    assert gradient.abs().amin() > 1e-5
    for column in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[column] = 0.01
        with torch.no_grad():
            up, down = (cost(space.params(points + s, switches)) for s in (step, -step))
        torch.testing.assert_close((up - down) / 0.02, gradient[..., column].float(), atol=2e-4, rtol=0.03)


@pytest.mark.parametrize(("solver", "starts"), [("gradient", 20), ("cem", 1)])
def test_no_more_hypotheses_are_tried_at_a_time_than_asked_for(space, solver, starts):
    asked = []

    def cost(params):
        asked.append(params.shape[0] * params.shape[1])
        return bowl(space)(params)

    few = search(cost, space, 2, solver=solver, starts=starts, steps=4, at_a_time=10)
    assert max(asked) == 10
    asked.clear()
    many = search(cost, space, 2, solver=solver, starts=starts, steps=4, at_a_time=100_000)
    assert max(asked) >= 320
    for one, other in zip(few, many, strict=True):
        assert [h.photometry for h in one] == [h.photometry for h in other]


def test_a_seed_of_any_kind_and_length(space):
    found = [search(bowl(space), space, 1, steps=2, seed=seed) for seed in (5, np.int64(5), 5 + 2**63)]
    assert found[0] == found[1] == found[2]


def test_solvers_that_are_not_there(space):
    with pytest.raises(InvalidConfigError, match=r'No solver is called "gradiant"\. Did you mean "gradient"'):
        search(bowl(space), space, 1, solver="gradiant")
    with pytest.raises(InvalidConfigError, match="steps is 0; it must be at least 1"):
        search(bowl(space), space, 1, steps=0)
    with pytest.raises(InvalidConfigError, match=r"seed is 1\.5; it must be a whole number"):
        search(bowl(space), space, 1, seed=1.5)
