"""One action on top of another, as one: checked against what pixels do."""

import itertools

import pytest
import torch

from iwm.actions import Action, Photometry
from iwm.errors import InvalidActionError


@pytest.fixture(scope="module")
def pixels():
    """Values from 0.3 to 0.5 in smooth colours: nothing below is clipped."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse.float(), size=24, mode="bicubic").clamp(0, 1)
    return 0.3 + 0.2 * smooth


STEPS = {
    "brightness": Action(brightness=1.2),
    "contrast": Action(contrast=0.7),
    "saturation": Action(saturation=0.6),
    "hue": Action(hue=0.07),
    "grayscale": Action(grayscale=True),
    "gray hue": Action(grayscale=True, hue=0.07),
    "jitter": Action(brightness=0.9, contrast=1.2, saturation=1.1),
}
EXACT = [
    (a, b)
    for a, b in itertools.product(STEPS, STEPS)
    if not (a == "hue" and b in ("contrast", "saturation", "jitter"))
    if not (a == "gray hue" and b in ("contrast", "jitter"))
]


@pytest.mark.parametrize(("first", "second"), EXACT)
def test_then_is_what_two_steps_do_to_pixels(pixels, first, second):
    a, b = STEPS[first], STEPS[second]
    stepwise = b.apply(a.apply(pixels))
    assert stepwise.min() > 0
    assert stepwise.max() < 1
    torch.testing.assert_close(a.then(b).apply(pixels), stepwise, atol=1e-4, rtol=0)


def test_blurs_add_their_squares(pixels):
    inside = slice(8, 16)  # Away from the borders, where the reflection of a reflection differs.
    a, b = Action(blur=0.9), Action(blur=1.2)
    assert a.then(b) == Action(blur=1.5)
    both = b.apply(a.apply(pixels))[..., inside, inside]
    torch.testing.assert_close(a.then(b).apply(pixels)[..., inside, inside], both, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.3), (0.4, 0.4), (0.3, 1.0), (0.2, 0.7)])
def test_narrow_blurs_add_what_their_kernels_vary(first, second):
    point = torch.zeros(1, 3, 25, 25)
    point[..., 12, 12] = 1.0
    a, b = Action(blur=first), Action(blur=second)
    stepwise = b.apply(a.apply(point))
    torch.testing.assert_close(a.then(b).apply(point), stepwise, atol=0.02, rtol=0)
    offsets = torch.arange(25) - 12.0
    variances = [
        (image[0, 0].sum(0) * offsets.square()).sum().item() for image in (a.then(b).apply(point), stepwise)
    ]
    assert variances[0] == pytest.approx(variances[1], abs=1e-4)


def test_solarize_passes_nothing_and_is_idempotent(pixels):
    a = Action(solarize=True, brightness=1.4)
    assert a.then(Action(solarize=True)) == a
    torch.testing.assert_close(Action(solarize=True).apply(a.apply(pixels)), a.apply(pixels))
    with pytest.raises(InvalidActionError, match=r"already solarized.*model\.roll\(latent, \[a, b\]\)"):
        a.then(Action(brightness=1.1))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (Action(hue=0.1), Action(contrast=0.8), "contrast refers to the luma"),
        (Action(hue=0.1), Action(saturation=0.8), "saturation refers to the luma"),
        (Action(hue=0.1, grayscale=True), Action(contrast=0.8), "contrast refers to the luma"),
        (Action(blur=1.0), Action(hue=0.1), "already blurred"),
    ],
)
def test_what_no_single_action_does_is_refused(pixels, first, second, words):
    with pytest.raises(InvalidActionError, match=words):
        first.then(second)


def test_a_path_is_its_two_ends():
    a, b, c = Photometry(hue=0.1, solarize=True), Photometry(blur=1), Photometry(contrast=2)
    first, second = Action.between(a, b), Action.between(b, c)
    assert first.then(second) == Action.between(a, c)
    assert first.then(first.inverse()).is_identity
    assert Action(brightness=2).then(Action.between(Photometry(brightness=2), b)).target == b


def test_then_is_associative_and_has_an_identity():
    a, b, c = Action(brightness=1.5), Action(contrast=0.5, grayscale=True), Action(brightness=0.8, hue=0.2)
    assert a.then(b).then(c) == a.then(b.then(c))
    assert a.then(Action()) == Action().then(a) == a


def test_hue_goes_round():
    assert Action(hue=0.4).then(Action(hue=0.3)).target.hue == pytest.approx(-0.3)


def test_ends_that_do_not_meet():
    second = Action.between(Photometry(hue=0.1), Photometry())
    with pytest.raises(InvalidActionError, match=r"starts from \(hue=0.1\), the first ends at \(blur=1"):
        Action(blur=1).then(second)
    with pytest.raises(InvalidActionError, match=r"Expected iwm.Action, got str"):
        Action(blur=1).then("darker")
    with pytest.raises(InvalidActionError, match=r"brightness factors make 250000; 1000 is the most"):
        Action(brightness=500).then(Action(brightness=500))
