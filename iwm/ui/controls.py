"""The seven sliders as gradio draws them."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta

from iwm.ui.sliders import Slider


class _WithoutStub(ComponentMeta):  # type: ignore[misc]
    """Gradio's own metaclass writes a `.pyi` file beside every module that defines a component."""

    def __new__(cls, *words: Any) -> Any:
        return ABCMeta.__new__(cls, *words)


class _Typed(gr.Slider, metaclass=_WithoutStub):  # type: ignore[misc]
    """A slider whose number field may be empty, or beyond an end, while somebody types into it."""

    is_template = True  # Drawn as what it derives from.

    def preprocess(self, payload: float | None) -> float | None:
        """What the field means: None where it is empty, the nearer end where it is beyond."""
        return None if payload is None else super().preprocess(min(max(payload, self.minimum), self.maximum))


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
    return _Typed(
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
