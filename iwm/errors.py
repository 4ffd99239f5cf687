"""The exceptions iwm raises, one small tree.

Every class also subclasses the builtin a caller would naturally catch, so that
`except ValueError` and `except OSError` keep working. Messages say what was wrong and
what to type next; `nearest` writes the "did you mean" part.
"""

import difflib
from collections.abc import Iterable


class IWMError(Exception):
    """Base class of everything iwm raises on purpose."""


class UnknownModelError(IWMError, ValueError):
    """No zoo entry, folder or repository has this name."""


class UnknownTaskError(IWMError, ValueError):
    """The model has no head for this task."""


class WeightsUnavailableError(IWMError, OSError):
    """The name is known, but its weights cannot be had here."""


class IntegrityError(IWMError, OSError):
    """A file is not, byte for byte, what it should be."""


class IncompatibleWeightsError(IWMError, ValueError):
    """Weights that do not fit the model: missing, unexpected or misshapen tensors."""


class IncompatibleLatentError(IWMError, ValueError):
    """Latents of different encoders, grids or widths were mixed."""


class InvalidConfigError(IWMError, ValueError):
    """A configuration with an unknown field, a wrong type or an impossible value."""


class InvalidActionError(IWMError, ValueError):
    """A photometry or action outside its range, or a batch that does not pair up."""


class InvalidImageError(IWMError, ValueError):
    """Something that cannot be read as an image."""


class InvalidDataError(IWMError, ValueError):
    """A data folder that cannot be trained or evaluated on."""


class MissingBackendError(IWMError, ImportError):
    """A runtime that is not installed; the message says what to install."""


class UntrainedActionWarning(UserWarning):
    """An action that the model was not trained for."""


class UnreadableFolderWarning(UserWarning):
    """A folder that cannot be listed: what is in it is left out."""


class LibraryError(IWMError, OSError):
    """A photo library that is missing, damaged, or being written by another process."""


class ServerError(IWMError, OSError):
    """A page that cannot be served at this address."""


class TrainingError(IWMError, RuntimeError):
    """Training cannot go on: the loss is no longer a number, say, or memory is short."""


class SaveError(IWMError, OSError):
    """A file could not be written; what was there before is untouched."""


def nearest(word: object, options: Iterable[str]) -> str:
    """The tail of an error message about a word that is not among `options`.

    >>> nearest("iwm-tyni", ["iwm-tiny", "iwm-equi-18-384"])
    ' Did you mean "iwm-tiny"?'
    >>> nearest("zzz", ["b", "a"])
    ' Choose from: a, b.'
    """
    known = sorted(set(options))
    close = difflib.get_close_matches(str(word), known, n=3, cutoff=0.55)
    if close:
        return " Did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    return f" Choose from: {', '.join(known)}." if known else ""


def quoted(text: object, limit: int = 80) -> str:
    r"""A stranger's words for an error message: printable, and not too long.

    >>> quoted("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[: limit + 1])
    return words if len(words) <= limit else words[: limit - 3] + "..."
