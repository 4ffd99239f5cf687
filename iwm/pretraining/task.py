"""The pretraining task: a student encoder and a world model against an EMA teacher.

L = mean over target tokens of the squared difference between the prediction
p_phi(f_theta(x), a_{x->y}, m_a) and the teacher's encoding f_theta^EMA(y) of the target view
[arXiv 2403.00504, section 3]. The paper sums over masked positions; a mean makes the learning
rate independent of the grid. `append` predicts the masked positions, `inplace` all of them.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iwm.actions import SampleKey, encode_photometry
from iwm.encoder import Encoder, take_tokens
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.masks import draw_masks
from iwm.pretraining.monitors import monitor
from iwm.pretraining.views import make_views
from iwm.pretraining.warm_start import Donor
from iwm.training.loop import Task
from iwm.training.schedules import ema_momentum
from iwm.world_model import WorldModel


class PretrainTask(Task):
    """Wraps a `WorldModel`, whose encoder is the teacher, with the student that is trained."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.model = WorldModel(config.model)
        self.student = Encoder(config.model.encoder, config.model.preprocess)
        self.student.load_state_dict(self.model.encoder.state_dict())
        self.model.encoder.requires_grad_(False)
        self.student.requires_grad_(not config.freeze_encoder)
        self.running["spread"] = 1.0

    def trained(self) -> list[nn.Module]:
        """The modules that the optimiser updates."""
        return [self.model.predictor] if self.config.freeze_encoder else [self.student, self.model.predictor]

    def start_from(self, donor: Donor) -> None:
        """Give student and teacher the weights of a trained encoder."""
        donor.fill(self.student)
        self.model.encoder.load_state_dict(self.student.state_dict())

    def forward(
        self, crops: Tensor, step: int, keys: Sequence[SampleKey]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch.

        Args:
            crops: `[B, 3, S, S]` uint8.
            step: decides, with the seed, how much is masked.
            keys: (epoch, index) of each sample; decide, with the seed, all other draws.

        Returns:
            The scalar loss, and `target_variance`: the variance over the images of the teacher's
            tokens at one position, averaged over positions and features. 0 is a collapse. Without
            bias, so that it is the same on average for all of a batch and for pieces; one image has
            none.
        """
        config = self.config
        seed = config.seed
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            views = make_views(crops, config.model.actions, seed=seed, keys=keys, clean=config.clean)
            action = encode_photometry(views.params, config.model.actions.encoding)
        grid = self.student.grid_of(views.source)
        masks = draw_masks(config.masks, grid, seed=seed, step=step, keys=keys, device=crops.device)
        visible, masked = masks or (None, None)
        with torch.no_grad():
            targets = self.model.encoder(views.target)
        # Of all tokens: each image has other masked positions, which differ in any case.
        spread = {"target_variance": targets.float().var(dim=0).mean()} if len(crops) > 1 else {}
        predicted_at = masked if config.model.predictor.layout == "append" else None
        source = self.student(views.source, visible)
        predictions = self.model.predictor(source, action, grid, visible, predicted_at)
        if predicted_at is not None:
            targets = take_tokens(targets, predicted_at)
        loss = F.mse_loss(predictions.float(), targets.float())
        if masks is None:  # Processes wait for a gradient of every parameter, also of one without a place.
            loss = loss + 0.0 * self.model.predictor.mask_token.sum()
        return loss, spread

    def of_step(self, means: dict[str, float]) -> dict[str, float]:
        """With `target_std`, the root of the variance, about 1 at the most."""
        variance = means.pop("target_variance", None)
        return means if variance is None else means | {"target_std": math.sqrt(variance)}

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, float]:
        """Move the teacher towards the student, by a step that shrinks to nothing."""
        if self.config.freeze_encoder:
            return {"ema": 1.0}
        momentum = ema_momentum(step, self.config.steps, self.config.ema)
        teacher, student = tensors(self.model.encoder), tensors(self.student)
        torch._foreach_lerp_(teacher, student, 1.0 - momentum)
        return {"ema": momentum}

    @torch.no_grad()
    def monitor(self, crops: Tensor, step: int, keys: Sequence[SampleKey]) -> dict[str, float]:
        """Rank, invariance and equivariance of the teacher; see `iwm.pretraining.monitors`."""
        views = make_views(crops, self.config.model.actions, seed=self.config.seed, keys=keys)
        return monitor(self.model, crops, views.target)

    def sound(self, record: dict[str, float]) -> bool:
        """Whether target tokens differ between the images of this step."""
        return record.get("target_std", 1.0) >= self.config.collapse_below

    def collapse(self, record: dict[str, float]) -> str | None:
        """Whether target tokens have stopped to differ between images, after the warmup."""
        spread = self.running["spread"]
        spread += 0.1 * (record.get("target_std", spread) - spread)
        self.running["spread"] = spread
        if (
            record["step"] < self.config.optim.warmup * self.config.steps
            or spread > self.config.collapse_below
        ):
            return None
        return (
            f"target tokens differ between images by a standard deviation of {spread:.4f} only "
            f"(collapse_below is {self.config.collapse_below}; at 0 nothing is looked for)"
        )


def tensors(module: nn.Module) -> list[Tensor]:
    """The parameters, as plain tensors."""
    return [p.detach() for p in module.parameters()]
