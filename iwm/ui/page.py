"""The page: where everything stands, and which event calls what.

Gradio draws the sliders and carries the events. Photographs come in as files, so that one that
cannot be read gets an error in words, and results go out as HTML with the pictures inside. One event
is worked on at a time: the machine has one model, and Pillow's limits are per process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from iwm.demo import photographs
from iwm.errors import IWMError
from iwm.ui.controls import controls, positions, starts
from iwm.ui.desk import Desk, Kept, Values
from iwm.ui.html import NOTHING_YET, alert, status
from iwm.ui.photo import Photo
from iwm.ui.places import BANK_SIZE

STYLE = Path(__file__).with_name("page.css")
_MOST_TABS, _MEMORY = 24, 1 << 30
"""Browser tabs whose photographs are kept, and the bytes that the views of all may take."""
_KEPT_SECONDS = 4 * 3600
_UPLOADS_KEPT = (300, 900)
"""Seconds between looks for old uploads, and the age at which they go."""
_SAMPLES = ("Astronaut", "Cat", "Coffee", "Rocket")
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")
_QUIET = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
_LIVE = {"trigger_mode": "always_last", "show_progress": "hidden"}


def theme() -> gr.themes.Base:
    """Calm colours, and the fonts of the machine: gradio's own themes ask a font service."""
    plain = gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=_FONTS, font_mono=_MONO)
    quiet = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300"}
    return plain.set(**quiet)


def build(desk: Desk) -> gr.Blocks:
    """The page of a model and, perhaps, a library."""
    with gr.Blocks(
        title="iwm: image world models", analytics_enabled=False, delete_cache=_UPLOADS_KEPT
    ) as page:
        kept = gr.State(None, time_to_live=_KEPT_SECONDS)
        edited = gr.State(None, time_to_live=_KEPT_SECONDS)
        gr.HTML(_header(desk))
        with gr.Row(elem_id="iwm-source"):
            upload = gr.File(label="Your photograph", height=140, elem_id="iwm-photo")
            samples = _samples()
        message = gr.HTML(elem_id="iwm-message")
        with gr.Tabs():
            with gr.Tab("Act"), gr.Row(elem_classes="iwm-work"):
                with gr.Column(scale=1, elem_classes="iwm-controls"):
                    asking = controls(desk.asking, "act")
                    reset_asking = gr.Button("Reset", size="sm", elem_id="iwm-act-reset")
                with gr.Column(scale=2, elem_classes="iwm-results"):
                    acted = gr.HTML(NOTHING_YET, elem_id="iwm-acted")
            with gr.Tab("Undo"), gr.Row(elem_classes="iwm-work"):
                with gr.Column(scale=1, elem_classes="iwm-controls"):
                    gr.HTML(_UNDO_WORDS)
                    upload_edited = gr.File(
                        label="An edited photograph (optional)", height=140, elem_id="iwm-edited"
                    )
                    undoing = controls(desk.undoing, "undo")
                    with gr.Row():
                        ask = gr.Button("Find out", size="sm", variant="primary", elem_id="iwm-find-out")
                        reset_undoing = gr.Button("Reset", size="sm", elem_id="iwm-undo-reset")
                    reading = gr.HTML(elem_id="iwm-reading")
                with gr.Column(scale=2, elem_classes="iwm-results"):
                    undone = gr.HTML(NOTHING_YET, elem_id="iwm-undone")
                    control = gr.HTML(elem_id="iwm-control")
            with gr.Tab("Grid"):
                choices = [(s.label, s.name) for s in desk.sweepable]
                swept = gr.Radio(choices, value=choices[0][1], label="Parameter", elem_id="iwm-swept")
                grid = gr.HTML(NOTHING_YET, elem_id="iwm-grid")
        if desk.model.config.decoder is None:
            gr.HTML(_NO_DECODER)

        shown = [message, acted, undone, control, grid]

        def show(photo: Photo, edited: Photo | None, name: str, values: Values) -> Iterator[list[Any]]:
            half = len(asking)
            yield [gr.skip(), status(f"Reading {photo.name}: {desk.preparing}"), *[gr.skip()] * 4]
            new = desk.keep(photo)
            yield [
                new,
                status(f"{photo.name} is ready."),
                desk.act(new, values[:half]),
                *desk.undo(new, edited, values[half:]),
                desk.grid(new, name),
            ]

        def take(path: str | None, edited: Photo | None, name: str, *values: Any) -> Iterator[list[Any]]:
            try:
                photo = desk.open(path)
            except IWMError as error:
                yield [None, gr.skip(), alert(str(error)), *[gr.skip()] * 4]
                return
            for update in show(photo, edited, name, values):
                yield [None, *update]

        def take_sample(number: int) -> Callable[..., Iterator[list[Any]]]:
            def taken(edited: Photo | None, name: str, *values: Any) -> Iterator[list[Any]]:
                photo = desk.sample(photographs()[number], _SAMPLES[number])
                yield from show(photo, edited, name, values)

            return taken

        def take_edited(path: str | None, old: Kept | None, *values: Any) -> list[Any]:
            try:
                photo = desk.open(path)
            except IWMError as error:
                return [None, gr.skip(), alert(str(error)), *[gr.skip()] * 3]
            return [None, photo, status(f"{photo.name} is to be undone."), "", *desk.undo(old, photo, values)]

        def find_out(old: Kept | None, photo: Photo | None, *values: Any) -> list[Any]:
            words, found = desk.find_out(old, photo, values)
            return [words, *positions(desk.undoing, found)]

        upload.upload(
            take,
            [upload, edited, swept, *asking, *undoing],
            [upload, kept, *shown],
            show_progress="minimal",
            **_QUIET,
        )
        for button, number in samples:
            button.click(
                take_sample(number), [edited, swept, *asking, *undoing], [kept, *shown],
                show_progress="minimal", **_QUIET,
            )  # fmt: skip
        upload_edited.upload(
            take_edited, [upload_edited, kept, *undoing], [upload_edited, edited, message, reading, undone, control],
            show_progress="minimal", **_QUIET,
        )  # fmt: skip
        gr.on(
            [slider.change for slider in asking],
            lambda old, *values: desk.act(old, values), [kept, *asking], acted, **_LIVE, **_QUIET,
        )  # fmt: skip
        gr.on(
            [slider.change for slider in undoing],
            lambda old, photo, *values: desk.undo(old, photo, values), [kept, edited, *undoing], [undone, control],
            **_LIVE, **_QUIET,
        )  # fmt: skip
        for slider, shown_by in zip((*desk.asking, *desk.undoing), (*asking, *undoing), strict=True):
            if not slider.switch:
                shown_by.release(
                    _refill(slider.start), None, shown_by,
                    show_progress="hidden", api_visibility="private", concurrency_limit=None,
                )  # fmt: skip
        swept.change(desk.grid, [kept, swept], grid, **_LIVE, **_QUIET)
        ask.click(find_out, [kept, edited, *undoing], [reading, *undoing], show_progress="minimal", **_QUIET)
        reset_asking.click(lambda: starts(desk.asking), None, asking, show_progress="hidden", **_QUIET)

        def start_again(old: Kept | None) -> list[Any]:
            rows = starts(desk.undoing)
            return [None, "", "", *rows, *desk.undo(old, None, rows)]

        reset_undoing.click(
            start_again,
            kept,
            [edited, message, reading, *undoing, undone, control],
            show_progress="hidden",
            **_QUIET,
        )
    page.state_session_capacity = min(max(_MEMORY // desk.bytes_kept, 2), _MOST_TABS)
    return page


def _refill(start: float) -> Callable[[gr.EventData], Any]:
    """What a number field that is left empty shows from then on; the browser would take the lowest value."""

    def refilled(left: gr.EventData) -> Any:
        return start if left._data is None else gr.skip()

    return refilled


def _header(desk: Desk) -> str:
    where = (
        f"a library of {len(desk.shelf):,} photographs"
        if desk.shelf is not None
        else f"{BANK_SIZE} views of your photograph"
    )
    return (
        '<header class="iwm-header"><h1>Image world model</h1>'
        "<p>Move a slider: the model imagines the change in latent space, without touching a pixel, and "
        f"looks the result up in {where}. Everything stays on this machine.</p></header>"
    )


_NO_DECODER = (
    '<p class="iwm-note">This model has no decoder, so what it imagines is shown by what it retrieves. To see it as '
    "pixels, train one: <code>iwm pretrain-decoder --model MODEL --data IMAGES --out DIR</code>, then "
    "<code>iwm ui --model DIR</code>.</p>"
)
_UNDO_WORDS = (
    '<p class="iwm-note">Say what was done, and the model takes it back. Without an edited photograph of your own, '
    "the sliders edit the one above.</p>"
)


def _samples() -> list[tuple[gr.Button, int]]:
    """Buttons for photographs that come with scikit-image, where that is installed."""
    if importlib.util.find_spec("skimage") is None:
        return []
    with gr.Column(elem_id="iwm-samples", min_width=120):
        gr.HTML('<p class="iwm-note">Or try one of these:</p>')
        with gr.Row():
            return [
                (gr.Button(name, size="sm", min_width=80), number) for number, name in enumerate(_SAMPLES)
            ]
