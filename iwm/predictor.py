"""The world model p_phi: latents and an action to predicted latents [arXiv 2403.00504].

Two layouts. `append`, the paper's [section 3, App. A.1]: the context tokens are followed by
one mask token per target position, and the output is read at the mask tokens. `inplace`, ours:
one token per position of the grid; visible positions carry the projected source token, the
others the mask token; the output is read everywhere. With `share_source` (ours, for `append`), the
context attends to itself alone and is computed once for all actions; see `iwm.blocks`.

Ways in for the action [section 4.2]. `feature`, the paper's default: tokens are concatenated
with the action vector and mixed by a three-layer MLP with ReLU (in `append` the mask tokens, in
`inplace` all tokens, as without masks there is no other place). `sequence`, the paper's other
one: one more token for every component of the vector, each through a linear layer of its own.
`adaln`, after diffusion transformers: the action scales, shifts and gates every block. `none`:
not at all, which makes the world model invariant by construction.

Shape legend: B batch, N patches of the grid, V visible, T targets, D encoder width, P
predictor width, A action vector.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iwm.blocks import PredictorBlock, run_apart
from iwm.config import VECTOR_SIZE, WorldModelConfig
from iwm.encoder import NORM_EPS, run_blocks, sincos_positions, take_tokens


class Predictor(nn.Module):
    """Predicts a target view's latents from a source view's and the action between them."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config.predictor
        self.train_grid = config.encoder.grid
        width, heads = self.config.width, config.encoder.heads
        action_size = VECTOR_SIZE[config.actions.encoding]
        conditioning = self.config.conditioning

        self.project_in = nn.Linear(config.encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mix = _mixer(width + action_size, width) if conditioning == "feature" else None
        self.embed_action = _action_mlp(action_size, width) if conditioning == "adaln" else None
        self.action_tokens = ActionTokens(action_size, width) if conditioning == "sequence" else None
        self.blocks = nn.ModuleList(
            PredictorBlock(width, heads, self.config.mlp_ratio, conditioned=conditioning == "adaln")
            for _ in range(self.config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.project_out = nn.Linear(width, config.encoder.width)

    def forward(
        self,
        source: Tensor,
        action: Tensor,
        grid: tuple[int, int],
        visible: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Predict target latents, not yet normalised.

        Args:
            source: tokens `[B, V, D]` of the source view; a single one serves all actions, and
                what does not depend on the action is then computed once.
            action: vectors `[B, A]`.
            grid: patches along height and width; N is their product.
            visible: `[B, V]` positions of the source tokens; None says all N, in order.
            targets: `[B, T]` positions to predict; None says all N, in order.

        Returns:
            `[B, T, D]`, in the order of `targets`.
        """
        out = self._run(*self._sequence(source, action, grid, visible, targets), action)[-1]
        if targets is not None and self.config.layout == "inplace":
            out = take_tokens(out, targets)
        out = self._project_out(out)
        return out if out.shape[0] == action.shape[0] else out.expand(action.shape[0], -1, -1)

    def respond(
        self,
        source: Tensor,
        action: Tensor,
        grid: tuple[int, int],
        *,
        token: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """What a head reads when the whole source is seen [section 5.1].

        Args:
            source: tokens `[B, N, D]`.
            action: vectors `[B, A]`.
            grid: patches along height and width.
            token: `[B, 1, P]`, predicted instead of the image: a mask token without a place.
            extra: `[B, K, P]`, join the sequence and are not read (task tokens).

        Returns:
            Not yet normalised: `[B, N, D]`, without `extra` the same as `forward`; or `[B, 1, D]`.
        """
        return self._project_out(
            self._run(*self._sequence(source, action, grid, token=token), action, extra)[-1]
        )

    def features(
        self,
        source: Tensor,
        action: Tensor,
        grid: tuple[int, int],
        *,
        extra: Tensor | None = None,
        count: int = 4,
    ) -> list[Tensor]:
        """Tokens of the whole image after each of the last blocks, for dense heads [App. A.2].

        Arguments are those of `respond`; `count` as for `Encoder.features`.

        Returns:
            `count` times `[B, N, P]`.
        """
        return self._run(*self._sequence(source, action, grid), action, extra, count)

    def _sequence(
        self,
        source: Tensor,
        action_BA: Tensor,
        grid: tuple[int, int],
        visible: Tensor | None = None,
        targets: Tensor | None = None,
        token: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """What the first block reads: tokens that come first, if any, and those where the output is."""
        positions_NP = sincos_positions(self.config.width, grid, self.train_grid, self.project_in.weight)
        context_BVP = self.project_in(source)
        if self.config.layout == "inplace":
            x = self._mix(self._spread(context_BVP, visible, positions_NP) + positions_NP, action_BA)
            if token is None:
                return None, x
        else:
            x = context_BVP + _positions_at(positions_NP, visible, context_BVP.shape[0])
            if token is None:
                token = self.mask_token + _positions_at(positions_NP, targets, context_BVP.shape[0])
        return x, self._mix(token.to(x.dtype), action_BA)

    def _spread(self, context_BVP: Tensor, visible: Tensor | None, positions_NP: Tensor) -> Tensor:
        """Context tokens at their places, mask tokens elsewhere, `[B, N, P]`."""
        if visible is None:
            return context_BVP
        x = self.mask_token.to(context_BVP.dtype).repeat(len(context_BVP), len(positions_NP), 1)
        index = visible.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return x.scatter(1, index, context_BVP)

    def _mix(self, tokens_BTP: Tensor, action_BA: Tensor) -> Tensor:
        """Feature conditioning: concatenate the action to every token and mix; the tokens' dtype stays."""
        if self.mix is None:
            return tokens_BTP
        if tokens_BTP.shape[0] < action_BA.shape[0]:  # The tokens' share of the first layer, once for all.
            first, width = cast(nn.Linear, self.mix[0]), tokens_BTP.shape[-1]
            of_action = F.linear(action_BA.to(tokens_BTP.dtype), first.weight[:, width:], first.bias)
            shared: Tensor = F.linear(tokens_BTP, first.weight[:, :width]) + of_action.unsqueeze(1)
            for layer in list(self.mix)[1:]:
                shared = layer(shared)
            return shared.to(tokens_BTP.dtype)
        spread = action_BA.to(tokens_BTP.dtype).unsqueeze(1).expand(-1, tokens_BTP.shape[1], -1)
        mixed: Tensor = self.mix(torch.cat((tokens_BTP, spread), dim=-1))
        return mixed.to(tokens_BTP.dtype)

    def _run(
        self,
        source: Tensor | None,
        asking: Tensor,
        action_BA: Tensor,
        extra: Tensor | None = None,
        count: int = 1,
    ) -> list[Tensor]:
        """The asking tokens after the last blocks; extra and action tokens come after all others."""
        asked = asking.shape[1]
        if extra is not None:
            asking = _joined(asking, extra.to(asking.dtype))
        if self.action_tokens is not None:
            asking = _joined(asking, self.action_tokens(action_BA).to(asking.dtype))
        condition = None if self.embed_action is None else self.embed_action(action_BA)
        if source is not None and self.config.share_source:
            outputs, start = run_apart(self.blocks, source, asking, condition, count), 0
        else:
            x, start = (asking, 0) if source is None else (_joined(source, asking), source.shape[1])
            outputs = run_blocks(self.blocks, x, *(() if condition is None else (condition,)), count=count)
        return [tokens[:, start : start + asked] for tokens in outputs]

    def _project_out(self, x: Tensor) -> Tensor:
        out: Tensor = self.project_out(self.norm(x))
        return out


class ActionTokens(nn.Module):
    """One token for every component of the action, each by a linear layer of its own [section 4.2]."""

    def __init__(self, action_size: int, width: int) -> None:
        super().__init__()
        self.components = nn.ModuleList(nn.Linear(1, width) for _ in range(action_size))

    def forward(self, action_BA: Tensor) -> Tensor:
        """`[B, A]` to `[B, A, P]`."""
        parts = action_BA.unsqueeze(-1).unbind(1)
        return torch.stack([layer(part) for layer, part in zip(self.components, parts, strict=True)], dim=1)


def _joined(x: Tensor, y: Tensor) -> Tensor:
    """One sequence after the other, `[B, S + T, P]`; either may be there once for all."""
    if x.shape[0] != y.shape[0]:
        batch = max(x.shape[0], y.shape[0])
        x, y = x.expand(batch, -1, -1), y.expand(batch, -1, -1)
    return torch.cat((x, y), dim=1)


def _mixer(size: int, width: int) -> nn.Sequential:
    """The paper's three-layer network of widths d, d, d with ReLU [App. A.1]."""
    return nn.Sequential(
        nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
    )


def _action_mlp(size: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def _positions_at(positions_NP: Tensor, indices: Tensor | None, batch: int) -> Tensor:
    """Positions `[B, T, P]` at `indices` `[B, T]`, or all N of them."""
    if indices is None:
        return positions_NP.expand(batch, -1, -1)
    return positions_NP[indices]
