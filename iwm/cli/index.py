"""`iwm index`: a photo library on disk, made or brought up to date."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iwm.cli.options import (
    AsJson,
    BatchSize,
    Device,
    check_no_image,
    check_output,
    console,
    load_model,
    one_line,
    print_json,
    warn,
)

if TYPE_CHECKING:
    from iwm.index import Index, IndexReport
    from iwm.world_model import WorldModel

LibraryModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Zoo name, model folder, what iwm export wrote, or org/name on the Hub; default: the library's, or iwm-tiny."),
]  # fmt: skip
_SHOWN = 20
"""Files that are named one by one; the report has them all."""


def index_command(
    photos: Annotated[
        list[str], typer.Argument(help="Folders, files, or addresses like s3://bucket/photos.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The library, such as library.lance; made if missing.")
    ],
    model: LibraryModel = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove photographs below PHOTOS whose files are gone.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: several processes or machines.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes of the ray engine.")] = 2,
    report: Annotated[Path | None, typer.Option(help="Write what was skipped, and why, as JSON.")] = None,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    as_json: AsJson = False,
) -> None:
    """Encode photographs into a library, for `iwm search`; only new and changed files are encoded.

    Stop it whenever you like: the same command goes on. What cannot be read is skipped and listed.
    """
    from iwm.index.library import check_engine
    from iwm.index.walk import check_roots

    check_roots(photos)
    check_engine(engine)
    if report:
        check_output(report, option="--report")
        check_no_image(report, "--report")
    # Workers of Ray are sent a PyTorch model.
    index, world_model = open_or_create(out, model, device, exported=engine == "local")
    try:
        done = index.update(
            world_model, photos,
            prune=prune, engine=engine, workers=workers, batch_size=batch_size, progress=True,
        )  # fmt: skip
    except KeyboardInterrupt:
        warn(f"stopped; {out} has {len(index)} photographs. The same command goes on.")
        raise typer.Exit(130) from None
    if report:
        _write_report(report, done)
    if as_json:
        print_json({"library": out, "model": index.model_name, "space": index.space} | asdict(done))
        _check_filled(done, photos)
        return
    for remark in done.skipped[:_SHOWN]:
        warn(f"skipped: {remark.words if remark.path in remark.words else f'{remark.path}: {remark.words}'}")
    for remark in done.remarks[:_SHOWN]:
        warn(f"{remark.path}: {remark.words}")
    if max(len(done.skipped), len(done.remarks)) > _SHOWN:
        warn(f"{len(done.skipped)} skipped, {len(done.remarks)} remarks; --report FILE writes them all.")
    console.print(
        f"{one_line(out)}: {done.added} added, {done.updated} updated, {done.unchanged} unchanged, "
        f"{done.removed} removed, {len(done.skipped)} skipped; {done.photos} photographs ({done.seconds:.1f} s)."
    )
    _check_filled(done, photos)
    made_by = f" --model {shlex.quote(model)}" if model else ""
    hint = f"iwm search {shlex.quote(out)}{made_by} --image photo.jpg --brightness 0.6"
    console.print(f"Search it: {one_line(hint)}", style="dim")


def _check_filled(done: IndexReport, photos: list[str]) -> None:
    from iwm.errors import InvalidDataError

    if not done.photos:
        raise InvalidDataError(f"The library is empty: no image in {', '.join(photos)} could be read.")


def open_or_create(path: str, model: str | None, device: str, *, exported: bool) -> tuple[Index, WorldModel]:
    """A library and its model; a new one where there is none."""
    from iwm.index import Index
    from iwm.index.store import exists

    if exists(path):
        index = Index.open(path)
        return index, library_model(index, model, device, exported=exported)
    world_model = load_model(model or "iwm-tiny", device, exported=exported)
    return Index.create(path, world_model), world_model


def library_model(index: Index, name: str | None, device: str, *, exported: bool = False) -> WorldModel:
    """The model of a library: the one named, or the one it was made by.

    Args:
        index: the library.
        name: what the user typed.
        device: where to put it.
        exported: whether a folder that `iwm export` wrote will do, too.

    Raises:
        IncompatibleLatentError: the one named did not make it.
        InvalidConfigError: none is named, and the one that made it is not in the zoo; or an exported one
            will not do.
    """
    from iwm.errors import InvalidConfigError
    from iwm.finding import list_models

    if name is None and index.model_name not in list_models():
        raise InvalidConfigError(
            f'{index.path} was made by "{index.model_name}", which is no zoo name; say where it is with --model.'
        )
    model = load_model(name or index.model_name, device, exported=exported)
    index.check_model(model)
    return model


def _write_report(path: Path, done: IndexReport) -> None:
    from iwm.files import write_text

    write_text(path, json.dumps(asdict(done), indent=2, ensure_ascii=False) + "\n")
