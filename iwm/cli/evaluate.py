"""`iwm eval mrr` and `iwm eval knn`: measure a model, and record what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from iwm.cli.options import AsJson, BatchSize, Device, ModelName, console, load_model, print_json

if TYPE_CHECKING:
    from iwm.evaluation.mrr import Distribution, Protocol

Record = Annotated[
    bool,
    typer.Option("--record", help="Write the result into the model folder's config.json, with its command."),
]


def mrr_command(
    data: Annotated[Path, typer.Option(help="Folder of photographs the model was not trained on.")],
    model: ModelName = "iwm-tiny",
    images: Annotated[
        int, typer.Option(min=1, help="Photographs, evenly spaced in the sorted folder.")
    ] = 100,
    protocol: Annotated[str, typer.Option(help="apply, undo or transfer.")] = "apply",
    distribution: Annotated[str, typer.Option(help="full, or jitter alone.")] = "full",
    bank_size: Annotated[int, typer.Option(min=2, help="Transformed views in a bank.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the views.")] = 0,
    device: Device = "cpu",
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Mean reciprocal rank: how well the world model applies or undoes actions."""
    from iwm.cli.demo import print_report
    from iwm.evaluation import mrr
    from iwm.images import file_list_hash, list_images

    everything = list_images(data)
    count = min(images, len(everything))
    chosen = [everything[i * len(everything) // count] for i in range(count)]
    world_model = load_model(model, device)
    report = mrr(
        world_model, chosen, bank_size=bank_size, protocol=cast("Protocol", protocol),
        distribution=cast("Distribution", distribution), seed=seed, progress=not as_json,
    )  # fmt: skip
    command = (
        f"iwm eval mrr --model {world_model.config.name} --data {data} --images {images} "
        f"--protocol {protocol} --distribution {distribution} --bank-size {bank_size} --seed {seed}"
    )
    result = report.to_dict() | {"command": command, "files_sha256": file_list_hash(data, chosen)}
    if record:
        record_metric(Path(model), f"{protocol}-mrr-{distribution}", result)
    if as_json:
        print_json(result)
    else:
        print_report(report)


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
    from iwm.images import file_list_hash, list_images

    world_model = load_model(model, device)
    report = knn(
        world_model, train, val, k, random_baseline=True, batch_size=batch_size, progress=not as_json
    )
    command = f"iwm eval knn --model {world_model.config.name} --train {train} --val {val} -k {k}"
    result = report.to_dict() | {
        "command": command,
        "train_files_sha256": file_list_hash(train, list_images(train)),
        "val_files_sha256": file_list_hash(val, list_images(val)),
    }
    if record:
        record_metric(Path(model), f"knn-{val.parent.name or val.name}", result)
    if as_json:
        print_json(result)
        return
    console.print(
        f"{k}-NN accuracy {report.accuracy:.1%} ({report.val_images} images, {report.classes} classes, "
        f"{report.train_images} neighbours to choose from)"
    )
    console.print(f"random encoder {report.random_encoder:.1%}, most frequent class {report.chance:.1%}")


def record_metric(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write one metric into a model folder's config.

    Raises:
        WeightsUnavailableError: not a model folder.
    """
    from iwm.checkpoint import CONFIG_FILE, read_config, write_text

    config = read_config(folder)
    write_text(folder / CONFIG_FILE, config.replace(metrics=config.metrics | {name: value}).to_json())
