"""`iwm eval mrr` and `iwm eval knn`: measure a model, and record what was measured."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from iwm.cli.options import (
    AsJson,
    BatchSize,
    Device,
    ModelName,
    check_output,
    console,
    load_model,
    print_json,
)

if TYPE_CHECKING:
    from iwm.evaluation.mrr import Distribution, Protocol

Record = Annotated[
    bool,
    typer.Option(
        "--record", help="Write the result, with its command, into the config.json of the model's folder."
    ),
]
_NAMED = 5
"""Unreadable photographs that are named."""


def mrr_command(
    data: Annotated[Path, typer.Option(help="Folder of photographs the model was not trained on.")],
    model: ModelName = "iwm-tiny",
    images: Annotated[
        int, typer.Option(min=1, help="Photographs, evenly spaced in the sorted folder.")
    ] = 100,
    protocol: Annotated[str, typer.Option(help="apply, undo or transfer.")] = "apply",
    distribution: Annotated[
        str | None, typer.Option(help="full or jitter; by default what the model was trained for.")
    ] = None,
    bank_size: Annotated[int, typer.Option(min=2, help="Transformed views in a bank.")] = 256,
    strength: Annotated[
        str | None, typer.Option(help="paper or strong views; by default as the model was trained.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the views.")] = 0,
    device: Device = "cpu",
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Mean reciprocal rank: how well the world model applies or undoes actions."""
    from iwm.cli.report import default_distribution, print_report
    from iwm.evaluation import mrr
    from iwm.images import file_list_hash

    folder = _record_folder(model) if record else None
    chosen = _spread(data, images)
    world_model = load_model(model, device)
    asked = cast("Protocol", protocol)
    drawn = cast("Distribution | None", distribution) or default_distribution(world_model, asked)
    files = file_list_hash(data, chosen)
    name = f"{protocol}-mrr-{drawn}-{len(chosen)}x{bank_size}{f'-{strength}' if strength else ''}"
    if folder is not None:
        _check_place(folder, name, files)
    report = mrr(
        world_model, chosen, bank_size=bank_size, protocol=asked, distribution=drawn, seed=seed,
        strength=strength, progress=not as_json,
    )  # fmt: skip
    command = _command(
        "mrr", model=model, data=data, images=images, protocol=protocol, distribution=drawn,
        bank_size=bank_size, seed=seed, **({"strength": strength} if strength else {}),
    )  # fmt: skip
    result = report.to_dict() | {"command": command, "files_sha256": files}
    if as_json:
        print_json(result)
    else:
        print_report(report)
    if folder is not None:
        record_metric(folder, name, result)


def knn_command(
    train: Annotated[Path, typer.Option(help="Folder with one subfolder a class.")],
    val: Annotated[Path, typer.Option(help="The same, of images to classify.")],
    model: ModelName = "iwm-tiny",
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that vote.")] = 20,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Nearest-neighbour accuracy of pooled latents, beside the same encoder at random weights."""
    from iwm.evaluation import knn
    from iwm.evaluation.labelled import read_class_folder
    from iwm.images import file_list_hash

    folder = _record_folder(model) if record else None
    world_model = load_model(model, device)
    report = knn(
        world_model, train, val, k, random_baseline=True, batch_size=batch_size, progress=not as_json
    )
    command = _command("knn", model=model, train=train, val=val) + f" -k {k}"
    result = report.to_dict() | {
        "command": command,
        "train_files_sha256": file_list_hash(train, read_class_folder(train).images),
        "val_files_sha256": file_list_hash(val, read_class_folder(val).images),
    }
    if as_json:
        print_json(result)
    else:
        console.print(
            f"{k}-NN accuracy {report.accuracy:.1%} ({report.val_images} images, {report.classes} classes, "
            f"{report.train_images} neighbours to choose from)"
        )
        console.print(f"random encoder {report.random_encoder:.1%}, most frequent class {report.chance:.1%}")
    if folder is not None:
        record_metric(folder, f"knn-{report.k}-{'/'.join(val.absolute().parts[-2:])}", result)


def decoder_command(
    data: Annotated[Path, typer.Option(help="Folder of photographs the decoder was not trained on.")],
    model: ModelName = "iwm-tiny",
    images: Annotated[
        int, typer.Option(min=1, help="Photographs, evenly spaced in the sorted folder.")
    ] = 100,
    actions: Annotated[int, typer.Option(min=1, help="Random actions for each.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the actions.")] = 0,
    device: Device = "cpu",
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """How much of a photograph decoding gets back: PSNR and SSIM, encoded and after actions."""
    from iwm.evaluation.reconstruction import reconstruction
    from iwm.images import file_list_hash

    folder = _record_folder(model) if record else None
    chosen = _spread(data, images)
    files, name = file_list_hash(data, chosen), f"decoder-{len(chosen)}x{actions}"
    if folder is not None:
        _check_place(folder, name, files)
    report = reconstruction(load_model(model, device), chosen, actions=actions, seed=seed)
    command = _command("decoder", model=model, data=data, images=images, actions=actions, seed=seed)
    result = report.to_dict() | {"command": command, "files_sha256": files}
    if as_json:
        print_json(result)
    else:
        rows = {
            "encoded, decoded": report.encoded,
            "acted on, decoded": report.predicted,
            "bound: transformed, encoded, decoded": report.transformed,
            "baseline: no action": report.untouched,
        }
        for name, scores in rows.items():
            console.print(f"{name:38} PSNR {scores.psnr:5.2f} dB   SSIM {scores.ssim:.3f}")
    if folder is not None:
        record_metric(folder, name, result)


def _spread(data: Path, count: int) -> list[Path]:
    """So many images of a folder, evenly spaced in the sorted list.

    Raises:
        InvalidDataError: some cannot be read, which is told before the work.
    """
    from iwm.errors import InvalidDataError
    from iwm.evaluation.labelled import unreadable
    from iwm.images import list_images, spread

    chosen = spread(list_images(data), count)
    bad = [str(error).rstrip(".") for error in unreadable(chosen) if error is not None]
    if bad:
        listed = ". ".join(bad[:_NAMED]) + (" ..." if len(bad) > _NAMED else ".")
        raise InvalidDataError(
            f"{len(bad)} of the {len(chosen)} photographs of {data} to be measured on cannot be used: {listed} "
            "Mend or remove them."
        )
    return chosen


def record_metric(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write one metric into a model folder's config, and into its card.

    Raises:
        WeightsUnavailableError: not a model folder.
    """
    from iwm.model_folder import read_config, write_config

    config = read_config(folder)
    write_config(folder, config.replace(metrics=config.metrics | {name: value}), new_card=False)


def _check_place(folder: Path, name: str, files: str) -> None:
    """Raise `SaveError` where a record of other photographs has this name."""
    from iwm.errors import SaveError
    from iwm.model_folder import read_config

    before = read_config(folder).metrics.get(name, {})
    if before.get("files_sha256", files) != files:
        raise SaveError(
            f"{folder} has {name} of other photographs: {before.get('command')}. Leave out --record, or take that "
            "entry out of its config.json."
        )


def _record_folder(model: str) -> Path:
    """Where `--record` writes; found out before the long work."""
    from iwm.errors import SaveError
    from iwm.finding import find_model
    from iwm.hub import RepoName
    from iwm.integrity import is_fetched
    from iwm.model_folder import CONFIG_FILE, read_config
    from iwm.zoo import ZOO

    published = model in ZOO and (ZOO[model].hub or ZOO[model].embedded)
    if published or (RepoName.parse(model) and not os.path.isdir(model)):
        raise SaveError(f"{model} is published; --record writes to a model folder of your own.")
    folder = find_model(model).folder
    if is_fetched(folder):
        raise SaveError(f"{folder} holds downloaded files, which must stay as they are; copy them first.")
    read_config(folder)
    check_output(folder / CONFIG_FILE)
    return folder


def _command(name: str, **options: object) -> str:
    """The command line that gives a number again."""
    words = ["iwm", "eval", name]
    for option, value in options.items():
        words += [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)
