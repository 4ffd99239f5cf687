"""Small labelled folders, and configurations that train on them in a second."""

import pytest
from labelled_files import write_class_folder, write_segmentation_folder

from iwm.finetuning.config import FinetuneConfig
from iwm.training.config import DataConfig, OptimConfig
from iwm.world_model import WorldModel


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """`train` (2 classes, 8 each) and `val` (4 each)."""
    root = tmp_path_factory.mktemp("colours")
    write_class_folder(root / "train")
    write_class_folder(root / "val", count=4, seed=1)
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Segmentation, `train` (6) and `val` (3)."""
    root = tmp_path_factory.mktemp("scenes")
    write_segmentation_folder(root / "train")
    write_segmentation_folder(root / "val", count=3, seed=1)
    return root


@pytest.fixture(scope="session")
def make_config():
    """A function that builds a `FinetuneConfig` for a few steps on the CPU."""

    def make(**changes):
        defaults = {
            "steps": 6, "batch_size": 4, "device": "cpu", "precision": "float32", "log_every": 1,
            "checkpoint_every": 2, "data": DataConfig(workers=0), "epochs": 0.0,
            "optim": OptimConfig(lr=1e-3, lr_start=0.0, warmup=0.0, stretch=1.0),
        }  # fmt: skip
        return FinetuneConfig(**defaults | changes)

    return make


@pytest.fixture
def base(tiny_config, tmp_path):
    """A model folder of random weights."""
    WorldModel(tiny_config()).save_pretrained(tmp_path / "base")
    return tmp_path / "base"
