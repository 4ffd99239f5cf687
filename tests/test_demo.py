"""What the demo computes: banks, ranks and retrieved views, against a plain computation."""

import socket
import sys

import numpy as np
import pytest
import torch

from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.bank import Bank
from iwm.config import ActionConfig, PhotometryDistribution
from iwm.demo import ACTIONS, NEAREST, photographs, retrieve
from iwm.errors import InvalidConfigError
from iwm.world_model import WorldModel

SOME = {"brighter": Action(brightness=1.5), "gray": Action(grayscale=True), "other": Action(hue=0.2)}


@pytest.fixture
def make_model(tiny_config):
    """`make_model(distribution)`: random weights everywhere, so that predictions depend on the action."""

    def build(distribution):
        actions = ActionConfig(encoding="pair", distribution=distribution)
        model = WorldModel(tiny_config().replace(actions=actions))
        for name, weights in model.named_parameters():
            torch.nn.init.normal_(weights, std=0.1 if name.startswith("encoder") else 0.5)
        return model

    return build


@pytest.fixture
def model(make_model):
    return make_model(PhotometryDistribution())


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(2)]


def random_views(distribution, count, seed, turn):
    """One at a time, jitter always on."""
    drawn_from = distribution.replace(jitter_probability=1.0)
    rows = [draw_photometry(drawn_from, seed=seed, keys=[(turn, view)])[0] for view in range(count)]
    return [Action.between(CLEAN, Photometry.from_params(row)) for row in rows]


@pytest.mark.parametrize(
    "distribution",
    [PhotometryDistribution(), PhotometryDistribution(brightness=0.9, jitter_probability=0.0)],
    ids=["default", "other"],
)
def test_rows_are_what_a_plain_computation_finds(make_model, images, distribution):
    model = make_model(distribution)
    rows = list(retrieve(model, images, SOME, bank_size=9, seed=4))
    assert [(row.name, row.action, row.bank_size) for row in rows] == [(n, a, 9) for n, a in SOME.items()]
    for index, row in enumerate(rows):
        pixels = model.preprocess.one(images[index % 2])
        actions = [*SOME.values(), *random_views(distribution, 6, 4, index % 2)]
        views = [action.apply(pixels) for action in actions]
        query = model.predict(pixels, row.action).tokens
        found = [(model.encode(view).tokens - query).norm().item() for view in views]
        order = sorted(range(9), key=found.__getitem__)
        assert row.rank == order.index(index) + 1
        np.testing.assert_array_equal(row.source, pixels.numpy())
        np.testing.assert_array_equal(row.asked, views[index].numpy())
        assert len(row.found) == len(row.right) == NEAREST
        for place, shown, right in zip(order, row.found, row.right, strict=False):
            np.testing.assert_array_equal(shown, views[place].numpy())
            assert right == (place == index)


def test_a_model_that_acts_perfectly_ranks_first(model, images, monkeypatch):
    monkeypatch.setattr(
        WorldModel, "predict", lambda self, image, action: self.encode(action.apply(self.preprocess.one(image)))
    )  # fmt: skip
    rows = list(retrieve(model, images, bank_size=20))
    assert [row.name for row in rows] == list(ACTIONS)
    assert [row.rank for row in rows] == [1] * len(ACTIONS)
    assert all(row.right == [True, False, False] for row in rows)


def test_each_photograph_has_one_bank(model, images, monkeypatch):
    sources, from_views = [], Bank.from_views

    def note(model, pixels, views):
        sources.append(pixels.numpy())
        return from_views(model, pixels, views)

    monkeypatch.setattr(Bank, "from_views", note)
    rows = list(retrieve(model, images, bank_size=12))
    assert len(sources) == len(images)
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(row.source, sources[index % 2])


def test_a_bank_of_the_actions_alone(model, images):
    rows = list(retrieve(model, images, SOME, bank_size=3))
    assert [(row.bank_size, sum(row.right)) for row in rows] == [(3, 1)] * 3


def test_views_shown_are_pictures(model, images):
    for row in retrieve(model, images, SOME, bank_size=5):
        for pixels in (row.source, row.asked, *row.found):
            assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.float32)
            assert pixels.min() >= 0.0
            assert pixels.max() <= 1.0


def test_the_seed_decides_the_bank(model, images):
    def found(seed):
        return np.stack([pixels for row in retrieve(model, images, SOME, bank_size=30, seed=seed) for pixels in row.found])  # fmt: skip

    np.testing.assert_array_equal(found(0), found(0))
    assert not np.array_equal(found(0), found(1))


@pytest.mark.parametrize(
    ("actions", "size", "needed"), [(None, 9, 10), (SOME, 2, 3), ({"gray": SOME["gray"]}, 2, 3)]
)
def test_a_bank_that_is_too_small_is_refused(model, images, actions, size, needed):
    with pytest.raises(InvalidConfigError, match=f"bank_size is {size}; it must be at least {needed}"):
        retrieve(model, images, actions, bank_size=size)


def test_no_photographs_are_refused(model):
    with pytest.raises(InvalidConfigError, match="needs at least one photograph"):
        retrieve(model, [])


def test_the_default_photographs_need_no_network(monkeypatch):
    pytest.importorskip("skimage")

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    images = photographs()
    assert len(images) == 4
    for image in images:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert min(image.shape[:2]) >= 300
    assert len({image.tobytes() for image in images}) == 4


def test_without_scikit_image_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InvalidConfigError, match=r'pip install "iwm\[demo\]"'):
        photographs()
