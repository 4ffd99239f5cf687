"""Calls of the Hugging Face Hub's client: what a repository says of itself, and one file of it.

`huggingface_hub` does the travelling. Here its failures become one sentence each that says what
to do next, and every call ends: a server that stalls, starts over for ever or asks to wait an
hour is given up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from iwm.config import TASK_NAME
from iwm.errors import InvalidConfigError, IWMError, UnknownModelError, WeightsUnavailableError, quoted
from iwm.integrity import Digest, Verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KNOWN_FILES = re.compile(
    rf"config\.json|(model|student|decoder|task-{TASK_NAME})\.safetensors|README\.md|LICENSE"
)
"""All that is ever fetched from a repository; nothing among it can hold code."""

REQUEST_SECONDS = 10.0
"""How long the Hub may take to answer a question."""
GRACE_SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 20_000
"""A file may take `GRACE_SECONDS` plus its size at this rate; then it counts as stalled."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How to use the Hub and its cache.

    Attributes:
        cache_dir: the cache folder; None is the client's (`HF_HUB_CACHE`, or below `HF_HOME`).
        local_files_only: make no request; `HF_HUB_OFFLINE=1` says the same.
        token: None is the one in `HF_TOKEN` or stored by `hf auth login`.
        verify: `once` hashes a file when its state has changed; `always` each time.
    """

    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | None = None
    verify: Verify = "once"

    @property
    def folder(self) -> str | None:
        """The cache folder as the client takes it."""
        return None if self.cache_dir is None else os.path.expanduser(os.fspath(self.cache_dir))

    @property
    def offline(self) -> bool:
        """Whether no request may be made."""
        from huggingface_hub import constants

        said = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        return self.local_files_only or said or bool(constants.HF_HUB_OFFLINE)


@dataclass(frozen=True)
class Report:
    """What the Hub says a repository holds at a revision: the commit, and a digest a file."""

    commit: str
    files: dict[str, Digest]


def endpoint() -> str | None:
    """Another address of the Hub, where `HF_ENDPOINT` names one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def client(token: str | None) -> HfApi:
    """The Hub's client."""
    from huggingface_hub import HfApi

    from iwm import __version__

    return HfApi(endpoint=endpoint(), token=token, library_name="iwm", library_version=__version__)


def ask(repo: str, revision: str, options: HubOptions) -> Report:
    """Ask the Hub what a repository holds.

    Raises:
        UnknownModelError: no such repository or revision.
        WeightsUnavailableError: the Hub cannot be reached, or refuses.
    """
    with explained(repo, revision):
        info = within(
            3 * REQUEST_SECONDS,
            lambda: client(options.token).model_info(
                repo, revision=revision, timeout=REQUEST_SECONDS, files_metadata=True
            ),
        )
        try:
            files = {
                sibling.rfilename: Digest("sha256", sibling.lfs.sha256, sibling.lfs.size)
                if sibling.lfs
                else Digest("git", str(sibling.blob_id), sibling.size)
                for sibling in info.siblings or ()
                if KNOWN_FILES.fullmatch(sibling.rfilename)
            }
        except InvalidConfigError as error:
            raise ValueError(str(error)) from error
        if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
            raise ValueError(f"the commit is {info.sha!r}")
        return Report(str(info.sha), files)


def get(repo: str, name: str, revision: str, size: int | None, options: HubOptions) -> Path:
    """Bring one file into the cache, behind the client's progress bar; its path there.

    Raises:
        UnknownModelError: no such repository or revision.
        WeightsUnavailableError: it did not arrive; the message says why.
    """
    from huggingface_hub import hf_hub_download

    from iwm import __version__

    limit = GRACE_SECONDS + (size or 0) / SLOWEST_BYTES_PER_SECOND
    with explained(repo, revision, name):
        path = within(
            limit,
            lambda: hf_hub_download(
                repo, name, revision=revision, cache_dir=options.folder, token=options.token,
                endpoint=endpoint(), library_name="iwm", library_version=__version__,
            ),
        )  # fmt: skip
        return Path(path)


def cached(repo: str, name: str, revision: str, options: HubOptions) -> Path | None:
    """Where a file is in the cache, if it is.

    Raises:
        UnknownModelError: `repo` can be no repository.
        WeightsUnavailableError: the cache cannot be read.
    """
    from huggingface_hub import try_to_load_from_cache

    with explained(repo, revision, name):
        path = try_to_load_from_cache(repo, name, options.folder, revision)
    return Path(path) if isinstance(path, str) else None


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, if it comes in time.

    Raises:
        TimeoutError: it does not. The call is left behind in a thread that ends with the process.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # Raised again below, in the caller's thread.
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True, name="iwm-hub")
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"nothing complete after {seconds:.0f} seconds")
    return results[0]


@contextlib.contextmanager
def explained(
    repo: str, revision: str | None = None, name: str | None = None, sending: bool = False
) -> Iterator[None]:
    """Turn whatever the client raises into one of this library's errors."""
    try:
        yield
    except IWMError:
        raise
    except Exception as error:
        raise _explanation(error, repo, revision, name, sending) from error


def answered(error: BaseException | None) -> bool:
    """Whether the Hub gave an answer, even if one that says no."""
    status = _status(error) or _status(getattr(error, "__cause__", None))
    return status is not None and status < 500 and status != 429


def _status(error: BaseException | None) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _explanation(
    error: Exception, repo: str, revision: str | None, name: str | None, sending: bool
) -> IWMError:
    """The sentence for a failure, most telling first."""
    from huggingface_hub import constants, errors

    vague = errors.LocalEntryNotFoundError, RuntimeError  # The client's words for "see the cause".
    while isinstance(error, vague) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    place = endpoint() or constants.ENDPOINT
    what = f"{name} of {repo}" if name else repo
    log_in = "log in with `hf auth login` or pass a token"
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return WeightsUnavailableError(
            f"{repo} is gated: accept its terms at {place}/{repo}, then {log_in} ({status})."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModelError(
            f'{repo} has no revision "{revision}". Leave it out for the newest, or see {place}/{repo}/commits/main.'
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownModelError(
            f"There is no {repo} at {place}, or it is private. Check the spelling; for a private one, {log_in} ({status})."
        )
    if isinstance(error, errors.EntryNotFoundError) and status:
        return WeightsUnavailableError(f"{repo} has no {name} at {revision}.")
    if isinstance(error, errors.HFValidationError):
        return UnknownModelError(f'"{repo}" is no name of a repository; write "org/name".')
    if status in (401, 403):
        return WeightsUnavailableError(
            f"{place} refuses {what} ({status}): the token is wrong or lacks the permission; {log_in}."
        )
    if status == 429:
        headers = getattr(getattr(error, "response", None), "headers", {})
        wait = headers.get("Retry-After")
        after = f" in {wait} seconds" if wait else " in some minutes"
        return WeightsUnavailableError(
            f"{place} is being asked too much (429). Try again{after}; being logged in raises the limit."
        )
    if status is not None:
        said = getattr(error, "server_message", None)
        why = f"{status}: {quoted(said, 300)}" if said else str(status)
        if 400 <= status < 500:
            return WeightsUnavailableError(f"{place} refuses {what} ({why}).")
        return WeightsUnavailableError(f"{place} cannot serve {what} now ({why}). Try again later.")
    return WeightsUnavailableError(
        _sending_failure(error, repo, place) if sending else _local_failure(error, what, place)
    )


def _reason(error: Exception) -> str:
    return (
        quoted(str(error).strip().splitlines()[0].rstrip("."), 300)
        if str(error).strip()
        else type(error).__name__
    )


def _sending_failure(error: Exception, repo: str, place: str) -> str:
    """An upload without an answer: it may have arrived all the same, if there was a connection."""
    if "ConnectError" in type(error).__name__:
        return f"{place} cannot be reached ({_reason(error)}). {repo} was not published; check the network."
    return (
        f"Publishing {repo} broke off ({type(error).__name__}: {_reason(error)}). It may or may not have "
        f"arrived: see {place}/{repo}/commits/main, or push again."
    )


def _local_failure(error: Exception, what: str, place: str) -> str:
    """Failures without an answer: disk, network, time."""
    reason = _reason(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"No space left for {what} in the cache. Make room, or name another place with cache_dir=... ({reason})"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or getattr(error, "filename", None):
        return (
            f"Cannot write {what} to the cache ({reason}). Name another place with cache_dir=... or HF_HOME."
        )
    if "Consistency check failed" in reason:
        return f"{what} arrived incomplete. Nothing of it was kept; try again."
    if "timed out" in reason.lower() or "timeout" in type(error).__name__.lower():
        return f"{place} stalls over {what} ({reason}). Nothing of it was kept; try again later."
    return (
        f"Cannot get {what} from {place} ({type(error).__name__}: {reason}). Check the network; what "
        "`iwm download` has brought works without one."
    )
