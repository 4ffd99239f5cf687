"""Configuration of the training of a decoder."""

from dataclasses import dataclass

from iwm.fields import require
from iwm.training.config import OptimConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(RunConfig):
    """A decoder's training run.

    Attributes:
        model: whose latents are decoded: zoo name, folder or repository.
        width, depth, heads: of the decoder's transformer blocks.
        clean: share of the photographs that are shown as they are; the others are transformed as
            the model's training views were.
    """

    model: str
    width: int = 256
    depth: int = 2
    heads: int = 4
    clean: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.clean <= 1, f"clean is {self.clean}; it must be 0 to 1.")


def decoder_recipe(model: str) -> DecodingConfig:
    """A decoder's run (all ours).

    Command: `iwm pretrain-decoder --model iwm-tiny --data FOLDER --out DIR`.
    Cost and scores: recorded in the shipped `config.json`.
    """
    return DecodingConfig(
        model=model,
        steps=12_000,
        batch_size=16,
        monitor_every=0,
        optim=OptimConfig(
            lr=1e-3, lr_start=0.0, warmup=0.05, weight_decay=0.01, weight_decay_end=0.01, clip=1.0
        ),
    )
