"""Exact nearest-neighbour search over latents [arXiv 2403.00504, sections 4.1 and 4.3].

The distance is Euclidean over all normalised patch tokens, the one by which the paper ranks
predictions in a bank of transformed views.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iwm.actions import Action
from iwm.checkpoint import write_tensors
from iwm.errors import (
    IncompatibleLatentError,
    IncompatibleWeightsError,
    InvalidActionError,
    InvalidConfigError,
    InvalidImageError,
    WeightsUnavailableError,
)
from iwm.fields import require_count
from iwm.images import Images, count, iterate
from iwm.latent import Latent
from iwm.opening import ImageLike
from iwm.world_model import WorldModel

Id = str | int
_FORMAT = "iwm-bank-1"
_CHUNK = 1 << 26
"""Numbers of the bank held in float32 at a time: 256 MiB."""
_EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The nearest entries of a bank, nearest first, for every query.

    Attributes:
        ids: one list of k ids a query.
        distances: `[B, k]` Euclidean distances.
    """

    ids: list[list[Id]]
    distances: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[list[Id], list[float]]]:
        """Ids and distances, query by query."""
        return iter(zip(self.ids, self.distances.tolist(), strict=True))


class Bank:
    """A set of latents to search, in memory.

    Args:
        latents: M latents.
        ids: what to call them; strings, paths or integers, all different.
    """

    def __init__(self, latents: Latent, ids: Iterable[Id | os.PathLike[str]]) -> None:
        self._latents = latents
        self._ids = _checked(ids, len(latents))

    @classmethod
    def from_latents(
        cls,
        latents: Latent,
        ids: Iterable[Id | os.PathLike[str]] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Bank:
        """A bank of existing latents; ids default to their positions.

        Args:
            latents: M latents.
            ids: one for each.
            dtype: how to store them; `torch.float16` halves the memory.

        Raises:
            InvalidConfigError: a dtype that is not of floating point.
        """
        _check_dtype(dtype)
        return cls(latents.to(dtype or latents.tokens.dtype), range(len(latents)) if ids is None else ids)

    @classmethod
    def from_images(
        cls,
        model: WorldModel,
        images: Images,
        ids: Iterable[Id | os.PathLike[str]] | None = None,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Bank:
        """Encode images into a bank.

        Args:
            model: what encodes them.
            images: as for `WorldModel.encode`; of a generator's no more are held than are encoded at a time.
            ids: one for each; by default the paths, or positions where images have none.
            dtype: how to store the latents; `torch.float16` halves the memory.
            batch_size: images encoded at a time.
            progress: show a progress bar.
        """
        _check_dtype(dtype)
        if count(images) is None:
            return cls._from_stream(model, iterate(images), ids, dtype, batch_size, progress)
        items = list(iterate(images))
        names = (_name(item, position) for position, item in enumerate(items))
        ids = _checked(names if ids is None else ids, len(items))  # Before the work.
        return cls.from_latents(model.encode(items, batch_size, progress), ids, dtype=dtype)

    @classmethod
    def _from_stream(
        cls, model: WorldModel, images: Iterable[ImageLike], ids: Iterable[Id | os.PathLike[str]] | None,
        dtype: torch.dtype | None, batch_size: int, progress: bool,
    ) -> Bank:  # fmt: skip
        """Of images that are encoded as they come: together they may not fit in memory."""
        names: list[Id] = []

        def noted() -> Iterator[ImageLike]:
            for position, image in enumerate(images):
                names.append(_name(image, position))
                yield image

        latents = model.encode(noted(), batch_size, progress)
        return cls.from_latents(latents, names if ids is None else ids, dtype=dtype)

    @classmethod
    def from_views(
        cls,
        model: WorldModel,
        image: ImageLike,
        actions: Sequence[Action],
        *,
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
    ) -> Bank:
        """Transform the pixels of one image by each action and encode the views.

        Args:
            model: what encodes them.
            image: one image.
            actions: from a clean source; their positions are the ids.
            dtype: how to store the latents; `torch.float16` halves the memory.
            batch_size: views encoded at a time.
        """
        if isinstance(actions, Action) or not actions:
            raise InvalidActionError("Bank.from_views takes a list of at least one iwm.Action.")
        single = list(iterate(image))
        if len(single) != 1:
            raise InvalidImageError(f"Bank.from_views takes one image, not {len(single)}.")
        pixels = model.preprocess.one(single[0])
        views = (action.apply(pixels) for action in actions)
        return cls.from_latents(model.encode(views, batch_size), dtype=dtype)

    @property
    def ids(self) -> list[Id]:
        """What the entries are called, in order."""
        return list(self._ids)

    @property
    def latents(self) -> Latent:
        """The entries, as stored."""
        return self._latents

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"Bank({len(self)} x {self._latents!r})"

    def add(self, latents: Latent, ids: Iterable[Id | os.PathLike[str]]) -> None:
        """Append latents.

        Raises:
            IncompatibleLatentError: of another space or grid, or ids that are taken.
        """
        self._latents.check_matches(latents)
        added = Bank(latents, ids)
        _check_unique(self._ids + added._ids)
        moved = latents.to(self._latents.tokens)
        self._latents = Latent.cat((self._latents, moved))
        self._ids += added._ids

    def search(self, latent: Latent, k: int = 5) -> SearchResult:
        """The k nearest entries to each query, fewer where the bank is smaller.

        Args:
            latent: B queries.
            k: how many, at least 1.

        Raises:
            IncompatibleLatentError: a query of another space or grid.
        """
        self._latents.check_matches(latent)
        require_count("k", k)
        order = distances(latent.tokens, self._latents.tokens).topk(min(k, len(self)), largest=False)
        ids = [[self._ids[i] for i in row] for row in order.indices.tolist()]
        return SearchResult(ids, order.values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to one safetensors file, atomically.

        Raises:
            SaveError: it cannot be written; a bank that was there before is untouched.
        """
        latents = self._latents
        about = {"format": _FORMAT, "space": latents.space, "grid": json.dumps(latents.grid)}
        tensors = {"tokens": latents.tokens}
        write_tensors(Path(path), tensors, about | {"ids": json.dumps(self._ids)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bank:
        """Read what `save` wrote.

        Raises:
            WeightsUnavailableError: no such file.
            IncompatibleWeightsError: not a bank.
        """
        if not Path(path).is_file():
            raise WeightsUnavailableError(f"No bank at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about["format"] != _FORMAT:
                    raise ValueError(f"format {about['format']}, expected {_FORMAT}")
                tokens = file.get_tensor("tokens")
            height, width = json.loads(about["grid"])
            return cls(Latent(tokens, (height, width), about["space"]), json.loads(about["ids"]))
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise IncompatibleWeightsError(f"{path} is not a bank that iwm wrote: {error}") from error


def distances(queries: Tensor, entries: Tensor) -> Tensor:
    """Euclidean distances over all tokens, `[B, M]`, of `[B, N, D]` to `[M, N, D]`.

    In float32, in chunks of entries, so that a float16 bank is never copied whole.
    """
    flat = queries.flatten(1).float()
    rows = max(_CHUNK // flat.shape[1], 1)
    parts = [
        torch.cdist(flat, entries[i : i + rows].flatten(1).to(flat), compute_mode=_EXACT)
        for i in range(0, len(entries), rows)
    ]
    return torch.cat(parts, dim=1) if parts else flat.new_zeros(len(flat), 0)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidConfigError(f"dtype is {dtype!r}; use torch.float32, torch.float16 or torch.bfloat16.")


def _name(image: ImageLike, position: int) -> Id:
    """The path of an image that has one, or its place among the others."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else position


def _checked(ids: Iterable[Id | os.PathLike[str]], count: int) -> list[Id]:
    plain = [_plain_id(i) for i in ids]
    if len(plain) != count:
        raise IncompatibleLatentError(f"{count} latents and {len(plain)} ids; give one id to each.")
    _check_unique(plain)
    return plain


def _plain_id(value: Id | os.PathLike[str]) -> Id:
    """Strings and integers as they are, paths as strings, NumPy integers as integers."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    try:
        return operator.index(value)
    except TypeError as error:
        raise IncompatibleLatentError(f"The id {value!r} is neither a string nor an integer.") from error


def _check_unique(ids: Sequence[Id]) -> None:
    if len(set(ids)) != len(ids):
        seen: set[Id] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise IncompatibleLatentError(f"The id {twice!r} is given twice; ids must differ.")
