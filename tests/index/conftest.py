"""A small model of random weights, photographs, and libraries of them."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import iwm
from iwm.world_model import WorldModel

# Without the extra `retrieval` there is nothing here to test.
collect_ignore_glob = [] if importlib.util.find_spec("lancedb") else ["test_*.py"]


def make_model(config, seed=0):
    """Weights that tell photographs apart."""
    torch.manual_seed(seed)
    model = WorldModel(config)
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, std=0.1 if name.startswith("encoder") else 0.3)
    return model


@pytest.fixture
def model(tiny_config):
    return make_model(tiny_config())


@pytest.fixture
def other_model(tiny_config):
    return make_model(dataclasses.replace(tiny_config(), name="another"), seed=1)


@pytest.fixture
def retrained_model(tiny_config):
    """Of the name of `model`, with other weights."""
    return make_model(tiny_config(), seed=5)


@pytest.fixture
def folder(photos, tmp_path):
    """The twelve photographs, to change and delete."""
    shutil.copytree(photos, tmp_path / "my photos")
    return tmp_path / "my photos"


@pytest.fixture
def library(tmp_path):
    """Where to make a library; the name is neither ASCII nor without a space."""
    return tmp_path / "my библиотека.lance"


@pytest.fixture
def index(library, model):
    return iwm.Index.create(library, model)


@pytest.fixture
def two_stages(monkeypatch):
    """Even the smallest library is searched in two stages, as large ones are."""
    monkeypatch.setattr("iwm.index.library.EXACT_ROWS", 0)


@pytest.fixture
def child():
    """`child(code, *words)` starts Python code in a process of its own, with this copy of the package."""
    started = []

    def start(code, *words, **settings):
        environment = os.environ | {"PYTHONPATH": str(Path(iwm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
