"""Options that several commands share, and how they print results."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from iwm.bank import Bank
    from iwm.world_model import WorldModel

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="Zoo name, model folder, or org/name on the Hub.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Token = Annotated[
    str | None, typer.Option(help="Of the Hub; default HF_TOKEN, or what `hf auth login` stored.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]

console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
"""Standard output, as it is: paths and names may hold brackets and colons."""


def load_model(name: str, device: str = "cpu", *, exported: bool = False) -> WorldModel:
    """Load a model for a command: what it computes is what `iwm.load` computes.

    Args:
        name: as for `iwm.load`.
        device: where to put it.
        exported: whether the command can do with a folder that `iwm export` wrote, too.
    """
    from iwm.errors import InvalidConfigError
    from iwm.loading import load
    from iwm.runtimes import read_about
    from iwm.zoo import ZOO

    about = None if name in ZOO else read_about(Path(name))
    if about is None:
        return load(name, device=device)
    if not exported:
        raise InvalidConfigError(
            f"{name} was exported for {about['backend']}, which this command cannot use; name the model it was made from."
        )
    return load(name, device=device, backend=cast("Literal['openvino', 'onnx']", about["backend"]))


def find_images(paths: list[Path]) -> list[Path]:
    """Files as they are, folders with all images below them."""
    from iwm.images import list_images

    return [image for path in paths for image in (list_images(path) if path.is_dir() else [path])]


def encode_files(
    model: WorldModel, paths: list[Path], *, named: Collection[Path] = (), batch_size: int = 64
) -> Bank:
    """A bank of image files, behind a progress bar; an unreadable one is skipped with a warning.

    Args:
        model: what encodes them.
        paths: image files.
        named: those the user named one by one: for them, unreadable is an error.
        batch_size: images at a time.
    """
    from iwm.bank import Bank
    from iwm.display import track
    from iwm.errors import InvalidDataError, InvalidImageError

    read: list[Path] = []

    def pixels() -> Iterator[Tensor]:
        for path in track(paths, "encoding"):
            try:
                image = model.preprocess.one(path)
            except InvalidImageError as error:
                if path in named:
                    raise
                warn(f"skipped: {error}")
            else:
                read.append(path)
                yield image
        if not read:
            raise InvalidDataError(f"None of the {len(paths)} images can be read.")

    return Bank.from_latents(model.encode(pixels(), batch_size), read)


def warn(words: str) -> None:
    """One line on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False).print(
        f"Warning: {one_line(words)}"
    )


def check_output(path: Path, inputs: Iterable[str | os.PathLike[str]] = (), option: str = "--out") -> None:
    """Raise `SaveError` where a file cannot be written to `path`, before the work is done.

    Args:
        path: what the user named; a file that is there will be replaced.
        inputs: images that are read; none of them is.
        option: where the user named it.
    """
    from iwm.errors import SaveError
    from iwm.files import check_replaceable

    if os.path.isdir(path):
        raise SaveError(f"{path} is a folder; name a file for {option}.")
    check_replaceable(path)
    if os.path.exists(path) and any(os.path.exists(one) and os.path.samefile(path, one) for one in inputs):
        raise SaveError(f"{path} is one of the images themselves; name another file for {option}.")
    existing = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not os.path.isdir(existing):
        raise SaveError(f"Cannot write {path}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK):
        raise SaveError(f"Cannot write {path}: no permission to write in {existing}.")


def photographs_of(place: str, path: Path) -> list[Path]:
    """What of a library, a folder or a file might be replaced by what is written to `path`."""
    from iwm.index import Index
    from iwm.index.store import is_library

    if not path.exists():
        return []
    if is_library(place):
        held = Index.open(place).photos([path, path.resolve()])
        return [Path(photo.path) for photo in held]
    return find_images([Path(place)]) if Path(place).exists() else []


def check_no_image(path: Path, option: str = "--out") -> None:
    """Raise `SaveError` where what is no image would be called like one: it may be somebody's photograph."""
    from iwm.errors import SaveError
    from iwm.images import EXTENSIONS

    if path.suffix.lower() in EXTENSIONS:
        raise SaveError(f"{path} is called like an image; name another file for {option}.")


def printable(text: str) -> str:
    """Text without characters that a terminal would obey: strangers' files may hold some."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Text as `printable` gives it, line breaks spelt out too: names of files may hold some."""
    return printable(text).replace("\n", "\\n")


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, indent=2))
