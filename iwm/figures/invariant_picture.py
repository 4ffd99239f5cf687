"""The picture of averaged predictions: the paper's figure S4 [arXiv 2403.00504, appendix H]."""

from __future__ import annotations

import os
from collections.abc import Sequence

from iwm.errors import InvalidConfigError
from iwm.figures.invariant import Marginal
from iwm.figures.picture import (
    CAPTION,
    CURVES,
    GAP,
    INK,
    LABEL,
    MARGIN,
    MARKERS,
    RIGHT,
    SOFT,
    WIDTH,
    Sheet,
    check_picture,
)

_WORDS, _CAPTION, _BETWEEN = 1.4, 0.17, 0.14
_LARGEST = 1.0
_CURVE = (3.4, 1.7)
_UNDER_CURVE = 0.45


def save_marginals(
    marginals: Sequence[Marginal], path: str | os.PathLike[str], *, curve: bool = False, dpi: int = 150
) -> None:
    """Write two rows per photograph: some of its views, and what lies nearest to the mean prediction.

    Args:
        marginals: of as many photographs, all with as many views to show.
        path: `.png`, `.pdf` or `.svg`.
        curve: also plot how the mean nears the untouched photograph with the number of predictions.
        dpi: pixels an inch of a `.png`.

    Raises:
        InvalidConfigError: nothing to draw, or no file that can be written.
        SaveError: the file cannot be written.
    """
    check_picture(path)
    if len({len(item.found) for item in marginals}) != 1:
        raise InvalidConfigError("The picture needs photographs, all with as many views to show.")
    columns = len(marginals[0].found)
    side = min((WIDTH - _WORDS - MARGIN) / columns - GAP, _LARGEST)
    block = 2 * (side + _CAPTION) + _BETWEEN
    below = _CURVE[1] + _UNDER_CURVE + _BETWEEN if curve else 0.0
    width = max(_WORDS + columns * (side + GAP) - GAP + MARGIN, WIDTH if curve else 0.0)
    sheet = Sheet(width, 2 * MARGIN + len(marginals) * block - _BETWEEN + below)
    for number, item in enumerate(marginals):
        name = f"photograph {number + 1}" if len(marginals) > 1 else ""
        _draw(sheet, item, name, MARGIN + number * block, side)
    if curve:
        _plot(sheet, marginals, MARGIN + len(marginals) * block)
    sheet.save(path, dpi)


def _draw(sheet: Sheet, item: Marginal, name: str, top: float, side: float) -> None:
    if name:
        sheet.text(_WORDS - 0.1, top + 0.02, name, size=LABEL, across="right", down="top", bold=True)
    second = top + side + _CAPTION
    predictions = item.bank_size - 1
    _label(sheet, top + side / 2, "some of the views", f"mean change {item.mean_change:.2f}")
    _label(
        sheet, second + side / 2, f"nearest to the mean\nof {predictions} predictions",
        f"untouched: rank {item.rank} of {item.bank_size}",
    )  # fmt: skip
    for column in range(len(item.found)):
        left = _WORDS + column * (side + GAP)
        middle = left + side / 2
        sheet.photograph(left, top, side, item.views[column])
        sheet.text(middle, second - _CAPTION / 2, f"{item.view_changes[column]:.2f}", size=CAPTION)
        clean = item.photometries[column].is_clean
        colour = RIGHT if clean else None
        sheet.photograph(left, second, side, item.found[column], colour)
        words = "untouched" if clean else f"{item.changes[column]:.2f}"
        below = second + side + _CAPTION / 2 + (0.01 if clean else 0.0)
        sheet.text(middle, below, words, size=CAPTION, colour=colour or INK)


def _label(sheet: Sheet, middle: float, words: str, note: str) -> None:
    x = _WORDS - 0.1
    sheet.text(x, middle + 0.02, words, size=LABEL, across="right", down="bottom")
    sheet.text(x, middle + 0.06, note, size=CAPTION - 1, colour=SOFT, across="right", down="top")


def _plot(sheet: Sheet, marginals: Sequence[Marginal], top: float) -> None:
    """Distances to the untouched photograph's encoding, in those of its views; the legend outside."""
    axes = sheet.axes(_WORDS, top, *_CURVE)
    for number, item in enumerate(marginals):
        axes.plot(
            list(item.curve), [distance / item.mean_distance for distance in item.curve.values()],
            color=CURVES[number % len(CURVES)], marker=MARKERS[number % len(MARKERS)], markersize=3.5,
            linewidth=1.2, label=f"photograph {number + 1}",
        )  # fmt: skip
    axes.axhline(1.0, color=SOFT, linewidth=1.0, linestyle="--", label="its views, on average")
    counts = list(marginals[0].curve)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("predictions averaged", fontsize=LABEL, color=INK)
    axes.set_ylabel("distance from the untouched", fontsize=LABEL, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=CAPTION, frameon=False)
