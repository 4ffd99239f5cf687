"""Source and target views against the pixel functions called one image at a time."""

import pytest
import torch

from iwm.config import ActionConfig, PhotometryDistribution
from iwm.photometry import IDENTITY, transform
from iwm.pretraining.views import make_views

EVERYTHING = PhotometryDistribution(
    jitter_probability=0.9, grayscale_probability=0.5, blur_probability=0.5, solarize_probability=0.5
)


def _crops(count, size=12):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def _params(count, **changes):
    config = ActionConfig(**changes)
    return make_views(_crops(count, 2), config, seed=0, keys=[(0, i) for i in range(count)]).params


@pytest.mark.parametrize("symmetric", [False, True])
def test_views_are_the_drawn_photometries_applied_one_by_one(symmetric):
    crops = _crops(12)
    views = make_views(
        crops,
        ActionConfig(distribution=EVERYTHING, symmetric=symmetric),
        seed=1,
        keys=[(2, i) for i in range(12)],
    )
    assert views.params.shape == (12, 2, 7)
    for i in range(12):
        pixels = crops[i : i + 1].float() / 255
        for view, params in ((views.source, views.params[:, 0]), (views.target, views.params[:, 1])):
            torch.testing.assert_close(
                view[i : i + 1], transform(pixels, params[i : i + 1]), rtol=0, atol=1e-6
            )
    for view in (views.source, views.target):
        assert view.min() >= 0
        assert view.max() <= 1


def test_without_any_operation_both_views_are_the_crops():
    nothing = PhotometryDistribution(
        jitter_probability=0, grayscale_probability=0, blur_probability=0, solarize_probability=0
    )
    crops = _crops(3)
    before = crops.clone()
    views = make_views(crops, ActionConfig(distribution=nothing), seed=0, keys=[(0, i) for i in range(3)])
    assert torch.equal(views.source, crops.float() / 255)
    assert torch.equal(views.target, views.source)
    assert torch.equal(crops, before)


def test_target_is_never_destructive_unless_symmetric():
    source, target = _params(600).unbind(1)
    assert (target[:, 4:] == 0).all()
    torch.testing.assert_close((source[:, 4:] != 0).float().mean(0), torch.full((3,), 0.2), atol=0.06, rtol=0)
    _, symmetric = _params(600, symmetric=True).unbind(1)
    torch.testing.assert_close(
        (symmetric[:, 4:] != 0).float().mean(0), torch.full((3,), 0.2), atol=0.06, rtol=0
    )
    for view in (source, target, symmetric):
        assert (view[:, 0] != 1).float().mean() == pytest.approx(0.8, abs=0.06)


def test_jitters_have_the_papers_strengths_in_both_views():
    for view in _params(800).unbind(1):
        jittered = view[view[:, 0] != 1, :4]
        centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
        strength = torch.tensor([0.4, 0.4, 0.2, 0.1])
        scaled = (jittered - centre) / strength
        assert scaled.abs().max() <= 1 + 1e-5
        torch.testing.assert_close(scaled.amax(0), torch.ones(4), atol=0.05, rtol=0)
        torch.testing.assert_close(scaled.amin(0), -torch.ones(4), atol=0.05, rtol=0)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(4), atol=0.1, rtol=0)


def test_source_and_target_are_drawn_independently():
    params = _params(1500, symmetric=True).double()
    columns = params.flatten(1).T
    together = torch.corrcoef(columns)[:7, 7:]
    assert together.abs().max() < 0.1
    assert not (params[:, 0, :4] == params[:, 1, :4])[params[:, 0, 0] != 1].all(1).any()


def test_views_replay_for_any_split_of_the_batch():
    crops, keys = _crops(9), [(epoch, index) for epoch in (0, 4) for index in (1, 5, 6, 8)] + [(7, 1)]
    config = ActionConfig(distribution=EVERYTHING, symmetric=True)
    whole = make_views(crops, config, seed=5, keys=keys)
    for split in ([2, 7], [1] * 9, [4, 5]):
        ends = torch.tensor(split).cumsum(0).tolist()
        parts = [
            make_views(crops[end - n : end], config, seed=5, keys=keys[end - n : end])
            for n, end in zip(split, ends, strict=True)
        ]
        assert torch.equal(torch.cat([part.params for part in parts]), whole.params)
        for name in ("source", "target"):
            joined = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-6)
    assert len(whole.params.flatten(1).unique(dim=0)) == 9
    assert not torch.equal(make_views(crops, config, seed=6, keys=keys).params, whole.params)


def test_a_share_of_clean_sources_and_as_large_a_share_of_clean_targets():
    crops, config = _crops(900, 2), ActionConfig(distribution=EVERYTHING, symmetric=True)
    keys = [(0, i) for i in range(900)]
    plain = make_views(crops, config, seed=0, keys=keys)
    views = make_views(crops, config, seed=0, keys=keys, clean=0.3)
    clean = (views.params == torch.tensor(IDENTITY)).all(dim=-1)
    changed = (views.params != plain.params).any(dim=-1)
    for view, pixels in enumerate((views.source, views.target)):
        assert 0.25 < clean[:, view].float().mean() < 0.36
        assert torch.equal(pixels[clean[:, view]], crops[clean[:, view]].float() / 255)
    # Drawn apart from everything else, and never both on purpose.
    assert not (changed[:, 0] & changed[:, 1]).any()
    assert torch.equal(views.params[~changed.any(dim=1)], plain.params[~changed.any(dim=1)])
    one = make_views(crops[7:8], config, seed=0, keys=keys[7:8], clean=0.3)
    assert torch.equal(one.params[0], views.params[7])
