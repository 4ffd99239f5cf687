"""The seven sliders as gradio draws them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from iwm.ui.sliders import Slider


def controls(rows: tuple[Slider, ...], prefix: str) -> list[gr.components.Component]:
    """Sliders and switches, with `iwm-PREFIX-NAME` as their ids in the page."""
    return [_control(slider, f"iwm-{prefix}-{slider.name}") for slider in rows]


def _control(slider: Slider, elem_id: str) -> gr.components.Component:
    hint = None if slider.trained else "the model was not trained for this"
    if slider.switch:
        return gr.Checkbox(
            value=False, label=slider.label, info=hint, interactive=slider.trained, elem_id=elem_id
        )
    # Gradio refuses a slider of no length.
    high = slider.high if slider.trained else slider.low + 1
    return gr.Slider(
        slider.low, high, slider.start, step=0.01, label=slider.label, info=hint, interactive=slider.trained,
        elem_id=elem_id,
    )  # fmt: skip


def starts(rows: tuple[Slider, ...]) -> list[float | bool]:
    """Where they stand when nothing is asked for."""
    return [bool(slider.start) if slider.switch else slider.start for slider in rows]


def positions(rows: tuple[Slider, ...], values: tuple[float, ...] | None) -> list[Any]:
    """Where sliders should stand; as they are for None."""
    if values is None:
        return [gr.skip() for _ in rows]
    return [
        bool(value) if slider.switch else min(max(round(value, 2), slider.low), slider.high)
        for slider, value in zip(rows, values, strict=True)
    ]
