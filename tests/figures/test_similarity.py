"""Similarities between views, pair by pair."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.actions import CLEAN, Action, Photometry
from iwm.errors import InvalidConfigError
from iwm.evaluation.mrr import draw_views
from iwm.figures.similarity import Similarity, draw_augmentations, similarity
from iwm.figures.similarity_picture import save_similarities


def make(matrix, photographs=2, undone=False, model="tiny"):
    matrix = np.asarray(matrix, dtype=np.float32)
    views = len(matrix) // photographs
    return Similarity(
        model=model, undone=undone, compare="tokens", photographs=photographs, views=views, matrix=matrix
    )


BLOCKS = make([[1, 0.8, 0.1, 0.2], [0.8, 1, 0.3, 0.4], [0.1, 0.3, 1, 0.6], [0.2, 0.4, 0.6, 1]])
GRAYS = [np.full((3, 8, 8), value, dtype=np.float32) for value in (0.2, 0.7)]


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("compare", ["tokens", "pooled"])
def test_every_pair_is_what_torch_says(acting_model, images, compare, undo):
    params = draw_augmentations(acting_model, 3, 4, seed=2)
    result = similarity(acting_model, images, params, compare=compare, undo=undo)
    vectors = []
    for index, image in enumerate(images):
        pixels = acting_model.preprocess.one(image)
        for row in draw_views(acting_model, 4, seed=2, index=index):
            view = Photometry.from_params(row)
            latent = acting_model.encode(Action.between(CLEAN, view).apply(pixels))
            if undo:
                latent = acting_model.apply_action(latent, Action.between(view, CLEAN))
            vectors.append(latent.tokens.flatten() if compare == "tokens" else latent.tokens[0].mean(0))
    if compare == "pooled":
        centre = sum(vectors) / len(vectors)
        vectors = [vector - centre for vector in vectors]
    assert result.matrix.shape == (12, 12)
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            expected = torch.cosine_similarity(one, other, dim=0).item()
            assert result.matrix[i, j] == pytest.approx(expected, abs=2e-4)
    assert (result.undone, result.compare, result.model) == (undo, compare, "tiny")


def test_undoing_perfectly_makes_views_alike(acting_model, images, monkeypatch):
    params = draw_augmentations(acting_model, 2, 3)
    clean = [acting_model.encode(image) for image in images[:2]]
    turns = iter(clean)
    monkeypatch.setattr(
        type(acting_model), "apply_action", lambda self, latent, actions: next(turns)[[0] * len(latent)]
    )
    undone = similarity(acting_model, images[:2], params, undo=True)
    assert undone.within == pytest.approx((1.0, 0.0), abs=1e-3)
    assert undone.between[0] < 0.999


def test_means_are_over_pairs_of_different_views():
    assert BLOCKS.within == pytest.approx((0.7, 0.1))
    assert BLOCKS.between == pytest.approx((0.25, np.std([0.1, 0.2, 0.3, 0.4])))
    assert BLOCKS.summary == ("same photo 0.70 ± 0.10", "other photos 0.25 ± 0.11")
    alone = make([[1, 0.5], [0.5, 1]], photographs=1)
    assert (alone.between, alone.summary) == (None, ("same photo 0.50 ± 0.00",))
    assert json.loads(json.dumps(BLOCKS.to_dict()))["within"] == pytest.approx([0.7, 0.1])


@pytest.mark.parametrize(("photographs", "views"), [(0, 4), (2, 1)])
def test_too_few_to_compare(acting_model, photographs, views):
    with pytest.raises(InvalidConfigError, match="at least"):
        draw_augmentations(acting_model, photographs, views)


def test_an_unknown_comparison(acting_model, images):
    params = draw_augmentations(acting_model, 3, 2)
    with pytest.raises(InvalidConfigError, match='Did you mean "pooled"'):
        similarity(acting_model, images, params, compare="poled")


def test_the_picture_names_its_models_and_numbers(tmp_path):
    panels = [BLOCKS, make(BLOCKS.matrix, undone=True, model="a$b$_c")]
    save_similarities(panels, GRAYS, tmp_path / "a.svg")
    words = re.findall(r"<!-- (.+?) -->", (tmp_path / "a.svg").read_text(encoding="utf-8"))
    expected = {"tiny", "a$b$_c", "views as encoded", "views undone", *BLOCKS.summary, "cosine similarity"}
    assert expected <= set(words)


def test_the_matrix_is_drawn_as_it_is(tmp_path):
    save_similarities([BLOCKS], GRAYS, tmp_path / "a.png", dpi=100)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    yellow, violet = np.array([253, 231, 37]), np.array([68, 1, 84])
    is_yellow = (np.abs(pixels - yellow).sum(axis=2) < 4).mean() * pixels[..., 0].size
    # Four of sixteen squares are 1, the lowest value, 0.1, fills two.
    is_violet = (np.abs(pixels - violet).sum(axis=2) < 4).mean() * pixels[..., 0].size
    assert is_yellow == pytest.approx(4 / 16 * 260**2, rel=0.03)
    assert is_violet == pytest.approx(2 / 16 * 260**2, rel=0.03)


@pytest.mark.parametrize("panels", [[], [BLOCKS, make(np.eye(3), photographs=3)]])
def test_panels_of_other_photographs_do_not_fit(tmp_path, panels):
    with pytest.raises(InvalidConfigError, match="matrices, all over the photographs"):
        save_similarities(panels, GRAYS, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
