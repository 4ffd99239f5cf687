"""What a model is beside what it does: its networks, its parts, its fingerprint and its files.

`iwm.world_model.WorldModel` builds on it and has the verbs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from iwm.adapter import Adapter, module_key
from iwm.checkpoint import load_weights, plain_state, save_model
from iwm.config import WorldModelConfig
from iwm.decoder import Decoder, check_decoder, read_decoder
from iwm.device import resolve_device
from iwm.downloads import Source, open_source
from iwm.encoder import Encoder, init_weights
from iwm.errors import (
    InvalidConfigError,
    IWMError,
    SaveError,
    UnknownTaskError,
    WeightsUnavailableError,
    nearest,
)
from iwm.hub_client import HubOptions
from iwm.images import Preprocess
from iwm.integrity import Verify
from iwm.model_folder import CONFIG_FILE, STUDENT_FILE, WEIGHTS_FILE, read_config
from iwm.predictor import Predictor
from iwm.tasks import check_space, read_adapter

if TYPE_CHECKING:
    from iwm.publishing import Published

Branch = Literal["teacher", "student"]

_Part = TypeVar("_Part", bound=nn.Module)

_LOSSLESS = (torch.float16, torch.float32, torch.float64)
"""What stored weights can be cast to without losing what the fingerprint is made of."""


class StoredModel(nn.Module):
    """Encoder and predictor, and what was made for them: adapters and a decoder, loaded at first use."""

    _space: tuple[tuple[tuple[int, int], ...], str] | None = None
    _lossy = False
    """Whether the weights may have lost bits of what `space` is of."""

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
        init_weights(self)
        self.eval()

    @property
    def space(self) -> str:
        """Fingerprint of the encoder: latents of one space may be mixed.

        Of its weights in float16, as they are stored, its sizes and its pixel normalisation. A
        model that is moved or cast keeps it; one whose weights change does not, but for changes made
        through `.data`, which PyTorch does not count.
        """
        key = self._encoder_state()
        if self._space is None or self._space[0] != key:
            self._space = (key, self._fingerprint())
        return self._space[1]

    def _fingerprint(self) -> str:
        """What `space` is of the weights as they are now."""
        e, p = self.config.encoder, self.config.preprocess
        sizes = [e.width, e.depth, e.heads, e.patch_size, e.image_size, e.mlp_ratio, *p.mean, *p.std]
        digest = hashlib.sha256(f"1 {[float(v) for v in sizes]}".encode())
        for name, tensor in sorted(plain_state(self.encoder).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: weights lie elsewhere then, and may have lost bits that the fingerprint is about."""
        known = self._space[1] if self._space and self._space[0] == self._encoder_state() else None
        return self.__dict__ | {"_space": known and ((), known)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._space:
            self._space = (self._encoder_state(), self._space[1])

    def _encoder_state(self) -> tuple[tuple[int, int], ...]:
        """Changes when a weight is replaced or changed in place."""
        return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.encoder.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast, keeping the fingerprint; it is taken first where bits of it would be lost."""
        weight = self._like
        known = self._space[1] if self._space and self._space[0] == self._encoder_state() else None
        losing = not weight.is_meta and fn(weight.detach()[:1, :1]).dtype not in _LOSSLESS
        if known is None and losing:
            known = self.space
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if known:
            self._space = (self._encoder_state(), known)
            self._lossy = self._lossy or losing
        return moved  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where its weights are, and its latents come out."""
        return self._like.device

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `TypeError`, with what to call instead."""
        raise TypeError(
            "A world model has several outputs: write model.encode(images), model.predict(images, action), model.classify(images), or "
            "model.encoder(pixels) to train through it."
        )

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

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json`, `model.safetensors` (float16), all adapters and the decoder into a folder.

        A `student.safetensors` that is there stays if it belongs to this model's encoder.

        Raises:
            SaveError: the folder cannot be written, or the weights have lost bits, as in bfloat16;
                what was there before is untouched.
            WeightsUnavailableError, IncompatibleWeightsError: an adapter that was not loaded yet
                cannot be; nothing is written.
        """
        if self._fingerprint() != self.space and self._lossy:
            raise SaveError(
                "The weights were in bfloat16 and have lost bits: what was made for this model would not fit what "
                "is saved. Load it again with dtype=torch.float32 and save that."
            )
        adapters = {name: self.load_adapter(name) for name in self.config.adapters}
        decoder = self.load_decoder() if self.config.decoder else None
        kept = self._has_student(Path(folder))
        save_model(Path(folder), self.config, self, adapters=adapters, decoder=decoder, keep_student=kept)

    def _has_student(self, folder: Path) -> bool:
        """Whether a folder holds a student, of a teacher that is this model's encoder."""
        if not (folder / STUDENT_FILE).is_file():
            return False
        with contextlib.suppress(IWMError):
            return self.read(Source(folder)).space == self.space
        return False

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
    ) -> Self:
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
    ) -> Self:
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

    def _placed(self, part: _Part) -> _Part:
        return part.to(device=self._like.device, dtype=self._like.dtype).eval()


def files_of(branch: Branch) -> list[str]:
    """The files that loading a branch needs."""
    return [CONFIG_FILE, WEIGHTS_FILE] + ([STUDENT_FILE] if branch == "student" else [])


def check_choices(branch: str, dtype: object) -> None:
    """Raise `InvalidConfigError` for a branch or dtype that no model can be loaded with."""
    if branch not in get_args(Branch):
        raise InvalidConfigError(f'No branch is called "{branch}".{nearest(str(branch), get_args(Branch))}')
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidConfigError(f"dtype is {dtype!r}; use torch.float32, torch.float16 or torch.bfloat16.")
