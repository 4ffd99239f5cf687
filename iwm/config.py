"""Frozen configurations that describe a world model, and their JSON form.

Sizes follow the paper's nomenclature [arXiv 2403.00504, section 3.1]: a predictor is named
by its depth and width. A `WorldModelConfig` is all that `config.json` of a checkpoint holds;
training configurations contain it, never the reverse.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from iwm.errors import InvalidConfigError, nearest, quoted

FORMAT = 1
"""Version of `config.json` that this library writes; it reads this one and older ones."""

Positions = Literal["sincos", "learned"]
Layout = Literal["append", "inplace"]
Conditioning = Literal["feature", "sequence", "adaln", "none"]
ActionEncoding = Literal["pair", "difference"]
Json = dict[str, Any]
ConfigT = TypeVar("ConfigT")

VECTOR_SIZE: dict[ActionEncoding, int] = {"pair": 14, "difference": 10}
"""Length A of an action vector, by encoding."""

MAX_PARAMETERS = 10_000_000_000
"""Of a whole model: a config that asks for more is a mistake or an attack."""
MAX_DEPTH = 1024
MAX_GRID = 256
"""Patches along one side of an image."""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidConfigError(message)` unless `condition` holds."""
    if not condition:
        raise InvalidConfigError(message)


def require_choice(name: str, value: str, choices: Any) -> None:
    """Raise `InvalidConfigError` unless `value` is one of a `Literal`'s."""
    known = get_args(choices)
    word = quoted(value)
    require(value in known, f'{name} is "{word}".{nearest(word, known)}')


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A ViT without class token, by default with fixed 2-D sin-cos positions [section 3.1].

    Attributes:
        width: token width D, divisible by 4 (sin-cos) and by `heads`.
        depth: number of transformer blocks.
        heads: attention heads, here and in the predictor.
        patch_size: side of a patch in pixels.
        image_size: side of the training images in pixels; other sizes rescale positions.
        mlp_ratio: hidden width of the MLPs over `width`.
        positions: `sincos` are fixed; `learned` are weights, as encoders that others trained
            bring them.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16
    image_size: int = 224
    mlp_ratio: float = 4.0
    positions: Positions = "sincos"

    def __post_init__(self) -> None:
        require_choice("encoder.positions", self.positions, Positions)
        for name in ("width", "depth", "heads", "patch_size", "image_size"):
            value, limit = getattr(self, name), MAX_DEPTH if name == "depth" else 16384
            require(1 <= value <= limit, f"encoder.{name} is {value}; it must be 1 to {limit}.")
        require(0 < self.mlp_ratio <= 16, f"encoder.mlp_ratio is {self.mlp_ratio}; use 0 to 16.")
        require(
            self.width % 4 == 0 and self.width % self.heads == 0,
            f"encoder.width {self.width} must be divisible by 4 and by heads ({self.heads}).",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"encoder.image_size {self.image_size} is not divisible by patch_size "
            f"{self.patch_size}; use {self.image_size // self.patch_size * self.patch_size or self.patch_size}.",
        )
        require(
            self.grid <= MAX_GRID, f"encoder.image_size makes {self.grid} patches a side; use {MAX_GRID}."
        )

    @property
    def grid(self) -> int:
        """Patches along one side of a training image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """The world model: a narrow ViT over latents [section 3.1, App. A].

    Attributes:
        width: embedding dimension (the paper's Y in IWM_{X,Y}).
        depth: number of blocks (the paper's X).
        layout: `append` puts one mask token per target position behind the context (the
            paper's); `inplace` keeps one token per position of the grid.
        conditioning: how the action enters [section 4.2]: `feature` (the paper's default),
            `sequence` (the paper's other one: a token for every component), `adaln` (ours: scale,
            shift and gate of every block), or `none`.
        mlp_ratio: hidden width of the MLPs over `width`.
    """

    width: int = 384
    depth: int = 18
    layout: Layout = "append"
    conditioning: Conditioning = "feature"
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        require_choice("predictor.layout", self.layout, Layout)
        require_choice("predictor.conditioning", self.conditioning, Conditioning)
        for name in ("width", "depth"):
            value, limit = getattr(self, name), MAX_DEPTH if name == "depth" else 16384
            require(1 <= value <= limit, f"predictor.{name} is {value}; it must be 1 to {limit}.")
        require(self.width % 4 == 0, f"predictor.width {self.width} must be divisible by 4.")
        require(0 < self.mlp_ratio <= 16, f"predictor.mlp_ratio is {self.mlp_ratio}; use 0 to 16.")


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


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """From an image to the model's input: shorter side to `resize`, centre crop of `size`.

    `mean` and `std` normalise pixels in [0, 1] channel by channel; the encoder does that
    itself, so that every tensor a user sees is in [0, 1].
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        require(1 <= self.size <= 16384, f"preprocess.size is {self.size}; it must be 1 to 16384.")
        require(
            self.size <= self.resize <= 4 * self.size,
            f"preprocess.resize is {self.resize}; it must be {self.size} to {4 * self.size}.",
        )
        require(all(map(math.isfinite, self.mean)), f"preprocess.mean is {self.mean}; use finite numbers.")
        require(
            all(0 < s < math.inf for s in self.std),
            f"preprocess.std is {self.std}; every value must be positive and finite.",
        )


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Everything `config.json` of a checkpoint says about a model.

    Attributes:
        name: what the model calls itself.
        encoder, predictor, actions, preprocess: see their classes.
        license: licence of the weights; the code is Apache-2.0.
        recipe: the training configuration and the command that ran it, as plain JSON.
        provenance: data, steps, wall time and machine, as plain JSON.
        metrics: measured scores, each with the command that gives it, as plain JSON.
        format: version of this file's layout.
    """

    name: str = "custom"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    actions: ActionConfig = field(default_factory=ActionConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    license: str = "unspecified"
    recipe: Json = field(default_factory=dict)
    provenance: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        require(
            1 <= self.format <= FORMAT,
            f"config.json has format {self.format}, this iwm reads up to {FORMAT}. "
            "Update the library: pip install --upgrade iwm",
        )
        require(
            re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", self.name, re.ASCII) is not None,
            f"name is {quoted(repr(self.name))}; use letters, digits, dots and dashes: it must not be a path.",
        )
        require(
            self.license.isprintable() and len(self.license) <= 1000,
            f"license is {quoted(repr(self.license))}; use one line of text.",
        )
        require(
            self.predictor.width % self.encoder.heads == 0,
            f"predictor.width {self.predictor.width} must be divisible by encoder.heads "
            f"({self.encoder.heads}): both use the same number of heads.",
        )
        patch = self.encoder.patch_size
        require(
            self.preprocess.size % patch == 0,
            f"preprocess.size {self.preprocess.size} is not divisible by encoder.patch_size "
            f"({patch}); use {self.preprocess.size // patch * patch or patch}.",
        )
        side = self.preprocess.size // patch
        require(side <= MAX_GRID, f"preprocess.size makes {side} patches a side; use {MAX_GRID} at most.")
        require(
            self.parameters <= MAX_PARAMETERS,
            f"The config asks for {self.parameters:,} parameters; {MAX_PARAMETERS:,} are allowed.",
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Parameters of the encoder and of the predictor, counted without building them."""
        return _count_encoder(self.encoder), _count_predictor(self)

    @property
    def parameters(self) -> int:
        """Parameters of encoder and predictor together; heads have their own."""
        return sum(self.counts)

    def replace(self, **changes: Any) -> "WorldModelConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The text of `config.json`."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "WorldModelConfig":
        """Read `config.json`.

        Raises:
            InvalidConfigError: not JSON, an unknown field, a wrong type, an impossible value,
                or a file written by a newer version.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidConfigError(f"config.json is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise InvalidConfigError("config.json must hold one JSON object.")
        version = data.get("format", FORMAT)
        if isinstance(version, int) and version > FORMAT:
            # Before anything else: a newer file may have fields that we cannot judge.
            require(
                False,
                f"config.json has format {quoted(version)}, this iwm reads up to {FORMAT}. "
                "Update the library: pip install --upgrade iwm",
            )
        try:
            return from_dict(cls, data)
        except RecursionError as error:
            raise InvalidConfigError("config.json is nested too deeply.") from error


def _count_encoder(e: EncoderConfig) -> int:
    positions = e.grid**2 * e.width if e.positions == "learned" else 0
    return e.depth * _block(e.width, e.mlp_ratio) + 3 * e.patch_size**2 * e.width + e.width + positions


def _count_predictor(config: WorldModelConfig) -> int:
    p, width = config.predictor, config.predictor.width
    action = VECTOR_SIZE[config.actions.encoding]
    total = 2 * config.encoder.width * width + width + config.encoder.width  # Linear in and out.
    total += width + 2 * width  # Mask token, final norm.
    block = _block(width, p.mlp_ratio)
    if p.conditioning == "feature":
        total += (width + action) * width + 2 * width**2 + 3 * width
    elif p.conditioning == "sequence":
        total += 2 * action * width
    elif p.conditioning == "adaln":
        total += action * width + width**2 + 2 * width
        block += 6 * width**2 + 6 * width - 4 * width  # Modulation; its norms have no weights.
    return total + p.depth * block


def _block(width: int, mlp_ratio: float) -> int:
    """Attention, MLP and two norms."""
    hidden = int(width * mlp_ratio)
    return 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 4 * width


def to_json(config: Any) -> str:
    """Any configuration dataclass as indented JSON, ending in a newline."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Build a configuration dataclass from plain JSON values, checking names and types strictly.

    Raises:
        InvalidConfigError: with the dotted path of the field at fault.
    """
    from pydantic import TypeAdapter, ValidationError

    check_names(cls, data)
    try:
        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # Ours: names the field already.
            raise InvalidConfigError(quoted(first["msg"].removeprefix("Value error, "), 400)) from error
        path = ".".join(str(part) for part in first["loc"]) or "the config"
        said = f"{quoted(path)} is {quoted(repr(first['input']))}: {quoted(first['msg'], 200)}"
        raise InvalidConfigError(said) from error


def dotted(fields: Mapping[str, Any], prefix: str = "") -> Json:
    """Nested fields as one level of dotted names; an empty section stays a value."""
    names: Json = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            names |= dotted(value, f"{prefix}{key}.")
        else:
            names[prefix + key] = value
    return names


def check_names(cls: type[Any], data: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `InvalidConfigError` for the first key of `data` that `cls` does not have."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in known:
            names = [prefix + name for name in known]
            name = quoted(prefix + key)
            raise InvalidConfigError(f'No field "{name}".{nearest(name, names)}')
        kind = known[key].type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise InvalidConfigError(f"{prefix}{key} must hold fields, not {quoted(repr(value))}.")
            check_names(kind, value, f"{prefix}{key}.")
