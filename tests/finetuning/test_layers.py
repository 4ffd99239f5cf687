"""Learning rates of layers: MAE's numbering, shares of the parts, what reaches the optimiser."""

import pytest
import torch

from iwm.finetuning.folders import read_task
from iwm.finetuning.layers import learning_shares
from iwm.finetuning.run import make_adapter
from iwm.finetuning.task import FinetuneTask
from iwm.training.optimizer import set_schedule
from iwm.world_model import WorldModel


@pytest.fixture
def shares(tiny_config, colours, make_config):
    """The share of every named parameter, of a model of 2 + 2 blocks."""

    def of(**changes):
        config = make_config(**changes)
        model = WorldModel(tiny_config())
        adapter = make_adapter(config, model, [read_task(f"colours={colours}")])
        encoder = model.encoder if config.tunes_encoder else None
        predictor = model.predictor if config.tune == "all" else None
        names = {id(p): f"encoder.{n}" for n, p in model.encoder.named_parameters()}
        names |= {id(p): f"predictor.{n}" for n, p in model.predictor.named_parameters()}
        names |= {id(p): n for n, p in adapter.named_parameters()}
        found = learning_shares(config, adapter, encoder, predictor)
        assert len({id(p) for p, _ in found}) == len(found)
        return {names[id(p)]: share for p, share in found}

    return of


def _mae(name, depth, decay):
    """As `param_groups_lrd` of MAE's code numbers the layers of a ViT."""
    if name.startswith("encoder.patch_embed"):
        layer = 0
    elif name.startswith("encoder.blocks"):
        layer = int(name.split(".")[2]) + 1
    else:
        layer = depth + 1
    return decay ** (depth + 1 - layer)


def test_an_encoder_decays_as_in_mae(shares):
    found = shares(tune="encoder", head="linear", layer_decay=0.65)
    assert found == {name: pytest.approx(_mae(name, 2, 0.65)) for name in found}
    assert found["encoder.patch_embed.proj.weight"] == pytest.approx(0.65**3)
    assert not any(name.startswith("predictor") for name in found)


def test_encoder_and_predictor_decay_as_one_stack(shares):
    found = shares(tune="all", layer_decay=0.9, encoder_lr_scale=0.1)
    steps = {
        "encoder.patch_embed.proj.bias": 0.1 * 0.9**5,
        "encoder.blocks.0.norm1.weight": 0.1 * 0.9**4,
        "encoder.blocks.1.norm1.weight": 0.1 * 0.9**3,
        "predictor.project_in.weight": 0.1 * 0.9**2,
        "predictor.blocks.0.modulation.weight": 0.1 * 0.9**2,
        "predictor.blocks.1.modulation.weight": 0.1 * 0.9,
        "predictor.project_out.weight": 0.1,
    }
    assert {name: found[name] for name in steps} == {n: pytest.approx(v) for n, v in steps.items()}
    assert {v for n, v in found.items() if n.startswith("heads")} == {1.0}


@pytest.mark.parametrize(
    ("changes", "share"),
    [({}, 0.1), ({"init": "random"}, 1.0), ({"init": "random", "predictor_lr_scale": 0.5}, 0.5)],
    ids=str,
)
def test_a_pretrained_predictor_has_a_tenth_of_the_rate(shares, changes, share):
    found = shares(tune="predictor", **changes)
    assert {v for n, v in found.items() if n.startswith("predictor.")} == {share}
    assert {v for n, v in found.items() if not n.startswith("predictor.")} == {1.0}


def test_the_optimiser_gets_them(tiny_config, colours, make_config):
    config = make_config(tune="predictor")
    model = WorldModel(tiny_config())
    adapter = make_adapter(config, model, [read_task(f"colours={colours}")])
    task = FinetuneTask(config, model, adapter, [0, 1], [2])
    optimizer = task.make_optimizer(config.optim)
    set_schedule(optimizer, 0.5, 0.25)
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    head = adapter.head("colours")
    assert rates[id(adapter.predictor.project_in.weight)] == (0.05, 0.25)
    assert rates[id(adapter.predictor.project_in.bias)] == (0.05, 0.0)
    assert rates[id(head.classify.weight)] == (0.5, 0.25)
    assert rates[id(head.query_token)] == (0.5, 0.0)
    assert id(adapter.predictor.mask_token) not in rates
    held = torch.tensor([p.numel() for g in optimizer.param_groups for p in g["params"]]).sum()
    assert held == sum(p.numel() for p in task.parameters() if p.requires_grad)
