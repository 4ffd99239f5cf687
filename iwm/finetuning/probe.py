"""Probes: heads on the latents of a frozen encoder, trained and measured in one go [tables 8, S5, S6].

Nothing is kept but a score. A probe that is to be used later is what `iwm finetune --tune none`
makes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iwm.evaluation.classification import ClassificationReport
from iwm.evaluation.marginal import marginalised
from iwm.finetuning.accounting import Cost, cost
from iwm.finetuning.cache import LatentDataset, cached_latents
from iwm.finetuning.config import FinetuneConfig, ProbeHead
from iwm.finetuning.datasets import TaskSource
from iwm.finetuning.folders import TaskData, listing
from iwm.finetuning.recipes import find_recipe
from iwm.finetuning.result import name_head
from iwm.finetuning.run import make_adapter
from iwm.finetuning.task import FinetuneTask
from iwm.training.distributed import World
from iwm.training.loop import train
from iwm.training.run_folder import RunFolder
from iwm.world_model import WorldModel

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Accuracy of a probe.

    Attributes:
        accuracy, top5, chance, images, classes: of the validation images, after the last step.
        head: `linear` or `attentive`.
        batch_norm: of pooled tokens, before a linear head.
        train_images: it was trained on.
        marginalise: predictions that every latent is the average of; 0 is the encoding itself.
        seed: of the training.
        cost: of an image, the predictions among it, and of the head.
        answers: the class that each validation image was taken for.
    """

    accuracy: float
    top5: float
    chance: float
    images: int
    classes: int
    head: str
    batch_norm: bool
    train_images: int
    marginalise: int
    seed: int
    cost: Cost
    answers: tuple[int, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the answers."""
        values = dataclasses.asdict(self) | {"cost": self.cost.to_dict()}
        del values["answers"]
        return values

    @property
    def title(self) -> str:
        """What was trained, in words."""
        on = f"averages of {self.marginalise} predictions" if self.marginalise else "encodings"
        return f"{name_head('probe', self.head, self.batch_norm)} on {on}"


def probe_config(head: ProbeHead, seed: int = 0, *, batch_norm: bool = False) -> FinetuneConfig:
    """The small recipe of a head, on the centre view alone: photographs as the model sees them in use."""
    config = find_recipe(f"{head}-small")
    return config.replace(
        seed=seed, batch_norm=batch_norm, centre=True, cache_views=1, data=replace(config.data, workers=0)
    )


def probe(
    model: WorldModel,
    data: TaskData,
    config: FinetuneConfig,
    *,
    marginalise: int = 0,
    cache: Path | None = None,
) -> ProbeReport | None:
    """Train a head on cached latents and measure it.

    Args:
        model: whose encoder is measured.
        data: labelled photographs.
        config: of a run that tunes nothing but the head, see `probe_config`.
        marginalise: average every latent over so many predictions [appendix H].
        cache: folder of kept latents; None keeps none.

    Returns:
        What was measured; None after an interruption of the training.
    """
    config = config.resolved(len(data.train)).replace(monitor_every=0)
    device = model.device
    torch.manual_seed(config.seed)
    adapter = make_adapter(config, model, [data]).to(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = cache or Path(scratch) / "cache"
        kept = cached_latents(model, data.train.images, config, folder, marginalise)
        source = TaskSource(LatentDataset(kept, len(data.train)), [len(data.train)], config, listing([data]))
        task = FinetuneTask(config, model, adapter, data.train.classes, [len(data.train)]).to(device)
        run = RunFolder(Path(scratch) / "run", config, resume=False)
        if not train(task, source, config, run, lambda done, seconds: None, World(device)):
            return None
    logits = _logits(model, task, data, config, marginalise)
    report = ClassificationReport.of(logits, data.val.classes)
    described = model.config.replace(adapters={data.name: adapter.config}, decoder=None)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    return ProbeReport(
        **report.to_dict(), head=config.head, batch_norm=config.batch_norm, train_images=len(data.train),
        marginalise=marginalise, seed=config.seed, cost=cost(described, data.name, trained, marginalise),
        answers=tuple(logits.argmax(dim=1).tolist()),
    )  # fmt: skip


@torch.no_grad()
def _logits(
    model: WorldModel, task: FinetuneTask, data: TaskData, config: FinetuneConfig, marginalise: int
) -> Tensor:
    """Of the validation images, `[n, K]`."""
    task.adapter.eval()
    side = model.preprocess.size // model.config.encoder.patch_size
    outputs = []
    for start in range(0, len(data.val), _BATCH):
        tokens = model.encode(data.val.images[start : start + _BATCH]).tokens
        if marginalise:
            # Other actions than those of the training images.
            numbers = [len(data.train) + start + i for i in range(len(tokens))]
            tokens = marginalised(model, tokens, marginalise, config.seed, numbers)
        outputs.append(task.adapter(model, tokens, (side, side), data.name).float().cpu())
    return torch.cat(outputs)
