"""Labelled images in the layouts every tool knows.

Classification: one subfolder a class. Segmentation: `images/`, `masks/` with a PNG of class
numbers for each image, and `labels.txt` with one name a line, line 0 for number 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from iwm.errors import InvalidDataError, InvalidImageError
from iwm.images import list_images
from iwm.opening import open_rgb

LABELS_FILE = "labels.txt"
VOID = "void"
IGNORED = 255
"""What a pixel that is not counted carries after reading."""


@dataclass(frozen=True)
class Labelled:
    """Image files and their labels, one to each."""

    images: list[Path]
    labels: list[str]


@dataclass(frozen=True)
class Segmented:
    """Image files and their masks, one to each.

    Attributes:
        images, masks: files, in the same order.
        labels: names of the classes that count.
        numbers: for every number 0 to 255 of a mask file the index of its class in `labels`,
            `IGNORED` where it does not count, -1 where it is unknown.
    """

    images: list[Path]
    masks: list[Path]
    labels: tuple[str, ...]
    numbers: tuple[int, ...]


def read_class_folder(folder: Path) -> Labelled:
    """All images of a folder whose subfolders are classes.

    Raises:
        InvalidDataError: no such folder, no class subfolders, or a class without images.
    """
    if not folder.is_dir():
        raise InvalidDataError(f"No such folder: {folder}")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InvalidDataError(f"{folder} has no class subfolders; expected {folder}/cat/1.jpg and so on.")
    images: list[Path] = []
    labels: list[str] = []
    for directory in classes:
        found = list_images(directory)
        images += found
        labels += [directory.name] * len(found)
    return Labelled(images, labels)


def read_segmentation_folder(
    folder: Path, labels: Path | None = None, ignore: Sequence[int] = ()
) -> Segmented:
    """A folder of `images/`, `masks/` and `labels.txt`.

    Args:
        folder: see above.
        labels: the file of names; None is `labels.txt` in the folder or in the one above it. A
            line `void` names a number that does not count.
        ignore: further numbers that do not count, such as 255.

    Raises:
        InvalidDataError: something is missing, or an image has no mask.
    """
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            raise InvalidDataError(
                f"{folder} has no folder {name}; expected {folder}/images/1.jpg and {folder}/masks/1.png."
            )
    images = list_images(folder / "images")
    masks = [(folder / "masks" / p.relative_to(folder / "images")).with_suffix(".png") for p in images]
    missing = [p for p, mask in zip(images, masks, strict=True) if not mask.is_file()]
    if missing:
        raise InvalidDataError(f"{_counted(missing)} without a mask; expected masks/{missing[0].stem}.png.")
    file = _find_labels(folder) if labels is None else labels
    names = read_labels(file)
    kept = [name for name in names if name != VOID]
    if not kept:
        raise InvalidDataError(f"{file} names nothing but {VOID}; write the name of a class that counts.")
    numbers = [-1] * 256
    for number, name in enumerate(names):
        numbers[number] = IGNORED if name == VOID or number in ignore else kept.index(name)
    for number in ignore:
        if not 0 <= number <= 255:
            raise InvalidDataError(f"ignore is {number}; numbers of a mask are 0 to 255.")
        numbers[number] = IGNORED
    return Segmented(images, masks, tuple(kept), tuple(numbers))


def read_labels(path: Path) -> list[str]:
    """Names of classes, one a line.

    Raises:
        InvalidDataError: it cannot be read, holds no names or too many, one of them twice, or an
            empty line before the last name.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataError(f"Cannot read {path}: {error}. Write one class name a line.") from error
    names = [line.strip() for line in lines]
    if "" in names:
        number = names.index("")
        raise InvalidDataError(
            f"Line {number + 1} of {path} is empty, where the name for number {number} of the masks is; write "
            f"{VOID} if it does not count."
        )
    twice = sorted({name for name in names if names.count(name) > 1 and name != VOID})
    if not names or len(names) > IGNORED or twice:
        said = f'"{twice[0]}" twice' if twice else f"{len(names)} names"
        raise InvalidDataError(f"{path} holds {said}; write 1 to {IGNORED} different names, one a line.")
    return names


def read_mask(path: Path, numbers: Sequence[int], size: tuple[int, int] | None = None) -> Image.Image:
    """A mask whose pixels are class indices, `IGNORED` where they do not count.

    Args:
        path: a PNG of one channel; palettes are read by number.
        numbers: see `Segmented`.
        size: width and height that it must have; None is any.

    Raises:
        InvalidImageError: it cannot be read, has another size, or numbers without a name.
    """
    try:
        with Image.open(path) as opened:
            values = np.array(opened)
            if values.dtype == np.bool_:  # A PNG of one bit; as an index it would be a selection.
                values = values.astype(np.uint8)
    except Exception as error:  # Decoders of damaged files raise many kinds.
        raise InvalidImageError(f"Cannot read the mask {path}: {error}") from error
    if values.ndim != 2 or values.dtype == np.float32:
        raise InvalidImageError(f"The mask {path} has colours; it must hold one class number a pixel.")
    if size is not None and values.shape != size[::-1]:
        raise InvalidImageError(
            f"The mask {path} is {values.shape[1]} x {values.shape[0]} pixels, its image {size[0]} x {size[1]}; "
            "they must be of one size."
        )
    used = np.unique(values)
    unknown = [int(v) for v in used if not 0 <= v <= 255 or numbers[int(v)] < 0]
    if unknown:
        raise InvalidImageError(
            f"The mask {path} holds the numbers {', '.join(map(str, unknown[:5]))}, which {LABELS_FILE} has no "
            f"line for; add them, or leave them out with --ignore {unknown[0]}."
        )
    table = np.array([n if n >= 0 else IGNORED for n in numbers], dtype=np.uint8)
    return Image.fromarray(table[values])


def unreadable(images: Sequence[Path], workers: int = 4) -> list[InvalidImageError | None]:
    """For every image file what is wrong with it; None is nothing. JPEGs are decoded small."""
    return _each(lambda path: open_rgb(path, at_least=1), images, workers)


def misfits(data: Segmented, workers: int = 4) -> list[InvalidImageError | None]:
    """For every pair of image and mask what is wrong with it; None is nothing.

    Raises:
        InvalidDataError: not one pixel of all masks counts.
    """
    masks = dict(zip(data.images, data.masks, strict=True))
    counted: list[bool] = []

    def check(path: Path) -> None:
        mask = read_mask(masks[path], data.numbers, open_rgb(path).size)
        counted.append(bool((np.array(mask) != IGNORED).any()))

    problems = _each(check, data.images, workers)
    if counted and not any(counted):
        raise InvalidDataError(
            f"Not one pixel of the {len(counted)} masks in {data.masks[0].parent} counts: all are {VOID} in "
            f"{LABELS_FILE}, or named with --ignore. Name a class, or ignore less."
        )
    return problems


def _each(check: object, images: Sequence[Path], workers: int) -> list[InvalidImageError | None]:
    def problem(path: Path) -> InvalidImageError | None:
        try:
            check(path)  # type: ignore[operator]
        except InvalidImageError as error:
            return error
        return None

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(problem, images))


def _find_labels(folder: Path) -> Path:
    for place in (folder / LABELS_FILE, folder.parent / LABELS_FILE):
        if place.is_file():
            return place
    raise InvalidDataError(
        f"{folder} has no {LABELS_FILE}; write one class name a line, line 0 for number 0 of the masks, "
        "or name a file with --labels."
    )


def _counted(paths: Sequence[Path]) -> str:
    return f"{len(paths)} images ({', '.join(p.name for p in paths[:3])}{', ...' if len(paths) > 3 else ''})"
