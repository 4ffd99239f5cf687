"""A world model for an encoder that somebody else has trained.

Takes the weights of a plain ViT in timm's naming: patch embedding, blocks, positions. The class
token, the final norm and the head stay behind: iwm's latent space is patch tokens under a norm
without weights. A LayerScale is folded into the layers before it, which changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iwm.config import EncoderConfig, WorldModelConfig
from iwm.encoder import Encoder
from iwm.errors import IncompatibleWeightsError, UnknownModelError, WeightsUnavailableError, nearest

_NOT_PLAIN = "It is not a plain ViT, as those of AugReg, DeiT, DINO, DINOv2, MAE and SigLIP are."
_LEFT_BEHIND = re.compile(
    r"(cls_token|reg_token|dist_token|norm|fc_norm|head|head_drop|attn_pool)(\..*)?|head.*"
)
_PREFIXES = ("cls_token", "reg_token", "dist_token")
_SCALES = (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2"))


@dataclass(frozen=True)
class Donor:
    """An encoder's weights in this library's naming, and what they ask of the configuration.

    Attributes:
        source: where they came from.
        weights: of an `Encoder`, positions on their own grid.
        mean, std: pixel normalisation it was trained with, where known.
        heads: of its attention, where known; no weight tells.
    """

    source: str
    weights: dict[str, Tensor]
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    heads: int | None = None

    def adapt(self, config: WorldModelConfig) -> WorldModelConfig:
        """The configuration with the donor's kind of positions and its pixel normalisation."""
        learned = "position_table" in self.weights
        encoder = replace(config.encoder, positions="learned" if learned else "sincos")
        preprocess = config.preprocess
        if self.mean and self.std:
            preprocess = replace(preprocess, mean=self.mean, std=self.std)
        return config.replace(encoder=encoder, preprocess=preprocess)

    def fill(self, encoder: Encoder) -> None:
        """Put the weights into an encoder; see `fitted`."""
        encoder.load_state_dict(self.fitted(encoder), strict=True)

    def fitted(self, encoder: Encoder) -> dict[str, Tensor]:
        """The weights of an encoder, which may have shapes alone; positions are resampled to its grid.

        Raises:
            IncompatibleWeightsError: shapes that do not fit, with the options that would make
                them fit.
        """
        weights = dict(self.weights)
        table = weights.get("position_table")
        if table is not None and table.shape[-1] == encoder.config.width:
            weights["position_table"] = resample_positions(table, encoder.config.grid)
        expected = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
        foreign = _other_parts(expected, weights, lambda name: re.match(r"blocks\.[1-9]", name) is None)
        problems = foreign or _other_parts(expected, weights)
        if not foreign:
            problems += [
                f"{name} has shape {list(weights[name].shape)}, expected {shape}"
                for name, shape in expected.items()
                if name in weights and list(weights[name].shape) != shape
            ]
            if self.heads and self.heads != encoder.config.heads:
                problems.append(f"it has {self.heads} attention heads, expected {encoder.config.heads}")
        if problems:
            advice = _NOT_PLAIN if foreign else self._advice(encoder.config)
            raise IncompatibleWeightsError(
                f"{self.source} does not fit the encoder: {'; '.join(problems[:4])}"
                f"{', ...' if len(problems) > 4 else ''}. {advice}"
            )
        return weights

    def doubt(self, config: EncoderConfig) -> str | None:
        """What to say of a number of heads that weights fit, and that hardly any ViT has."""
        per_head = config.width / config.heads
        if self.heads or 48 <= per_head <= 112:
            return None
        return (
            f"{self.source} does not tell how many attention heads it has, and {config.heads} of "
            f"{per_head:g} features each are unusual; set those it was trained with: "
            f"--model.encoder.heads {max(round(config.width / 64), 1)}?"
        )

    def _advice(self, config: EncoderConfig) -> str:
        """The options that describe the donor's own sizes."""
        width, _, patch, _ = self.weights["patch_embed.proj.weight"].shape
        blocks = {int(name.split(".")[1]) for name in self.weights if name.startswith("blocks.")}
        hidden = self.weights["blocks.0.mlp.fc1.weight"].shape[0]
        sizes: dict[str, Any] = {
            "width": width, "depth": len(blocks), "patch_size": patch, "mlp_ratio": hidden / width,
        }  # fmt: skip
        if self.heads or width != config.width:
            sizes["heads"] = self.heads or max(width // 64, 1)
        words = [f"--model.encoder.{k} {v}" for k, v in sizes.items() if getattr(config, k) != v]
        return f"Its sizes: {' '.join(words)}" if words else _NOT_PLAIN


def _other_parts(
    expected: Mapping[str, object], weights: Mapping[str, object], of: Callable[[str], bool] = bool
) -> list[str]:
    """Parts that one of the two lacks, among names of some kind; the first block's are all blocks'."""
    missing, useless = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    return [f"{name} is missing" for name in sorted(filter(of, missing))] + [
        f"{name} is of no use here" for name in sorted(filter(of, useless))
    ]


def find_donor(source: str) -> Donor:
    """The encoder that `--init-encoder` names.

    Args:
        source: `timm:<name>` (its published weights), or a safetensors file in timm's naming, of
            an `Encoder` or of a whole model of this library, whose encoder is taken.

    Raises:
        UnknownModelError: timm knows no such name.
        WeightsUnavailableError: the file does not exist, or timm cannot get its weights.
        IncompatibleWeightsError: not a safetensors file, or not a ViT.
    """
    if Path(source).is_dir():
        raise WeightsUnavailableError(f"{source} is a folder. Name a safetensors file, such as one in it.")
    kind, _, name = source.partition(":")
    if kind == "timm":
        return _from_timm(name, source)
    try:
        state = load_file(source)
    except FileNotFoundError as error:
        raise WeightsUnavailableError(
            f"No encoder at {source}. Name a safetensors file, or timm:<name>."
        ) from error
    except (SafetensorError, OSError) as error:
        raise IncompatibleWeightsError(f"{source} is not a readable safetensors file: {error}") from error
    if "encoder.patch_embed.proj.weight" in state:  # A whole model of this library.
        state = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    return Donor(source, translate(state, source))


def _from_timm(name: str, source: str) -> Donor:
    import timm

    if not timm.is_model(name):
        raise UnknownModelError(f'timm has no model "{name}".{nearest(name, timm.list_models("vit_*"))}')
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # The Hub's many ways, and models without weights.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsUnavailableError(f"timm cannot get the weights of {name}: {reason}") from error
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    weights = translate(model.state_dict(), source)
    heads = model.blocks[0].attn.num_heads  # type: ignore[index, union-attr]
    return Donor(source, weights, tuple(cfg["mean"]), tuple(cfg["std"]), heads)


def translate(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A ViT's weights in timm's naming as those of an `Encoder`.

    Raises:
        IncompatibleWeightsError: it lacks a patch embedding or blocks, or has parts that an
            `Encoder` has no place for.
    """
    kept = {k: v.detach().float() for k, v in state.items() if not _LEFT_BEHIND.fullmatch(k)}
    if not {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"} <= kept.keys():
        some = ", ".join(sorted(state)[:4])
        raise IncompatibleWeightsError(f"{source} is no ViT in timm's naming; it holds {some}, ...")
    for scale in [name for name in kept if name.endswith(tuple(gamma for gamma, _ in _SCALES))]:
        gamma = kept.pop(scale)
        block = scale.rsplit(".", 2)[0]
        layer = next(layer for suffix, layer in _SCALES if scale.endswith(suffix))
        kept[f"{block}.{layer}.weight"] = kept[f"{block}.{layer}.weight"] * gamma[:, None]
        kept[f"{block}.{layer}.bias"] = kept[f"{block}.{layer}.bias"] * gamma
    if "pos_embed" in kept:
        table = kept.pop("pos_embed")[0]
        square = math.isqrt(len(table)) ** 2
        prefix = sum(state[name].shape[1] for name in _PREFIXES if name in state)
        if len(table) - square > prefix:
            raise IncompatibleWeightsError(
                f"{source} has {len(table)} positions, which is no square grid of patches."
            )
        kept["position_table"] = table[len(table) - square :]  # Prefix tokens come first.
    return kept


def resample_positions(table: Tensor, grid: int) -> Tensor:
    """Learned positions `[n, D]` of a square grid, bicubically on another, `[grid^2, D]`."""
    from timm.layers import resample_abs_pos_embed

    side = int(len(table) ** 0.5)
    resampled: Tensor = resample_abs_pos_embed(table[None], [grid, grid], [side, side], num_prefix_tokens=0)
    return resampled[0]
