"""Photometries and actions: values, vectors, draws, and pixels."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

from iwm.actions import (
    CLEAN,
    Action,
    Photometry,
    _mixed,
    draw_photometry,
    encode_photometry,
    stack_actions,
    uniforms,
)
from iwm.config import STRENGTHS, VECTOR_SIZE, PhotometryDistribution
from iwm.errors import InvalidActionError, InvalidConfigError, InvalidImageError
from iwm.photometry import FIELDS, IDENTITY

FULL = Photometry(
    brightness=1.4, contrast=0.7, saturation=0.25, hue=-0.1, grayscale=True, blur=1.5, solarize=True
)
ACTIONS = [
    Action(),
    Action(brightness=1.4, hue=0.1),
    Action(grayscale=True, solarize=True),
    Action(blur=0.3, contrast=0, saturation=12.5),
    Action.between(FULL, CLEAN),
    Action.between(Photometry(hue=-0.5), FULL),
]
PAIRS = torch.tensor(
    [
        [FULL.params, CLEAN.params],
        [CLEAN.params, FULL.params],
        [[0.0, 0.01, 3.0, 0.5, 0, 0.1, 1], FULL.params],
    ]
)
KEYS = [(0, i) for i in range(3000)]


@pytest.mark.parametrize("cls", [Photometry, Action])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, v) for n in ("brightness", "contrast", "saturation", "blur")
          for v in (-0.1, math.nan, math.inf, -math.inf, "bright", None, [1.0], 1j)),
        *(("hue", v) for v in (0.51, -0.51, 0.7, math.nan, math.inf, "red", None)),
        *((n, v) for n in ("grayscale", "solarize") for v in ("yes", "True", None, 2, 0.5, math.nan)),
    ],
)  # fmt: skip
def test_bad_parameters_raise(cls, name, value):
    with pytest.raises(InvalidActionError, match=name):
        cls(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("hue", 0.5), ("hue", -0.5), ("brightness", 0), ("blur", 0)])
def test_bounds_are_allowed(name, value):
    assert getattr(Photometry(**{name: value}), name) == value


def test_numbers_are_normalised():
    mixed = Photometry(
        brightness=np.float32(1.5), blur=torch.tensor(2.0), grayscale=1, solarize=np.bool_(False)
    )
    assert mixed == Photometry(brightness=1.5, blur=2.0, grayscale=True)
    assert [type(getattr(mixed, n)) for n in ("brightness", "blur", "grayscale", "solarize")] == [
        float, float, bool, bool,
    ]  # fmt: skip


@pytest.mark.parametrize("call", [lambda: Photometry(1.4), lambda: Action(1.4), lambda: Action(sepia=1)])
def test_keyword_only_and_no_sinks(call):
    with pytest.raises(TypeError):
        call()


def test_params_follow_the_pixel_operations():
    assert CLEAN.params == IDENTITY
    assert FULL.params == tuple(float(getattr(FULL, name)) for name in FIELDS)
    assert Photometry.from_params(FULL.params) == FULL
    assert Photometry.from_params(torch.tensor(CLEAN.params)).is_clean
    assert not FULL.is_clean


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_equality_hash_and_copies(action):
    rebuilt = Action.between(
        Photometry.from_params(action.source.params), Photometry.from_params(action.target.params)
    )
    assert rebuilt == action
    assert hash(rebuilt) == hash(action)
    assert [a for a in ACTIONS if a == action] == [action]
    assert pickle.loads(pickle.dumps(action)) == action
    assert copy.deepcopy(action) == action
    assert len({action, rebuilt}) == 1
    with pytest.raises(AttributeError):
        action.target = CLEAN


@pytest.mark.parametrize("value", [*ACTIONS, FULL, CLEAN], ids=str)
def test_repr_round_trip(value):
    assert eval(repr(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Action(), "clean"),
        (Action(hue=0.1, grayscale=True), "hue=0.1, grayscale=True"),
        (Action.between(Photometry(blur=2), CLEAN), "(blur=2.0) -> (clean)"),
        (Photometry.from_params(torch.tensor([1.4, 1, 1, 0, 0, 0, 0])), "brightness=1.4"),
    ],
)
def test_str(value, text):
    assert str(value) == text


def test_between_and_inverse():
    action = Action.between(FULL, CLEAN)
    assert (action.source, action.target) == (FULL, CLEAN)
    assert action.inverse() == Action.between(CLEAN, FULL)
    assert action.inverse().inverse() == action
    assert Action(brightness=1.4).source == CLEAN
    assert Action(brightness=1.4).target == Photometry(brightness=1.4)
    assert Action.between(FULL, FULL).is_identity
    assert not action.is_identity
    with pytest.raises(InvalidActionError, match=r"Action\.between takes two Photometry"):
        Action.between(FULL, Action())


def test_stack_actions():
    params = stack_actions(ACTIONS)
    assert params.dtype == torch.float32
    expected = [[a.source.params, a.target.params] for a in ACTIONS]
    torch.testing.assert_close(params, torch.tensor(expected), atol=0, rtol=0)
    assert stack_actions([]).shape == (0, 2, 7)
    with pytest.raises(InvalidActionError, match="got Photometry"):
        stack_actions([Action(), FULL])


def jitter_by_hand(row):
    return [math.log(max(f, 0.05)) for f in row[:3]] + [5 * row[3]]


def pair_by_hand(source, target):
    return [v for row in (source, target) for v in [*jitter_by_hand(row), row[4], row[5] / 2, row[6]]]


def difference_by_hand(source, target):
    jitter = [(t - s) / 2 for s, t in zip(jitter_by_hand(source), jitter_by_hand(target), strict=True)]
    return jitter + [v for row in (source, target) for v in (row[4], float(row[5] > 0), row[6])]


@pytest.mark.parametrize(
    ("encoding", "by_hand"), [("pair", pair_by_hand), ("difference", difference_by_hand)]
)
def test_vectors_by_hand(encoding, by_hand):
    vectors = encode_photometry(PAIRS, encoding)
    expected = torch.tensor([by_hand(s, t) for s, t in PAIRS.tolist()])
    assert vectors.shape == (3, VECTOR_SIZE[encoding])
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(
        encode_photometry(stack_actions([Action()]), encoding), torch.zeros(1, VECTOR_SIZE[encoding])
    )


@pytest.mark.parametrize("encoding", VECTOR_SIZE)
def test_factors_are_clamped(encoding):
    vectors = encode_photometry(
        stack_actions([Action(brightness=b) for b in (0.0, 0.02, 0.05, 0.06)]), encoding
    )
    assert torch.equal(vectors[0], vectors[2])
    assert torch.equal(vectors[1], vectors[2])
    assert not torch.equal(vectors[3], vectors[2])


@pytest.mark.parametrize(
    ("encoding", "live"), [("pair", (0, 1, 2, 3, 4, 5, 6)), ("difference", (0, 1, 2, 3, 4, 6))]
)
def test_vectors_are_differentiable(encoding, live):
    params = PAIRS[:2].double()
    params[..., FIELDS.index("blur")] += 0.4
    params.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: encode_photometry(p, encoding), params)
    encode_photometry(params, encoding).square().sum().backward()
    assert params.grad.isfinite().all()
    assert (params.grad[0, 0, list(live)] != 0).all()


@pytest.mark.parametrize("encoding", VECTOR_SIZE)
def test_gradients_stay_finite_at_zero(encoding):
    params = torch.zeros(1, 2, 7, requires_grad=True)
    encode_photometry(params, encoding).sum().backward()
    assert params.grad.isfinite().all()


@pytest.mark.parametrize("encoding", VECTOR_SIZE)
def test_vectors_of_training_are_about_one(encoding):
    draws = [draw_photometry(STRENGTHS["strong"], seed=s, keys=KEYS[:500]) for s in (0, 1)]
    vectors = encode_photometry(torch.stack(draws, dim=1), encoding)
    assert vectors.abs().max() <= 1.0 + 1e-6
    assert (vectors.abs().amax(dim=0) > 0.3).all()


def test_draws_depend_on_their_own_key_alone():
    d = STRENGTHS["strong"]
    keys = [(epoch, index) for epoch in (0, 3) for index in (0, 1, 7, 100_000)]
    together = draw_photometry(d, seed=5, keys=keys)
    assert torch.equal(draw_photometry(d, seed=5, keys=keys[::-1]), together.flip(0))
    assert torch.equal(torch.cat([draw_photometry(d, seed=5, keys=[k]) for k in keys]), together)
    assert draw_photometry(d, seed=5, keys=[]).shape == (0, 7)


def test_seed_epoch_index_and_stream_all_count():
    d = STRENGTHS["strong"].replace(jitter_probability=1.0)
    draws = [
        draw_photometry(d, seed=seed, keys=[(epoch, index)], stream=stream)[0, :4]
        for seed in (0, 1) for epoch in (0, 1) for index in (0, 1) for stream in (0, 1)
    ]  # fmt: skip
    assert len({tuple(d.tolist()) for d in draws}) == 16


def test_the_generator_is_splitmix64():
    """The published first outputs for the seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * golden) % 2**64 for k in range(5)], dtype=np.uint64)
    assert _mixed(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


def mixed_by_hand(z):
    """In integers of any length, cut to 64 bits."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**64 - 1])
def test_uniforms_by_hand(seed):
    keys = [(0, 0), (3, 2**40), (2**63, 1)]
    drawn = uniforms(seed, keys, stream=5, count=3)
    for row, (epoch, index) in zip(drawn.tolist(), keys, strict=True):
        state = seed
        for word in (epoch, index, 5):
            state = mixed_by_hand((mixed_by_hand(state) + word) % 2**64)
        bits = [mixed_by_hand((state + k * 0x9E3779B97F4A7C15) % 2**64) >> 11 for k in (1, 2, 3)]
        assert row == [b / 2**53 for b in bits]


def test_uniforms_depend_on_their_own_key_alone():
    keys = [(epoch, index) for epoch in (0, 1, 9) for index in (0, 1, 5, 2**33)]
    together = uniforms(3, keys, stream=2, count=6)
    assert (together.shape, together.dtype) == ((12, 6), torch.float64)
    assert torch.equal(torch.cat([uniforms(3, [key], stream=2, count=6) for key in keys]), together)
    assert torch.equal(uniforms(3, keys[::-1], stream=2, count=6).flip(0), together)
    assert torch.equal(uniforms(3, keys, stream=2, count=2), together[:, :2])
    assert uniforms(3, [], stream=2, count=6).shape == (0, 6)
    assert uniforms(3, keys, stream=2, count=0).shape == (12, 0)


def test_every_part_of_the_key_gives_other_uniforms():
    parts = [(s, (e, i), t) for s in (0, 1, 2, 2**64 - 1, 2**64, 2**64 + 1, 2**200) for e in range(4)
             for i in range(4) for t in range(4)]  # fmt: skip
    drawn = torch.cat([uniforms(s, [key], stream=t, count=2) for s, key, t in parts])
    assert len(drawn.unique()) == 2 * len(parts)


def test_uniforms_are_uniform():
    u = uniforms(11, [(epoch, index) for epoch in range(4) for index in range(8000)], stream=1, count=8)
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    n = u.numel()
    assert u.mean().item() == pytest.approx(1 / 2, abs=5 / math.sqrt(12 * n))
    assert u.var().item() == pytest.approx(1 / 12, rel=0.01)
    for values in (u.flatten(), *u.T):
        counts = torch.histc(values, 256, 0, 1)
        expected = len(values) / 256
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square == pytest.approx(255, abs=6 * math.sqrt(2 * 255))
        steps = torch.arange(1, len(values) + 1) / len(values)
        furthest = (values.sort().values - steps).abs().max().item()
        assert furthest * math.sqrt(len(values)) < 2.2  # Kolmogorov and Smirnov; 1.36 at 5 %.
    last_bits = (u * 2**53 % 2).mean().item()
    assert last_bits == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))


def test_uniforms_of_neighbours_are_unrelated():
    side, count = 200, 6
    keys = [(epoch, index) for epoch in range(side) for index in range(side)]
    u = uniforms(1, keys, stream=4, count=count).view(side, side, count) - 0.5
    others = [uniforms(s, keys, stream=t, count=count).view_as(u) - 0.5 for s, t in ((2, 4), (1, 5))]
    pairs = {
        "epochs": (u[1:], u[:-1]), "indices": (u[:, 1:], u[:, :-1]), "columns": (u[..., 1:], u[..., :-1]),
        "seeds": (u, others[0]), "streams": (u, others[1]), "transposed": (u, u.transpose(0, 1)),
        "shifted": (u[:, 1:, :-1], u[:, :-1, 1:]),
    }  # fmt: skip
    for name, (one, other) in pairs.items():
        if name == "transposed":
            off = ~torch.eye(side, dtype=torch.bool)
            one, other = one[off], other[off]
        correlation = (one * other).mean().item() * 12
        assert abs(correlation) < 5 / math.sqrt(one.numel()) * (1.5 if name == "transposed" else 1), name


@pytest.mark.parametrize("strength", STRENGTHS)
def test_draw_statistics(strength):
    d = STRENGTHS[strength]
    params = draw_photometry(d, seed=0, keys=KEYS)
    jittered = (params[:, :4] != torch.tensor(IDENTITY[:4])).all(dim=1)
    untouched = (params[:, :4] == torch.tensor(IDENTITY[:4])).all(dim=1)
    assert (jittered | untouched).all()
    rates = [jittered, params[:, 4] == 1, params[:, 5] > 0, params[:, 6] == 1]
    expected = [d.jitter_probability, d.grayscale_probability, d.blur_probability, d.solarize_probability]
    for rate, p in zip(rates, expected, strict=True):
        assert rate.double().mean().item() == pytest.approx(p, abs=0.03)
    ranges = [(1 - d.brightness, 1 + d.brightness), (1 - d.contrast, 1 + d.contrast),
              (1 - d.saturation, 1 + d.saturation), (-d.hue, d.hue)]  # fmt: skip
    columns = [params[jittered, i] for i in range(4)] + [params[params[:, 5] > 0, 5]]
    for drawn, (low, high) in zip(columns, [*ranges, d.blur_sigma], strict=True):
        slack = 0.02 * (high - low)
        assert low - 1e-6 <= drawn.min() <= low + slack
        assert high - slack <= drawn.max() <= high + 1e-6
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=2 * slack)
        assert drawn.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)
    correlations = torch.corrcoef(params[jittered].T) - torch.eye(7)
    assert correlations.abs().max() < 0.1


def test_probabilities_of_zero_and_one():
    off = STRENGTHS["paper"].without_destructive().replace(jitter_probability=0.0)
    assert torch.equal(draw_photometry(off, seed=0, keys=KEYS[:50]), torch.tensor(IDENTITY).expand(50, -1))
    on = PhotometryDistribution(
        jitter_probability=1, grayscale_probability=1, blur_probability=1, solarize_probability=1
    )
    assert (draw_photometry(on, seed=0, keys=KEYS[:50]) != torch.tensor(IDENTITY)).all()
    wide = PhotometryDistribution(brightness=3.0, jitter_probability=1)
    factors = draw_photometry(wide, seed=0, keys=KEYS[:500])[:, 0]
    assert 0 <= factors.min() < 0.1
    assert 3.9 < factors.max() <= 4


def test_sample():
    actions = Action.sample(40, seed=3)
    assert actions == Action.sample(40, "strong", seed=3)
    assert Action.sample(7, seed=3) == actions[:7]
    assert actions != Action.sample(40, seed=4)
    assert actions != Action.sample(40, "paper", seed=3)
    assert all(a.source.is_clean for a in actions)
    assert len(set(actions)) > 30
    assert Action.sample(0) == []
    assert (
        max(abs(a.target.hue) for a in actions)
        > 0.1
        >= max(abs(a.target.hue) for a in Action.sample(40, "paper"))
    )


def test_a_seed_of_any_kind_and_length_can_be_drawn_from():
    assert (
        Action.sample(np.int64(3), seed=np.int64(5))
        == Action.sample(3, seed=torch.tensor(5))
        == Action.sample(3, seed=5)
    )
    assert len({tuple(Action.sample(3, seed=seed)) for seed in (0, 2**63, 2**64, 2**64 + 1, 10**40)}) == 5


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, "stron"), {}, 'mean "strong"'),
        ((-1,), {}, r"Action\.sample: n is -1; it must be at least 0"),
        ((1.5,), {}, r"n is 1\.5; it must be a whole number"),
        ((3,), {"seed": -1}, "seed is -1; it must be at least 0"),
        ((3,), {"seed": None}, "seed is None; it must be a whole number"),
    ],
)
def test_sample_errors(arguments, options, message):
    with pytest.raises(InvalidActionError, match=message):
        Action.sample(*arguments, **options)


PIXELS = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
CHW = torch.from_numpy(PIXELS).permute(2, 0, 1)
KINDS = {
    "pil": Image.fromarray(PIXELS),
    "array": PIXELS,
    "float": CHW / 255,
    "double": CHW.double() / 255,
    "uint8": CHW,
    "float batch": torch.stack((CHW, CHW.flip(2))) / 255,
    "uint8 batch": torch.stack((CHW, CHW.flip(2))),
}


def as_float(image):
    if not isinstance(image, torch.Tensor):
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [Action(), Action(brightness=1.3, hue=0.2, solarize=True)], ids=str)
def test_apply_returns_the_kind_given(kind, action):
    image = KINDS[kind]
    before = copy.deepcopy(image)
    out = action.apply(image)
    assert type(out) is type(image)
    expected = as_float(image)
    if not action.is_identity:
        expected = tv.solarize(tv.adjust_hue(tv.adjust_brightness(expected, 1.3), 0.2), 0.5)
    rounding = 1e-3 if kind in ("float", "double", "float batch") else 0.5 / 255 + 1e-3
    torch.testing.assert_close(as_float(out), expected, atol=0 if action.is_identity else rounding, rtol=0)
    if isinstance(image, Image.Image):
        assert (out.size, out.mode) == (image.size, "RGB")
    else:
        assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert np.array_equal(np.asarray(image), np.asarray(before))


@pytest.mark.parametrize("kind", KINDS)
def test_apply_needs_a_clean_source(kind):
    with pytest.raises(InvalidActionError, match="clean source"):
        Action.between(FULL, CLEAN).apply(KINDS[kind])


@pytest.mark.parametrize(
    "image", ["photo.jpg", None, CHW.long(), CHW / 100, CHW[0], torch.rand(1, 1, 3, 4, 4)]
)
def test_apply_to_no_image(image):
    message = (
        r"open a file first with PIL\.Image\.open" if image is None or isinstance(image, str) else "expected"
    )
    with pytest.raises(InvalidImageError, match=message):
        Action(hue=0.1).apply(image)


@pytest.mark.parametrize("shape", [(3, 7), (3, 14), (3, 2, 6), (2, 7, 2), (1, 3, 2, 7)])
def test_parameters_of_another_shape_are_no_actions(shape):
    with pytest.raises(InvalidActionError, match=r"expected \[K, 2, 7\]"):
        encode_photometry(torch.zeros(shape), "pair")


def test_an_encoding_that_does_not_exist():
    with pytest.raises(InvalidConfigError, match='Did you mean "pair"'):
        encode_photometry(torch.zeros(1, 2, 7), "pairs")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([1, 1, 1, 0, float("nan"), 0, 0], "grayscale is nan; it must be True or False"),
        ([1, 1, 1, 0, 0, 0, 0.5], "solarize is 0.5; it must be True or False"),
        (["a"] * 7, "A photometry is read from 7 numbers, not from"),
        (3, "A photometry is read from 7 numbers, not from 3"),
        ([1, 1], "2 parameters; a photometry has 7"),
    ],
)
def test_what_no_photometry_is_read_from(params, message):
    with pytest.raises(InvalidActionError, match=message):
        Photometry.from_params(params)
