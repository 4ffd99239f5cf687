"""What goes together in a finetuning run, and epochs as steps."""

import json

import pytest

from iwm.errors import InvalidConfigError
from iwm.fields import from_dict, to_json
from iwm.finetuning.config import AugmentConfig, FinetuneConfig
from iwm.training.config import DataConfig, OptimConfig

SEGMENTATION = {"task": "segmentation", "head": "upernet"}


def test_a_configuration_round_trips():
    config = FinetuneConfig(augment=AugmentConfig(mixup=0.8), ignore=(3,), drop_path=0.2)
    assert from_dict(FinetuneConfig, json.loads(to_json(config))) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tune": "decoder"}, 'tune is "decoder"'),
        ({"task": "segmentation"}, "head attentive does not do segmentation; use --head upernet"),
        ({"head": "upernet"}, "head upernet does not do classification; use --head attentive"),
        ({"batch_norm": True}, "batch_norm goes with --head linear"),
        ({"channels": 64}, "channels go with --head upernet"),
        ({"task": "segmentation", "head": "upernet", "channels": 5000}, "it must be 4096 at most"),
        (
            {"task": "segmentation", "head": "upernet", "channels": -1},
            "channels is -1; it must be at least 0",
        ),
        ({"tune": "none", "output": "token"}, "output token is about the predictor, which --tune none"),
        ({"tune": "encoder", "init": "random"}, "init random is about the predictor"),
        ({"predictor_depth": 3}, "A predictor of other sizes has no pretrained weights; add --init random"),
        ({"tune": "all", "cache_views": 1}, "--tune all changes them. Use 0"),
        (
            {"cache_views": 2, "augment": AugmentConfig(mixup=1.0)},
            "erasing and segmentation: add --cache-views 0",
        ),
        (
            {"tune": "encoder", "head": "linear", "optim": OptimConfig(optimizer="lars")},
            "lars is for a head alone, and --tune is encoder; use --optim.optimizer adamw",
        ),
        ({**SEGMENTATION, "centre": True}, "centre is about crops of classification"),
        ({**SEGMENTATION, "data": DataConfig(crop_scale=(0.5, 1.0))}, "data.crop_scale is about crops"),
        ({"cache_views": 2, "centre": True}, "There is one centre view; use cache_views 1"),
        (
            {"task": "segmentation", "head": "upernet", "augment": AugmentConfig(cutmix=1.0)},
            "Segmentation has its own augmentation",
        ),
        ({"augment": AugmentConfig(cutmix=1.0), "batch_size": 9}, "an even number of images, not 9"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_with_what_does(changes, words):
    with pytest.raises(InvalidConfigError) as caught:
        FinetuneConfig(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "images", "steps", "every"),
    [
        ({"epochs": 3.0, "batch_size": 10}, 95, 28, 9),
        ({"epochs": 0.5, "batch_size": 10}, 100, 5, 5),
        ({"steps": 40, "batch_size": 10}, 95, 40, 9),
        ({"steps": 40, "monitor_every": 7}, 95, 40, 7),
        ({"epochs": 1.0, "batch_size": 64}, 10, 1, 1),
    ],
)
def test_epochs_become_steps(changes, images, steps, every):
    resolved = FinetuneConfig(**changes).resolved(images)
    assert (resolved.steps, resolved.monitor_every, resolved.epochs) == (steps, every, 0.0)
    assert resolved.resolved(images) == resolved
