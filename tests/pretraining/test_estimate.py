"""What a run is said to take against what the real task takes."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iwm.config import (
    ActionConfig,
    EncoderConfig,
    PhotometryDistribution,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.errors import InvalidConfigError
from iwm.pretraining import estimate as estimate_module
from iwm.pretraining.config import MaskConfig, PretrainConfig
from iwm.pretraining.estimate import estimate
from iwm.pretraining.masks import draw_masks
from iwm.pretraining.recipes import RECIPES, find_recipe
from iwm.pretraining.task import PretrainTask
from iwm.training.config import OptimConfig
from iwm.training.execution import prefer_plain_attention
from iwm.training.optimizer import make_optimizer

KEYS = [(0, 0), (3, 5)]
LAYOUTS = ["append", "inplace"]


def _config(layout="append", conditioning="feature", share_source=False, **changes):
    """Without blur, whose convolutions are no part of the networks."""
    model = WorldModelConfig(
        encoder=EncoderConfig(width=64, depth=3, heads=2, patch_size=8, image_size=64, mlp_ratio=2.0),
        predictor=PredictorConfig(
            width=48, depth=2, layout=layout, conditioning=conditioning, share_source=share_source
        ),
        actions=ActionConfig(distribution=PhotometryDistribution(blur_probability=0)),
        preprocess=PreprocessConfig(size=64, resize=64),
    )
    return PretrainConfig(model=model, **{"steps": 64, "batch_size": 8, "device": "cpu"} | changes)


def _crops(count=2):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture
def plain_attention():
    """The fused kernel of CPUs is not counted by every PyTorch."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def uncounted(monkeypatch):
    """Memory alone: counting operations takes the time."""
    monkeypatch.setattr(estimate_module, "_flops", lambda call: 1.0)


def _forward_flops(config):
    """Of student, teacher and predictor, an image, averaged over the steps of a real run."""
    task = PretrainTask(config)
    parts = dict.fromkeys(("student", "model.encoder", "model.predictor"), 0.0)
    for step in range(config.steps):
        with FlopCounterMode(display=False) as counter:
            task(_crops(), step, KEYS)
        counts = counter.get_flop_counts()
        for name in parts:
            parts[name] += sum(counts[f"PretrainTask.{name}"].values()) / len(KEYS) / config.steps
    return parts.values()


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("append", {}),
        ("inplace", {"masks": MaskConfig(blocks=1, scale=(0.1, 0.6))}),
        ("append", {"masks": MaskConfig(unmasked=0.3), "seed": 4}),
        ("inplace", {"masks": MaskConfig(unmasked=1.0)}),
        ("inplace", {"freeze_encoder": True}),
    ],
    ids=["append", "inplace", "some unmasked", "unmasked", "frozen"],
)
@pytest.mark.usefixtures("plain_attention")
def test_flops_are_those_of_the_task(monkeypatch, layout, changes):
    monkeypatch.setattr(estimate_module, "_SAMPLED_STEPS", 12)
    config = _config(layout, steps=12, **changes)
    student, teacher, predictor = _forward_flops(config)
    backward = 1 if config.freeze_encoder else 3
    expected = backward * student + teacher + 3 * predictor
    assert estimate(config).flops_per_image == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("layout", "freeze"), [("append", False), ("inplace", False), ("inplace", True)])
@pytest.mark.usefixtures("plain_attention")
def test_forward_and_backward_are_about_three_times_forward(monkeypatch, layout, freeze):
    monkeypatch.setattr(estimate_module, "_SAMPLED_STEPS", 6)
    config = _config(layout, freeze_encoder=freeze)
    task, total = PretrainTask(config), 0.0
    for step in range(6):
        with FlopCounterMode(display=False) as counter:
            task(_crops(), step, KEYS)[0].backward()
        total += counter.get_total_flops() / len(KEYS) / 6
    assert estimate(config).flops_per_image == pytest.approx(total, rel=0.06)


def test_flops_of_the_teacher_by_hand():
    """A world model that is next to nothing, all patches: 3 + 1 passes of the encoder."""
    config = _config("inplace", "none", masks=MaskConfig(unmasked=1.0))
    config = config.replace(model=config.model.replace(predictor=PredictorConfig(width=8, depth=1)))
    n, d = 64, 64
    block = 2 * n * d * 3 * d + 2 * 2 * n * n * d + 2 * n * d * d + 2 * 2 * n * d * 2 * d
    expected = 4 * (3 * block + 2 * n * 3 * 8 * 8 * d)
    assert estimate(config).flops_per_image == pytest.approx(expected, rel=0.05)
    assert estimate(config).predictor_share < 0.06


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("plain_attention")
def test_the_predictors_share_is_that_of_a_whole_image(layout):
    config = _config(layout)
    task = PretrainTask(config)
    images, action = torch.rand(1, 3, 64, 64), task.model.encode_photometry(torch.ones(1, 2, 7))
    with FlopCounterMode(display=False) as counter:
        tokens = task.model.encoder(images)
    encoder = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        task.model.predictor(tokens, action, (8, 8))
    assert estimate(config).predictor_share == pytest.approx(counter.get_total_flops() / encoder, rel=1e-6)


@pytest.mark.parametrize("unmasked", [0.0, 0.3, 1.0])
def test_the_visible_share_is_that_of_the_drawn_masks(unmasked):
    config = _config(masks=MaskConfig(unmasked=unmasked), seed=7)
    shares = []
    for step in range(64):
        masks = draw_masks(config.masks, (8, 8), seed=7, step=step, keys=KEYS)
        shares.append(1.0 if masks is None else masks[0].shape[1] / 64)
    assert estimate(config).visible == pytest.approx(sum(shares) / 64)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_parameters_and_bytes_are_those_of_the_built_run_after_a_step(positions, freeze):
    config = _config("inplace", "adaln", freeze_encoder=freeze)
    encoder = replace(config.model.encoder, positions=positions)
    config = config.replace(model=config.model.replace(encoder=encoder))
    task = PretrainTask(config)
    optimizer = make_optimizer(task.trained(), OptimConfig())
    task(_crops(), 0, KEYS)[0].backward()
    optimizer.step()
    e = estimate(config)
    assert e.encoder == sum(p.numel() for p in task.student.parameters())
    assert e.predictor == sum(p.numel() for p in task.model.predictor.parameters())
    held = [*task.parameters()] + [p.grad for p in task.parameters() if p.grad is not None]
    held = [*held, *(v for state in optimizer.state.values() for v in state.values() if v.ndim)]
    assert e.weights_bytes == sum(tensor.nbytes for tensor in held)


def _kept_bytes(config, step):
    """What autograd keeps of one batch, without weights and their copies in half the bytes."""
    task, kept = PretrainTask(config), {}
    if config.device == "cpu":
        prefer_plain_attention(task)

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    half = config.precision == "bf16"
    saving = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, enabled=half):
        task(_crops(config.batch_size), step, [(0, i) for i in range(config.batch_size)])
    weights = {p.untyped_storage().data_ptr() for p in task.parameters()}
    copies = sum(p.nbytes // 2 for p in task.parameters() if p.requires_grad and p.ndim > 1) if half else 0
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights) - copies


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("layout", "conditioning", "changes"),
    [
        ("append", "feature", {}),
        ("inplace", "adaln", {"masks": MaskConfig(unmasked=0.2)}),
        ("inplace", "sequence", {}),
        ("append", "none", {"freeze_encoder": True}),
        ("append", "adaln", {"precision": "float32"}),
        ("append", "adaln", {"share_source": True}),
        ("append", "adaln", {"share_source": True, "masks": MaskConfig(unmasked=0.2)}),
        ("append", "feature", {"masks": MaskConfig(unmasked=0.2)}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("uncounted")
def test_activations_are_those_that_autograd_keeps(monkeypatch, device, layout, conditioning, changes):
    """On a GPU attention is fused; what is kept of it is the same on a CPU."""
    config = _config(layout, conditioning, batch_size=4, device=device, **changes)
    model = config.model.replace(
        encoder=replace(config.model.encoder, depth=8, heads=8, mlp_ratio=3.0),
        predictor=replace(config.model.predictor, depth=8),
    )
    config = config.replace(model=model)

    def visible(step):
        masks = draw_masks(config.masks, (8, 8), seed=config.seed, step=step, keys=KEYS)
        return 64 if masks is None else masks[0].shape[1]

    measured = _kept_bytes(config, max(range(64), key=visible))
    assert 0.87 < estimate(config).activation_bytes / measured < 1.0


@pytest.mark.usefixtures("uncounted")
def test_recomputed_blocks_keep_their_inputs_and_one_block_at_a_time():
    changes = {"masks": MaskConfig(unmasked=1.0), "batch_size": 2, "freeze_encoder": True}
    kept, recomputed = (
        estimate(_config("inplace", activation_checkpointing=on, **changes)).activation_bytes
        for on in (False, True)
    )
    # Two images, blocks of 64 tokens: 48 features, MLPs of four times as many, bf16; two attention matrices.
    block = 2 * 64 * 48 * (8 + (6 + 2 * 4) * 2) + 2 * 2 * 2 * 64 * 64
    assert kept == 2 * block
    assert recomputed == 2 * (2 * 64 * 48 * 4) + block


@pytest.mark.usefixtures("uncounted")
def test_activations_shrink_with_processes_and_pieces():
    whole = estimate(_config(batch_size=64)).activation_bytes
    assert estimate(_config(batch_size=64), processes=8).activation_bytes == whole / 8
    assert estimate(_config(batch_size=64, accumulate=4), processes=2).activation_bytes == whole / 8
    assert estimate(_config(batch_size=64, freeze_encoder=True)).activation_bytes < whole
    with pytest.raises(InvalidConfigError, match="cannot be shared evenly by 3 processes"):
        estimate(_config(batch_size=64), processes=3)
    for changes in ({"processes": 8}, {}):
        assert estimate(_config(), **changes).weights_bytes == estimate(_config()).weights_bytes


def test_pace_is_all_images_over_the_time():
    e = estimate(_config(steps=9000, batch_size=8))
    assert (e.steps, e.images) == (9000, 72_000)
    assert e.pace(1.0) == 20.0
    assert e.pace(10.0) == 2.0
    assert e.pace(0.5) == 40.0


def test_the_largest_recipe_is_worked_out_without_building_it():
    assert max(find_recipe(name).model.parameters for name in RECIPES) > 4e8
    torch.manual_seed(5)
    before = torch.get_rng_state()
    e = estimate(find_recipe("iwm-equi-36-512"), processes=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert (round(e.encoder / 1e6), round(e.predictor / 1e6)) == (303, 115)
    # 16 bytes a trained parameter and 4 of the teacher's.
    assert e.weights_bytes / 2**30 == pytest.approx((16 * 418.4e6 + 4 * 303.1e6) / 2**30, rel=1e-3)
