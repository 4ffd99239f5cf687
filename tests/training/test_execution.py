import functools

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import nn

from iwm.blocks import PredictorBlock
from iwm.config import EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.encoder import set_drop_path
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.task import PretrainTask
from iwm.training import execution
from iwm.training.execution import autocast, precision_on, prefer_plain_attention, prepare_blocks

KEYS = [(0, index) for index in range(4)]


def _task(conditioning):
    """`shared ...` is the `append` layout whose source tokens are kept apart."""
    shared = conditioning.startswith("shared ")
    layout = "inplace" if conditioning == "adaln" else "append"
    conditioning = conditioning.removeprefix("shared ")
    model = WorldModelConfig(
        encoder=EncoderConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32),
        predictor=PredictorConfig(
            width=32, depth=2, layout=layout, conditioning=conditioning, share_source=shared
        ),
        preprocess=PreprocessConfig(size=32, resize=32),
    )
    torch.manual_seed(0)
    return PretrainTask(PretrainConfig(model=model, batch_size=len(KEYS)))


def _losses_and_gradients(task):
    crops = torch.randint(0, 256, (len(KEYS), 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(1))
    losses = []
    for step in range(3):  # Three numbers of visible patches.
        loss, _ = task(crops, step, KEYS)
        loss.backward()
        losses.append(loss.item())
    return losses, {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def _kept_bytes(task):
    """Of the tensors that the forward pass keeps for the backward pass, weights apart."""
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    crops = torch.zeros(len(KEYS), 3, 32, 32, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = task(crops, 0, KEYS)
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.fixture
def captured(monkeypatch):
    """Graphs that `torch.compile` makes; they are run as they are: machine code is PyTorch's to test."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.compiler.reset()
    return graphs


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # While PyTorch traces.
@pytest.mark.parametrize("conditioning", ["feature", "adaln", "shared adaln", "shared feature"])
@pytest.mark.parametrize(("compiled", "recomputed"), [(False, True), (True, False), (True, True)])
def test_the_way_of_running_blocks_changes_no_result(captured, conditioning, compiled, recomputed):
    expected_losses, expected = _losses_and_gradients(_task(conditioning))
    task = _task(conditioning)
    names = list(task.state_dict())
    prepare_blocks(task, compiled=compiled, recomputed=recomputed)
    losses, gradients = _losses_and_gradients(task)
    assert bool(captured) == compiled
    # One graph for blocks with, one for blocks without gradients, some for the first sizes.
    assert len(captured) <= 12
    assert list(task.state_dict()) == names
    torch.testing.assert_close(losses, expected_losses)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # While PyTorch traces.
def test_blocks_of_every_drop_path_are_compiled_together(captured):
    blocks = nn.Sequential(*(PredictorBlock(8, 2, 4.0, conditioned=False) for _ in range(12)))
    set_drop_path(blocks, 0.5)
    prepare_blocks(blocks, compiled=True, recomputed=False)
    blocks.train()(torch.randn(4, 5, 8)).sum().backward()
    assert len(captured) == 2  # The first block drops nothing.


@pytest.mark.parametrize("conditioning", ["adaln", "shared adaln", "shared feature"])
def test_recomputed_blocks_keep_their_input_alone(conditioning):
    whole, least = _task(conditioning), _task(conditioning)
    prepare_blocks(least, compiled=False, recomputed=True)
    assert _kept_bytes(least) < 0.35 * _kept_bytes(whole)


def test_plain_attention_is_the_same_function():
    torch.manual_seed(0)
    attention = Attention(16, num_heads=2)
    tokens = torch.randn(2, 5, 16)
    attention.fused_attn = True
    fused = attention(tokens)
    prefer_plain_attention(nn.Sequential(attention))
    assert attention.fused_attn is False
    torch.testing.assert_close(attention(tokens), fused)


@pytest.mark.parametrize(
    ("times", "dtype"), [(0.5, torch.bfloat16), (3, torch.bfloat16), (60, torch.float32)]
)
def test_bfloat16_that_a_processor_emulates_gives_way_to_float32(monkeypatch, caplog, times, dtype):
    def seconds(measured):
        asked.append(measured)
        return [1e-4, 1e-4 * times]

    asked = []
    monkeypatch.setattr(execution, "_seconds_of_products", seconds)
    monkeypatch.setattr(execution, "_emulates_bf16", functools.cache(execution._emulates_bf16.__wrapped__))
    for _ in range(2):
        with autocast(torch.device("cpu"), "bf16"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert asked == [(torch.float32, torch.bfloat16)]  # Once a process.
    said = [record.getMessage() for record in caplog.records]
    assert said == [m for m in said if "60 times as long" in m and "--precision float32" in m]
    assert len(said) == (dtype == torch.float32)


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "float32")])
def test_gpus_without_bfloat16_compute_in_float32(monkeypatch, caplog, supported, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    plain = functools.cache(execution._gpu_emulates_bf16.__wrapped__)
    monkeypatch.setattr(execution, "_gpu_emulates_bf16", plain)
    cuda = torch.device("cuda")
    assert [precision_on(cuda, "bf16") for _ in range(2)] == [precision] * 2
    assert precision_on(cuda, "float32") == "float32"
    assert len(caplog.records) == (not supported)


def test_nothing_is_measured_where_bfloat16_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(execution, "_emulates_bf16", lambda: pytest.fail("measured"))
    with autocast(torch.device("cpu"), "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_products_are_timed_on_one_thread_in_the_precision_asked_for(monkeypatch):
    """Whatever autocast, default device and number of threads the program has set."""
    seen, multiply = [], torch.mm

    def mm(a, b):
        out = multiply(a, b)
        seen.append((torch.get_num_threads(), str(out.device), out.dtype))
        return out

    monkeypatch.setattr(torch, "mm", mm)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            seconds = execution._seconds_of_products((torch.float32, torch.bfloat16))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [(1, "cpu", torch.float32), (1, "cpu", torch.bfloat16)] * 6
    assert all(0 < value < 10 for value in seconds)
