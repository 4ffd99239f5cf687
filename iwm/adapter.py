"""An adapter: a finetuned predictor, heads and task tokens on a frozen encoder.

Predictor finetuning [arXiv 2403.00504, section 5.1]: the predictor is asked for the whole,
untransformed image and a head reads what it answers; or, cheaper, for one token alone [table 3].
Several tasks share a predictor, each with a learned token that says which it is [section 5.2].
An adapter without a predictor of its own reads the model's, or the encoder: then it is a probe.

Shape legend: B batch, N patches of the grid (H x W), D encoder width, P predictor width, A action
vector, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iwm.actions import encode_photometry
from iwm.config import AdapterConfig, WorldModelConfig
from iwm.counting import read_width
from iwm.encoder import Encoder, init_weights
from iwm.heads import make_head
from iwm.photometry import IDENTITY
from iwm.predictor import Predictor

if TYPE_CHECKING:
    from iwm.world_model import WorldModel


class Adapter(nn.Module):
    """What solves one or several tasks on top of a model.

    Random weights; `predictor.load_state_dict(model.predictor.state_dict())` starts from the
    pretrained world model, where both have one shape.

    Args:
        config: what it is.
        model: config of the model it belongs to.

    Attributes:
        config: as given.
        predictor: its own one, or None.
        output_token: `[P]`, predicted instead of the image, or None.
        task_tokens: of each of several tasks, `[P]`.
        heads: of each task; see `head`.
    """

    def __init__(self, config: AdapterConfig, model: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoding = model.actions.encoding
        self.predictor = (
            Predictor(model.replace(predictor=config.predictor, adapters={}, decoder=None))
            if config.predictor
            else None
        )
        width = (config.predictor or model.predictor).width
        self.output_token = nn.Parameter(torch.zeros(width)) if config.output == "token" else None
        shared = config.reads == "predictor" and len(config.tasks) > 1
        self.task_tokens = nn.ParameterDict(
            {module_key(name): nn.Parameter(torch.zeros(width)) for name in config.tasks if shared}
        )
        self.heads = nn.ModuleDict(
            {
                module_key(name): make_head(task, read_width(config, task, model), model.encoder.heads)
                for name, task in config.tasks.items()
            }
        )
        init_weights(self)
        for token in self.task_tokens.values():
            nn.init.trunc_normal_(token, std=0.02)

    def head(self, task: str) -> nn.Module:
        """The head of a task."""
        return self.heads[module_key(task)]

    def encode(self, encoder: Encoder, images: Tensor, task: str) -> Tensor | list[Tensor]:
        """What `forward` takes for a task, from `[B, 3, H, W]` in [0, 1]: tokens, or four blocks' tokens."""
        dense = self.config.tasks[task].kind == "segmentation"
        return encoder.features(images) if dense and self.config.reads == "encoder" else encoder(images)

    def forward(
        self,
        model: WorldModel,
        source: Tensor | Sequence[Tensor],
        grid: tuple[int, int],
        task: str,
        action: Tensor | None = None,
    ) -> Tensor:
        """Scores of the classes.

        Args:
            model: whose predictor is read where the adapter has none.
            source: the encoder's tokens `[B, N, D]`, or its `features`, which dense heads that
                read the encoder need.
            grid: patches along height and width.
            task: its name.
            action: vectors `[B, A]`; None asks for the untransformed image.

        Returns:
            Logits `[B, K]`, or `[B, K, 4 H, 4 W]` for segmentation.
        """
        dense = self.config.tasks[task].kind == "segmentation"
        tokens = source if isinstance(source, Tensor) else source[-1]
        head = self.head(task)
        if self.config.reads == "encoder":
            logits: Tensor = head(source, grid) if dense else head(tokens)
            return logits
        predictor = self.predictor or model.predictor
        if action is None:
            action = self.null_action(tokens)
        extra = self._token(self.task_tokens[module_key(task)], tokens) if self.task_tokens else None
        if dense:
            logits = head(predictor.features(tokens, action, grid, extra=extra), grid)
        else:
            token = None if self.output_token is None else self._token(self.output_token, tokens)
            logits = head(predictor.respond(tokens, action, grid, token=token, extra=extra))
        return logits

    def null_action(self, tokens: Tensor) -> Tensor:
        """The action from a clean view to a clean view, `[B, A]`, for `[B, N, D]`."""
        clean = torch.tensor([[IDENTITY, IDENTITY]], dtype=tokens.dtype, device=tokens.device)
        return encode_photometry(clean, self.encoding).expand(tokens.shape[0], -1)

    def _token(self, token: Tensor, tokens: Tensor) -> Tensor:
        return token.expand(tokens.shape[0], 1, -1)


def module_key(name: str) -> str:
    """Where a module keeps what belongs to a name, which may be one of its attributes, e.g. `train`."""
    return f"task-{name}"
