"""A folder of small photographs, and a model that trains on them in a second."""

import pytest

from iwm.config import ActionConfig, EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.pretraining.config import PretrainConfig
from iwm.training.config import DataConfig


@pytest.fixture(scope="session")
def make_config():
    """A function that builds a tiny `PretrainConfig`; `layout` and the like go to its model."""

    def make(
        *,
        layout="inplace",
        conditioning="adaln",
        encoding="pair",
        symmetric=False,
        share_source=False,
        **changes,
    ):
        model = WorldModelConfig(
            encoder=EncoderConfig(width=32, depth=1, heads=2, patch_size=8, image_size=32),
            predictor=PredictorConfig(
                width=32, depth=1, layout=layout, conditioning=conditioning, share_source=share_source
            ),
            actions=ActionConfig(encoding=encoding, symmetric=symmetric),
            preprocess=PreprocessConfig(size=32, resize=32),
        )
        defaults = {"steps": 10, "batch_size": 4, "device": "cpu", "precision": "float32", "log_every": 1}
        return PretrainConfig(model=model, **{"data": DataConfig(workers=0)} | defaults | changes)

    return make
