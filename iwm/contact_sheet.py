"""A contact sheet: a query and what was found for it, on one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from iwm.errors import InvalidConfigError
from iwm.files import atomic_write

_CELL, _CAPTION, _GAP, _COLUMNS = 160, 22, 8, 6
_PAPER, _INK, _ABSENT = "#ffffff", "#222222", "#dddddd"


def check_sheet(path: Path) -> None:
    """Raise `InvalidConfigError` where `path` does not end like a picture that can be written."""
    if _format(path) is None:
        raise InvalidConfigError(
            f"Cannot write a contact sheet to {path}; end its name in .png, .jpg or .webp."
        )


def save_sheet(cells: Sequence[tuple[Image.Image | None, str]], path: Path) -> None:
    """Write pictures with captions, row by row.

    Args:
        cells: a picture, or None for one that cannot be read, and a short caption.
        path: `.png`, `.jpg` or `.webp`.

    Raises:
        InvalidConfigError: a file name of another kind.
        SaveError: the file cannot be written.
    """
    check_sheet(path)
    columns = min(_COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    size = (_GAP + columns * (_CELL + _GAP), _GAP + rows * (_CELL + _CAPTION + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for place, (picture, caption) in enumerate(cells):
        row, column = divmod(place, columns)
        left, top = _GAP + column * (_CELL + _GAP), _GAP + row * (_CELL + _CAPTION + _GAP)
        if picture is None:
            draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=_ABSENT)
        else:
            scale = _CELL / max(picture.size)
            small = picture.resize(
                (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
            )
            sheet.paste(small, (left + (_CELL - small.width) // 2, top + (_CELL - small.height) // 2))
        draw.text((left + _CELL / 2, top + _CELL + _CAPTION / 2), caption, _INK, font, anchor="mm")
    with atomic_write(path) as temporary:
        sheet.save(temporary, format=_format(path))


def _format(path: Path) -> str | None:
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    return kinds.get(path.suffix.lower())
