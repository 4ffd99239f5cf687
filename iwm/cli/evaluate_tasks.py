"""`iwm eval finetune`, `iwm eval segment` and `iwm eval probe`: scores on labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iwm.cli.options import (
    AsJson,
    Device,
    ModelName,
    check_no_image,
    check_output,
    console,
    load_model,
    print_json,
)
from iwm.files import write_text

if TYPE_CHECKING:
    from iwm.config import TaskKind
    from iwm.finetuning.folders import TaskData
    from iwm.finetuning.probe import ProbeReport

Task = Annotated[str | None, typer.Option(help="Name of the task; may be left out where there is one.")]
HeldOut = Annotated[
    bool, typer.Option("--held-out", help="Only the tenth that training on this folder held out.")
]
Skip = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")]


def finetune_command(
    data: Annotated[Path, typer.Option(help="Folder with one subfolder a class.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Folder that iwm finetune wrote, or another model with tasks."),
    ],
    task: Task = None,
    held_out: HeldOut = False,
    device: Device = "cpu",
    skip_unreadable: Skip = False,
    as_json: AsJson = False,
) -> None:
    """Accuracy of a model's task on labelled photographs: a probe, a finetuned predictor or a whole model."""
    scores = _measured(model, task, "classification", data, device, None, [], held_out, skip_unreadable)
    if as_json:
        print_json(scores)
        return
    console.print(
        f"accuracy {scores['accuracy']:.1%}, among the first five {scores['top5']:.1%} "
        f"({scores['images']} images, {scores['classes']} classes, most frequent {scores['chance']:.1%})"
    )


def segment_command(
    data: Annotated[Path, typer.Option(help="Folder with images/ and masks/.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Folder that iwm finetune wrote, or another model with tasks."),
    ],
    task: Task = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one a line; default labels.txt in or above the folder.")
    ] = None,
    ignore: Annotated[list[int] | None, typer.Option(help="Number of the masks that does not count.")] = None,
    held_out: HeldOut = False,
    device: Device = "cpu",
    skip_unreadable: Skip = False,
    as_json: AsJson = False,
) -> None:
    """Mean intersection over union of a model's class maps, at the images' own sizes."""
    scores = _measured(
        model, task, "segmentation", data, device, labels, ignore or [], held_out, skip_unreadable
    )
    if as_json:
        print_json(scores)
        return
    console.print(
        f"mIoU {scores['miou']:.1%}, pixels right {scores['accuracy']:.1%} ({scores['images']} images)"
    )
    for label, share in scores["per_class"].items():
        console.print(f"  {label:20} {'absent' if share is None else f'{share:.1%}'}")


def probe_command(
    train: Annotated[Path, typer.Option(help="Folder with one subfolder a class.")],
    val: Annotated[
        Path | None,
        typer.Option(help="The same, to measure on; default the folder val beside it, or a tenth."),
    ] = None,
    model: ModelName = "iwm-tiny",
    head: Annotated[str, typer.Option(help="linear or attentive.")] = "attentive",
    batch_norm: Annotated[
        bool, typer.Option("--batch-norm", help="Of pooled tokens, before a linear head.")
    ] = False,
    marginalise: Annotated[
        int, typer.Option(min=0, help="Average every latent over so many predictions; 0 takes the encoding.")
    ] = 0,
    images: Annotated[int, typer.Option(min=0, help="Train on so many, evenly spaced; 0 is all.")] = 0,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the training images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the head and of the order.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of kept latents; by default none are kept.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="JSON file for what each validation image was taken for.")
    ] = None,
    device: Device = "cpu",
    skip_unreadable: Skip = False,
    as_json: AsJson = False,
) -> None:
    """Train a head on the latents of photographs as the model sees them, and measure it; keeps nothing.

    With folders that the model never saw in training, this is the out-of-domain probe.
    """
    import shlex

    from iwm.errors import InvalidConfigError
    from iwm.fields import require_choice
    from iwm.finetuning.config import ProbeHead
    from iwm.finetuning.folders import check_outside, read_task
    from iwm.finetuning.probe import probe, probe_config

    require_choice("head", head, ProbeHead)
    data = read_task(train, val, images=images, skip_unreadable=skip_unreadable)
    if cache is not None:
        check_outside(cache, "--cache", [data])
    if answers is not None:
        check_output(answers, option="--answers")
        check_no_image(answers, "--answers")
    world_model = load_model(model, device)
    if marginalise and world_model.config.tuned:
        raise InvalidConfigError(
            f"{model} was finetuned as a whole; its world model predicts nothing any more."
        )
    config = probe_config("linear" if head == "linear" else "attentive", seed, batch_norm=batch_norm)
    config = config.replace(epochs=epochs or config.epochs)
    report = probe(world_model, data, config, marginalise=marginalise, cache=cache)
    if report is None:
        console.print("Stopped; nothing was measured. The same command starts again.")
        raise typer.Exit(130)
    if answers is not None:
        write_text(answers, json.dumps(_answers(report, data), indent=1) + "\n")
    words = ["iwm", "eval", "probe", "--model", model, "--train", data.train.root]
    words += [] if "--held-out" in data.val.options else ["--val", data.val.root]
    words += ["--skip-unreadable"] if skip_unreadable else []
    words += ["--batch-norm"] if batch_norm else []
    words += ["--head", head, "--marginalise", marginalise, "--images", images, "--epochs", config.epochs]
    result = report.to_dict() | {
        "command": shlex.join(map(str, [*words, "--seed", seed])),
        "train_files_sha256": data.train.files_sha256,
        "val_files_sha256": data.val.files_sha256,
    }
    if as_json:
        print_json(result)
        return
    console.print(
        f"{report.title}: accuracy {report.accuracy:.1%} ({report.images} images, {report.classes} classes, "
        f"{report.train_images} to train on, most frequent class {report.chance:.1%})"
    )
    for name, value in report.cost.rows():
        console.print(f"{name:10} {value}")


def _answers(report: ProbeReport, data: TaskData) -> list[dict[str, str]]:
    """Of each validation image, its class and what it was taken for."""
    return [
        {"image": str(image), "class": data.labels[true], "answer": data.labels[said]}
        for image, true, said in zip(data.val.images, data.val.classes, report.answers, strict=True)
    ]


def _measured(
    model: str,
    task: str | None,
    kind: TaskKind,
    data: Path,
    device: str,
    labels: Path | None,
    ignore: list[int],
    held_out: bool,
    skip: bool,
) -> dict[str, Any]:
    """Read the config, check the data against the task, then measure."""
    from iwm.finding import read_architecture
    from iwm.finetuning.folders import read_split
    from iwm.finetuning.measure import measure
    from iwm.tasks import find_task

    config = read_architecture(model)
    name = find_task(config, task, kind=kind)
    split = read_split(
        data, config.tasks[name].labels, segmentation=kind == "segmentation", labels=labels, ignore=ignore,
        held_out=held_out, skip_unreadable=skip,
    )  # fmt: skip
    return measure(model, name, split, device)
