"""What a training run leaves on disk: its configuration, metrics, log and resumable state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from iwm.errors import InvalidConfigError, InvalidDataError, SaveError
from iwm.fields import dotted, from_dict, to_json
from iwm.files import atomic_write, remove_unfinished, write_text
from iwm.model_folder import CONFIG_FILE
from iwm.training.config import RunConfig
from iwm.training.workers import death_of_a_worker

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.pt"
LOCK_FILE = ".lock"

_ANOTHER_KIND = 3
"""Unknown settings: with so many, a list of all that differs would say less."""

_START_AGAIN = "Start again with another --out; the model exported there so far still loads."

RESUME_FIELDS = frozenset(
    {"steps", "optim.stretch", "optim.lr", "optim.lr_start", "optim.clip", "precision", "collapse_below"}
)
"""Fields that may differ from a checkpoint on, with `resume`: where the run ends, and what mends one that broke."""

FREE_FIELDS = frozenset(
    {
        "device", "accumulate", "compile", "activation_checkpointing", "log_every", "checkpoint_every",
        "monitor_every", "tensorboard", "wandb", "data.workers", "data.on_unreadable",
    }
)  # fmt: skip
"""Fields that change nothing of what is trained, and may differ between a run and its continuation.

But for those that a kind of run names in `SHAPING`: they may differ with `resume`."""


class RunFolder:
    """One run's folder; nothing in it changes before `start`.

    Attributes:
        sittings: `RESUME_FIELDS` of this run, and `from_step`, from which on they held.

    Args:
        path: created when missing.
        config: of the run that is about to start.
        resume: there must be a run to continue, and from its checkpoint on it may have other
            `RESUME_FIELDS` than before.
            Without it, the same settings continue a run as well: the same command goes on.

    Raises:
        InvalidDataError: the folder holds a model and no state, or there is nothing to resume.
        InvalidConfigError: the run in it had other settings; they are named.
    """

    def __init__(self, path: Path, config: RunConfig, *, resume: bool) -> None:
        self.path = path
        self.sittings: list[dict[str, Any]] = []
        if path.exists() and not path.is_dir():
            raise InvalidDataError(f"{path} is a file; choose a folder for --out.")
        begun = (path / RUN_FILE).is_file()
        if not self.has_state and (path / CONFIG_FILE).is_file():
            gone = f", and no {STATE_FILE} to go on from" if begun else " already"
            raise InvalidDataError(f"{path} holds a model{gone}; choose another --out.")
        if resume and not self.has_state and not begun:
            raise InvalidDataError(f"{path} holds no run to resume; leave --resume out to start one.")
        if self.has_state:
            free = FREE_FIELDS - config.SHAPING
            self._check_same(config, free | RESUME_FIELDS | config.SHAPING if resume else free)

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return has_state(self.path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the right to train into this folder; it ends with the block, or with the process.

        Raises:
            InvalidConfigError: another process holds it.
            SaveError: the folder cannot be written.
        """
        lock = FileLock(self.path / LOCK_FILE, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise InvalidConfigError(
                f"Another process is training into {self.path}: wait for it, or use another --out."
            ) from error
        except OSError as error:
            raise SaveError(f"Cannot write {self.path}: {error}.") from error
        try:
            yield
        finally:
            lock.release()

    def start(self, config: RunConfig, step: int, sittings: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the configuration; drop unfinished files, and metrics that come again from `step` on.

        Args:
            config: of the run.
            step: that is reached.
            sittings: before this one, from the state.
        """
        before = [dict(sitting) for sitting in sittings if sitting["from_step"] < step]
        now = _resumable(json.loads(to_json(config)), RESUME_FIELDS | config.SHAPING)
        same = before and before[-1] == {"from_step": before[-1]["from_step"]} | now
        self.sittings = before if same else [*before, {"from_step": step} | now]
        remove_unfinished(self.path)
        write_text(self.path / RUN_FILE, to_json(config))
        metrics = self.path / METRICS_FILE
        if metrics.is_file():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(metrics, "".join(line for line in lines if _is_before(line, step)))

    def told_sittings(self) -> dict[str, list[dict[str, Any]]]:
        """`sittings`, for a model's provenance: the start of each, and what was not the same in all; of one, nothing."""
        if len(self.sittings) < 2:
            return {}
        differing = [k for k in self.sittings[0] if len({json.dumps(s.get(k)) for s in self.sittings}) > 1]
        return {"sittings": [{name: sitting.get(name) for name in differing} for sitting in self.sittings]}

    def _check_same(self, config: RunConfig, free: frozenset[str]) -> None:
        changed = {k: said for k, said in changed_settings(self.path, config).items() if k not in free}
        if changed:
            raise InvalidConfigError(
                f"{self.path} holds a run with other settings: {'; '.join(changed.values())}. Use the old ones, or "
                f"another --out{', or --resume to go on with the new ones' if RESUME_FIELDS.issuperset(changed) else ''}."
            )

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`.

        Raises:
            SaveError: it cannot be written.
        """
        try:
            with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SaveError(f"Cannot write {self.path / METRICS_FILE}: {error}.") from error

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the resumable state, atomically."""
        with atomic_write(self.path / STATE_FILE) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # Torch fails again as it closes the archive, and hides why.
                if (death := death_of_a_worker(error)) is not None:
                    raise death from None
                raise OSError(str(error.__context__ or error)) from error

    def load_state(self, *, peek: bool = False) -> dict[str, Any]:
        """The last saved state; `peek` leaves its tensors on the disk.

        Raises:
            InvalidDataError: the file is damaged.
        """
        path = self.path / STATE_FILE
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=peek)
        except Exception as error:  # A damaged archive raises many kinds.
            raise InvalidDataError(f"{path} cannot be read: {error}. {_START_AGAIN}") from error
        return state

    def check_state(self, state: dict[str, Any], listing: str, config: RunConfig) -> None:
        """Refuse to go on from a state.

        Args:
            state: as `load_state` gave it.
            listing: names the images that the run is about to go on with.
            config: to go on with.

        Raises:
            InvalidDataError: something is missing in it.
            InvalidConfigError: it belongs to other images, or is further on, or is done and was
                trained with other settings.
        """
        missing = {"step", "seconds", "listing", "task", "optimizer"} - state.keys()
        if missing:
            raise InvalidDataError(f"The state in {self.path} lacks {', '.join(sorted(missing))}.")
        if state["listing"] != listing:
            raise InvalidConfigError(
                f"{self.path} was trained on {state['listing'] or 'unnamed images'}, --data now holds {listing}. "
                "Continue with the same images, or use another --out."
            )
        if state["step"] > config.steps:
            raise InvalidConfigError(
                f"{self.path} has done {state['step']} steps already; ask for more than that, not {config.steps}."
            )
        changed = changed_settings(self.path, config)
        mends = (RESUME_FIELDS | config.SHAPING) - {"steps"}
        told = "; ".join(said for name, said in changed.items() if name in mends)
        if told and state["step"] == config.steps:
            raise InvalidConfigError(
                f"{self.path} is done: {told}. Ask for more --steps to go on with that, or leave it out."
            )


def has_state(path: Path) -> bool:
    """Whether a folder holds a checkpoint to continue from."""
    return (path / STATE_FILE).is_file()


def read_run(path: Path) -> dict[str, Any]:
    """The configuration that a run folder was started with.

    Raises:
        InvalidDataError: it cannot be read.
    """
    try:
        settings: dict[str, Any] = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidDataError(f"{path / RUN_FILE} cannot be read: {error}. {_START_AGAIN}") from error
    return settings


def _resumable(settings: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    """Those of a run's settings that may change from a checkpoint on."""
    return {name: value for name, value in sorted(dotted(settings).items()) if name in names}


def changed_settings(path: Path, config: RunConfig) -> dict[str, str]:
    """Fields that differ between the run in a folder and a configuration, each with both values in words.

    Raises:
        InvalidDataError: the run's settings cannot be read.
        InvalidConfigError: it is a run of another kind.
    """
    settings = read_run(path)
    unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(config)})
    if len(unknown) >= _ANOTHER_KIND:
        raise InvalidConfigError(
            f"{path} holds a run of another kind or version of iwm, with {', '.join(unknown)}; use another --out."
        )
    before = dotted(_with_defaults(settings, type(config)))
    now = dotted(json.loads(to_json(config)))
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return {k: f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in changed}


def _with_defaults(settings: dict[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    """A run's settings with the fields that have come since it began, at their defaults."""
    try:
        filled: dict[str, Any] = json.loads(to_json(from_dict(kind, settings)))
    except InvalidConfigError:
        return settings
    return filled


def _is_before(line: str, step: int) -> bool:
    """Whether a whole line of metrics belongs to a step already done."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
