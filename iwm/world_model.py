"""The Image World Model: an encoder, and a predictor that acts on its latents.

Encoder outputs, training targets and predictions live in one space [arXiv 2403.00504,
section 3]: tokens layer-normalised over features. So a prediction can be fed back as a source,
compared with an encoding, pooled and stored.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iwm.actions import Action, encode_photometry, stack_actions
from iwm.encoder import normalize_tokens
from iwm.errors import (
    IncompatibleLatentError,
    InvalidActionError,
    UntrainedActionWarning,
)
from iwm.fields import require_count
from iwm.images import Images, batched, count, is_single, iterate
from iwm.latent import Latent
from iwm.opening import ImageLike
from iwm.ranges import outside
from iwm.stored import StoredModel
from iwm.tasks import Classification, classify, find_task, segment

if TYPE_CHECKING:
    from iwm.bank import Bank
    from iwm.edits import EditReport
    from iwm.export import Format, Precision
    from iwm.index import Index
    from iwm.planning import Solver
    from iwm.undoing import EditReader, UndoReport

ACTION_BYTES = {"cpu": 16 << 20}
"""Of the widest activation of predictions made at a time: on a CPU what stays in its caches."""
_OTHER_ACTION_BYTES = 1 << 30


class WorldModel(StoredModel):
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

    differentiable = True
    """Whether predictions can be differentiated by the action; exported models cannot."""
    _warned: frozenset[str] = frozenset()

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
        self.check_can_act()
        if not isinstance(latent, Latent):
            raise IncompatibleLatentError(
                f"Expected iwm.Latent, got {type(latent).__name__}; write model.encode(image), or "
                "model.predict(image, action)."
            )
        self._check_space(latent)
        actions = _pair_up(action, len(latent))
        if not actions or not len(latent):
            raise InvalidActionError("Nothing to do: pass at least one latent and one action.")
        params = stack_actions(actions)
        self._warn_once(params)
        vectors = self.encode_photometry(params)
        tokens = latent.tokens.to(self._like)
        outputs = []
        size = self._actions_at_a_time(tokens)
        for start in range(0, len(actions), size):
            rows = slice(start, start + size)
            source = tokens[rows] if len(latent) > 1 else tokens
            outputs.append(normalize_tokens(self.predictor(source, vectors[rows], latent.grid)))
        return Latent(torch.cat(outputs), latent.grid, latent.space)

    def _actions_at_a_time(self, tokens: Tensor) -> int:
        """Predictions whose activations keep to `ACTION_BYTES`."""
        predictor = self.config.predictor
        length = predictor.tokens_for_an_action(tokens.shape[1])
        widest = length * predictor.width * max(predictor.mlp_ratio, 3.0) * tokens.element_size()
        return max(int(ACTION_BYTES.get(tokens.device.type, _OTHER_ACTION_BYTES) / widest), 1)

    def _warn_once(self, params: Tensor) -> None:
        """Say of actions `[K, 2, 7]` what of them is outside the trained range, of each parameter once."""
        while words := outside(params, self.config.actions, self._warned):
            self._warned |= {words.partition(" ")[0]}
            said = f"{self.config.name} was not trained for {words}. Predictions there are a guess."
            warnings.warn(said, UntrainedActionWarning, stacklevel=_level_of_the_caller())

    def predict(self, images: Images, action: Action | Sequence[Action]) -> Latent:
        """Encode and act: `apply_action(encode(images), action)`."""
        self.check_can_act()
        number = count(images)
        if number and not isinstance(action, Iterator):
            _pair_up(action, number)  # Said before the images are encoded.
        return self.apply_action(self.encode(images), action)

    @torch.no_grad()
    def classify(
        self,
        images_or_latent: Images | Latent,
        task: str | None = None,
        topk: int = 5,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Classification:
        """Name what images show.

        Args:
            images_or_latent: as for `encode`; or latents, so that one encoder pass serves several tasks.
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
        require_count("topk", topk)
        require_count("batch_size", batch_size)
        if isinstance(images_or_latent, Latent):
            latent = images_or_latent
            self._check_space(latent)
            if not len(latent):
                raise IncompatibleLatentError("No latents were given; pass at least one.")
            parts = (latent.tokens[i : i + batch_size] for i in range(0, len(latent), batch_size))
            return classify(self, ((part.to(self._like), latent.grid) for part in parts), name, topk)
        encoded = self._encode_batches(images_or_latent, batch_size, progress)
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
            IncompatibleLatentError: no latent, or one of another encoder.
            InvalidConfigError: `batch_size` is less than 1.
            IncompatibleWeightsError: the decoder belongs to another encoder.
        """
        if not isinstance(latent, Latent):
            raise IncompatibleLatentError(
                f"A {type(latent).__name__} is no latent; pass what encode or apply_action returned."
            )
        require_count("batch_size", batch_size)
        self._check_space(latent)
        decoder = self.load_decoder()
        parts = torch.split(latent.tokens.to(self._like), batch_size)
        return torch.cat([decoder(part, latent.grid).float().clamp(0, 1) for part in parts])

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Names of a task's classes, in the order of its outputs; None as for `classify`.

        Raises:
            UnknownTaskError: no such task, or none named where there are several.
        """
        return self.config.tasks[find_task(self.config, task, self.default_task)].labels

    def infer_action(
        self,
        before: ImageLike | Latent,
        after: ImageLike | Latent,
        *,
        solver: Solver = "gradient",
        starts: int = 2,
        steps: int = 28,
        seed: int = 0,
    ) -> tuple[Action, EditReport]:
        """Read the photometric edit that leads from one image to another.

        Args:
            before: one image, taken as clean; or its latent.
            after: the edited one.
            solver: `gradient`, through the world model from `starts` points in `steps` steps; or
                `cem`, the cross-entropy method, which needs no gradient.
            starts, steps, seed: see `iwm.planning.search`.

        Returns:
            The action, and an `iwm.edits.EditReport` with its residual, runner-ups and confidence;
            the report says where the two show different scenes. Printable.

        Raises:
            InvalidActionError: more than one pair; `infer_actions` takes several.
            InvalidImageError, IncompatibleLatentError, InvalidConfigError: as `infer_actions`.
        """
        reports = self.infer_actions(before, after, solver=solver, starts=starts, steps=steps, seed=seed)
        if len(reports) != 1:
            raise InvalidActionError(f"{len(reports)} pairs; write model.infer_actions(before, after).")
        return reports[0].action, reports[0]

    def infer_actions(
        self,
        before: Images | Latent,
        after: Images | Latent,
        *,
        solver: Solver = "gradient",
        starts: int = 2,
        steps: int = 28,
        seed: int = 0,
    ) -> list[EditReport]:
        """Read the edits of many pairs; see `iwm.edits.infer_actions`."""
        from iwm.edits import infer_actions

        return infer_actions(self, before, after, solver=solver, starts=starts, steps=steps, seed=seed)

    def undo(
        self,
        image: ImageLike | Latent,
        references: EditReader | Index | Bank | Latent | Images | None = None,
        *,
        seed: int = 0,
    ) -> tuple[Latent, UndoReport]:
        """Undo an edit that nobody wrote down; see `iwm.undoing.undo`.

        Args:
            image: one image, or its latent.
            references: untouched photographs, some hundred: a bank, a library, latents or images; or
                what was learned from them, `iwm.undoing.EditReader.fit(model, references)`.
            seed: of the edits that are learned from.

        Returns:
            The latent with the edit undone, and the report: `report.photometry` is the edit.
        """
        from iwm.undoing import undo

        return undo(self, image, references, seed=seed)

    def roll(self, latent: Latent, actions: Sequence[Action]) -> list[Latent]:
        """Latents after each of several actions in a row; see `iwm.rolling.roll`."""
        from iwm.rolling import roll

        return roll(self, latent, actions)

    def invariant(
        self, latent: Latent, n: int = 16, *, actions: Sequence[Action] | None = None, seed: int = 0
    ) -> Latent:
        """The mean prediction over `n` random actions [app. H]; see `iwm.rolling.invariant`."""
        from iwm.rolling import invariant

        return invariant(self, latent, n, actions, seed)

    def encode_photometry(self, params: Tensor) -> Tensor:
        """Action vectors as this model reads them; differentiable.

        Args:
            params: `[K, 2, 7]`, source and target photometry, columns as in
                `iwm.photometry.FIELDS`.

        Returns:
            `[K, A]`, on the model's device, in its dtype.
        """
        return encode_photometry(params.to(self._like), self.config.actions.encoding)

    def export(
        self,
        folder: str | os.PathLike[str],
        format: Format = "openvino",  # noqa: A002
        precision: Precision = "fp16",
        *,
        calibration: Images | None = None,
    ) -> None:
        """Write a folder for another runtime; `iwm.load(folder, backend=format)` runs it.

        Args:
            folder: made if it does not exist; not one that holds a model.
            format: `openvino`, `onnx`, or `torch`, a model folder.
            precision: `fp32`, `fp16` or `int8`.
            calibration: photographs to measure the ranges of `int8` on.

        Raises:
            MissingBackendError, InvalidConfigError, SaveError: see `iwm.export.export`.
        """
        from iwm.export import export

        export(self, folder, format=format, precision=precision, calibration=calibration)

    @property
    def _grid(self) -> tuple[int, int]:
        side = self.preprocess.size // self.config.encoder.patch_size
        return side, side

    def _check_space(self, latent: Latent) -> None:
        if latent.space != self.space:
            raise IncompatibleLatentError(
                f"The latent was made by another encoder (space {latent.space}, this model's is "
                f"{self.space}); encode the image with this model."
            )

    def check_can_act(self) -> None:
        """Raise `InvalidActionError` for a model that was finetuned as a whole, and cannot act any more."""
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
        done = 0
        for batch in batched(stream, batch_size):
            pixels = self.preprocess(images if is_single(images) else batch, first=done)
            yield self.encoder(pixels.to(self._like))
            done += len(batch)


def _pair_up(action: Action | Sequence[Action], latents: int) -> list[Action]:
    """One action for each prediction of so many latents."""
    if isinstance(action, Action):
        return [action] * latents
    if not isinstance(action, Iterable):
        raise InvalidActionError(
            f"Expected iwm.Action or a list of them, got {type(action).__name__}; write "
            "iwm.Action(brightness=1.4)."
        )
    actions = list(action)
    if latents != 1 and len(actions) != latents:
        raise InvalidActionError(
            f"{latents} latents and {len(actions)} actions do not pair up; pass one action for "
            "all, as many actions as latents, or a single latent."
        )
    return actions


def _level_of_the_caller() -> int:
    """For `warnings.warn` in the function that asks: how far up the line is that called into `iwm`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("iwm", "torch"):
        level, frame = level + 1, frame.f_back  # PyTorch's decorators lie between.
    return level
