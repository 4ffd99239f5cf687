"""What the tabs show, as HTML: figures with captions, alternative texts, and words about ranks.

Pictures are inside the page as data, so that the server hands out no file at all.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from iwm.edits import in_words
from iwm.ui.acting import Acted
from iwm.ui.places import Hit, Search
from iwm.ui.sliders import Slider
from iwm.ui.undoing import Undone

NOTHING_YET = '<p class="iwm-hint">Choose a photograph above, and it shows here.</p>'


def alert(words: str) -> str:
    """Something that went wrong, read aloud by screen readers."""
    return f'<p class="iwm-alert" role="alert">{escape(words)}</p>'


def status(words: str) -> str:
    """Something that went well."""
    return f'<p class="iwm-status" role="status">{escape(words)}</p>'


def acted_html(shown: Acted, *, library: bool) -> str:
    """The tab *Act*."""
    what = in_words(shown.view)
    first = [
        _figure(shown.source, "Photograph", "The photograph as the model sees it"),
        _figure(shown.true, "True pixels", f"Control: the pixels of the photograph, {what}"),
    ]
    if shown.imagined:
        first.append(_figure(shown.imagined, "Imagined", f"Decoded prediction of the photograph, {what}"))
    heading = "Nearest photographs of the library" if library else "Nearest views to the prediction"
    return _panel(
        _verdict(_about_apply(shown, library)),
        _row(first, "iwm-three"),
        f"<h3>{heading}</h3>",
        _hits(shown.found.hits, heading),
    )


def undone_html(shown: Undone, *, library: bool) -> str:
    """The tab *Undo*."""
    first = [_figure(shown.edited, "Edited", "The edited photograph as the model sees it")]
    if shown.imagined:
        first.append(_figure(shown.imagined, "Imagined original", "Decoded prediction of the original"))
    return _panel(
        _verdict(_about_undo(shown, library)),
        _row(first, "iwm-three"),
        "<h3>Found after undoing</h3>",
        _hits(shown.found.hits, "Found after undoing"),
    )


def control_html(shown: Undone) -> str:
    """What is found without undoing."""
    heading = "Control: found without undoing"
    return _panel(f"<h3>{heading}</h3>", _hits(shown.control.hits, heading))


def grid_html(slider: Slider, rows: Sequence[Acted], *, library: bool) -> str:
    """The tab *Grid*: a table with one value a row."""
    imagines = any(row.imagined for row in rows)
    columns = ["True pixels", *(["Imagined"] if imagines else [])]
    columns += [f"Nearest {i}" for i in range(1, max(len(row.found.hits) for row in rows) + 1)]
    head = "".join(f'<th scope="col">{name}</th>' for name in [slider.label, *columns])
    body = "".join(_grid_row(slider, row, library=library) for row in rows)
    return _panel(
        f'<p class="iwm-verdict">{slider.label}: from one end of the trained range to the other.</p>'
        f'<div class="iwm-scroll" tabindex="0" role="region" aria-label="Grid of {escape(slider.label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _grid_row(slider: Slider, row: Acted, *, library: bool) -> str:
    value = getattr(row.view, slider.name)
    said = (
        ("on" if value else "off")
        if slider.switch
        else f"{value:+.2f}"
        if slider.name == "hue"
        else f"{value:.2f}"
    )
    rank = "" if row.found.rank is None else f"<small>rank {row.found.rank:g} of {row.found.size}</small>"
    cells = [_figure(row.true, "", f"True pixels, {slider.label} {said}")]
    if row.imagined:
        cells.append(_figure(row.imagined, "", f"Decoded prediction, {slider.label} {said}"))
    cells += [
        _hit(hit, place, tag="div", short=not library) for place, hit in enumerate(row.found.hits, start=1)
    ]
    return f'<tr><th scope="row">{said}{rank}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _about_apply(shown: Acted, library: bool) -> str:
    if library:
        asked = (
            "the photograph as it is" if shown.view.is_clean else f"the prediction for {in_words(shown.view)}"
        )
        return f"The nearest of {shown.found.size:,} photographs to {asked}."
    if shown.view.is_clean:
        return "Nothing is asked for yet: move a slider."
    return f"Asked for {in_words(shown.view)}. {_rank('The view asked for', shown.found)}"


def _about_undo(shown: Undone, library: bool) -> str:
    if library:
        return f"The nearest of {shown.found.size:,} photographs, with {in_words(shown.edit)} undone."
    if shown.edit.is_clean:
        return "Nothing is undone yet: say with the sliders what was done."
    without = f"Without undoing it comes {_place(shown.control)}."
    return f"Undone: {in_words(shown.edit)}. {_rank('The original', shown.found)} {without}"


def _rank(what: str, found: Search) -> str:
    return f"{what} comes {_place(found)}."


def _place(found: Search) -> str:
    return f"first of {found.size}" if found.rank == 1 else f"number {found.rank:g} of {found.size}"


def _panel(*parts: str) -> str:
    return f'<section class="iwm-panel">{"".join(parts)}</section>'


def _verdict(words: str) -> str:
    return f'<p class="iwm-verdict" role="status">{escape(words)}</p>'


def _row(figures: Iterable[str], kind: str) -> str:
    return f'<div class="iwm-row {kind}">{"".join(figures)}</div>'


def _hits(hits: Sequence[Hit], name: str) -> str:
    """A list that scrolls sideways on a small screen, by keys too."""
    items = "".join(_hit(hit, place) for place, hit in enumerate(hits, start=1))
    return f'<ol class="iwm-row iwm-hits" tabindex="0" aria-label="{escape(name)}">{items}</ol>'


def _hit(hit: Hit, place: int, *, tag: str = "li", short: bool = False) -> str:
    caption = "asked for" if hit.right and short else hit.caption
    mark = "✓ " if hit.right else ""
    title = f"number {place}, distance {hit.distance:.2f}"
    figure = _figure(hit.picture, f"{mark}{caption}", f"Number {place}: {caption}", title)
    return f'<{tag} class="{"iwm-right" if hit.right else "iwm-found"}">{figure}</{tag}>'


def _figure(picture: Image.Image | None, caption: str, alt: str, title: str = "") -> str:
    shown = '<div class="iwm-absent">cannot be read any more</div>'
    if picture:
        shown = f'<img src="{_data(picture)}" alt="{escape(alt)}" title="{escape(title)}">'
    return f"<figure>{shown}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def _data(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
