"""Where a page looks things up: in the views of one photograph, or in a photo library.

Both give the nearest by the bank's distance. Pictures of a library are thumbnails in memory; no
file of it is ever handed out.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from iwm.actions import CLEAN, Action, Photometry
from iwm.bank import Bank, distances
from iwm.edits import in_words
from iwm.errors import InvalidDataError, InvalidImageError
from iwm.evaluation.mrr import draw_views, target_distribution
from iwm.evaluation.ranking import rank_of
from iwm.images import to_pil
from iwm.index import Index
from iwm.index.photo import read_bytes
from iwm.index.walk import Found as File
from iwm.latent import Latent
from iwm.opening import open_rgb
from iwm.ui.photo import Photo
from iwm.undoing import SAMPLED, EditReader
from iwm.world_model import WorldModel

BANK_SIZE = 256
"""Views among which the one asked for is looked up."""
_THUMBNAIL = 192
_THUMBNAILS = 512
"""Thumbnails kept: 54 MiB."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Hit:
    """Something that was found.

    Attributes:
        picture: None where the file cannot be read any more.
        caption: what it is, in words.
        distance: to the query.
        right: whether it is what was looked for.
    """

    picture: Image.Image | None
    caption: str
    distance: float
    right: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """The nearest of a place, nearest first.

    Attributes:
        hits: what was found.
        size: how many entries were looked through.
        rank: of what was looked for, from 1, ties in the middle; None where there is no such thing.
    """

    hits: tuple[Hit, ...]
    size: int
    rank: float | None = None


class Views:
    """Random views of one photograph, and the photograph itself.

    Args:
        model: what encodes them, some seconds for `BANK_SIZE` of them.
        photo: the photograph.
        count: random views, drawn as for `iwm.evaluation.mrr`.
    """

    def __init__(self, model: WorldModel, photo: Photo, count: int = BANK_SIZE - 1) -> None:
        self.photo = photo
        params = draw_views(model, count, distribution=target_distribution(model), seed=0, index=0)
        self._views = [Photometry.from_params(row) for row in params]
        actions = [Action.between(CLEAN, view) for view in self._views]
        self._latents = Bank.from_views(model, photo.pixels, actions).latents.to(photo.latent.tokens.dtype)

    def asked(self, query: Latent, view: Photometry, asked: Latent, k: int) -> Search:
        """Look for one view among the random ones.

        Args:
            query: what to compare with.
            view: the view that is looked for.
            asked: its encoding.
            k: how many to show.
        """
        pictures = [*self._views, view]
        return self._search(query, Latent.cat((self._latents, asked)), pictures, k)

    def original(self, query: Latent, edited: Photo, k: int) -> Search:
        """Look for the untouched photograph among its random views and an edited picture."""
        latents = Latent.cat((self._latents, edited.latent, self.photo.latent))
        return self._search(query, latents, [*self._views, edited, CLEAN], k)

    def _search(self, query: Latent, latents: Latent, views: Sequence[Photometry | Photo], k: int) -> Search:
        """The last of the views is the one that is looked for."""
        found = distances(query.tokens, latents.tokens)
        last = found.new_tensor([len(views) - 1]).long()
        nearest = found[0].topk(min(k, len(views)), largest=False)
        hits = []
        for i, distance in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True):
            view = views[i]
            hits.append(
                Hit(
                    picture=view.picture if isinstance(view, Photo) else self._picture(view),
                    caption="the edited one" if isinstance(view, Photo) else _caption(view),
                    distance=distance,
                    right=i == len(views) - 1,
                )
            )
        return Search(hits=tuple(hits), size=len(views), rank=float(rank_of(found, last)[0]))

    def _picture(self, view: Photometry) -> Image.Image:
        return to_pil(Action.between(CLEAN, view).apply(self.photo.pixels))


class Shelf:
    """A photo library, its thumbnails, and what its photographs teach about edits.

    Args:
        index: the library.
        model: the one that made it.

    Raises:
        IncompatibleLatentError: another model made it.
        InvalidDataError: it is empty.
    """

    def __init__(self, index: Index, model: WorldModel) -> None:
        index.check_model(model)
        if not len(index):
            raise InvalidDataError(
                f"The library is empty; add photographs first: iwm index PHOTOS --out {index.path}"
            )
        self._index, self._model = index, model
        self._reader: EditReader | None = None
        self._learning = threading.Lock()

    def nearest(self, query: Latent, k: int) -> Search:
        """The photographs nearest to a query."""
        paths, distance = next(iter(self._index.search(query, k)))
        hits = tuple(
            Hit(picture=thumbnail(str(path)), caption=os.path.basename(str(path)), distance=d)
            for path, d in zip(paths, distance, strict=True)
        )
        return Search(hits=hits, size=len(self._index))

    def __len__(self) -> int:
        return len(self._index)

    def reader(self) -> EditReader:
        """What the library's photographs teach about edits; some seconds the first time.

        Raises:
            InvalidDataError: too few of them.
        """
        with self._learning:
            if self._reader is None:
                self._reader = EditReader.fit(self._model, self._index.sample(SAMPLED))
            return self._reader


def thumbnail(path: str) -> Image.Image | None:
    """The middle of a photograph, small; None where it cannot be read now."""
    try:
        return _thumbnail(path, os.stat(path).st_mtime_ns if os.path.exists(path) else 0)
    except (InvalidImageError, OSError):
        return None


@functools.lru_cache(maxsize=_THUMBNAILS)
def _thumbnail(path: str, changed: int) -> Image.Image:
    """Kept until the file changes; what cannot be read is tried again."""
    picture = open_rgb(read_bytes(File(path, 0, 0)), at_least=_THUMBNAIL, name=path)
    return ImageOps.fit(picture, (_THUMBNAIL, _THUMBNAIL))


def _caption(view: Photometry) -> str:
    return "the photograph, untouched" if view.is_clean else in_words(view)
