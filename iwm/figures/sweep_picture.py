"""The picture of sweeps: the paper's figures S9 to S11 [arXiv 2403.00504, appendix I]."""

from __future__ import annotations

import os
from collections.abc import Sequence

from iwm.errors import InvalidConfigError
from iwm.figures.picture import CAPTION, GAP, LABEL, MARGIN, SOFT, WIDTH, Sheet, check_picture
from iwm.figures.sweep import Sweep

_WORDS, _CAPTION, _BETWEEN = 1.2, 0.17, 0.16
_SMALLEST, _LARGEST = 0.5, 1.0


def save_sweeps(sweeps: Sequence[Sweep], path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write one block per sweep: true views above, what the world model finds below, value by value.

    Args:
        sweeps: blocks, all of as many steps.
        path: `.png`, `.pdf` or `.svg`.
        dpi: pixels an inch of a `.png`.

    Raises:
        InvalidConfigError: nothing to draw, sweeps of different lengths, or no file that can be written.
        SaveError: the file cannot be written.
    """
    check_picture(path)
    if len({len(item.asked) for item in sweeps}) != 1:
        raise InvalidConfigError("The picture needs sweeps, all of as many steps.")
    steps = len(sweeps[0].asked)
    side = min(max((WIDTH - _WORDS - MARGIN) / steps - GAP, _SMALLEST), _LARGEST)
    heights = [_block_height(item, side) for item in sweeps]
    width = _WORDS + steps * (side + GAP) - GAP + MARGIN
    sheet = Sheet(width, sum(heights) + _BETWEEN * (len(sweeps) - 1) + 2 * MARGIN)
    top = MARGIN
    for item, height in zip(sweeps, heights, strict=True):
        _draw(sheet, item, top, side)
        top += height + _BETWEEN
    sheet.save(path, dpi)


def _block_height(item: Sweep, side: float) -> float:
    decoded = side + GAP if item.decoded is not None else 0.0
    return 2 * (_CAPTION + side) + GAP + decoded


def _draw(sheet: Sheet, item: Sweep, top: float, side: float) -> None:
    name = "blur (sigma)" if item.parameter == "blur" else item.parameter
    x, middle = _WORDS - 0.1, _CAPTION / 2
    sheet.text(x, top + middle, name, size=LABEL, across="right", bold=True)
    rows = [("view asked for", item.true_views), ("retrieved", item.found_views)]
    if item.decoded is not None:
        rows.append(("decoded", item.decoded))
    y = top + _CAPTION
    for row, (words, views) in enumerate(rows):
        sheet.text(x, y + side / 2, words, size=LABEL, across="right")
        for column, pixels in enumerate(views):
            left = _WORDS + column * (side + GAP)
            sheet.photograph(left, y, side, pixels)
            if row < 2:
                value = (item.asked if row == 0 else item.found)[column]
                below = top + middle if row == 0 else y + side + middle
                sheet.text(left + side / 2, below, _value(item.parameter, value), size=CAPTION)
        y += side + GAP + (_CAPTION if row == 1 else 0.0)
        if row == 1:
            off = f"off by {item.error:.2g} on average"
            sheet.text(x, y - GAP - middle, off, size=CAPTION - 1, colour=SOFT, across="right")


def _value(parameter: str, value: float) -> str:
    if parameter == "hue":
        return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") if abs(value) >= 0.005 else "0"
    return f"{value:.2f}" if parameter == "blur" else f"\N{MULTIPLICATION SIGN}{value:.2f}"
