"""The picture of retrievals: the paper's figures 1 and S5 to S8 [arXiv 2403.00504, section 4.3, app. I]."""

from __future__ import annotations

import os
from collections.abc import Sequence

from iwm.demo import NEAREST, Retrieval
from iwm.figures.picture import CAPTION, GAP, INK, LABEL, MARGIN, RIGHT, WRONG, Sheet, check_picture

_SIDE, _WORDS, _HEAD = 0.86, 1.4, 0.2


def save_retrievals(retrievals: Sequence[Retrieval], path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write one row per action: source, view asked for, the nearest retrieved.

    Right retrievals are framed green and marked with a check, wrong ones red with a cross.

    Args:
        retrievals: rows.
        path: `.png`, `.pdf` or `.svg`.
        dpi: pixels an inch of a `.png`.

    Raises:
        InvalidConfigError: matplotlib is not installed, or it cannot write this kind of file.
        SaveError: the file cannot be written.
    """
    check_picture(path)
    row_height = _SIDE + _HEAD
    width = _WORDS + (2 + NEAREST) * (_SIDE + GAP) + MARGIN
    sheet = Sheet(width, len(retrievals) * row_height + 2 * MARGIN)
    for row, item in enumerate(retrievals):
        top = MARGIN + row * row_height + _HEAD
        colour = RIGHT if item.rank == 1 else WRONG
        x, middle = _WORDS - 0.1, top + _SIDE / 2
        sheet.text(x, middle - 0.03, item.name, size=LABEL, across="right", down="bottom", colour=colour)
        sheet.text(
            x, middle + 0.03, f"rank {item.rank} of {item.bank_size}",
            size=CAPTION, across="right", down="top", colour=colour,
        )  # fmt: skip
        heads = ["source", "view asked for"] if row == 0 else ["", ""]
        frames: list[str | None] = [None, None]
        for place, right in enumerate(item.right, start=1):
            heads.append(f"{'✓' if right else '✗'} rank {place}")
            frames.append(RIGHT if right else WRONG)
        views = (item.source, item.asked, *item.found)
        for column, (pixels, head, frame) in enumerate(zip(views, heads, frames, strict=True)):
            left = _WORDS + column * (_SIDE + GAP)
            sheet.photograph(left, top, _SIDE, pixels, frame)
            if head:
                size = LABEL if frame is None else CAPTION
                sheet.text(left + _SIDE / 2, top - 0.04, head, size=size, colour=frame or INK, down="bottom")
    sheet.save(path, dpi)
