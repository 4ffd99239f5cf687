"""What training views are drawn from, and how actions between them become vectors."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from iwm.fields import require, require_choice

ActionEncoding = Literal["pair", "difference"]

VECTOR_SIZE: dict[ActionEncoding, int] = {"pair": 14, "difference": 10}
"""Length A of an action vector, by encoding."""


@dataclass(frozen=True, kw_only=True)
class PhotometryDistribution:
    """How random photometries are drawn; the paper's strengths are the defaults [App. A.1].

    A jitter of strength s draws its factor uniformly from [max(0, 1 - s), 1 + s], hue from
    [-s, s] turns. `jitter_probability` switches all four jitters of a view together.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.2
    solarize_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            require(0 <= value <= 10, f"jitter strength {name} is {value}; it must be 0 to 10.")
        require(0 <= self.hue <= 0.5, f"jitter strength hue is {self.hue}; it must be 0 to 0.5.")
        for name in ("jitter", "grayscale", "blur", "solarize"):
            value = getattr(self, f"{name}_probability")
            require(0 <= value <= 1, f"{name}_probability is {value}; it must be 0 to 1.")
        low, high = self.blur_sigma
        require(0 < low <= high <= 1000, f"blur_sigma is {self.blur_sigma}; use 0 < low <= high <= 1000.")

    def replace(self, **changes: Any) -> "PhotometryDistribution":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def without_destructive(self) -> "PhotometryDistribution":
        """The jitter alone: no grayscale, blur or solarize (the paper's target view)."""
        return self.replace(grayscale_probability=0.0, blur_probability=0.0, solarize_probability=0.0)


STRENGTHS: dict[str, PhotometryDistribution] = {
    "paper": PhotometryDistribution(),
    "strong": PhotometryDistribution(brightness=0.5, contrast=0.5, saturation=0.4, hue=0.2),
}
"""Named distributions: the paper's default (App. A.1) and its strong jitter (table S2)."""


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """How actions become vectors, and which ones the model was trained on.

    Attributes:
        encoding: `pair` holds both views' parameters; `difference` the jitter difference and
            the destructive flags, as the paper words it [section 3].
        distribution: what source views were drawn from in training.
        symmetric: whether targets had the destructive operations too, so that the model can
            apply them and not only undo them.
    """

    encoding: ActionEncoding = "difference"
    distribution: PhotometryDistribution = field(default_factory=PhotometryDistribution)
    symmetric: bool = False

    def __post_init__(self) -> None:
        require_choice("actions.encoding", self.encoding, ActionEncoding)
