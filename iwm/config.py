"""Frozen configurations that describe a world model, and their JSON form.

Sizes follow the paper's nomenclature [arXiv 2403.00504, section 3.1]: a predictor is named
by its depth and width. A `WorldModelConfig` is all that `config.json` of a checkpoint holds;
training configurations contain it, never the reverse.
"""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from iwm.counting import count_adapter, count_decoder, count_encoder, count_predictor
from iwm.distributions import STRENGTHS as STRENGTHS
from iwm.distributions import VECTOR_SIZE as VECTOR_SIZE
from iwm.distributions import ActionConfig as ActionConfig
from iwm.distributions import ActionEncoding as ActionEncoding
from iwm.distributions import PhotometryDistribution as PhotometryDistribution
from iwm.errors import InvalidConfigError, UnknownTaskError, nearest, quoted
from iwm.fields import Json, from_dict, require, require_choice, to_json

FORMAT = 1
"""Version of `config.json` that this library writes; it reads this one and older ones."""

Positions = Literal["sincos", "learned"]
Layout = Literal["append", "inplace"]
Conditioning = Literal["feature", "sequence", "adaln", "none"]
TaskKind = Literal["classification", "segmentation"]
Head = Literal["linear", "attentive", "upernet"]
Reads = Literal["encoder", "predictor"]
Output = Literal["all", "token"]
Tuned = Literal["", "encoder", "all"]

MAX_PARAMETERS = 10_000_000_000
"""Of a whole model: a config that asks for more is a mistake or an attack."""
MAX_DEPTH = 1024
MAX_GRID = 256
"""Patches along one side of an image."""
MAX_LABELS = 100_000
MAX_CHANNELS = 4096
"""Inside an UperNet head."""
MAX_TASKS = 64
"""Of one adapter."""
MAX_ADAPTERS = 32
TASK_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""Of tasks and adapters: part of a file's name, the same file on every system."""


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
            f"{self.patch_size}; use {self.image_size // self.patch_size * self.patch_size or self.patch_size}, "
            "for preprocess.size too.",
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
        share_source: source tokens attend to each other alone and are told nothing of the action,
            so that they are computed once for many actions on one photograph (ours; for
            `append`, and not in exports).
    """

    width: int = 384
    depth: int = 18
    layout: Layout = "append"
    conditioning: Conditioning = "feature"
    mlp_ratio: float = 4.0
    share_source: bool = False

    def __post_init__(self) -> None:
        require_choice("predictor.layout", self.layout, Layout)
        require_choice("predictor.conditioning", self.conditioning, Conditioning)
        for name in ("width", "depth"):
            value, limit = getattr(self, name), MAX_DEPTH if name == "depth" else 16384
            require(1 <= value <= limit, f"predictor.{name} is {value}; it must be 1 to {limit}.")
        require(self.width % 4 == 0, f"predictor.width {self.width} must be divisible by 4.")
        require(0 < self.mlp_ratio <= 16, f"predictor.mlp_ratio is {self.mlp_ratio}; use 0 to 16.")
        require(
            self.layout == "append" or not self.share_source,
            "predictor.share_source needs source tokens beside the mask tokens; take predictor.layout append.",
        )

    def tokens_for_an_action(self, patches: int) -> int:
        """Tokens that are computed for every action on a source of so many patches."""
        return patches * (2 if self.layout == "append" and not self.share_source else 1)

    @property
    def layout_name(self) -> str:
        """The layout in words."""
        return f"{self.layout}{', shared source' if self.share_source else ''}"


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
class TaskConfig:
    """One labelled task and the head that solves it.

    Attributes:
        kind: `classification` of an image, or `segmentation` of its pixels.
        labels: names of the classes, in the order of the head's outputs.
        head: `linear` on pooled tokens; `attentive`, one learned query over all tokens
            [App. A.2]; `upernet`, for segmentation.
        batch_norm: whether pooled tokens are batch-normalised, without affine parameters, before
            the linear head.
        channels: inside an `upernet` head; 0 is 512, or the tokens' width where that is less.
    """

    kind: TaskKind
    labels: tuple[str, ...]
    head: Head
    batch_norm: bool = False
    channels: int = 0

    def __post_init__(self) -> None:
        require_choice("task.kind", self.kind, TaskKind)
        require_choice("task.head", self.head, Head)
        count = len(self.labels)
        require(2 <= count <= MAX_LABELS, f"A task has {count} labels; it needs 2 to {MAX_LABELS}.")
        for label in self.labels:
            require(
                0 < len(label) <= 200 and label.isprintable(),
                f"A label is {quoted(repr(label))}; use one line of text, 200 characters at most.",
            )
        require(
            (self.head == "upernet") == (self.kind == "segmentation"),
            f'A {self.kind} task has a head "{self.head}"; use '
            f"{'upernet' if self.kind == 'segmentation' else 'linear or attentive'}.",
        )
        require(
            not self.batch_norm or self.head == "linear", "batch_norm goes with a linear head; leave it out."
        )
        require(
            not self.channels or self.head == "upernet", "channels go with an upernet head; leave them out."
        )
        require(
            0 <= self.channels <= MAX_CHANNELS,
            f"channels is {self.channels}; it must be 0 to {MAX_CHANNELS}.",
        )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What was finetuned for one or several tasks on a frozen encoder [sections 5.1, 5.2].

    Attributes:
        tasks: by name; of several, each has a learned token in the predictor's sequence.
        space: fingerprint of the encoder it was trained on, as in `WorldModel.space`.
        reads: whether the heads read the encoder's tokens or a predictor's.
        predictor: of the adapter's own, finetuned one; None is the model's.
        output: whether the predictor predicts the whole image, or one token alone, which is
            cheaper [table 3].
        license: of the adapter's weights, which its data may restrict.
        recipe, provenance, metrics: as in `WorldModelConfig`; metrics go by the task's name.
    """

    tasks: dict[str, TaskConfig]
    space: str
    reads: Reads = "predictor"
    predictor: PredictorConfig | None = None
    output: Output = "all"
    license: str = "unspecified"
    recipe: Json = field(default_factory=dict)
    provenance: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_choice("adapter.reads", self.reads, Reads)
        require_choice("adapter.output", self.output, Output)
        count = len(self.tasks)
        require(1 <= count <= MAX_TASKS, f"An adapter has {count} tasks; it needs 1 to {MAX_TASKS}.")
        for name in self.tasks:
            _require_task_name("A task", name)
        _require_space("adapter.space", self.space)
        _require_license(self.license)
        if self.reads == "encoder":
            require(self.predictor is None, 'An adapter that reads "encoder" has no use for a predictor.')
            require(self.output == "all", 'An adapter that reads "encoder" has output "all".')
        require(
            self.output == "all" or all(t.kind != "segmentation" for t in self.tasks.values()),
            'Segmentation needs tokens everywhere; use output "all".',
        )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder from latents to pixels; see `iwm.decoder`.

    Attributes:
        width, depth, heads: of its transformer blocks.
        space: fingerprint of the encoder whose latents it reads, as in `WorldModel.space`.
        license: of its weights.
        recipe, provenance, metrics: as in `WorldModelConfig`.
    """

    width: int = 256
    depth: int = 2
    heads: int = 4
    space: str
    license: str = "unspecified"
    recipe: Json = field(default_factory=dict)
    provenance: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(1 <= self.depth <= MAX_DEPTH, f"decoder.depth is {self.depth}; use 1 to {MAX_DEPTH}.")
        require(1 <= self.heads <= 1024, f"decoder.heads is {self.heads}; it must be 1 to 1024.")
        require(
            4 <= self.width <= 65536 and self.width % 4 == 0 and self.width % self.heads == 0,
            f"decoder.width is {self.width}; it must be divisible by 4 and by decoder.heads ({self.heads}).",
        )
        _require_space("decoder.space", self.space)
        _require_license(self.license)


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
        adapters: what was finetuned for tasks, by name; no task has two.
        decoder: from latents to pixels, if there is one.
        tuned: what was finetuned of the model itself; its world model no longer fits then.
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
    adapters: dict[str, AdapterConfig] = field(default_factory=dict)
    decoder: DecoderConfig | None = None
    tuned: Tuned = ""
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
        _require_license(self.license)
        require_choice("tuned", self.tuned, Tuned)
        self._require_same_heads(self.predictor)
        patch = self.encoder.patch_size
        require(
            self.preprocess.size % patch == 0,
            f"preprocess.size {self.preprocess.size} is not divisible by encoder.patch_size "
            f"({patch}); use {self.preprocess.size // patch * patch or patch}.",
        )
        side = self.preprocess.size // patch
        require(side <= MAX_GRID, f"preprocess.size makes {side} patches a side; use {MAX_GRID} at most.")
        self._check_adapters()
        total = self.parameters + sum(map(self.adapter_parameters, self.adapters)) + self.decoder_parameters
        require(
            total <= MAX_PARAMETERS,
            f"The config asks for {total:,} parameters; {MAX_PARAMETERS:,} are allowed.",
        )

    def _check_adapters(self) -> None:
        count = len(self.adapters)
        require(count <= MAX_ADAPTERS, f"A model has {count} adapters; {MAX_ADAPTERS} are allowed.")
        homes: dict[str, str] = {}
        for name, adapter in self.adapters.items():
            _require_task_name("An adapter", name)
            if adapter.predictor:
                self._require_same_heads(adapter.predictor)
            for task in adapter.tasks:
                other = homes.setdefault(task, name)
                require(
                    other == name, f'Adapters "{other}" and "{name}" both have a task "{task}"; rename one.'
                )

    def _require_same_heads(self, predictor: PredictorConfig) -> None:
        require(
            predictor.width % self.encoder.heads == 0,
            f"predictor.width {predictor.width} must be divisible by encoder.heads "
            f"({self.encoder.heads}): both use the same number of heads.",
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Parameters of the encoder and of the predictor, counted without building them."""
        return count_encoder(self.encoder), count_predictor(
            self.predictor, self.encoder.width, VECTOR_SIZE[self.actions.encoding]
        )

    @property
    def parameters(self) -> int:
        """Parameters of encoder and predictor together; adapters have their own."""
        return sum(self.counts)

    def adapter_parameters(self, name: str) -> int:
        """Parameters of an adapter's own: its predictor, tokens and heads."""
        return count_adapter(self.adapters[name], self, VECTOR_SIZE[self.actions.encoding])

    @property
    def decoder_parameters(self) -> int:
        """Parameters of the decoder; 0 without one."""
        return count_decoder(self.decoder, self) if self.decoder else 0

    @property
    def tasks(self) -> dict[str, TaskConfig]:
        """Every task of every adapter, by name."""
        return {name: task for adapter in self.adapters.values() for name, task in adapter.tasks.items()}

    def adapter_of(self, task: str) -> str:
        """Name of the adapter that has a task.

        Raises:
            UnknownTaskError: none has; the tasks there are, or the nearest, are in the message.
        """
        for name, adapter in self.adapters.items():
            if task in adapter.tasks:
                return name
        if not self.adapters:
            raise UnknownTaskError(
                f'"{self.name}" has no task "{quoted(task)}": it comes without heads. Leave task out, or '
                "train one with `iwm finetune`."
            )
        raise UnknownTaskError(f'"{self.name}" has no task "{quoted(task)}".{nearest(task, self.tasks)}')

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


def _require_space(name: str, space: str) -> None:
    require(
        re.fullmatch("[0-9a-f]{16}", space) is not None,
        f'{name} is "{quoted(space)}"; it must be the `space` of a model.',
    )


def _require_license(text: str) -> None:
    require(
        text.isprintable() and len(text) <= 1000,
        f"license is {quoted(repr(text))}; use one line of text.",
    )


def _require_task_name(what: str, name: str) -> None:
    require(
        re.fullmatch(TASK_NAME, name) is not None,
        f"{what} is called {quoted(repr(name))}; use up to 64 small letters, digits, dashes and underscores.",
    )
