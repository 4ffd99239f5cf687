"""The picture of similarities between views: the paper's figure S3 [arXiv 2403.00504, appendix G]."""

from __future__ import annotations

import os
from collections.abc import Sequence

from iwm.demo import Pixels
from iwm.errors import InvalidConfigError
from iwm.figures.picture import CAPTION, MARGIN, SOFT, TITLE, WIDTH, Sheet, check_picture
from iwm.figures.similarity import Similarity

_BAR, _TITLE, _UNDER, _APART = 0.74, 0.4, 0.36, 0.12
_LARGEST, _SMALLEST, _THUMBNAIL, _LEAST = 2.6, 1.2, 0.5, 0.05


def save_similarities(
    panels: Sequence[Similarity],
    photographs: Sequence[Pixels],
    path: str | os.PathLike[str],
    *,
    dpi: int = 150,
) -> None:
    """Write one matrix per model, side by side on one scale, with the photographs at the left.

    Args:
        panels: matrices over the same photographs.
        photographs: as many as the matrices have blocks; left out where they would be dots.
        path: `.png`, `.pdf` or `.svg`.
        dpi: pixels an inch of a `.png`.

    Raises:
        InvalidConfigError: nothing to draw, panels of different photographs, or no file that can be written.
        SaveError: the file cannot be written.
    """
    check_picture(path)
    if {panel.photographs for panel in panels} != {len(photographs)}:
        raise InvalidConfigError("The picture needs matrices, all over the photographs shown beside them.")
    room = WIDTH - 2 * MARGIN - _THUMBNAIL - _BAR
    side = min(max((room - _APART * (len(panels) - 1)) / len(panels), _SMALLEST), _LARGEST)
    block = side / len(photographs)
    thumbnail = min(block - 0.02, _THUMBNAIL - 0.05)
    left, top = MARGIN + _THUMBNAIL, MARGIN + _TITLE
    width = left + len(panels) * (side + _APART) - _APART + _BAR
    sheet = Sheet(width, top + side + _UNDER)
    for row, pixels in enumerate(photographs if thumbnail > _LEAST else ()):
        x, y = left - 0.05 - thumbnail, top + (row + 0.5) * block - thumbnail / 2
        sheet.photograph(x, y, thumbnail, pixels)
    low = min(float(panel.matrix.min()) for panel in panels)
    for panel in panels:
        axes = sheet.axes(left, top, side, side)
        shown = axes.imshow(panel.matrix, cmap="viridis", vmin=low, vmax=1.0, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        middle = left + side / 2
        sheet.text(middle, top - 0.19, panel.model, size=TITLE, down="bottom", bold=True)
        sheet.text(middle, top - 0.05, panel.what, size=CAPTION, down="bottom")
        for line, words in enumerate(panel.summary):
            sheet.text(middle, top + side + 0.09 + 0.13 * line, words, size=CAPTION, colour=SOFT)
        left += side + _APART
    sheet.colour_bar(shown, left - _APART + 0.08, top, side, "cosine similarity")
    sheet.save(path, dpi)
