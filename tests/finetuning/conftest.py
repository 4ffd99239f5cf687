"""Small labelled folders, and configurations that train on them in a second."""

import numpy as np
import pytest
from PIL import Image

from iwm.finetuning.config import FinetuneConfig
from iwm.training.config import DataConfig, OptimConfig
from iwm.world_model import WorldModel


def write_class_folder(root, classes=("blue", "red"), count=8, seed=0):
    """Photographs whose mean colour gives away their class, under noise."""
    rng = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (40, 48, 3))
            pixels[..., c % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


def write_segmentation_folder(root, count=6, labels=("sky", "void", "road"), seed=0):
    """Images of a bright upper and a dark lower part, with masks 0 and 2, and a void column."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for i in range(count):
        split = int(rng.integers(12, 28))
        pixels, mask = rng.integers(0, 60, (40, 48, 3)), np.full((40, 48), 2)
        pixels[:split] += 180
        mask[:split] = 0
        mask[:, :3] = 1
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "labels.txt").write_text("\n".join(labels) + "\n")
    return root


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
