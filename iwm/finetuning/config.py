"""Configuration of a finetuning run; what trains which parts, how, and for how long."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from iwm.config import MAX_CHANNELS, Head, Output, TaskKind
from iwm.fields import require, require_choice
from iwm.training.config import DataConfig, RunConfig

Tune = Literal["none", "predictor", "encoder", "all"]
Init = Literal["pretrained", "random"]
ActionKind = Literal["null", "pretraining"]
Branch = Literal["teacher", "student"]
ProbeHead = Literal["linear", "attentive"]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to crops of photographs, all of it timm's; see `iwm.finetuning.augment`.

    Attributes:
        rand_augment: RandAugment in timm's notation; empty is none.
        mixup, cutmix: alphas of their Beta distributions; where both are on, one of them is
            drawn for every batch.
        erasing: probability that a random box of an image becomes noise.
        label_smoothing: share of the target that is spread over all classes.
        photometry: transform every image as the source views of pretraining were.
    """

    rand_augment: str = ""
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    label_smoothing: float = 0.0
    photometry: bool = False

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value <= 100, f"augment.{name} is {value}; it must be 0 to 100.")
        for name in ("erasing", "label_smoothing"):
            value = getattr(self, name)
            require(0 <= value < 1, f"augment.{name} is {value}; it must be 0 to 1.")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """A finetuning run [section 5, App. A.2].

    Attributes:
        task: what is learned.
        tune: `none` trains the head alone, `predictor` the predictor and the head, `encoder` the
            encoder and the head, `all` encoder, predictor and head.
        head: see `iwm.config.TaskConfig`.
        batch_norm: of pooled tokens, before a linear head.
        channels: inside an `upernet` head; 0 is 512, or the tokens' width where that is less.
        init: the predictor starts as it was `pretrained`, or at `random`.
        predictor_width, predictor_depth: sizes of a random predictor; 0 keeps the model's.
        output: what the predictor predicts, the whole image or one `token` [table 3].
        action: what the predictor is asked for in training: the same image (`null`), or the views
            of pretraining [table 3]. It is always `null` in use.
        branch: the encoder that is built on.
        predictor_lr_scale: the predictor's share of the learning rate; 0 is a tenth where it starts
            pretrained, all of it where it starts at random [App. A.2].
        encoder_lr_scale: the encoder's share.
        layer_decay: factor of the learning rate from a block to the one before it, over encoder
            and predictor together; the head's is 1.
        drop_path: probability that a block is skipped, of the blocks that are trained.
        augment: see its class.
        centre: crop the centre, as in use, and not at random.
        cache_views: keep the latents of so many views a photograph on disk, and train on these;
            0 encodes every photograph in every epoch. For a frozen encoder.
        epochs: passes over the training images; overrides `steps`. 0 leaves it to `steps`.
        images: train on so many at most, evenly spaced; 0 is all.
        patience: validations without a better score after which the run ends; 0 is none.
        monitor_every: steps between validations; 0 is an epoch.
        data: `crop_scale` and `crop_aspect` are of classification; `on_unreadable` has no part here, as images
            are checked before the first step.
        ignore: numbers of segmentation masks that do not count.
    """

    task: TaskKind = "classification"
    tune: Tune = "predictor"
    head: Head = "attentive"
    batch_norm: bool = False
    channels: int = 0
    init: Init = "pretrained"
    predictor_width: int = 0
    predictor_depth: int = 0
    output: Output = "all"
    action: ActionKind = "null"
    branch: Branch = "teacher"
    predictor_lr_scale: float = 0.0
    encoder_lr_scale: float = 1.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    centre: bool = False
    cache_views: int = 0
    epochs: float = 0.0
    images: int = 0
    patience: int = 0
    monitor_every: int = 0
    ignore: tuple[int, ...] = ()

    # Pieces have their own draws of mixup and the like; validations choose the weights that are kept.
    SHAPING: ClassVar[frozenset[str]] = frozenset({"accumulate", "monitor_every", "patience"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("task", TaskKind), ("tune", Tune), ("head", Head), ("init", Init), ("output", Output),
            ("action", ActionKind), ("branch", Branch),
        ):  # fmt: skip
            require_choice(name, getattr(self, name), choices)
        for name in (
            "predictor_width",
            "predictor_depth",
            "cache_views",
            "channels",
            "images",
            "patience",
            "epochs",
            "predictor_lr_scale",
        ):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}; it must be at least 0.")
        for name in ("encoder_lr_scale", "layer_decay"):
            value = getattr(self, name)
            require(0 < value <= 1000, f"{name} is {value}; it must be positive.")
        require(0 <= self.drop_path < 1, f"drop_path is {self.drop_path}; it must be 0 to 1.")
        self._require_agreement()

    def _require_agreement(self) -> None:
        """Fields that exclude each other, each with what to type instead."""
        segments = self.task == "segmentation"
        require(
            (self.head == "upernet") == segments,
            f"head {self.head} does not do {self.task}; use --head {'upernet' if segments else 'attentive'}.",
        )
        require(not self.batch_norm or self.head == "linear", "batch_norm goes with --head linear.")
        require(not self.channels or self.head == "upernet", "channels go with --head upernet.")
        require(
            self.channels <= MAX_CHANNELS, f"channels is {self.channels}; it must be {MAX_CHANNELS} at most."
        )
        for name, idle in (
            ("output", "all"), ("action", "null"), ("init", "pretrained"), ("predictor_width", 0),
            ("predictor_depth", 0),
        ):  # fmt: skip
            require(
                self.uses_predictor or getattr(self, name) == idle,
                f"{name} {getattr(self, name)} is about the predictor, which --tune {self.tune} does not use; "
                "use --tune predictor.",
            )
        require(
            self.init == "random" or not (self.predictor_width or self.predictor_depth),
            "A predictor of other sizes has no pretrained weights; add --init random.",
        )
        require(
            not self.cache_views or not self.tunes_encoder,
            f"cache_views keeps latents of a frozen encoder; --tune {self.tune} changes them. Use 0.",
        )
        require(
            self.optim.optimizer != "lars" or self.tune == "none",
            f"lars is for a head alone, and --tune is {self.tune}; use --optim.optimizer adamw, or another --recipe.",
        )
        default = DataConfig()
        for name in ("crop_scale", "crop_aspect"):
            require(
                not segments or getattr(self.data, name) == getattr(default, name),
                f"data.{name} is about crops of classification; scenes are resized.",
            )
        require(
            not segments or not self.centre, "centre is about crops of classification; scenes are resized."
        )
        mixed = self.augment.mixes or self.augment.erasing > 0
        require(
            not self.cache_views or not (mixed or segments),
            "Kept latents are of single photographs, without mixup, cutmix, erasing and segmentation: "
            "add --cache-views 0.",
        )
        require(not self.centre or self.cache_views <= 1, "There is one centre view; use cache_views 1.")
        plain = self.augment == AugmentConfig(label_smoothing=self.augment.label_smoothing)
        require(
            not segments or (plain and self.augment.label_smoothing == 0),
            "Segmentation has its own augmentation, random scale, crop and flip; leave augment out.",
        )
        pieces = self.batch_size // self.accumulate
        require(
            not self.augment.mixes or pieces % 2 == 0,
            f"Mixing needs an even number of images, not {pieces}; change batch_size.",
        )

    @property
    def uses_predictor(self) -> bool:
        """Whether the head reads a predictor."""
        return self.tune in ("predictor", "all")

    @property
    def predictor_share(self) -> float:
        """The predictor's share of the learning rate."""
        return self.predictor_lr_scale or (0.1 if self.init == "pretrained" else 1.0)

    @property
    def tunes_encoder(self) -> bool:
        """Whether the encoder is trained."""
        return self.tune in ("encoder", "all")

    def replace(self, **changes: Any) -> FinetuneConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def resolved(self, images: int, tasks: int = 1) -> FinetuneConfig:
        """With epochs as steps, for so many training images in so many tasks."""
        epoch = max(images // self.batch_size, 1)
        steps = max(round(self.epochs * images / self.batch_size), 1) if self.epochs else self.steps
        return self.replace(steps=steps, epochs=0.0, monitor_every=self.monitor_every or min(epoch, steps))
