"""The Image World Model: an encoder, and a predictor that acts on its latents.

Encoder outputs, training targets and predictions live in one space [arXiv 2403.00504,
section 3]: tokens layer-normalised over features. So a prediction can be fed back as a source,
compared with an encoding, pooled and stored.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from iwm.actions import Action, encode_photometry, stack_actions
from iwm.adapter import Adapter, module_key
from iwm.checkpoint import (
    CONFIG_FILE,
    STUDENT_FILE,
    WEIGHTS_FILE,
    load_weights,
    read_config,
    save_model,
)
from iwm.config import WorldModelConfig
from iwm.decoder import Decoder, check_decoder, read_decoder
from iwm.device import resolve_device
from iwm.downloads import Source, open_source
from iwm.encoder import Encoder, init_weights, normalize_tokens
from iwm.errors import (
    IncompatibleLatentError,
    InvalidActionError,
    InvalidConfigError,
    UnknownTaskError,
    WeightsUnavailableError,
    nearest,
)
from iwm.hub_client import HubOptions
from iwm.images import ImageLike, Images, Preprocess, batched, count, is_single, iterate
from iwm.integrity import Verify
from iwm.latent import Latent
from iwm.predictor import Predictor
from iwm.tasks import Classification, check_space, classify, find_task, read_adapter, segment

if TYPE_CHECKING:
    from iwm.publishing import Published

Branch = Literal["teacher", "student"]

_Part = TypeVar("_Part", bound=nn.Module)

_LOSSLESS = (torch.float16, torch.float32, torch.float64)
"""What stored weights can be cast to without losing what the fingerprint is made of."""

ACTION_BATCH = 256
"""Predictions made at a time: bounds the memory of acting many times on one latent."""


class WorldModel(nn.Module):
    """An encoder, a world model over its latents, and heads.

    Made by `iwm.load` or `WorldModel.from_pretrained`; `WorldModel(config)` has random weights.
    In eval mode; the high-level calls run without gradients, while `.encoder` and `.predictor`
    are plain modules to train through.

    Attributes:
        config: the `WorldModelConfig`.
        encoder: images in [0, 1] to tokens.
        predictor: tokens and action vectors to predicted tokens.
        adapters: those that are loaded; see `heads`.
        decoder: from latents to pixels, once it is loaded; see `decode`.
        default_task: what `classify` and `segment` take when no task is named, if it is of their kind.
        preprocess: any image to the model's input; `.size` is its side in pixels.
        source: where its files came from, for adapters that are not loaded yet; or None.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.preprocess)
        self.predictor = Predictor(config)
        self.adapters = nn.ModuleDict()
        self.decoder: Decoder | None = None
        self.default_task: str | None = None
        self.preprocess = Preprocess(config.preprocess)
        self.source: Source | None = None
        self._space: tuple[tuple[tuple[int, int], ...], str] | None = None
        init_weights(self)
        self.eval()

    @torch.no_grad()
    def encode(self, images: Images, batch_size: int = 64, progress: bool = False) -> Latent:
        """Encode images.

        Args:
            images: a path, PIL image, HWC uint8 array, `[3, H, W]` or `[B, 3, H, W]` tensor
                (uint8, or float in [0, 1]), or a list of these.
            batch_size: images encoded at a time.
            progress: show a progress bar.

        Returns:
            `Latent` with tokens `[B, N, D]`, on the model's device.

        Raises:
            InvalidImageError: one of them cannot be read; the message names it.
        """
        tokens = torch.cat(list(self._encode_batches(images, batch_size, progress)))
        return Latent(tokens, self._grid, self.space)

    @torch.no_grad()
    def embed(self, images: Images, batch_size: int = 64, progress: bool = False) -> Tensor:
        """One vector an image: tokens averaged over the grid, `[B, D]`.

        Pools batch by batch, so memory does not grow with the number of patches. Arguments
        and errors are those of `encode`.
        """
        return torch.cat(
            [tokens.mean(dim=1) for tokens in self._encode_batches(images, batch_size, progress)]
        )

    @torch.no_grad()
    def apply_action(self, latent: Latent, action: Action | Sequence[Action]) -> Latent:
        """Transform latents without touching pixels: p_phi(z, a) [section 3].

        Args:
            latent: B source latents.
            action: one action, for every latent; or a list: K actions on one latent give K
                latents, B actions on B latents pair up.

        Returns:
            Predicted latents, in the same space, normalised like encodings.

        Raises:
            InvalidActionError: numbers that do not pair up, something that is no action, or a model
                that was finetuned as a whole.
            IncompatibleLatentError: a latent of another encoder.
        """
        self._check_can_act()
        if not isinstance(latent, Latent):
            raise IncompatibleLatentError(
                f"Expected iwm.Latent, got {type(latent).__name__}; write model.encode(image), or "
                "model.predict(image, action)."
            )
        self._check_space(latent)
        if isinstance(action, Action):
            actions = [action] * len(latent)
        elif isinstance(action, Iterable):
            actions = list(action)
        else:
            raise InvalidActionError(
                f"Expected iwm.Action or a list of them, got {type(action).__name__}; write "
                "iwm.Action(brightness=1.4)."
            )
        if len(latent) != 1 and len(actions) != len(latent):
            raise InvalidActionError(
                f"{len(latent)} latents and {len(actions)} actions do not pair up; pass one action for "
                "all, as many actions as latents, or a single latent."
            )
        if not actions or not len(latent):
            raise InvalidActionError("Nothing to do: pass at least one latent and one action.")
        vectors = self.encode_photometry(stack_actions(actions))
        tokens = latent.tokens.to(self._like)
        outputs = []
        for start in range(0, len(actions), ACTION_BATCH):
            chunk = vectors[start : start + ACTION_BATCH]
            source = (
                tokens[start : start + ACTION_BATCH] if len(latent) > 1 else tokens.expand(len(chunk), -1, -1)
            )
            outputs.append(normalize_tokens(self.predictor(source, chunk, latent.grid)))
        return Latent(torch.cat(outputs), latent.grid, latent.space)

    def predict(self, images: Images, action: Action | Sequence[Action]) -> Latent:
        """Encode and act: `apply_action(encode(images), action)`."""
        self._check_can_act()
        return self.apply_action(self.encode(images), action)

    @torch.no_grad()
    def classify(
        self,
        images: Images | Latent,
        task: str | None = None,
        topk: int = 5,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Classification:
        """Name what images show.

        Args:
            images: as for `encode`; or latents, so that one encoder pass serves several tasks.
            task: of classification; None is the one `iwm.load` was given, or the only one.
            topk: classes an image; all where the task has fewer.
            batch_size: images at a time.
            progress: show a progress bar over images.

        Returns:
            `Classification`: for each image `topk` labels, likeliest first, and `[B, topk]`
            probabilities. Printable.

        Raises:
            UnknownTaskError: no such task, or none named where there are several.
            InvalidImageError: an image cannot be read.
            IncompatibleLatentError: latents of another encoder, or none.
            IncompatibleWeightsError: the task's adapter belongs to another encoder.
            WeightsUnavailableError: the adapter's file cannot be had.
            InvalidConfigError: `topk` or `batch_size` less than 1.
        """
        name = find_task(self.config, task, self.default_task, "classification")
        for option, value in (("topk", topk), ("batch_size", batch_size)):
            if value < 1:
                raise InvalidConfigError(f"{option} is {value}; it must be at least 1.")
        if isinstance(images, Latent):
            self._check_space(images)
            if not len(images):
                raise IncompatibleLatentError("No latents were given; pass at least one.")
            parts = (images.tokens[i : i + batch_size] for i in range(0, len(images), batch_size))
            return classify(self, ((part.to(self._like), images.grid) for part in parts), name, topk)
        encoded = self._encode_batches(images, batch_size, progress)
        return classify(self, ((part, self._grid) for part in encoded), name, topk)

    @torch.no_grad()
    def segment(self, image: Images, task: str | None = None) -> Tensor | list[Tensor]:
        """Class of every pixel.

        The image is not cropped. It is resized to the nearest multiples of the patch size, and to
        four times the model's input at most; scores are resized to its own size bilinearly.

        Args:
            image: as for `encode`.
            task: of segmentation; None is the one `iwm.load` was given, or the only one.

        Returns:
            Indices into `labels(task)`, `[H, W]` int64, at the image's own size; a list of them
            for several images. On the model's device.

        Raises:
            As `classify`.
        """
        name = find_task(self.config, task, self.default_task, "segmentation")
        maps = [segment(self, one, name) for (one,) in batched(iterate(image), 1)]
        return maps[0] if is_single(image) else maps

    @torch.no_grad()
    def decode(self, latent: Latent, batch_size: int = 64) -> Tensor:
        """See latents: the images they stand for, as far as the decoder can tell.

        The decoder is loaded, and where need be fetched, the first time.

        Args:
            latent: B latents, encoded or predicted.
            batch_size: images decoded at a time.

        Returns:
            `[B, 3, H, W]` in [0, 1], of the model's input size.

        Raises:
            WeightsUnavailableError: the model has no decoder, or its file cannot be had.
            IncompatibleLatentError: a latent of another encoder.
            IncompatibleWeightsError: the decoder belongs to another encoder.
        """
        self._check_space(latent)
        decoder = self.load_decoder()
        parts = torch.split(latent.tokens.to(self._like), batch_size)
        return torch.cat([decoder(part, latent.grid).float().clamp(0, 1) for part in parts])

    def load_decoder(self) -> Decoder:
        """The decoder; read from where the model came from, the first time. Errors are those of `decode`."""
        if self.decoder is None:
            self.decoder = self._placed(read_decoder(self))
        return self.decoder

    def add_decoder(self, decoder: Decoder) -> None:
        """Give the model a decoder, or another in its place; `save_pretrained` stores it.

        Raises:
            IncompatibleWeightsError: it was trained on another encoder.
        """
        check_decoder(decoder.config, self)
        self.config = self.config.replace(decoder=decoder.config)
        self.decoder = self._placed(decoder)

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Names of a task's classes, in the order of its outputs; None as for `classify`.

        Raises:
            UnknownTaskError: no such task, or none named where there are several.
        """
        return self.config.tasks[find_task(self.config, task, self.default_task)].labels

    @property
    def heads(self) -> dict[str, Adapter]:
        """Adapters that are loaded, by name; `.config.adapters` has all there are."""
        keys = {name: module_key(name) for name in self.config.adapters}
        return {name: cast(Adapter, self.adapters[key]) for name, key in keys.items() if key in self.adapters}

    def load_adapter(self, name: str) -> Adapter:
        """An adapter that the config describes; read from where the model came from, the first time.

        Raises:
            UnknownTaskError: no such adapter.
            WeightsUnavailableError: its file cannot be had.
            IntegrityError: its file is not what was published.
            IncompatibleWeightsError: it belongs to another encoder, or does not fit its config.
        """
        if name not in self.config.adapters:
            raise UnknownTaskError(
                f'"{self.config.name}" has no adapter "{name}".{nearest(name, self.config.adapters)}'
            )
        if name not in self.heads:
            self.adapters[module_key(name)] = self._placed(read_adapter(self, name))
        return self.heads[name]

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Give the model an adapter, or another in its place; `save_pretrained` stores it.

        Args:
            name: small letters, digits, dashes and underscores.
            adapter: made for this model's config; moved to its device, put into eval mode.

        Raises:
            IncompatibleWeightsError: it was trained on another encoder.
            InvalidConfigError: a name that cannot be a file's, or a task that another adapter has.
        """
        check_space(adapter.config, name, self)
        self.config = self.config.replace(adapters=self.config.adapters | {name: adapter.config})
        self.adapters[module_key(name)] = self._placed(adapter)

    def encode_photometry(self, params: Tensor) -> Tensor:
        """Action vectors as this model reads them; differentiable.

        Args:
            params: `[K, 2, 7]`, source and target photometry, columns as in
                `iwm.photometry.FIELDS`.

        Returns:
            `[K, A]`, on the model's device, in its dtype.
        """
        return encode_photometry(params.to(self._like), self.config.actions.encoding)

    @property
    def space(self) -> str:
        """Fingerprint of the encoder: latents of one space may be mixed.

        Of its weights in float16, as they are stored, its sizes and its pixel normalisation. A
        model that is moved or cast keeps it; one whose weights change does not.
        """
        key = self._encoder_state()
        if self._space is None or self._space[0] != key:
            e, p = self.config.encoder, self.config.preprocess
            sizes = [e.width, e.depth, e.heads, e.patch_size, e.image_size, e.mlp_ratio, *p.mean, *p.std]
            digest = hashlib.sha256(f"1 {[float(v) for v in sizes]}".encode())
            for name, tensor in sorted(self.encoder.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy())
            self._space = (key, digest.hexdigest()[:16])
        return self._space[1]

    def _encoder_state(self) -> tuple[tuple[int, int], ...]:
        """Changes when a weight is replaced or changed in place."""
        return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.encoder.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast, keeping the fingerprint; it is taken first where bits of it would be lost."""
        weight = self._like
        known = self._space[1] if self._space and self._space[0] == self._encoder_state() else None
        if known is None and not weight.is_meta and fn(weight.detach()[:1, :1]).dtype not in _LOSSLESS:
            known = self.space
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if known:
            self._space = (self._encoder_state(), known)
        return moved  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json`, `model.safetensors` (float16), all adapters and the decoder into a folder.

        Raises:
            SaveError: the folder cannot be written; what was there before is untouched.
            WeightsUnavailableError, IncompatibleWeightsError: an adapter that was not loaded yet
                cannot be; nothing is written.
        """
        adapters = {name: self.load_adapter(name) for name in self.config.adapters}
        decoder = self.load_decoder() if self.config.decoder else None
        save_model(Path(folder), self.config, self, adapters=adapters, decoder=decoder)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str | None = None
    ) -> Published:
        """Publish on the Hugging Face Hub: weights, config and a model card written from the config.

        Prints the finished zoo entry, ready to paste.

        Args:
            repo_id: `org/name`; it is made if it does not exist.
            private: whether a new repository is private.
            token: of the Hub, with permission to write; None is the stored one.
            message: of the commit.

        Raises:
            InvalidConfigError: `repo_id` is no name for a repository.
            UnknownModelError: no such organisation.
            WeightsUnavailableError: the Hub cannot be reached, or refuses.
            IntegrityError: what the Hub holds afterwards is not what was sent.
            SaveError: no room for a copy of the weights in the temporary folder.
        """
        from iwm.publishing import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            published = push(Path(folder), repo_id, private=private, token=token, message=message)
        print(published)
        return published

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        branch: Branch = "teacher",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        verify: Verify = "once",
    ) -> WorldModel:
        """Load a model folder or a repository of the Hub, strictly.

        Arguments are those of `iwm.load`, which takes zoo names as well.

        Raises:
            UnknownModelError: no such folder, repository or revision.
            WeightsUnavailableError: files missing, or the Hub cannot give them.
            IntegrityError: a fetched file is not what was published.
            InvalidConfigError: its config, or the device, cannot be used.
            IncompatibleWeightsError: its weights do not fit its config.
        """
        options = HubOptions(
            cache_dir=cache_dir, local_files_only=local_files_only, token=token, verify=verify
        )
        check_choices(branch, dtype)
        source = open_source(path_or_repo, files_of(branch), revision, options)
        return cls.read(source, device, dtype, branch)

    @classmethod
    def read(
        cls,
        source: Source,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        branch: Branch = "teacher",
    ) -> WorldModel:
        """Load the files that are there as they are; errors are those of `from_pretrained`."""
        folder = source.folder
        config = read_config(folder)
        kind = dtype or torch.float32
        with torch.device("meta"):
            model = cls(config)
        load_weights(folder / WEIGHTS_FILE, model, kind if kind in _LOSSLESS else torch.float32)
        if branch == "student":
            if not (folder / STUDENT_FILE).is_file():
                raise WeightsUnavailableError(f'{folder} holds no {STUDENT_FILE}; use branch="teacher".')
            load_weights(folder / STUDENT_FILE, model.encoder, model._like.dtype)
        model.source = source
        return model.to(device=resolve_device(device), dtype=kind).eval()

    @property
    def _like(self) -> Tensor:
        """A tensor of the model's device and dtype."""
        return self.predictor.project_in.weight

    @property
    def _grid(self) -> tuple[int, int]:
        side = self.preprocess.size // self.config.encoder.patch_size
        return side, side

    def _placed(self, part: _Part) -> _Part:
        return part.to(device=self._like.device, dtype=self._like.dtype).eval()

    def _check_space(self, latent: Latent) -> None:
        if latent.space != self.space:
            raise IncompatibleLatentError(
                f"The latent was made by another encoder (space {latent.space}, this model's is "
                f"{self.space}); encode the image with this model."
            )

    def _check_can_act(self) -> None:
        if self.config.tuned:
            raise InvalidActionError(
                f'"{self.config.name}" was finetuned for {", ".join(self.config.tasks) or "a task"}, and its '
                "world model no longer fits its latents. Load the model it was made from to apply actions."
            )

    def _encode_batches(self, images: Images, batch_size: int, progress: bool) -> Iterator[Tensor]:
        stream: Iterable[ImageLike] = iterate(images)
        if progress:
            from iwm.display import track

            stream = track(stream, "encoding", count(images))
        for batch in batched(stream, batch_size):
            yield self.encoder(self.preprocess(batch).to(self._like))


def files_of(branch: Branch) -> list[str]:
    """The files that loading a branch needs."""
    return [CONFIG_FILE, WEIGHTS_FILE] + ([STUDENT_FILE] if branch == "student" else [])


def check_choices(branch: str, dtype: object) -> None:
    """Raise `InvalidConfigError` for a branch or dtype that no model can be loaded with."""
    if branch not in get_args(Branch):
        raise InvalidConfigError(f'No branch is called "{branch}".{nearest(str(branch), get_args(Branch))}')
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidConfigError(f"dtype is {dtype!r}; use torch.float32, torch.float16 or torch.bfloat16.")
