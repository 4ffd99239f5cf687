"""Nearest-neighbour accuracy against plain loops."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.errors import IncompatibleWeightsError, InvalidConfigError, InvalidDataError, InvalidImageError
from iwm.evaluation import knn
from iwm.evaluation.knn import vote
from iwm.world_model import WorldModel

COLOURS = {"cat": (0.9, 0.2, 0.1), "dog": (0.1, 0.3, 0.9), "eel": (0.2, 0.8, 0.3)}


def plain_vote(train, labels, query, k):
    """Centre on the training mean, compare by cosine, vote with exp(s / 0.1)."""
    centre = [sum(column) / len(train) for column in zip(*train, strict=True)]

    def unit(vector):
        moved = [v - c for v, c in zip(vector, centre, strict=True)]
        length = math.sqrt(sum(m * m for m in moved))
        return [m / length for m in moved]

    q = unit(query)
    similarities = [sum(a * b for a, b in zip(q, unit(row), strict=True)) for row in train]
    votes = {}
    for similarity, label in sorted(zip(similarities, labels, strict=True), reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(similarity / 0.1)
    return max(votes, key=votes.get)


def images(count, seed=0):
    """Noisy flat colours and their labels, in turn."""
    generator = torch.Generator().manual_seed(seed)
    names = [list(COLOURS)[i % 3] for i in range(count)]
    base = torch.tensor([COLOURS[name] for name in names])[:, :, None, None]
    mixed = 0.02 * base + 0.98 * torch.rand(count, 3, 32, 32, generator=generator)
    return list(mixed), names


@pytest.mark.parametrize("k", [1, 2, 5, 20, 100])
def test_votes_against_a_plain_loop(k):
    train, val = torch.randn(30, 4) + 3, torch.randn(40, 4) + 3
    labels = torch.randint(5, (30,))
    winners = vote(train, labels, val, k, classes=5)
    expected = [plain_vote(train.tolist(), labels.tolist(), query, k) for query in val.tolist()]
    assert winners.tolist() == expected
    assert len(set(expected)) > 1


def test_votes_are_weighted():
    """One near neighbour outweighs two far ones; counted alike, they would win."""
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, -2.0]])
    labels, query = torch.tensor([0, 1, 1, 2]), torch.tensor([[0.8, 0.5]])
    assert vote(train, labels, query, 3, classes=3).tolist() == [0]
    assert vote(train, labels, torch.tensor([[0.5, 0.8]]), 3, classes=3).tolist() == [1]


@pytest.mark.parametrize("batch_size", [4, 64])
@pytest.mark.parametrize("k", [1, 7])
def test_accuracy_of_a_model_against_a_plain_loop(model, k, batch_size):
    (train, labels), (val, truth) = images(24), images(15, seed=1)
    report = knn(model, (train, labels), (val, truth), k, batch_size=batch_size)
    vectors = [model.encode(image).tokens.mean(1)[0].tolist() for image in train]
    right = [
        plain_vote(vectors, labels, model.encode(image).tokens.mean(1)[0].tolist(), k) == name
        for image, name in zip(val, truth, strict=True)
    ]
    assert report.accuracy == pytest.approx(sum(right) / 15)
    assert 0 < report.accuracy < 1
    assert dataclasses.replace(report, accuracy=0.0).to_dict() == {
        "accuracy": 0.0, "random_encoder": None, "chance": 1 / 3,
        "k": k, "classes": 3, "train_images": 24, "val_images": 15,
    }  # fmt: skip
    json.dumps(report.to_dict())


def test_a_report_counts_those_that_voted(model):
    assert knn(model, images(4), images(2), k=300).k == 4


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_labels_of_any_kind(model, kind):
    pictures, names = images(12)
    numbers = kind([sorted(set(names)).index(name) for name in names])
    report = knn(model, (pictures, numbers), (pictures, numbers), k=3)
    assert report.accuracy == knn(model, (pictures, names), (pictures, names), k=3).accuracy
    assert report.classes == 3


def test_chance_is_the_most_frequent_validation_label(model):
    train = images(6)
    val, _ = images(4)
    assert knn(model, train, (val, ["cat", "cat", "cat", "dog"]), 3).chance == 0.75


def test_the_random_baseline_is_one_fixed_encoder(model):
    train, val = images(24), images(15, seed=1)
    state = torch.get_rng_state()
    report = knn(model, train, val, 3, random_baseline=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert report.random_encoder == knn(WorldModel(model.config), train, val, 3).accuracy
    assert report.accuracy == knn(model, train, val, 3).accuracy


def test_class_folders_are_read_like_labelled_images(model, tmp_path):
    for part, count in (("train", 9), ("val", 6)):
        for i, (image, name) in enumerate(zip(*images(count, seed=count), strict=True)):
            (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
            array = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            Image.fromarray(array).save(tmp_path / part / name / f"{i}.png")

    def pairs(part):
        paths = sorted((tmp_path / part).rglob("*.png"))
        return paths, [path.parent.name for path in paths]

    expected = knn(model, pairs("train"), pairs("val"), 3)
    assert knn(model, str(tmp_path / "train"), tmp_path / "val", 3) == expected
    assert (expected.train_images, expected.val_images, expected.classes) == (9, 6, 3)


@pytest.mark.parametrize(
    ("train", "val", "k", "words"),
    [
        (images(3), images(3), 0, "k is 0; it must be at least 1"),
        (images(3), images(3), 1.5, r"k is 1\.5; it must be a whole number"),
        (images(3), (images(2)[0], ["ant", "bee"]), 1, "only the validation images have: ant, bee"),
        ((images(3)[0], ["cat"]), images(3), 1, "3 images and 1 labels; give one label to each"),
        (([], []), images(3), 1, "0 images and 0 labels"),
        (images(3), ([], []), 1, "0 images and 0 labels"),
        ("/no/such/folder", images(3), 1, "No such folder: /no/such/folder"),
    ],
)
def test_data_that_cannot_be_used(model, train, val, k, words):
    with pytest.raises(InvalidConfigError if words.startswith("k is") else InvalidDataError, match=words):
        knn(model, train, val, k)


def test_an_image_that_cannot_be_read_is_named(model, tmp_path):
    with pytest.raises(InvalidImageError, match=r"absent\.png"):
        knn(model, ([tmp_path / "absent.png"], ["cat"]), (images(1)[0], ["cat"]), 1)


def test_latents_that_are_no_numbers_have_no_accuracy():
    train = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    with pytest.raises(IncompatibleWeightsError, match="not finite"):
        vote(train, torch.tensor([0, 1]), torch.rand(2, 2), 1, 2)
