"""`iwm search`: a photograph, transformed in latent space, looked up in a folder or a library."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iwm.cli.index import LibraryModel, library_model
from iwm.cli.options import (
    AsJson,
    BatchSize,
    Device,
    check_output,
    console,
    encode_files,
    find_images,
    load_model,
    one_line,
    photographs_of,
    print_json,
)

if TYPE_CHECKING:
    from iwm.actions import Action
    from iwm.bank import SearchResult
    from iwm.index import Filter
    from iwm.latent import Latent
    from iwm.world_model import WorldModel


_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]


def search_command(
    place: Annotated[str, typer.Argument(help="Folder of images, or library made by iwm index.")],
    image: Annotated[Path, typer.Option("--image", "-i", help="The photograph to start from.")],
    brightness: Annotated[float, typer.Option(help="Factor, 1 leaves it.")] = 1.0,
    contrast: Annotated[float, typer.Option(help="Factor, 1 leaves it.")] = 1.0,
    saturation: Annotated[float, typer.Option(help="Factor, 1 leaves it.")] = 1.0,
    hue: Annotated[float, typer.Option(help="Turns of the colour circle, -0.5 to 0.5.")] = 0.0,
    grayscale: Annotated[bool, typer.Option("--grayscale", help="Without colour.")] = False,
    blur: Annotated[float, typer.Option(help="Gaussian sigma in pixels of the model's input.")] = 0.0,
    solarize: Annotated[bool, typer.Option("--solarize", help="Bright values inverted.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 5,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet, such as out.png.")] = None,
    under: Annotated[str | None, typer.Option(help="Library: only photographs below this folder.")] = None,
    taken_from: Annotated[
        datetime | None,
        typer.Option(
            formats=_TIMES,
            metavar="TIME",
            help="Library: taken at this time or later; 2026-05-31, or 2026-05-31T14:00:00.",
        ),
    ] = None,
    taken_before: Annotated[
        datetime | None, typer.Option(formats=_TIMES, metavar="TIME", help="Library: taken before this time.")
    ] = None,
    min_side: Annotated[
        int | None, typer.Option(min=0, help="Library: shorter side in pixels, at least.")
    ] = None,
    model: LibraryModel = None,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    as_json: AsJson = False,
) -> None:
    """Find images that look like a photograph after an action, without transforming a pixel.

    A folder is encoded on the spot; a library has been. Without any action options, finds similar images.
    """
    from iwm.actions import Action
    from iwm.contact_sheet import check_sheet
    from iwm.errors import InvalidConfigError
    from iwm.index import Filter
    from iwm.index.store import is_library

    action = Action(
        brightness=brightness, contrast=contrast, saturation=saturation, hue=hue,
        grayscale=grayscale, blur=blur, solarize=solarize,
    )  # fmt: skip
    where = Filter(under=under, taken_from=taken_from, taken_before=taken_before, min_side=min_side)
    if sheet:
        check_sheet(sheet)
        check_output(sheet, [image], "--sheet")
        check_output(sheet, photographs_of(place, sheet), "--sheet")
    records: dict[str, dict[str, Any]] = {}
    if is_library(place):
        hits, images, records = _in_library(place, image, action, k, where, model, device)
    elif where != Filter():
        raise InvalidConfigError(
            f"{place} is no library; --under, --taken-from, --taken-before and --min-side need one: "
            f"iwm index {place} --out library.lance"
        )
    else:
        hits, images = _in_folder(Path(place), image, action, k, model or "iwm-tiny", device, batch_size)
    found: list[dict[str, Any]] = [
        {"path": str(path), "distance": round(d, 4)}
        for path, d in zip(hits.ids[0], hits.distances[0].tolist(), strict=True)
    ]
    if sheet:
        _save_sheet(sheet, image, action, hits)
    if as_json:
        hits_said = [hit | records.get(hit["path"], {}) for hit in found]
        said = {"sheet": str(sheet)} if sheet else {}
        print_json({"image": str(image), "action": str(action), "images": images, "hits": hits_said} | said)
        return
    asked = f"{one_line(str(image))} {'as it is' if action.is_identity else f'as {action}'}"
    if not found:
        console.print(f"{asked}; no photograph in {one_line(place)} matches.")
        return
    console.print(f"{asked}; nearest of {images}")
    for rank, hit in enumerate(found, start=1):
        console.print(f"{rank:>3}  {hit['distance']:8.2f}  {one_line(str(hit['path']))}")
    if sheet:
        console.print(f"Wrote {one_line(str(sheet))}.")


def _in_library(
    place: str, image: Path, action: Action, k: int, where: Filter, model: str | None, device: str
) -> tuple[SearchResult, int, dict[str, dict[str, Any]]]:
    """Hits, how many photographs were searched, and what the library knows of the hits, by path."""
    from iwm.errors import InvalidDataError
    from iwm.index import Index

    index = Index.open(place)
    if not len(index):
        raise InvalidDataError(f"{place} is empty; fill it: iwm index PHOTOS --out {place}")
    query = _moved(library_model(index, model, device, exported=True), image, action)
    hits = index.search(query, k, where=where)
    records = {record.path: asdict(record) for record in index.photos(map(str, hits.ids[0]))}
    for fields in records.values():
        fields["taken"] = fields["taken"] and fields["taken"].isoformat()
    return hits, index.count(where), records


def _in_folder(
    folder: Path, image: Path, action: Action, k: int, model: str, device: str, batch_size: int
) -> tuple[SearchResult, int]:
    from iwm.errors import InvalidDataError

    if not folder.is_dir():
        raise InvalidDataError(f"No such folder: {folder}")
    paths = find_images([folder])
    world_model = load_model(model, device, exported=True)
    query = _moved(world_model, image, action)
    bank = encode_files(world_model, paths, batch_size=batch_size)
    return bank.search(query, k), len(bank)


def _moved(model: WorldModel, image: Path, action: Action) -> Latent:
    query = model.encode(image)
    return query if action.is_identity else model.apply_action(query, action)


def _save_sheet(path: Path, image: Path, action: Action, hits: SearchResult) -> None:
    from PIL import Image

    from iwm.contact_sheet import save_sheet
    from iwm.errors import InvalidImageError
    from iwm.index.photo import read_bytes
    from iwm.index.walk import Found
    from iwm.opening import open_rgb

    def picture(path: str) -> Image.Image | None:
        try:
            return open_rgb(read_bytes(Found(path, 0, 0)))
        except InvalidImageError:  # Deleted since, perhaps.
            return None

    cells = [(picture(str(image)), "query" if action.is_identity else "query, before the action")]
    cells += [
        (picture(str(name)), f"{rank}:  {d:.2f}")
        for rank, (name, d) in enumerate(zip(hits.ids[0], hits.distances[0].tolist(), strict=True), start=1)
    ]
    save_sheet(cells, path)
