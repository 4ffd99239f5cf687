"""What an adaptation costs: the parameters that its outputs are computed from, and its FLOPs."""

import pytest

from iwm.config import AdapterConfig, TaskConfig
from iwm.finetuning.accounting import cost

ROADS = TaskConfig(kind="segmentation", labels=("road", "sky"), head="upernet", channels=8)
COLOURS = TaskConfig(kind="classification", labels=("blue", "red"), head="attentive")
MASK_TOKEN = 32
UNREAD_BY_DENSE_HEADS = 2 * 32 + 32 * 48 + 48
"""Of the predictor: the final norm, and the layer back to the encoder's width."""


@pytest.fixture
def solved(tiny_config):
    """A small model with an adapter that is called one."""

    def build(*tasks, layout="inplace", reads="predictor", own=True, output="all"):
        config = tiny_config(layout)
        named = {f"task{i}": task for i, task in enumerate(tasks)}
        predictor = config.predictor if own and reads == "predictor" else None
        adapter = AdapterConfig(tasks=named, space="0" * 16, reads=reads, predictor=predictor, output=output)
        return config.replace(adapters={"one": adapter})

    return build


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("tasks", "options", "unread"),
    [
        ((COLOURS,), {}, MASK_TOKEN),
        ((COLOURS, COLOURS), {}, MASK_TOKEN),
        ((ROADS,), {}, MASK_TOKEN + UNREAD_BY_DENSE_HEADS),
        ((COLOURS,), {"layout": "append"}, 0),
        ((ROADS,), {"layout": "append"}, UNREAD_BY_DENSE_HEADS),
        ((COLOURS,), {"layout": "append", "output": "token"}, MASK_TOKEN),
    ],
)
def test_what_no_output_is_computed_from_is_not_counted(solved, tasks, options, unread, own):
    config = solved(*tasks, own=own, **options)
    encoder, predictor = config.counts
    whole = encoder + config.adapter_parameters("one") + (0 if own else predictor)
    assert cost(config, "one", 0).parameters == whole - unread


@pytest.mark.parametrize("task", [COLOURS, ROADS], ids=lambda task: task.kind)
def test_an_adapter_of_the_encoder_uses_it_and_its_head_alone(solved, task):
    config = solved(task, reads="encoder")
    assert cost(config, "one", 0).parameters == config.counts[0] + config.adapter_parameters("one")


def test_averages_of_predictions_use_the_models_predictor(solved):
    config = solved(COLOURS, reads="encoder")
    plain, averaged = (cost(config, "one", 7, predictions=n) for n in (0, 3))
    assert averaged.parameters - plain.parameters == config.counts[1] - MASK_TOKEN
    assert averaged.encoder_flops == plain.encoder_flops
    assert averaged.trained == plain.trained == 7
