"""A short vector whose Euclidean distances are nearly those of all patch tokens.

The first stage of a search needs vectors that can be compared by the hundred thousand. Tokens
averaged over the grid do not serve: photographs of one library differ mostly in detail that
averaging removes. Of the true ten nearest of 3,900 photographs just over half are among 200
candidates by averaged tokens, and all by what is used here: a random projection of all tokens. The
table is in docs/RETRIEVAL.md.

The projection is a count sketch [Charikar, Chen, Farach-Colton 2002]: every coordinate is added, with a
random sign, to one of `SKETCH` sums. The squared distance of two sketches is that of the latents in
the mean, with a relative deviation of sqrt(2 / SKETCH), 3%. It needs no training, so it does not
depend on which photographs came first, and costs less than a percent of an encoding.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

SKETCH = 2048
"""Numbers in a sketch."""

_SEED = b"iwm-sketch-1"
"""Part of the format of libraries: another seed gives sketches that cannot be compared."""


def sketch(tokens: Tensor) -> Tensor:
    """Sketches of latents.

    Args:
        tokens: `[B, N, D]`.

    Returns:
        `[B, 2048]` float32, on the tokens' device.
    """
    flat = tokens.flatten(1).float()
    order, signs = _projection(flat.shape[1])
    spread = flat.new_zeros(len(flat), len(order))
    spread[:, : flat.shape[1]] = flat
    spread = spread[:, order.to(flat.device)] * signs.to(flat.device)
    return spread.view(len(flat), SKETCH, len(order) // SKETCH).sum(dim=2)


@functools.lru_cache(maxsize=4)
def _projection(size: int) -> tuple[Tensor, Tensor]:
    """Order and signs of `size` coordinates, padded to a multiple of `SKETCH`."""
    padded = -(-size // SKETCH) * SKETCH
    # From a hash, not a random generator: the same in every version of every library.
    numbers = np.frombuffer(hashlib.shake_128(_SEED).digest(8 * padded), "<u8")
    signs = torch.from_numpy((numbers & 1).astype(np.float32) * 2 - 1)
    return torch.from_numpy(np.argsort(numbers, kind="stable")), signs
