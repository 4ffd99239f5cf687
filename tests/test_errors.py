"""The exception tree and its suggestions."""

import pytest

from iwm import errors
from iwm.errors import nearest

TREE = {
    errors.UnknownModelError: ValueError,
    errors.UnknownTaskError: ValueError,
    errors.WeightsUnavailableError: OSError,
    errors.IntegrityError: OSError,
    errors.IncompatibleWeightsError: ValueError,
    errors.IncompatibleLatentError: ValueError,
    errors.InvalidConfigError: ValueError,
    errors.InvalidActionError: ValueError,
    errors.InvalidImageError: ValueError,
    errors.InvalidDataError: ValueError,
    errors.SaveError: OSError,
    errors.ServerError: OSError,
    errors.MissingBackendError: ImportError,
    errors.UntrainedActionWarning: UserWarning,
}


@pytest.mark.parametrize(("kind", "builtin"), TREE.items())
def test_errors_are_also_the_natural_builtin(kind, builtin):
    with pytest.raises(builtin, match="why") as caught:
        raise kind("why")
    assert isinstance(caught.value, errors.IWMError | Warning)


@pytest.mark.parametrize(
    ("word", "options", "tail"),
    [
        ("iwm-tyni", ["iwm-equi-18-384", "iwm-tiny"], ' Did you mean "iwm-tiny"?'),
        ("colour", ["colours", "color"], ' Did you mean "colours" or "color"?'),
        ("zzz", ["b", "a", "b"], " Choose from: a, b."),
        ("zzz", [], ""),
        (None, ["a"], " Choose from: a."),
    ],
)
def test_nearest(word, options, tail):
    assert nearest(word, options) == tail
