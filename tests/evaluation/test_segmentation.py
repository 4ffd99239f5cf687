"""Intersection over union by hand and as torchmetrics computes it."""

import pytest
import torch

from iwm.errors import InvalidDataError
from iwm.evaluation.labelled import IGNORED
from iwm.evaluation.segmentation import Confusion, segmentation_scores


def test_by_hand():
    predicted = torch.tensor([[0, 0, 1], [1, 1, 1]])
    true = torch.tensor([[0, 1, 1], [1, IGNORED, 0]])
    report = segmentation_scores([(predicted, true)], ("a", "b", "c"))
    assert report.per_class == {"a": 1 / 3, "b": 2 / 4, "c": None}
    assert report.miou == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert (report.accuracy, report.images) == (3 / 5, 1)


@pytest.mark.parametrize("classes", [2, 7])
def test_equal_to_torchmetrics(classes):
    torchmetrics = pytest.importorskip("torchmetrics", reason="pip install torchmetrics")
    generator = torch.Generator().manual_seed(0)
    metric = torchmetrics.JaccardIndex(
        task="multiclass", num_classes=classes, ignore_index=IGNORED, average="macro"
    )
    pairs = []
    for height, width in ((20, 31), (16, 9), (5, 50)):
        true = torch.randint(
            0, classes - (classes > 2), (height, width), generator=generator
        )  # One is absent.
        noise = torch.rand(true.shape, generator=generator)
        predicted = torch.where(noise < 0.6, true, (true + 1) % max(classes - 1, 2))
        true[noise > 0.9] = IGNORED
        pairs.append((predicted, true))
        metric.update(predicted[None], true[None])
    report = segmentation_scores(pairs, [str(i) for i in range(classes)])
    assert report.miou == pytest.approx(metric.compute().item(), abs=1e-6)
    assert report.images == 3


def test_maps_that_do_not_fit_are_refused():
    confusion = Confusion(2)
    with pytest.raises(InvalidDataError, match="sizes must be equal"):
        confusion.add(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(InvalidDataError, match="classes outside 0 to 1"):
        confusion.add(torch.full((2, 2), 2), torch.zeros(2, 2))
    with pytest.raises(InvalidDataError, match="Not one pixel"):
        confusion.report(("a", "b"))
