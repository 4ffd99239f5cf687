"""Accuracy by hand, and the same classes as `model.classify`."""

import pytest
import torch
from adapter_parts import classification, make_model

from iwm.errors import InvalidDataError
from iwm.evaluation.classification import ClassificationReport, class_logits


def test_by_hand():
    logits = torch.zeros(4, 7)
    for row, order in enumerate(([0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [6, 5, 4, 3, 2], [2, 3, 4, 5, 6])):
        for place, label in enumerate(order):
            logits[row, label] = 10 - place
    report = ClassificationReport.of(logits, [0, 0, 2, 0])
    assert (report.accuracy, report.top5, report.chance) == (0.25, 0.75, 0.75)
    assert (report.images, report.classes) == (4, 7)
    assert ClassificationReport.of(torch.tensor([[0.0, 1.0]]), [0]).top5 == 1.0


def test_numbers_that_are_none_are_refused():
    with pytest.raises(InvalidDataError, match="not finite"):
        ClassificationReport.of(torch.tensor([[0.0, float("nan")]]), [0])


def test_logits_are_those_of_classify(tiny_config):
    model = make_model(tiny_config(), pets={"tasks": {"pets": classification()}})
    images = [torch.rand(3, 50, 40) for _ in range(5)]
    adapter = model.load_adapter("pets")
    probabilities = class_logits(model, adapter, "pets", images, batch_size=2).softmax(dim=1)
    said = model.classify(images, topk=99)
    torch.testing.assert_close(probabilities.sort(dim=1, descending=True).values, said.probabilities)
    labels = model.labels("pets")
    assert [labels[i] for i in probabilities.argmax(dim=1)] == [row[0] for row in said.labels]
