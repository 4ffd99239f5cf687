"""The loss by hand: targets, rows of tasks, pixels that do not count; drop path; frozen parts."""

import pytest
import torch
import torch.nn.functional as F

from iwm.adapter import Adapter
from iwm.config import AdapterConfig, TaskConfig
from iwm.encoder import set_drop_path
from iwm.evaluation.labelled import IGNORED
from iwm.finetuning.config import AugmentConfig
from iwm.finetuning.task import FinetuneTask
from iwm.world_model import WorldModel

KEYS = [(0, 0), (0, 4), (0, 2), (0, 3)]
CLASSES = [0, 1, 1, 2, 0]


def _labels(count):
    return tuple(str(i) for i in range(count))


@pytest.fixture
def make_task(tiny_config, make_config):
    """A task of one or more classifications (2 and 3 classes, images 0-2 and 3-4), or of segmentation."""

    def make(tasks=("one",), kind="classification", layout="inplace", **changes):
        config = make_config(task=kind, **changes)
        shared = layout == "append, shared source"
        model = WorldModel(tiny_config(layout="append" if shared else layout, share_source=shared))
        described = {
            name: TaskConfig(
                kind=kind, labels=_labels(3 if len(tasks) == 1 else 2 + number), head=config.head
            )
            for number, name in enumerate(tasks)
        }
        own = model.config.predictor if config.tune == "predictor" else None
        adapter = Adapter(
            AdapterConfig(
                tasks=described, space=model.space, predictor=own, output=config.output,
                reads="predictor" if config.uses_predictor else "encoder",
            ),
            model.config,
        )  # fmt: skip
        classes = [] if kind == "segmentation" else CLASSES
        return FinetuneTask(config, model, adapter, classes, [5] if len(tasks) == 1 else [3, 2])

    return make


def _crops(channels=3):
    return torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8)


def test_classification_is_cross_entropy(make_task):
    task, crops = make_task(tune="none", augment=AugmentConfig(label_smoothing=0.2)), _crops()
    loss, scalars = task(crops, 0, KEYS)
    logits = task.adapter(task.model, task.model.encoder(crops / 255.0), (4, 4), "one")
    expected = F.cross_entropy(logits, torch.tensor([0, 0, 1, 2]), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    assert scalars == {}


def test_latents_stand_for_pixels(make_task):
    task, crops = make_task(), _crops()
    with torch.no_grad():
        tokens = task.model.encoder(crops / 255.0)
    torch.testing.assert_close(task(tokens, 0, KEYS)[0], task(crops, 0, KEYS)[0])


def test_tasks_have_their_own_rows_and_losses_are_summed(make_task):
    task, crops = make_task(("one", "two")), _crops()
    task.classes = torch.tensor([0, 1, 1, 2, 0])
    loss, scalars = task(crops, 0, [(0, 0), (0, 4), (0, 2), (0, 3)])
    source = task.model.encoder(crops / 255.0)
    losses = {}
    for name, rows, classes in (("one", [0, 2], [0, 1]), ("two", [1, 3], [0, 2])):
        logits = task.adapter(task.model, source[rows], (4, 4), name)
        losses[name] = F.cross_entropy(logits, torch.tensor(classes))
    torch.testing.assert_close(loss, losses["one"] + losses["two"])
    assert {k: v.item() for k, v in scalars.items()} == {
        f"loss/{name}": pytest.approx(value.item(), rel=1e-5) for name, value in losses.items()
    }


@pytest.mark.parametrize("tune", ["predictor", "encoder"])
def test_pixels_that_do_not_count_have_no_loss(make_task, tune):
    task = make_task(kind="segmentation", head="upernet", tune=tune)
    crops = _crops(4)
    crops[:, 3] = torch.randint(0, 3, (4, 32, 32))
    crops[:2, 3] = IGNORED
    loss, _ = task(crops, 0, KEYS)
    source = task.adapter.encode(task.model.encoder, crops[:, :3] / 255.0, "one")
    logits = task.adapter(task.model, source, (4, 4), "one")
    scores = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(scores, crops[:, 3].long(), ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected)
    crops[:, 3] = IGNORED
    assert task(crops, 0, KEYS)[0].item() == 0.0


@pytest.mark.parametrize("layout", ["inplace", "append", "append, shared source"])
@pytest.mark.parametrize(
    "changes", [{"tune": "predictor"}, {"tune": "predictor", "output": "token"}, {"tune": "all"},
    {"tune": "none"}, {"tune": "encoder", "head": "linear"}, {"kind": "segmentation", "head": "upernet"}],
    ids=str,
)  # fmt: skip
def test_every_trained_parameter_has_a_gradient_and_no_other(make_task, layout, changes):
    task = make_task(layout=layout, **changes)
    crops = _crops(4 if "kind" in changes else 3)
    if "kind" in changes:
        crops[:, 3] %= 3
    task(crops, 0, KEYS)[0].backward()
    held = dict(task.named_parameters()) | {f"model.{n}": p for n, p in task.model.named_parameters()}
    for name, parameter in held.items():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert task.model.encoder.patch_embed.proj.weight.requires_grad == task.config.tunes_encoder


def test_drop_path_replays_by_step_and_leaves_the_generator_alone(make_task):
    task, crops = make_task(drop_path=0.9), _crops()
    set_drop_path(task.adapter.predictor.blocks, 0.9)
    torch.nn.init.normal_(task.adapter.head("one").classify.weight)
    state = torch.get_rng_state()
    losses = [task(crops, step, KEYS)[0].item() for step in (0, 1, 2, 3, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[-1]
    assert len(set(losses)) > 1
    task.model.eval()
    task.adapter.eval()
    with torch.no_grad():
        source = task.model.encoder(crops / 255.0)
        whole = F.cross_entropy(task.adapter(task.model, source, (4, 4), "one"), torch.tensor([0, 0, 1, 2]))
    assert whole.item() not in losses


def test_the_pretraining_action_is_drawn_by_key(make_task):
    task = make_task(action="pretraining")
    one, other = task._action(KEYS, torch.device("cpu")), task._action(KEYS[2:], torch.device("cpu"))
    assert one.shape == (4, 14)
    assert torch.equal(one[2:], other)
    assert len(one.unique(dim=0)) > 1
    assert torch.equal(one[:, :7], torch.zeros(4, 7))  # The source is clean.
    assert make_task()._action(KEYS, torch.device("cpu")) is None


def test_mixing_stays_within_a_task(make_task):
    task = make_task(("one", "two"), augment=AugmentConfig(mixup=5.0))
    crops = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    crops[[1, 3]] = 255
    pixels, targets = task._prepare(crops, 0, KEYS, task._rows(KEYS))
    assert torch.equal(pixels[[0, 2]], torch.zeros(2, 3, 32, 32))
    torch.testing.assert_close(pixels[[1, 3]], torch.ones(2, 3, 32, 32))
    assert [t.shape for t in targets] == [(2, 2), (2, 3)]
    assert 0 < targets[0][0, 0] < 1


def test_the_best_is_part_of_the_state(make_task):
    task = make_task()
    task.validate = lambda: {"one": 0.5}
    assert task.monitor(_crops(), 4, KEYS) == {"val": 0.5, "best": 0.5}
    best = task.adapter.head("one").classify.weight.detach().clone()
    with torch.no_grad():
        task.adapter.head("one").classify.weight.add_(1.0)
    again = make_task()
    again.load_state_dict(task.state_dict())
    assert (again.best["step"], again.best["score"]) == (4, 0.5)
    with again.at_best():
        assert torch.equal(again.adapter.head("one").classify.weight, best)
    assert torch.equal(again.adapter.head("one").classify.weight, best + 1.0)
    assert not any(name.startswith("encoder") for name in task.state_dict())
