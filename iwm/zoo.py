"""The zoo: one table of what can be loaded by name.

Names follow the paper's IWM_{X,Y}^Z: X the predictor's depth, Y its width, Z its behaviour
[arXiv 2403.00504, section 3.1]. This file knows names and never reads or fetches weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iwm.config import (
    STRENGTHS,
    ActionConfig,
    Conditioning,
    EncoderConfig,
    PhotometryDistribution,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.errors import UnknownModelError, nearest

DEFAULT = "iwm-tiny"
"""What `iwm.load()` loads."""

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Published files, pinned: nothing else is ever loaded by the entry's name.

    Attributes:
        repo: `org/name` on the Hugging Face Hub.
        revision: full commit, 40 hexadecimal digits.
        sha256: of every file, by name.
    """

    repo: str
    revision: str
    sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A named model.

    Attributes:
        config: its architecture and how it is trained; a checkpoint's own config says more.
        summary: one line for a person.
        hub: where its weights are published, if they are.
        embedded: whether its weights are inside the package.
    """

    config: WorldModelConfig
    summary: str
    hub: HubFiles | None = None
    embedded: bool = False

    @property
    def name(self) -> str:
        """What `iwm.load` and `--recipe` call it."""
        return self.config.name

    @property
    def weights(self) -> Literal["embedded", "hub", "recipe only"]:
        """Where its weights are; `recipe only` says that nobody has published any."""
        if self.embedded:
            return "embedded"
        return "hub" if self.hub else "recipe only"

    @property
    def folder(self) -> Path:
        """Where an embedded entry's files are."""
        return WEIGHTS / self.name

    @property
    def recipe_command(self) -> str:
        """The command that trains it."""
        return f"iwm pretrain --recipe {self.name} --data FOLDER --out DIR"


_RESEARCH = "research only (trained on ImageNet photographs)"
_UNPUBLISHED = "none yet (not published)"
_STRONG = STRENGTHS["strong"]
_VIT_B = EncoderConfig(width=768, depth=12, heads=12)
_VIT_L = EncoderConfig(width=1024, depth=24, heads=16)


def _paper(
    name: str,
    encoder: EncoderConfig,
    depth: int,
    width: int,
    summary: str,
    strength: PhotometryDistribution = STRENGTHS["paper"],
) -> ZooEntry:
    """One of the paper's models: `append` layout, `feature` conditioning."""
    config = WorldModelConfig(
        name=name,
        encoder=encoder,
        predictor=PredictorConfig(depth=depth, width=width),
        actions=ActionConfig(distribution=strength),
        license=_UNPUBLISHED,
    )
    return ZooEntry(config=config, summary=summary)


def _tiny(name: str, conditioning: Conditioning, summary: str, embedded: bool = False) -> ZooEntry:
    """Ours: `inplace` layout, symmetric, small enough for the package."""
    config = WorldModelConfig(
        name=name,
        encoder=EncoderConfig(width=256, depth=6, heads=4, image_size=128),
        predictor=PredictorConfig(width=192, depth=5, layout="inplace", conditioning=conditioning),
        actions=ActionConfig(encoding="pair", distribution=_STRONG, symmetric=True),
        preprocess=PreprocessConfig(size=128, resize=128),
        license=_RESEARCH if embedded else _UNPUBLISHED,
    )
    return ZooEntry(config=config, summary=summary, embedded=embedded)


_ENTRIES = (
    _tiny("iwm-tiny", "adaln", "small equivariant world model, inside the package", embedded=True),
    _tiny("iwm-tiny-inv", "none", "its invariant twin: the same, without actions"),
    _paper("iwm-equi-18-384", _VIT_B, 18, 384, "the paper's main model, ViT-B/16 [table 4]"),
    _paper("iwm-equi-12-384", _VIT_B, 12, 384, "equivariant by strong jitter, ViT-B/16 [table S1]", _STRONG),
    _paper("iwm-inv-12-384", _VIT_B, 12, 384, "the paper's invariant model, ViT-B/16 [table 4]"),
    _paper("iwm-equi-36-512", _VIT_L, 36, 512, "the large equivariant model, ViT-L/16 [table S4]"),
    _paper("iwm-inv-18-384-l16", _VIT_L, 18, 384, "the large invariant model, ViT-L/16 [table S4]"),
)

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}


def find_entry(name: str) -> ZooEntry:
    """The entry of a name.

    Raises:
        UnknownModelError: no such entry; the nearest names are in the message.
    """
    if name not in ZOO:
        raise UnknownModelError(f'No model is called "{name}".{nearest(name, ZOO)} See `iwm list`.')
    return ZOO[name]
