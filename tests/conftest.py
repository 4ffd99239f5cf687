"""A fixed seed, a small configuration and a Hub on loopback, shared by all tests."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import Image

from iwm.config import (
    STRENGTHS,
    ActionConfig,
    ActionEncoding,
    Conditioning,
    EncoderConfig,
    Layout,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.device import usable_cpus

# Before the Hub's client is imported, which reads these once. No test reaches a user's cache or token.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="iwm-tests-hub-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
    os.environ.pop(_name, None)

# Tests that run beside each other have a processor each, and so have the processes they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each processor that this process may use, at most eight; each takes about 1 GB of memory."""
    return min(usable_cpus(), 8)


def _tiny_config(
    layout: Layout = "inplace",
    conditioning: Conditioning = "adaln",
    encoding: ActionEncoding = "pair",
    share_source: bool = False,
) -> WorldModelConfig:
    return WorldModelConfig(
        name="tiny",
        encoder=EncoderConfig(width=48, depth=2, heads=4, patch_size=8, image_size=32, mlp_ratio=2.0),
        predictor=PredictorConfig(
            width=32,
            depth=2,
            layout=layout,
            conditioning=conditioning,
            mlp_ratio=2.0,
            share_source=share_source,
        ),
        actions=ActionConfig(encoding=encoding),
        preprocess=PreprocessConfig(size=32, resize=36),
    )


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., WorldModelConfig]:
    """`tiny_config(layout=..., conditioning=..., encoding=..., share_source=...)`: a model of 4 x 4 patches of 8 pixels."""
    return _tiny_config


@pytest.fixture
def acting_model(tiny_config):
    """Random weights, predictions that depend smoothly on the action, the embedded model's range."""
    from iwm.world_model import WorldModel

    strong = ActionConfig(encoding="pair", distribution=STRENGTHS["strong"], symmetric=True)
    torch.manual_seed(0)
    model = WorldModel(tiny_config().replace(actions=strong))
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, std=0.3 if "action" in name or "modulation" in name else 0.15)
    return model.requires_grad_(False)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """The same draws for every test; a command that a test runs in this process leaves its precision."""
    torch.manual_seed(0)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twelve JPEGs of smooth random colours in two subfolders; the path has a space in it."""
    folder = tmp_path_factory.mktemp("my photos")
    for i in range(12):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / f"class{i % 2}" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((50, 40), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """`small_files(limit)`: within it no file grows beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(limit: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def hub(monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub of this test alone, at `HF_ENDPOINT`; the token `hf_good` may do everything."""
    from huggingface_hub import close_session

    with LoopbackHub() as server:
        server.tokens.add("hf_good")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        close_session()
