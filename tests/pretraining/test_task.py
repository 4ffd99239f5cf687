"""The pretraining task against a plain loop over samples."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from iwm.actions import encode_photometry
from iwm.pretraining.config import MaskConfig
from iwm.pretraining.masks import draw_masks
from iwm.pretraining.monitors import monitor
from iwm.pretraining.task import PretrainTask
from iwm.pretraining.views import make_views
from iwm.training.config import OptimConfig
from iwm.training.optimizer import make_optimizer, set_schedule

KEYS = [(0, 3), (0, 1), (1, 2), (4, 9)]
KINDS = [
    {"layout": "append", "conditioning": "feature", "encoding": "difference"},
    {"layout": "inplace", "conditioning": "adaln", "symmetric": True},
    {"layout": "inplace", "conditioning": "none"},
    {"layout": "append", "conditioning": "feature", "share_source": True},
]


def _crops(count=4):
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, size=(32, 32), mode="bilinear") * 255).to(torch.uint8)


@pytest.fixture
def make_task(make_config):
    """A function that builds a task whose teacher differs from its student."""

    def make(**changes):
        torch.manual_seed(0)
        task = PretrainTask(make_config(**changes))
        for parameter in task.model.encoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return task

    return make


@torch.no_grad()
def _loss_by_hand(task, crops, step):
    config = task.config
    grid = (4, 4)
    masks = draw_masks(config.masks, grid, seed=config.seed, step=step, keys=KEYS)
    squares, count = 0.0, 0
    for i, key in enumerate(KEYS):
        views = make_views(crops[i : i + 1], config.model.actions, seed=config.seed, keys=[key])
        action = encode_photometry(views.params, config.model.actions.encoding)
        visible = masked = None
        if masks is not None:
            visible, masked = (part[i : i + 1] for part in masks)
        source = task.student(views.source, visible)
        everywhere = task.model.encoder(views.target)
        if config.model.predictor.layout == "append" and masks is not None:
            predictions = task.model.predictor(source, action, grid, visible, masked)
            targets = torch.stack([everywhere[0, position] for position in masked[0].tolist()])[None]
        else:
            predictions = task.model.predictor(source, action, grid, visible)
            targets = everywhere
        assert predictions.shape == targets.shape
        for prediction, target in zip(predictions[0], targets[0], strict=True):
            squares += float(((prediction - target) ** 2).sum())
            count += target.numel()
    return squares / count


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("unmasked", [0.0, 1.0])
def test_loss_is_the_mean_square_over_samples_one_by_one(make_task, kind, unmasked):
    task = make_task(masks=MaskConfig(unmasked=unmasked), seed=2, **kind)
    for step in (0, 5):
        loss, _ = task(_crops(), step, KEYS)
        assert loss.item() == pytest.approx(_loss_by_hand(task, _crops(), step), rel=1e-5)


@pytest.mark.parametrize("layout", ["append", "inplace"])
def test_loss_sees_masked_positions_only_in_append(make_task, layout):
    task = make_task(layout=layout)
    encoder, visible = task.model.encoder, draw_masks(task.config.masks, (4, 4), seed=0, step=0, keys=KEYS)[0]
    before = task(_crops(), 0, KEYS)[0].item()
    handle = encoder.register_forward_hook(
        lambda module, args, tokens: tokens.scatter(1, visible.unsqueeze(-1).expand(-1, -1, 32), 7.0)
    )
    after = task(_crops(), 0, KEYS)[0].item()
    handle.remove()
    assert (after == before) is (layout == "append")


def test_targets_are_normalised_and_their_spread_is_logged(make_task):
    task = make_task()
    loss, scalars = task(_crops(), 0, KEYS)
    views = make_views(_crops(), task.config.model.actions, seed=0, keys=KEYS)
    targets = task.model.encoder(views.target).detach()
    torch.testing.assert_close(targets.mean(-1), torch.zeros(4, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1, correction=0), torch.ones(4, 16), atol=1e-4, rtol=0)
    centred = targets - targets.mean(0)
    expected = (centred.square().sum(0) / 3).mean().item()
    assert list(scalars) == ["target_variance"]
    assert scalars["target_variance"].item() == pytest.approx(expected, rel=1e-5)
    seen = task.of_step({"loss": 1.0, "target_variance": expected})
    assert seen == {"loss": 1.0, "target_std": pytest.approx(expected**0.5)}
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_gradient_reaches_student_and_predictor_and_never_the_teacher(make_task, kind):
    task = make_task(**kind)
    task(_crops(), 0, KEYS)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in task.model.encoder.parameters())
    trained = [p for module in task.trained() for p in module.parameters()]
    assert {id(p) for p in trained} == {
        id(p) for module in (task.student, task.model.predictor) for p in module.parameters()
    }
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_student_starts_as_the_teacher_in_storage_of_its_own(make_config):
    task = PretrainTask(make_config())
    for teacher, student in zip(task.model.encoder.parameters(), task.student.parameters(), strict=True):
        assert torch.equal(teacher, student)
        assert teacher.data_ptr() != student.data_ptr()


@pytest.mark.parametrize("step", [0, 3, 9])
def test_teacher_moves_by_the_ema_formula(make_task, step):
    task = make_task(ema=0.9, steps=10)
    teacher = [p.detach().clone().double() for p in task.model.encoder.parameters()]
    student = [p.detach().clone() for p in task.student.parameters()]
    predictor = [p.detach().clone() for p in task.model.predictor.parameters()]
    momentum = 0.9 + 0.1 * step / 10
    assert task.after_step(step) == {"ema": pytest.approx(momentum)}
    for moved, old, new in zip(task.model.encoder.parameters(), teacher, student, strict=True):
        torch.testing.assert_close(
            moved.double(), momentum * old + (1 - momentum) * new.double(), rtol=0, atol=1e-7
        )
    kept = [*task.student.parameters(), *task.model.predictor.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, [*student, *predictor], strict=True))
    assert all(p.grad is None and p.is_leaf for p in task.model.encoder.parameters())


@pytest.mark.parametrize("kind", KINDS[:2], ids=["append", "inplace"])
def test_a_few_steps_lower_the_loss(make_config, kind):
    torch.manual_seed(0)
    task = PretrainTask(make_config(steps=30, **kind))
    optimizer = make_optimizer(task.trained(), OptimConfig())
    losses = []
    for step in range(30):
        set_schedule(optimizer, 3e-3, 0.04)
        loss, _ = task(_crops(), 0, KEYS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_all_draws_depend_on_seed_step_and_keys(make_task):
    loss = make_task()(_crops(), 0, KEYS)[0].item()
    assert make_task()(_crops(), 0, KEYS)[0].item() == loss
    for changed in (
        make_task(seed=1)(_crops(), 0, KEYS),
        make_task()(_crops(), 1, KEYS),
        make_task()(_crops(), 0, [(epoch + 1, index) for epoch, index in KEYS]),
    ):
        assert changed[0].item() != loss


def test_under_autocast_the_loss_stays_float32_and_close(make_task):
    task = make_task(layout="append", conditioning="feature")
    exact = task(_crops(), 0, KEYS)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss, scalars = task(_crops(), 0, KEYS)
    assert loss.dtype == scalars["target_variance"].dtype == torch.float32
    assert loss.item() != exact
    assert loss.item() == pytest.approx(exact, rel=0.02)


def test_state_restores_everything(make_task, make_config):
    trained = make_task()
    torch.manual_seed(5)
    other = PretrainTask(make_config())
    expected = trained(_crops(), 0, KEYS)[0].item()
    assert other(_crops(), 0, KEYS)[0].item() != expected
    other.load_state_dict(trained.state_dict())
    assert other(_crops(), 0, KEYS)[0].item() == expected


def test_a_frozen_encoder_gets_no_gradient_and_stays_with_its_teacher(make_config):
    task = PretrainTask(make_config(freeze_encoder=True))
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    assert task.trained() == [task.model.predictor]
    optimizer = make_optimizer(task.trained(), OptimConfig(weight_decay=0.5))
    task(_crops(), 0, KEYS)[0].backward()
    for module in (task.student, task.model.encoder):
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    set_schedule(optimizer, 0.01, 0.5)
    optimizer.step()
    assert task.after_step(0) == {"ema": 1.0}
    moved = {name for name, tensor in task.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("model.predictor.")}


def test_without_freezing_the_student_is_trained_too(make_config):
    task = PretrainTask(make_config())
    assert task.trained() == [task.student, task.model.predictor]
    assert all(p.requires_grad for p in task.student.parameters())


@pytest.mark.parametrize(("symmetric", "step"), [(False, 3), (True, 0)])
def test_the_monitor_sees_the_target_views_of_the_batch(make_task, symmetric, step):
    task = make_task(symmetric=symmetric, seed=3, clean=0.4)
    views = make_views(_crops(), task.config.model.actions, seed=3, keys=KEYS)
    assert task.monitor(_crops(), step, KEYS) == monitor(task.model, _crops(), views.target)
    assert all(p.grad is None for p in task.parameters())


@pytest.mark.parametrize("layout", ["append", "inplace"])
def test_tokens_that_tell_their_position_alone_are_a_collapse(make_task, layout):
    """The masked positions, in which images differ, must not count as a difference between images."""
    task = make_task(layout=layout, optim=OptimConfig(warmup=0.0))
    for encoder in (task.student, task.model.encoder):
        torch.nn.init.zeros_(encoder.patch_embed.proj.weight)
    _, scalars = task(_crops(), 0, KEYS)
    seen = task.of_step({"step": 5, "target_variance": scalars["target_variance"].item()})
    assert seen["target_std"] < 1e-6
    assert not task.sound(seen)
    assert any(task.collapse(seen) for _ in range(40))


def test_a_collapse_needs_a_low_spread_for_some_steps_after_the_warmup(make_config):
    config = make_config(steps=100, collapse_below=0.02, optim=OptimConfig(warmup=0.2))

    def first(spreads):
        task = PretrainTask(config)
        seen = (i for i, s in enumerate(spreads) if task.collapse({"step": i, "target_std": s}))
        return next(seen, None)

    assert first([0.0] * 100) == 37  # 0.9 to the power of 38 is the first below 0.02.
    assert first([0.021] * 100) is None
    assert first([0.5] * 10 + [0.0] * 90) == 43  # 0.67 falls to 0.02 in 34 steps.
    assert first(([0.0] * 10 + [0.5]) * 9) is None
    late = PretrainTask(config.replace(optim=OptimConfig(warmup=0.9)))
    assert [bool(late.collapse({"step": i, "target_std": 0.0})) for i in (88, 89)] == [False, False]
    for _ in range(40):
        late.collapse({"step": 0, "target_std": 0.0})
    assert [bool(late.collapse({"step": i, "target_std": 0.0})) for i in (89, 90)] == [False, True]


def test_the_spread_is_that_of_the_batch_in_pieces_too(make_task):
    """Of all ways to take two images, the mean is that of all four, so that no number of pieces is favoured."""
    task = make_task()
    whole = task(_crops(), 0, KEYS)[1]["target_variance"]
    pairs = list(itertools.combinations(range(4), 2))
    pieces = [task(_crops()[list(p)], 0, [KEYS[i] for i in p])[1]["target_variance"] for p in pairs]
    assert torch.stack(pieces).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_one_image_says_nothing_of_a_collapse(make_task):
    task = make_task()
    for step in range(100):
        loss, scalars = task(_crops()[:1], step, KEYS[:1])
        assert scalars == {}
        assert task.collapse({"step": 10**9}) is None
    assert loss.isfinite()
