"""What a training run leaves on disk: its configuration, metrics, log and resumable state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from iwm.checkpoint import atomic_write, write_text
from iwm.config import to_json
from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.training.config import RunConfig

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.pt"

_START_AGAIN = "Start again with another --out; the model exported there so far still loads."

FREE_FIELDS = frozenset({"steps", "device", "log_every", "checkpoint_every", "data.workers"})
"""Fields that may differ between a run and its continuation."""


class RunFolder:
    """One run's folder.

    Args:
        path: created when missing.
        config: of the run that is about to start.
        resume: continue what the folder holds.

    Raises:
        InvalidDataError: the folder holds a run and `resume` is false.
        InvalidConfigError: the run in it had other settings; they are named.
    """

    def __init__(self, path: Path, config: RunConfig, *, resume: bool) -> None:
        self.path = path
        if self.has_state and not resume:
            raise InvalidDataError(
                f"{path} holds a training run already. Add --resume to continue it, or choose another --out."
            )
        if path.exists() and not path.is_dir():
            raise InvalidDataError(f"{path} is a file; choose a folder for --out.")
        if self.has_state:
            self._check_same(config)
        write_text(path / RUN_FILE, to_json(config))

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return (self.path / STATE_FILE).is_file()

    def _check_same(self, config: RunConfig) -> None:
        try:
            before = _flat(json.loads((self.path / RUN_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InvalidDataError(
                f"{self.path / RUN_FILE} cannot be read: {error}. {_START_AGAIN}"
            ) from error
        now = _flat(json.loads(to_json(config)))
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        changed = [k for k in changed if k not in FREE_FIELDS]
        if changed:
            listed = "; ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in changed[:5])
            raise InvalidConfigError(
                f"{self.path} cannot be resumed with other settings: {listed}. Use the old ones, or another --out."
            )

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_metrics_from(self, step: int) -> None:
        """Drop the lines that a resumed run is about to write again."""
        path = self.path / METRICS_FILE
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the resumable state, atomically."""
        with atomic_write(self.path / STATE_FILE) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # How torch reports a full disk.
                raise OSError(str(error)) from error

    def load_state(self) -> dict[str, Any]:
        """The last saved state.

        Raises:
            InvalidDataError: the file is damaged.
        """
        path = self.path / STATE_FILE
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged archive raises many kinds.
            raise InvalidDataError(f"{path} cannot be read: {error}. {_START_AGAIN}") from error
        return state


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
