"""Mean reciprocal rank: against plain loops, and at models whose score is known."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.config import STRENGTHS, ActionConfig, PhotometryDistribution
from iwm.errors import InvalidConfigError, InvalidImageError
from iwm.evaluation import mrr
from iwm.evaluation.mrr import draw_views
from iwm.photometry import transform
from iwm.world_model import WorldModel

SEED = 14  # Of two banks of six that hold every destructive operation alone, and two together.
PROTOCOLS = ("apply", "undo", "transfer")
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
every_distribution = pytest.mark.parametrize("distribution", ["full", "jitter"])


def photos(count):
    """Smooth colourful pictures of the model's size."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 2, 32), indexing="ij")
    waves = [torch.stack([(x + i).sin(), (2 * y + i).cos(), (x * y + i).sin()]) for i in range(count)]
    return torch.stack(waves) * 0.4 + 0.5


def draw_view(model, distribution, seed, image, view):
    drawn_from = replace(model.config.actions.distribution, jitter_probability=1.0)
    if distribution == "jitter":
        drawn_from = replace(
            drawn_from, grayscale_probability=0.0, blur_probability=0.0, solarize_probability=0.0
        )
    return Photometry.from_params(draw_photometry(drawn_from, seed=seed, keys=[(image, view)])[0])


def distance(a, b):
    return float((a.tokens.double() - b.tokens.double()).square().sum())


def plain_rank(query, candidates, wanted):
    own = distance(query, candidates[wanted])
    others = [distance(query, c) for i, c in enumerate(candidates) if i != wanted]
    return 1 + sum(d < own for d in others) + sum(d == own for d in others) / 2


def plain_mrr(model, images, bank_size, protocol, distribution, seed):
    """(name of the query, photometry it is about, rank), one view and one prediction at a time."""
    rows = []
    for index, image in enumerate(images):
        views = [draw_view(model, distribution, seed, index, view) for view in range(bank_size)]
        clean = model.encode(image)
        bank = [model.encode(transform(image[None], torch.tensor([view.params]))) for view in views]

        def act(source, source_view, target_view):
            return model.apply_action(source, Action.between(source_view, target_view))

        for i in range(bank_size):
            one, two = (i + 1) % bank_size, (i + 2) % bank_size
            if protocol == "apply":
                rows.append(("query", views[i], plain_rank(act(clean, CLEAN, views[i]), bank, i)))
                rows.append(("wrong_action", None, plain_rank(act(clean, CLEAN, views[one]), bank, i)))
            elif protocol == "undo":
                everyone = [*bank, clean]
                back = act(bank[i], views[i], CLEAN)
                rows.append(("query", views[i], plain_rank(back, everyone, bank_size)))
                rows.append(("no_action", None, plain_rank(bank[i], everyone, bank_size)))
            else:
                right, wrong = (act(bank[i], views[i], views[j]) for j in (one, two))
                rows.append(("query", views[one], plain_rank(right, bank, one)))
                rows.append(("wrong_action", None, plain_rank(wrong, bank, one)))
                rows.append(("no_action", None, plain_rank(bank[i], bank, one)))
    return rows


def check(scores, ranks):
    assert scores.queries == len(ranks)
    assert scores.mrr == pytest.approx(sum(1 / r for r in ranks) / len(ranks), abs=1e-9)
    for k in (1, 5, 10):
        assert scores.hits[k] == pytest.approx(sum(r <= k for r in ranks) / len(ranks), abs=1e-9)


@every_protocol
@every_distribution
def test_against_plain_loops(model, protocol, distribution):
    images = photos(2)
    report = mrr(model, images, bank_size=6, protocol=protocol, distribution=distribution, seed=SEED)
    rows = plain_mrr(model, images, 6, protocol, distribution, seed=SEED)
    queries = [(view, rank) for name, view, rank in rows if name == "query"]
    check(report.overall, [rank for _, rank in queries])
    assert len({rank for _, rank in queries}) > 1

    groups = {
        "jitter": [r for v, r in queries if not (v.grayscale or v.blur or v.solarize)],
        "grayscale": [r for v, r in queries if v.grayscale],
        "blur": [r for v, r in queries if v.blur],
        "solarize": [r for v, r in queries if v.solarize],
    }
    present = {name for name, ranks in groups.items() if ranks}
    assert report.per_transformation.keys() == present
    assert len(present) == (1 if distribution == "jitter" else 4)
    for name in present:
        check(report.per_transformation[name], groups[name])

    names = {name for name, _, _ in rows} - {"query"}
    blind = "floor" if protocol == "apply" else "chance"
    assert report.baselines.keys() == names | {blind}
    for name in names:
        check(report.baselines[name], [rank for n, _, rank in rows if n == name])
    candidates = 7 if protocol == "undo" else 6
    harmonic = sum(1 / r for r in range(1, candidates + 1))
    assert report.baselines[blind].mrr == pytest.approx(harmonic / candidates, abs=1e-12)
    assert report.baselines[blind].queries == 12


@every_protocol
@every_distribution
def test_a_perfect_world_model_scores_one(model, monkeypatch, protocol, distribution):
    (image,) = images = photos(1)

    def perfect(latent, actions):
        views = torch.tensor([action.target.params for action in actions])
        return model.encode(transform(image.expand(len(views), -1, -1, -1), views))

    monkeypatch.setattr(model, "apply_action", perfect)
    report = mrr(model, images, bank_size=12, protocol=protocol, distribution=distribution)
    assert report.mrr == 1.0
    assert report.hits == {1: 1.0, 5: 1.0, 10: 1.0}
    assert all(scores.mrr == 1.0 for scores in report.per_transformation.values())
    assert all(scores.mrr < 1.0 for scores in report.baselines.values())


@pytest.mark.parametrize("bank_size", [2, 7, 64])
def test_an_action_blind_model_scores_the_floor(make_model, bank_size):
    model = make_model(conditioning="none")
    report = mrr(model, photos(3), bank_size=bank_size)
    floor = sum(1 / r for r in range(1, bank_size + 1)) / bank_size
    assert report.mrr == pytest.approx(floor, rel=1e-3)
    assert report.baselines["floor"].mrr == pytest.approx(floor, abs=1e-12)
    assert report.baselines["wrong_action"].mrr == pytest.approx(floor, rel=1e-3)
    assert report.hits == pytest.approx({k: min(k / bank_size, 1) for k in (1, 5, 10)}, abs=1e-2)


@every_protocol
def test_sources_and_targets_of_the_actions(model, monkeypatch, protocol):
    asked = []
    plain = model.apply_action

    def note(latent, actions):
        asked.append([(action.source, action.target) for action in actions])
        return plain(latent, actions)

    monkeypatch.setattr(model, "apply_action", note)
    mrr(model, photos(1), bank_size=4, protocol=protocol, seed=5)
    views = [draw_view(model, "full", 5, 0, view) for view in range(4)]
    expected = {
        "apply": [[(CLEAN, view) for view in views]],
        "undo": [[(view, CLEAN) for view in views]],
        "transfer": [[(views[i], views[(i + step) % 4]) for i in range(4)] for step in (1, 2)],
    }
    assert asked == expected[protocol]


def test_views_depend_on_the_seed_and_the_place_of_their_image(model):
    images = photos(2)
    report = mrr(model, images, bank_size=8, protocol="undo")
    assert mrr(model, iter(images), bank_size=8, protocol="undo") == report
    assert mrr(model, images, bank_size=8, protocol="undo", seed=1).overall != report.overall
    first, both = (mrr(model, images[rows], bank_size=8, protocol="undo") for rows in ([0], [0, 0]))
    assert both.mrr != first.mrr
    views = [
        draw_view(model, "full", 0, image, view) for image, view in itertools.product(range(2), range(8))
    ]
    assert len(set(views)) == 16
    assert all(view != CLEAN for view in views)


@every_distribution
@pytest.mark.parametrize(("seed", "index"), [(0, 0), (5, 3)])
def test_views_are_the_models_own_with_jitter_always_on(tiny_config, distribution, seed, index):
    still = PhotometryDistribution(
        jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.5, blur_sigma=(3.0, 4.0),
        solarize_probability=0.0,
    )  # fmt: skip
    model = WorldModel(tiny_config().replace(actions=ActionConfig(encoding="pair", distribution=still)))
    params = draw_views(model, 40, distribution=distribution, seed=seed, index=index)
    views = [Photometry.from_params(row) for row in params]
    assert views == [draw_view(model, distribution, seed, index, view) for view in range(40)]
    assert all(view.brightness != 1 for view in views)
    assert not any(view.grayscale or view.solarize for view in views)
    assert {view.blur >= 3 for view in views} == ({False} if distribution == "jitter" else {True, False})


def test_views_are_of_the_full_distribution_unless_told(model):
    full, jitter = (draw_views(model, 40, distribution=name, seed=0, index=1) for name in ("full", "jitter"))
    assert torch.equal(draw_views(model, 40, seed=0, index=1), full)
    assert not torch.equal(full, jitter)
    assert torch.equal(full[:, :4], jitter[:, :4])


def test_models_of_other_strengths_are_compared_on_the_same_views(tiny_config):
    models = [
        WorldModel(tiny_config().replace(actions=ActionConfig(encoding="pair", distribution=drawn)))
        for drawn in STRENGTHS.values()
    ]
    own = [draw_views(model, 8, seed=0, index=0) for model in models]
    assert not torch.equal(*own)
    for strength, expected in zip(STRENGTHS, own, strict=True):
        for model in models:
            assert torch.equal(draw_views(model, 8, seed=0, index=0, strength=strength), expected)
    paper, _ = models
    report = mrr(paper, photos(1), bank_size=4, strength="paper")
    assert replace(report, strength=None) == mrr(paper, photos(1), bank_size=4)
    assert report.to_dict()["strength"] == "paper"
    few, strong = (
        mrr(paper, photos(1), bank_size=16, protocol="undo", strength=name).mrr for name in STRENGTHS
    )
    assert few != strong


def test_a_report_says_what_was_measured(model):
    report = mrr(model, list(photos(2)), bank_size=4, protocol="undo", distribution="jitter", seed=2)
    data = json.loads(json.dumps(report.to_dict()))
    measured = {name: data[name] for name in ("protocol", "distribution", "images", "bank_size", "seed")}
    assert measured == {
        "protocol": "undo", "distribution": "jitter", "images": 2, "bank_size": 4, "seed": 2
    }  # fmt: skip
    assert data["overall"]["mrr"] == report.mrr == report.overall.mrr
    assert data["overall"]["queries"] == 8
    assert report.hits == report.overall.hits
    assert data["per_transformation"]["jitter"] == data["overall"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "aply"}, 'No protocol is called "aply". Did you mean "apply"'),
        ({"distribution": "ful"}, 'No distribution is called "ful". Did you mean "full"'),
        ({"strength": "stong"}, 'No strength is called "stong". Did you mean "strong"'),
        ({"bank_size": 1}, "bank_size is 1; it must be at least 2"),
        ({"bank_size": "4"}, "bank_size is '4'; it must be a whole number, at least 2"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
    ],
)
def test_options_that_cannot_be_met(model, options, words):
    with pytest.raises(InvalidConfigError, match=words):
        mrr(model, photos(1), **options)


def test_images_that_cannot_be_read(model, tmp_path):
    with pytest.raises(InvalidConfigError, match="No images to evaluate on"):
        mrr(model, [])
    with pytest.raises(InvalidImageError, match=r"absent\.jpg"):
        mrr(model, [tmp_path / "absent.jpg"], bank_size=2)


def test_progress_changes_no_figure(model):
    assert mrr(model, photos(2), bank_size=3, progress=True) == mrr(model, photos(2), bank_size=3)
