"""Probes: what they report beside a score."""

import pytest

from iwm.finetuning.folders import read_task
from iwm.finetuning.probe import probe, probe_config
from iwm.world_model import WorldModel


@pytest.fixture
def report(tiny_config, colours):
    """Trains a probe of random weights for an epoch; returns what it reports, and the model's config."""
    model = WorldModel(tiny_config())

    def run(head="linear", **options):
        config = probe_config(head, batch_norm=options.pop("batch_norm", False)).replace(epochs=1.0)
        return probe(model, read_task(colours), config, **options), model.config

    return run


def test_costs_are_those_of_encoder_predictions_and_head(report):
    plain, config = report()
    encoder, predictor = config.counts
    head = 48 * 2 + 2
    assert (plain.cost.trained, plain.cost.parameters) == (head, encoder + head)
    assert plain.cost.task_flops == 2 * 48 * 2
    one, three = (report(marginalise=count)[0].cost for count in (1, 3))
    assert (one.trained, one.parameters) == (head, encoder + predictor - 32 + head)  # No mask token.
    assert one.encoder_flops == three.encoder_flops == plain.cost.encoder_flops
    prediction = one.task_flops - plain.cost.task_flops
    assert prediction > 16 * predictor  # Each weight of the blocks is used for 16 tokens.
    assert three.task_flops == plain.cost.task_flops + 3 * prediction
    assert one.to_dict()["flops"] == one.flops


def test_a_batch_norm_is_said(report):
    titles = [report(batch_norm=norm)[0].title for norm in (False, True)]
    assert titles == [f"linear probe {word} batch norm on encodings" for word in ("without", "with")]
    assert report("attentive", marginalise=2)[0].title == "attentive probe on averages of 2 predictions"
