"""The `iwm` command: puts the commands together and turns errors into words."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from iwm import __version__
from iwm.cli import (
    demo,
    download,
    edits,
    encode,
    evaluate,
    evaluate_tasks,
    export,
    figure,
    finetune,
    index,
    models,
    pretrain,
    pretrain_decoder,
    push,
    search,
    ui,
)
from iwm.cli.options import printable, warn
from iwm.errors import InvalidConfigError, IWMError, UnreadableFolderWarning, UntrainedActionWarning

app = typer.Typer(
    help="Image World Models: act on photographs in latent space, and retrieve what comes out.",
    epilog="First steps: [bold]iwm demo[/bold], then [bold]iwm search FOLDER --image photo.jpg --brightness 0.6[/bold]",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluations = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Measure a model.",
    epilog="Example: [bold]iwm eval mrr --data photos/ --images 20[/bold]",
)

figures = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Draw the paper's figures, of any model and any photographs.",
    epilog="Example: [bold]iwm figure retrieval cat.jpg dog.jpg --out figure1.pdf[/bold]",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"iwm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _add(target: typer.Typer, name: str, function: object, example: str, **settings: object) -> None:
    """Register a command whose help ends with an example."""
    target.command(name, epilog=f"Example: [bold]{example}[/bold]", **settings)(function)  # type: ignore[arg-type, type-var]


_add(app, "list", models.list_command, "iwm list '*equi*'")
_add(app, "info", models.info_command, "iwm info iwm-tiny")
_add(app, "download", download.download_command, "iwm download org/name --to models/name")
_add(app, "encode", encode.encode_command, "iwm encode photos/ --out latents.safetensors")
_add(app, "index", index.index_command, "iwm index photos/ --out library.lance")
_add(
    app,
    "search",
    search.search_command,
    "iwm search library.lance --image cat.jpg --brightness 0.6 --grayscale -k 10 --sheet out.png",
)
_add(app, "explain", edits.explain_command, "iwm explain before.jpg after.jpg")
_add(app, "restore", edits.restore_command, "iwm restore old.jpg --references photos/ --out restored.jpg")
_add(app, "ui", ui.ui_command, "iwm ui library.lance --port 8000")
_add(app, "demo", demo.demo_command, "iwm demo cat.jpg dog.jpg --out demo.png")
_add(
    app, "pretrain", pretrain.pretrain_command,
    "iwm pretrain --recipe iwm-tiny --data photos/ --out run --steps 2000 --model.predictor.depth 4",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)  # fmt: skip
_add(
    app, "finetune", finetune.finetune_command,
    "iwm finetune --data photos/ --out run --tune predictor",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)  # fmt: skip
_add(
    app, "pretrain-decoder", pretrain_decoder.pretrain_decoder_command,
    "iwm pretrain-decoder --model iwm-tiny --data photos/ --out run",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)  # fmt: skip
_add(evaluations, "decoder", evaluate.decoder_command, "iwm eval decoder --data photos/ --images 20")
_add(evaluations, "mrr", evaluate.mrr_command, "iwm eval mrr --data photos/ --images 20 --protocol undo")
_add(evaluations, "knn", evaluate.knn_command, "iwm eval knn --train imagenette/train --val imagenette/val")
_add(
    evaluations,
    "probe",
    evaluate_tasks.probe_command,
    "iwm eval probe --train imagenette/train --val imagenette/val --head linear",
)
_add(
    evaluations,
    "finetune",
    evaluate_tasks.finetune_command,
    "iwm eval finetune --model run --data imagenette/val",
)
_add(evaluations, "segment", evaluate_tasks.segment_command, "iwm eval segment --model run --data camvid/val")
_add(figures, "retrieval", figure.retrieval_command, "iwm figure retrieval cat.jpg dog.jpg --out figure1.pdf")
_add(
    figures,
    "sweep",
    figure.sweep_command,
    "iwm figure sweep cat.jpg --parameter hue --from -0.2 --to 0.2 --steps 7 --out hue.pdf",
)
_add(
    figures,
    "similarity",
    figure.similarity_command,
    "iwm figure similarity photos/ --model run --against run-inv --undo --out similarity.pdf",
)
_add(figures, "invariant", figure.invariant_command, "iwm figure invariant cat.jpg --curve --out mean.pdf")
_add(app, "export", export.export_command, "iwm export --out served --format openvino --precision int8")
_add(app, "push", push.push_command, "iwm push run/ org/name --private")
app.add_typer(evaluations, name="eval")
app.add_typer(figures, name="figure")


def main() -> None:
    """Run the command line; errors of iwm become one line and exit status 1, its warnings one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # A path may hold what a terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_words(sys.argv[1:])
        with warnings.catch_warnings():
            ours = (UntrainedActionWarning, UnreadableFolderWarning)
            for category in ours:
                warnings.simplefilter("always", category)
            shown = warnings.showwarning
            warnings.showwarning = lambda message, category, *rest: (
                warn(str(message)) if issubclass(category, ours) else shown(message, category, *rest)
            )
            app()
    except IWMError as error:
        _fail(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's; not imported for its name.
            raise
        _fail(f"The GPU has not memory enough; take a smaller --batch-size, or --device cpu. ({error})")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail("No space is left where the output goes.")
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        _fail(f"Cannot use {os.fsdecode(error.filename)}: {error.strerror}.")
    except KeyboardInterrupt:  # Before a command has begun.
        sys.exit(130)


def _fail(words: str) -> NoReturn:
    line = Text.assemble(("Error: ", "bold red"), printable(words.replace("\n", " ")))
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)
    sys.exit(1)


def _check_words(words: list[str]) -> None:
    """Raise `InvalidConfigError` for a word of no letters: as a path it would be the current folder."""
    for before, word in zip(["iwm", *words], words, strict=False):
        if word and not (word.startswith("--") and word.endswith("=")):
            continue
        place = word.rstrip("=") or before
        if place.startswith("--") and ("." in place or place == "--wandb"):
            continue  # A field of a recipe, of which an empty one is a value.
        raise InvalidConfigError(
            f'The word after "{place}" is empty; a shell variable that is not set, perhaps. Write . for the current folder.'
        )
