"""Pictures of what a world model does, after the paper's figure 1 [arXiv 2403.00504]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from iwm.demo import NEAREST, Pixels, Retrieval
from iwm.errors import InvalidConfigError
from iwm.files import atomic_write

_RIGHT, _WRONG = "#0a7d33", "#b3261e"


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise what `save_retrievals` would raise about `path`, before the work is done.

    Raises:
        InvalidConfigError: matplotlib is not installed, or it cannot write this kind of file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise InvalidConfigError('Pictures need matplotlib: pip install "iwm[demo]"') from error
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in kinds:
        raise InvalidConfigError(f"Cannot write a picture to {path}; end its name in .png, .pdf or .svg.")


def save_retrievals(retrievals: Sequence[Retrieval], path: str | os.PathLike[str]) -> None:
    """Write one row per action: source, view asked for, the nearest retrieved.

    Right retrievals are framed green and marked with a check, wrong ones red with a cross.

    Args:
        retrievals: rows.
        path: `.png`, `.pdf` or `.svg`.

    Raises:
        InvalidConfigError: matplotlib is not installed, or it cannot write this kind of file.
        SaveError: the file cannot be written.
    """
    check_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    columns = 2 + NEAREST
    figure = Figure(figsize=(1.55 * columns + 1.4, 1.72 * len(retrievals) + 0.3), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(retrievals), columns, squeeze=False)
    for row, item in zip(axes, retrievals, strict=True):
        row[0].set_ylabel(
            f"{item.name}\nrank {item.rank} of {item.bank_size}",
            rotation=0, ha="right", va="center", labelpad=8, fontsize=9,
            color=_RIGHT if item.rank == 1 else _WRONG,
        )  # fmt: skip
        first = item is retrievals[0]
        panels: list[tuple[Pixels, str, bool | None]] = [
            (item.source, "source" if first else "", None),
            (item.asked, "view asked for" if first else "", None),
        ]
        for place, (view, right) in enumerate(zip(item.found, item.right, strict=True), start=1):
            panels.append((view, f"{'✓' if right else '✗'} rank {place}", right))
        for axis, (pixels, title, verdict) in zip(row, panels, strict=True):
            axis.imshow(pixels.transpose(1, 2, 0), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            colour = "#444444" if verdict is None else _RIGHT if verdict else _WRONG
            axis.set_title(title, fontsize=8.5, color=colour, pad=3)
            for spine in axis.spines.values():
                spine.set_edgecolor(colour if verdict is not None else "#bbbbbb")
                spine.set_linewidth(2.0 if verdict is not None else 0.8)
    figure.subplots_adjust(left=0.2, right=0.99, top=0.985, bottom=0.01, wspace=0.06, hspace=0.18)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".").lower())
