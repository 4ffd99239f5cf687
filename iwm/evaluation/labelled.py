"""Labelled images in the layout every tool knows: one subfolder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iwm.errors import InvalidDataError
from iwm.images import list_images


@dataclass(frozen=True)
class Labelled:
    """Image files and their labels, one to each."""

    images: list[Path]
    labels: list[str]


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
