"""A batch of latents: patch tokens, their grid, and the space they live in."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from iwm.errors import IncompatibleLatentError


@dataclass(frozen=True, eq=False)
class Latent:
    """Encodings or predictions of B views, all in one latent space.

    Attributes:
        tokens: `[B, N, D]`, layer-normalised over features.
        grid: patches along height and width; N is their product.
        space: fingerprint of the encoder that made them; latents of different spaces do not
            mix.
    """

    tokens: Tensor
    grid: tuple[int, int]
    space: str

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise IncompatibleLatentError(
                f"Tokens of shape {list(self.tokens.shape)} do not fill a grid of "
                f"{self.grid[0]} x {self.grid[1]}; expected [B, {self.grid[0] * self.grid[1]}, D]."
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: SupportsIndex | slice | Tensor | np.ndarray[Any, Any] | list[int]) -> Latent:
        """A batch again, also for a single index; arrays hold indices, or True for each latent to take."""
        if isinstance(index, np.ndarray) and index.ndim:
            if index.size and index.dtype.kind not in "biu":
                raise IndexError(
                    f"An array of {index.dtype} takes no latents; expected whole numbers, or booleans."
                )
            index = torch.from_numpy(index.astype(bool if index.dtype == bool else np.int64))
        if isinstance(index, SupportsIndex) and not (isinstance(index, Tensor) and index.ndim):
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"Index {index} is out of range for {len(self)} latents.")
            index %= len(self)
            index = slice(index, index + 1)
        return replace(self, tokens=self.tokens[index])

    def __iter__(self) -> Iterator[Latent]:
        return (self[i] for i in range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> Latent:
        """Move or cast, with the arguments of `torch.Tensor.to`."""
        return replace(self, tokens=self.tokens.to(*args, **kwargs))

    def mean(self) -> Tensor:
        """Tokens averaged over the grid, `[B, D]`."""
        return self.tokens.mean(dim=1)

    @classmethod
    def cat(cls, latents: Iterable[Latent]) -> Latent:
        """Concatenate along the batch.

        Raises:
            IncompatibleLatentError: none given, or of different spaces or grids.
        """
        items = list(latents)
        if not items:
            raise IncompatibleLatentError("Latent.cat needs at least one latent.")
        for item in items:
            cls.check_matches(items[0], item)
        return replace(items[0], tokens=torch.cat([item.tokens for item in items]))

    def check_matches(self, other: Latent) -> None:
        """Raise `IncompatibleLatentError` unless `other` is a latent that may be mixed with this one."""
        if not isinstance(other, Latent):
            raise IncompatibleLatentError(
                f"Expected iwm.Latent, got {type(other).__name__}; write model.encode(image)."
            )
        if self.space != other.space:
            raise IncompatibleLatentError(
                f"Latents of two encoders (spaces {self.space} and {other.space}) cannot be mixed; "
                "encode everything with one model."
            )
        if self.grid != other.grid:
            raise IncompatibleLatentError(
                f"Latents of grids {self.grid} and {other.grid} cannot be mixed; encode images of one size."
            )

    def __repr__(self) -> str:
        shape = list(self.tokens.shape)
        return f"Latent(tokens={shape} {str(self.tokens.dtype)[6:]}, grid={self.grid}, space={self.space!r})"
