"""From `--data` to labelled training and validation images, checked before anything is trained."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from iwm.config import TASK_NAME
from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.evaluation.labelled import (
    Segmented,
    misfits,
    read_class_folder,
    read_segmentation_folder,
    unreadable,
)
from iwm.images import file_list_hash, spread

log = logging.getLogger(__name__)

_TRAIN_NAMES, _VAL_NAMES = ("train", "training"), ("val", "valid", "validation")
_SPLITS = (*_TRAIN_NAMES, *_VAL_NAMES, "test")
"""Names of folders, in any case of letters."""
_NAMED = 20
"""Images that cannot be read and are named one by one; of more the number is told."""
_HELD_OUT = 10
"""One in so many photographs is held out where there is no validation set."""


@dataclass(frozen=True)
class Split:
    """Images with what is to be said of them.

    Attributes:
        root: the folder they are in.
        images: files.
        classes: a class index each, or none for segmentation.
        masks: a mask file each, or none for classification.
        numbers: of the masks, see `iwm.evaluation.labelled.Segmented`.
        options: of a command line that reads it again.
    """

    root: Path
    images: list[Path]
    classes: list[int]
    masks: list[Path]
    numbers: tuple[int, ...] = ()
    options: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int]) -> Split:
        """Some of them."""
        return replace(
            self,
            images=[self.images[i] for i in indices],
            classes=[self.classes[i] for i in indices] if self.classes else [],
            masks=[self.masks[i] for i in indices] if self.masks else [],
        )

    @property
    def files_sha256(self) -> str:
        """Shows which files a number is about."""
        return file_list_hash(self.root, self.images)

    @property
    def segmented(self) -> Segmented:
        """Images and masks alone."""
        return Segmented(self.images, self.masks, (), self.numbers)

    def describe(self) -> dict[str, object]:
        """For the provenance of what was trained on it."""
        return {"folder": str(self.root), "images": len(self), "files_sha256": self.files_sha256}


@dataclass(frozen=True)
class TaskData:
    """One task's labels and images.

    Attributes:
        name: see `parse_data`.
        labels: names of the classes.
        train, val: images of each.
        folders: as they were named; nothing is to be written in them.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    val: Split
    folders: tuple[Path, ...] = ()


def read_task(
    data: str | Path,
    val: Path | None = None,
    *,
    segmentation: bool = False,
    images: int = 0,
    labels: Path | None = None,
    ignore: Sequence[int] = (),
    skip_unreadable: bool = False,
    workers: int = 4,
) -> TaskData:
    """What `--data` and `--val` name.

    Args:
        data: `FOLDER` or `NAME=FOLDER`; a `Path` is a folder, whatever it is called. One with `train`
            and `val` in it stands for both.
        val: the validation set, or a folder with `train` and `val` in it; None takes the `val` that
            belongs to `data`, or holds out one photograph in ten of every class, always the same ones.
        segmentation: `images/` and `masks/` and not class subfolders.
        images: train on so many at most, evenly spaced; 0 is all.
        labels, ignore: see `read_segmentation_folder`.
        skip_unreadable: leave out what cannot be read, with a warning.
        workers: threads that look at the files.

    Raises:
        InvalidDataError: no such folder, one of splits, a class without images, a single class, images
            that cannot be read, masks that do not fit, labels that `train` does not have.
    """
    name, folder = parse_data(data)
    named = (folder,) if val is None else (folder, val)
    folder, beside = _train_and_val(folder)
    val = beside if val is None else _validation(val)
    # Only a command whose option is --train gives a path.
    options = ("--train ", "--val ") if isinstance(data, Path) else (f"--data {name}=", f"--val {name}=")
    _require_no_splits(folder, *options)
    if val is not None:
        _require_no_splits(val, options[1])

    def read(place: Path) -> tuple[Split, tuple[str, ...]]:
        if segmentation:
            return _segmentation(place, labels, ignore)
        return _classification(place)

    train, names = read(folder)
    if not segmentation and set(names) == {"images", "masks"}:
        raise InvalidDataError(
            f"{folder} holds images/ and masks/ and no classes; to learn masks, add --task segmentation to "
            "iwm finetune."
        )
    if len(names) < 2:
        raise InvalidDataError(f'{folder} has a single class, "{names[0]}"; a task needs at least two.')
    if val is not None:
        held_out, val_names = read(val)
        held_out = _renumbered(held_out, val, val_names, names) if not segmentation else held_out
        if segmentation and val_names != names:
            raise InvalidDataError(
                f"{val} has other labels than {folder}: {_parting(val_names, names)}; give both the same labels.txt, "
                "or one with --labels."
            )
    else:
        held_out, train = _hold_out(train)
        if not held_out.images or not train.images:
            raise InvalidDataError(f"{folder} has too few images to hold some out; name others with --val.")
    if images and images < len(train):
        train = train.take(spread(range(len(train)), images))
        empty = _first_without_images(train, names)
        if empty:
            raise InvalidDataError(
                f'No training image of class "{empty}" is left in {folder}; take more --images.'
            )
    train = checked(train, skip_unreadable, workers)
    empty = _first_without_images(train, names)
    if empty:
        raise InvalidDataError(
            f'None of the training images of class "{empty}" in {folder} can be read; mend some, or take the '
            "class away."
        )
    return TaskData(name, names, train, checked(held_out, skip_unreadable, workers), named)


def read_split(
    folder: Path,
    names: tuple[str, ...],
    *,
    segmentation: bool = False,
    labels: Path | None = None,
    ignore: Sequence[int] = (),
    held_out: bool = False,
    skip_unreadable: bool = False,
) -> Split:
    """Labelled images to measure a task on.

    Args:
        folder: class subfolders, or `images/` and `masks/`; one with `val` in it stands for that.
        names: labels of the task.
        held_out: only those that `read_task` holds out of this folder.
        segmentation, labels, ignore, skip_unreadable: see `read_task`.

    Raises:
        InvalidDataError: as `read_task`, or labels that the task does not have.
    """
    place = folder if held_out else _validation(folder)
    _require_no_splits(place, "--data ")
    split, own = _segmentation(place, labels, ignore) if segmentation else _classification(place)
    if segmentation:
        if own != names:
            raise InvalidDataError(
                f"{place} has other labels than the task: {_parting(own, names)}; name the file that the task was "
                "trained with: --labels FILE."
            )
    else:
        split = _renumbered(split, place, own, names)
    return checked(_hold_out(split)[0] if held_out else split, skip_unreadable)


def parse_data(data: str | Path) -> tuple[str, Path]:
    """A task's name and folder from `NAME=FOLDER`, or the folder's own name; a `Path` names none.

    >>> parse_data("flowers/train")
    ('flowers', PosixPath('flowers/train'))

    Raises:
        InvalidConfigError: a name that is no name for a file.
    """
    written, equals, rest = ("", "", "") if isinstance(data, Path) else data.partition("=")
    folder = Path(rest if equals else data)
    if equals:
        name = written
    else:
        parts = [p for p in folder.absolute().parts if p.lower() not in _SPLITS]
        name = re.sub(r"[^a-z0-9_-]", "-", parts[-1].lower()).lstrip("_-")[:64] or "task"
    if re.fullmatch(TASK_NAME, name) is None:
        raise InvalidConfigError(
            f'A task cannot be called "{name}"; use up to 64 small letters, digits, dashes and underscores: '
            "--data name=folder."
        )
    return name, folder


def checked(split: Split, skip: bool, workers: int = 4) -> Split:
    """Without the images that cannot be read, if they may be skipped.

    Raises:
        InvalidDataError: some cannot be read, or masks do not fit; they are counted and named.
    """
    problems = misfits(split.segmented, workers) if split.masks else unreadable(split.images, workers)
    bad = [error for error in problems if error is not None]
    if not bad:
        return split
    listed = " ".join(f"{str(error).rstrip('.')}." for error in bad[:_NAMED]) + (
        " ..." if len(bad) > _NAMED else ""
    )
    noun = "image" if len(split) == 1 else "images"
    part = " held out for validation" if "--held-out" in split.options else ""
    said = f"{len(bad)} of {len(split)} {noun}{part} in {split.root} cannot be used: {listed}"
    if not skip or len(bad) == len(split):
        more = "" if skip else " Mend or remove them, or leave them out with --skip-unreadable."
        raise InvalidDataError(said + more)
    log.warning("skipped: %s", said)
    kept = split.take([i for i, error in enumerate(problems) if error is None])
    return replace(kept, options=(*kept.options, "--skip-unreadable"))


def check_outside(place: Path, option: str, tasks: Sequence[TaskData]) -> None:
    """Refuse to write among photographs, where the next run would read what this one wrote.

    A data folder inside `place` is fine.

    Args:
        place: that will be written to.
        option: it was named with.
        tasks: whose folders are meant.

    Raises:
        InvalidConfigError: `place` is one of the folders, or inside one.
    """
    for folder in (folder for task in tasks for folder in task.folders):
        if place.resolve().is_relative_to(folder.resolve()):
            where = "is" if place.resolve() == folder.resolve() else "is inside"
            raise InvalidConfigError(
                f"{option} {place} {where} the data folder {folder}; write somewhere else."
            )


def listing(tasks: Sequence[TaskData]) -> str:
    """Names the images of training and validation, so that a run is not continued on others."""
    train = "".join(f"{t.name} {t.labels} {_contents(t.train)}" for t in tasks)
    val = "".join(f"{t.name} {_contents(t.val)}" for t in tasks)
    return (
        f"{sum(len(t.train) for t in tasks)} images (files {_short_hash(train)}), validated on "
        f"{sum(len(t.val) for t in tasks)} (files {_short_hash(val)})"
    )


def _contents(split: Split) -> str:
    """Its files and what is said of them: classes, or what the numbers in masks mean."""
    return f"{split.files_sha256} {split.numbers or split.classes}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _first_without_images(split: Split, names: Sequence[str]) -> str | None:
    """The first class that none of the images has; None for masks, which need not hold every class."""
    if not split.classes:
        return None
    present = set(split.classes)
    return next((name for i, name in enumerate(names) if i not in present), None)


def _train_and_val(folder: Path) -> tuple[Path, Path | None]:
    """A training folder and the validation folder in it or beside it."""
    both = _inside(folder)
    if both:
        return both
    if folder.name.lower() in _TRAIN_NAMES:
        return folder, _subfolder(folder.parent, _VAL_NAMES)
    return folder, None


def _validation(folder: Path) -> Path:
    """The validation folder in a folder that has both, or else the folder itself."""
    both = _inside(folder)
    return both[1] if both else folder


def _inside(folder: Path) -> tuple[Path, Path] | None:
    """The folders `train` and `val` of a folder that has both."""
    train, val = _subfolder(folder, _TRAIN_NAMES), _subfolder(folder, _VAL_NAMES)
    return (train, val) if train and val else None


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of some names that a folder has a subfolder of, in any case of letters."""
    found = {p.name.lower(): p for p in sorted(folder.glob("*")) if p.name.lower() in names and p.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _require_no_splits(folder: Path, *options: str) -> None:
    """Raise `InvalidDataError` where the subfolders of a folder are splits.

    Args:
        folder: where classes, or images and masks, are expected.
        options: what is to be written before the splits, the last of them last.
    """
    inside = [p.name for p in folder.glob("*") if not p.name.startswith(".") and p.is_dir()]
    if inside and all(name.lower() in _SPLITS for name in inside):
        splits = sorted(inside, key=lambda name: _SPLITS.index(name.lower()))[-len(options) :]
        typed = " ".join(f"{option}{folder / name}" for option, name in zip(options, splits, strict=False))
        raise InvalidDataError(f"{folder} holds splits, not classes; write {typed}.")


def _classification(folder: Path) -> tuple[Split, tuple[str, ...]]:
    found = read_class_folder(folder)
    names = tuple(sorted(set(found.labels)))
    index = {name: i for i, name in enumerate(names)}
    return Split(folder, found.images, [index[label] for label in found.labels], []), names


def _segmentation(folder: Path, labels: Path | None, ignore: Sequence[int]) -> tuple[Split, tuple[str, ...]]:
    found = read_segmentation_folder(folder, labels, ignore)
    options: tuple[str, ...] = () if labels is None else ("--labels", str(labels))
    options += tuple(word for number in ignore for word in ("--ignore", str(number)))
    return Split(folder, found.images, [], found.masks, found.numbers, options), found.labels


def _renumbered(split: Split, folder: Path, own: tuple[str, ...], names: tuple[str, ...]) -> Split:
    """With the class indices of the training set."""
    unknown = [label for label in own if label not in names]
    if unknown:
        raise InvalidDataError(
            f"{folder} has classes that the task does not have: {', '.join(unknown[:5])}. It has "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
        )
    return replace(split, classes=[names.index(own[c]) for c in split.classes])


def _parting(own: Sequence[str], others: Sequence[str]) -> str:
    """The first difference between labels, in words."""
    one, other = next(pair for pair in zip_longest(own, others) if pair[0] != pair[1])
    words = [f'"{label}"' if label is not None else "none" for label in (one, other)]
    return f"the first that differs is {words[0]} and not {words[1]}"


def _hold_out(split: Split) -> tuple[Split, Split]:
    """One image in ten of every class, at least one where a class has two; and the rest.

    By the hash of its name, so that the choice does not depend on where the folder is.
    """
    by_class: dict[int, list[int]] = {}
    for i in range(len(split)):
        by_class.setdefault(split.classes[i] if split.classes else 0, []).append(i)

    def rank(i: int) -> str:
        return hashlib.sha256(split.images[i].relative_to(split.root).as_posix().encode()).hexdigest()

    chosen = []
    for members in by_class.values():
        count = max(len(members) // _HELD_OUT, int(len(members) > 1))
        chosen += sorted(members, key=rank)[:count]
    held = replace(split.take(sorted(chosen)), options=(*split.options, "--held-out"))
    return held, split.take(sorted(set(range(len(split))) - set(chosen)))
