"""What all pictures share: one width, one set of fonts and colours, photographs at their own pixels.

Everything is placed in inches from the top left corner of a sheet as wide as the text of a paper, so
that it is printed at its own size. Text stays text in a PDF.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iwm.demo import Pixels
from iwm.errors import InvalidConfigError
from iwm.files import atomic_write

WIDTH = 6.75
"""Inches: the text width of most papers."""
GAP, MARGIN = 0.06, 0.06
TITLE, LABEL, CAPTION = 8.5, 8.0, 7.0
"""Sizes of text in points."""
INK, SOFT, FRAME = "#222222", "#666666", "#bbbbbb"
RIGHT, WRONG = "#0a7d33", "#b3261e"
CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_KINDS = ("png", "pdf", "svg")
_SAVING = {"pdf.fonttype": 42, "svg.hashsalt": "iwm"}
_UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise what saving a picture to `path` would raise, before the work is done.

    Raises:
        InvalidConfigError: matplotlib is not installed, or this is no `.png`, `.pdf` or `.svg`.
    """
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as error:
        raise InvalidConfigError('Pictures need matplotlib: pip install "iwm[demo]"') from error
    if _kind(path) not in _KINDS:
        raise InvalidConfigError(f"Cannot write a picture to {path}; end its name in .png, .pdf or .svg.")


class Sheet:
    """An empty picture to put photographs, words and plots on; lengths in inches, from the top left.

    Args:
        width, height: of the sheet.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self._photographs: list[Any] = []
        self._figure = Figure(figsize=(width, height))
        FigureCanvasAgg(self._figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """A place for a plot, of matplotlib's `Axes`."""
        x, y = left / self.width, 1 - (top + height) / self.height
        axes = self._figure.add_axes((x, y, width / self.width, height / self.height))
        axes.tick_params(labelsize=CAPTION, width=0.6, length=2.5, colors=INK)
        for spine in axes.spines.values():
            spine.set_linewidth(0.6)
        return axes

    def photograph(
        self, left: float, top: float, side: float, pixels: Pixels, frame: str | None = None
    ) -> None:
        """A photograph `[3, H, W]`; a coloured frame is thick, none is a thin gray one."""
        axes = self.axes(left, top, side, side)
        image = axes.imshow(pixels.transpose(1, 2, 0).clip(0.0, 1.0), aspect="auto")
        self._photographs.append(image)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_edgecolor(frame or FRAME)
            spine.set_linewidth(1.6 if frame else 0.6)

    def text(
        self, left: float, top: float, words: str, *, size: float = LABEL, colour: str = INK,
        across: str = "center", down: str = "center", bold: bool = False,
    ) -> None:  # fmt: skip
        """Words at a point; `across` and `down` say which side of them the point is."""
        self._figure.text(
            left / self.width, 1 - top / self.height, words, fontsize=size, color=colour, ha=across, va=down,
            weight="bold" if bold else "normal", parse_math=False, linespacing=1.25,
        )  # fmt: skip

    def colour_bar(self, image: Any, left: float, top: float, height: float, label: str) -> None:
        """The scale of an image's colours, beside it."""
        axes = self.axes(left, top, 0.1, height)
        bar = self._figure.colorbar(image, cax=axes)
        bar.outline.set_linewidth(0.6)
        bar.set_label(label, fontsize=CAPTION, color=INK)
        axes.tick_params(labelsize=CAPTION, width=0.6, length=2.5)

    def save(self, path: str | os.PathLike[str], dpi: int) -> None:
        """Write the sheet, whole or not at all; the same numbers give the same file.

        Raises:
            InvalidConfigError: no kind of file that can be written.
            SaveError: the file cannot be written.
        """
        import matplotlib

        check_picture(path)
        kind = _kind(path)
        for image in self._photographs:
            # "none" embeds the very pixels in a PDF; in a PNG it would drop some where there is no room.
            image.set_interpolation("antialiased" if kind == "png" else "none")
        with atomic_write(Path(path)) as temporary, matplotlib.rc_context(_SAVING):
            self._figure.savefig(temporary, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))


def _kind(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.removeprefix(".").lower()
