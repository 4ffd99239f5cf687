"""A folder of small photographs, and a model that trains on them in a second."""

import numpy as np
import pytest
from PIL import Image

from iwm.config import ActionConfig, EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.pretraining.config import PretrainConfig
from iwm.training.config import DataConfig


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twelve JPEGs of smooth random colours in two subfolders."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((50, 40), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


@pytest.fixture(scope="session")
def make_config():
    """A function that builds a tiny `PretrainConfig`; `layout` and the like go to its model."""

    def make(*, layout="inplace", conditioning="adaln", encoding="pair", symmetric=False, **changes):
        model = WorldModelConfig(
            encoder=EncoderConfig(width=32, depth=1, heads=2, patch_size=8, image_size=32),
            predictor=PredictorConfig(width=32, depth=1, layout=layout, conditioning=conditioning),
            actions=ActionConfig(encoding=encoding, symmetric=symmetric),
            preprocess=PreprocessConfig(size=32, resize=32),
        )
        defaults = {"steps": 10, "batch_size": 4, "device": "cpu", "precision": "float32", "log_every": 1}
        return PretrainConfig(model=model, **{"data": DataConfig(workers=0)} | defaults | changes)

    return make
