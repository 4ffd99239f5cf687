"""The finetuning task: labels from a head, with or without the predictor, encoder frozen or not.

Classification is learned by cross-entropy against (mixed, smoothed) targets, segmentation pixel
by pixel. Of several tasks each has its own rows of a batch and its own head; their losses are
summed [arXiv 2403.00504, section 5.2]. Batches are pixels or, with a frozen encoder, the latents
of a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iwm.actions import SampleKey, draw_photometry
from iwm.adapter import Adapter
from iwm.evaluation.labelled import IGNORED
from iwm.finetuning.augment import BatchAugment, photometric, seeded, soft_targets
from iwm.finetuning.config import FinetuneConfig
from iwm.finetuning.layers import learning_shares
from iwm.photometry import IDENTITY
from iwm.training.config import OptimConfig
from iwm.training.loop import Task
from iwm.training.optimizer import optimizer_over, scaled_groups
from iwm.world_model import WorldModel

Validate = Callable[[], dict[str, float]]
"""Scores by task's name, higher is better, of the model and the adapter as they are."""

_DEPTH_STREAM = 15
_ACTION_STREAM = 16


class FinetuneTask(Task):
    """Trains an adapter, and the parts of the model that the configuration names.

    Args:
        config: see `FinetuneConfig`.
        model: what the adapter builds on; its encoder or predictor is trained along where the
            configuration says so.
        adapter: heads, and a predictor of its own.
        classes: class index of every image, task by task; empty for segmentation.
        lengths: images of every task.
        validate: measures the state of training.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        model: WorldModel,
        adapter: Adapter,
        classes: Sequence[int],
        lengths: Sequence[int],
        validate: Validate | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.adapter = adapter
        model.requires_grad_(False)
        self.encoder = model.encoder if config.tunes_encoder else None
        self.predictor = model.predictor if config.tune == "all" else None
        # What is frozen is no part of the state of a run, and of no interest to other processes.
        self._model = [model]
        self._names = list(adapter.config.tasks)
        self.register_buffer("classes", torch.tensor(classes, dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.tensor(lengths).cumsum(0)[:-1], persistent=False)
        for part in self.trained():
            part.requires_grad_(True)
        self._freeze_unread()
        self.mixers = [
            BatchAugment(config.augment, len(task.labels), model.config.preprocess, config.seed)
            for task in adapter.config.tasks.values()
        ]
        self.validate = validate
        self.best: dict[str, Any] = {"score": -1.0, "step": 0, "waited": 0, "weights": {}}

    classes: Tensor
    starts: Tensor

    @property
    def model(self) -> WorldModel:
        """What the adapter builds on."""
        return self._model[0]

    def trained(self) -> list[nn.Module]:
        """Modules that the optimiser updates."""
        return [part for part in (self.encoder, self.predictor, self.adapter) if part is not None]

    def _freeze_unread(self) -> None:
        """Parameters that no output depends on: they would have no gradient."""
        predictor = self.adapter.predictor or self.predictor
        if predictor is None:
            return
        if predictor.config.layout == "inplace" or self.config.output == "token":
            predictor.mask_token.requires_grad_(False)
        if self.config.task == "segmentation":
            predictor.norm.requires_grad_(False)
            predictor.project_out.requires_grad_(False)

    def make_optimizer(self, config: OptimConfig) -> torch.optim.Optimizer:
        """With the learning rate of each part and layer."""
        shares = learning_shares(self.config, self.adapter, self.encoder, self.predictor)
        return optimizer_over(scaled_groups(shares), config)

    def forward(
        self, crops: Tensor, step: int, keys: Sequence[SampleKey]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, summed over the tasks.

        Args:
            crops: `[B, 3, S, S]` uint8; `[B, 4, S, S]` with classes for segmentation; or tokens
                `[B, N, D]`.
            step: with the seed and the keys, decides all draws.
            keys: (epoch, index) of each sample; indices count over all tasks.

        Returns:
            The scalar loss, and with several tasks that of each.
        """
        self.train_mode()
        rows = self._rows(keys)
        with torch.autocast(crops.device.type, enabled=False):
            pixels, targets = self._prepare(crops, step, keys, rows)
        # Drop path draws from torch's global generator.
        with seeded(self.config.seed, step, *keys[0], _DEPTH_STREAM, device=crops.device):
            source = self._encode(pixels)
            grid = self.model.encoder.grid_of(crops) if crops.ndim == 4 else self._training_grid()
            losses = []
            for name, target, own in zip(self._names, targets, rows, strict=True):
                part = source[own] if isinstance(source, Tensor) else [level[own] for level in source]
                action = self._action([keys[i] for i in own.tolist()], crops.device)
                losses.append(self._loss(self.adapter(self.model, part, grid, name, action), target))
        total = torch.stack(losses).sum()
        named = zip(self._names, losses, strict=True) if len(losses) > 1 else ()
        return total, {f"loss/{name}": loss.detach() for name, loss in named}

    def _rows(self, keys: Sequence[SampleKey]) -> list[Tensor]:
        """The rows of every task."""
        indices = torch.tensor([index for _, index in keys], device=self.starts.device)
        owners = torch.bucketize(indices, self.starts, right=True)
        return [(owners == task).nonzero().flatten() for task in range(len(self._names))]

    def _prepare(
        self, crops: Tensor, step: int, keys: Sequence[SampleKey], rows: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Augmented pixels in [0, 1], or the tokens, and what each task is to say of its rows."""
        if self.config.task == "segmentation":
            return crops[:, :3].float() / 255.0, [crops[own, 3].long() for own in rows]
        indices = torch.tensor([index for _, index in keys], device=self.classes.device)
        classes = self.classes[indices]
        smoothing = self.config.augment.label_smoothing
        if crops.ndim == 3:
            return crops, [
                soft_targets(classes[own], mixer.classes, smoothing)
                for own, mixer in zip(rows, self.mixers, strict=True)
            ]
        pixels = crops.float() / 255.0
        if self.config.augment.photometry:
            pixels = photometric(pixels, self.model.config.actions.distribution, self.config.seed, keys)
        targets = []
        for own, mixer in zip(rows, self.mixers, strict=True):
            part, target = mixer(pixels[own], classes[own], step, [keys[i] for i in own.tolist()])
            pixels = pixels.index_copy(0, own, part)
            targets.append(target)
        return pixels, targets

    def _encode(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """What the adapter reads of all rows; one pass for all tasks."""
        if pixels.ndim == 3:
            return pixels.float()
        with torch.set_grad_enabled(self.config.tunes_encoder):
            return self.adapter.encode(self.model.encoder, pixels, self._names[0])

    def _training_grid(self) -> tuple[int, int]:
        side = self.model.preprocess.size // self.model.config.encoder.patch_size
        return side, side

    def _action(self, keys: Sequence[SampleKey], device: torch.device) -> Tensor | None:
        """Null, or from the clean view to one that pretraining would have asked for [table 3]."""
        if self.config.action == "null":
            return None
        actions = self.model.config.actions
        drawn_from = actions.distribution if actions.symmetric else actions.distribution.without_destructive()
        target = draw_photometry(drawn_from, seed=self.config.seed, keys=keys, stream=_ACTION_STREAM)
        params = torch.stack((torch.tensor(IDENTITY).expand_as(target), target), dim=1)
        return self.model.encode_photometry(params.to(device))

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.ndim == 2:
            return F.cross_entropy(logits.float(), target)
        size = target.shape[-2:]
        scores = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        counted = (target != IGNORED).sum().clamp_min(1)  # A crop may show nothing that counts.
        return F.cross_entropy(scores, target, ignore_index=IGNORED, reduction="sum") / counted

    def train_mode(self) -> None:
        """Drop path and batch norms as in training, where something is trained; elsewhere as in use."""
        self.model.eval()
        for part in self.trained():
            part.train()

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing follows a step."""
        return {}

    def monitor(self, crops: Tensor, step: int, keys: Sequence[SampleKey]) -> dict[str, float]:
        """Scores on the validation images; the best weights are kept."""
        if self.validate is None:
            return {}
        self.model.eval()
        self.adapter.eval()
        scores = self.validate()
        mean = sum(scores.values()) / len(scores)
        if mean > self.best["score"]:
            self.best = {"score": mean, "step": step, "waited": 0, "weights": self._weights()}
        else:
            self.best["waited"] += 1
        named = {f"val/{name}": score for name, score in scores.items()} if len(scores) > 1 else {}
        return {"val": mean, "best": self.best["score"]} | named

    @property
    def finished(self) -> bool:
        """Whether as many validations as `patience` allows have brought nothing."""
        return 0 < self.config.patience <= int(self.best["waited"])

    @contextmanager
    def at_best(self) -> Iterator[None]:
        """With the weights of the best validation in place, for the duration."""
        now = self._weights()
        self._put(self.best["weights"] or now)
        try:
            yield
        finally:
            self._put(now)

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": tensor.detach().to("cpu", copy=True)
            for number, part in enumerate(self.trained())
            for name, tensor in part.state_dict().items()
        }

    def _put(self, weights: dict[str, Tensor]) -> None:
        for number, part in enumerate(self.trained()):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            part.load_state_dict(own, strict=True)

    def get_extra_state(self) -> dict[str, Any]:
        """The best so far is part of a run's state: a continued run must not forget it."""
        return self.best

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        self.best = dict(state)
