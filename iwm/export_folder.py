"""The folder of an export: which ones are refused, and how a new export takes an old one's place.

Everything is written into a folder inside it first. What was there is taken away only when the new
files lie complete; `config.json` leaves first and comes last, so that a folder that has it is whole.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iwm.errors import IWMError, SaveError
from iwm.files import remove
from iwm.model_card import CARD_FILE, may_replace
from iwm.model_folder import CONFIG_FILE, DECODER_FILE, EXPORT_FILE, STUDENT_FILE, TASK_FILES, WEIGHTS_FILE
from iwm.runtimes import PARTS, task_part

_WEIGHTS = (WEIGHTS_FILE, STUDENT_FILE, DECODER_FILE, TASK_FILES)
_GRAPHS = (".xml", ".bin", ".onnx", ".onnx.data")


def check_free(folder: Path) -> None:
    """Raise `SaveError` for a folder that holds a model: an export would take its place."""
    names = [path.name for pattern in _WEIGHTS for path in folder.glob(pattern)]
    if not (folder / EXPORT_FILE).exists():
        names += [path.name for path in folder.glob(CONFIG_FILE)]
    if names:
        raise SaveError(
            f"{folder} holds a model ({names[0]}), which an export would replace; export to another "
            "folder, or delete this one first."
        )


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace the export in `folder` when the block ends well.

    Raises:
        SaveError: the folder cannot be written, or holds a model.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_free(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as name:
            temporary = Path(name)
            yield temporary
            _clear(folder)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG_FILE):
                if path.name != CARD_FILE or may_replace(folder / CARD_FILE):
                    path.replace(folder / path.name)
    except IWMError:
        raise
    except OSError as error:
        raise SaveError(f"Cannot write {folder}: {error}.") from error


def _clear(folder: Path) -> None:
    """Take away what an export before this one left."""
    for name in (CONFIG_FILE, EXPORT_FILE):
        remove(folder / name)
    for part in (*PARTS, task_part("*")):
        for suffix in _GRAPHS:
            for path in list(folder.glob(f"{part}{suffix}")):
                remove(path)
