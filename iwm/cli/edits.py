"""`iwm explain` and `iwm restore`: what was done to a photograph, and taking it back."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iwm.cli.options import (
    AsJson,
    Device,
    ModelName,
    check_output,
    console,
    encode_files,
    find_images,
    load_model,
    print_json,
    warn,
)

if TYPE_CHECKING:
    from PIL import Image

    from iwm.latent import Latent
    from iwm.restoring import Restored
    from iwm.world_model import WorldModel

_QUALITY = 95
"""Of what is written as JPEG or WebP."""
_BLOCKS = (0x8769, 0x8825)
"""Of EXIF data: the camera's, and that of the place."""
_DESCRIPTIVE = frozenset({
    0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298,
    0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,
})  # fmt: skip
"""EXIF fields about the photograph, not about how it is stored: description, camera, time, people, rating, rights, titles."""


def explain_command(
    before: Annotated[Path, typer.Argument(help="The photograph as it was.")],
    after: Annotated[Path, typer.Argument(help="The edited one.")],
    solver: Annotated[
        str | None, typer.Option(help="gradient, or cem, which is the one for exported models.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the starts.")] = 0,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Say which photometric edit leads from one photograph to another."""
    from typing import cast

    from iwm.planning import Solver

    world_model = load_model(model, device, exported=True)
    chosen = cast("Solver", solver or ("gradient" if world_model.differentiable else "cem"))
    _, report = world_model.infer_action(before, after, solver=chosen, seed=seed)
    if as_json:
        print_json({"before": str(before), "after": str(after)} | report.to_dict())
        return
    if not report.same_scene:
        warn(report.notes[0] + ".")
        report = dataclasses.replace(report, notes=report.notes[1:])  # Said.
    console.print(str(report))


def restore_command(
    image: Annotated[Path, typer.Argument(help="The photograph that somebody edited.")],
    references: Annotated[
        str,
        typer.Option(
            help="Folder of untouched photographs of many kinds, some hundred; or what iwm encode or iwm index made of it."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Image file to write, another one.")],
    seed: Annotated[int, typer.Option(min=0, help="Of what is learned from the references.")] = 0,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find out what was done to a photograph, and take back what pixels allow.

    EXIF data is kept. Where nothing is taken back, --out is a copy of the file if it ends alike.
    """
    from iwm.edits import in_words
    from iwm.images import EXTENSIONS
    from iwm.opening import open_rgb
    from iwm.restoring import restore
    from iwm.undoing import undo

    check_output(out, [image])
    if out.suffix.lower() not in EXTENSIONS:
        raise typer.BadParameter(f"{out} is no image file; end it in .jpg or .png.", param_hint="--out")
    picture = open_rgb(image)
    world_model = load_model(model, device, exported=True)
    _, report = undo(world_model, picture, _read_references(references, world_model), seed=seed)
    restored = restore(picture, report.photometry)
    _write(restored, image, out)
    if as_json:
        undone = in_words(restored.undone)
        print_json({"out": str(out), "undone": undone, "lost": list(restored.lost)} | report.to_dict())
        return
    console.print(str(report))
    console.print(f"undone in pixels: {in_words(restored.undone)}")
    for line in restored.lost:
        console.print(f"not undone: {line}")
    console.print(f"Wrote {out}.")


def _write(restored: Restored[Image.Image], source: Path, out: Path) -> None:
    """The image with the EXIF data of its source; or the source's own bytes, where nothing was undone."""
    from PIL import Image

    from iwm.actions import Photometry
    from iwm.files import atomic_write

    with atomic_write(out) as temporary:
        if restored.undone == Photometry() and out.suffix.lower() == source.suffix.lower():
            shutil.copyfile(source, temporary)
            return
        kind = Image.registered_extensions()[out.suffix.lower()]
        with Image.open(source) as opened:
            exif = _about_the_photograph(opened, kind)
        restored.image.save(temporary, format=kind, exif=exif.tobytes(), quality=_QUALITY)


def _about_the_photograph(image: Image.Image, kind: str) -> Image.Exif:
    """EXIF data for another file with the same photograph, upright.

    In TIFF files it lies among the fields that say how the pixels are stored, which stay behind.
    """
    from PIL import ExifTags, Image

    from iwm.opening import exif_of

    exif, kept = exif_of(image), Image.Exif()
    tiff = "TIFF" in (image.format, kind)
    # Blocks of their own have a place in the file here, which is another one there.
    for tag, value in exif.items():
        if tag not in _BLOCKS and (tag in _DESCRIPTIVE if tiff else tag != ExifTags.Base.Orientation):
            kept[tag] = value
    for block in _BLOCKS:
        with contextlib.suppress(Exception):  # Whatever a broken block can raise.
            fields = {tag: value for tag, value in exif.get_ifd(block).items() if tag != ExifTags.IFD.Interop}
            if fields:
                kept.get_ifd(block).update(fields)
    return kept


def _read_references(place: str, model: WorldModel) -> Latent:
    """Latents of untouched photographs: a folder's, a library's, or of a file that `iwm encode` wrote."""
    from iwm.bank import Bank
    from iwm.errors import InvalidDataError
    from iwm.images import EXTENSIONS, spread
    from iwm.index import Index
    from iwm.index.store import is_library
    from iwm.undoing import FEWEST, SAMPLED

    if not is_library(place) and not Path(place).exists():
        raise InvalidDataError(
            f"There is no {place}. Name a folder of untouched photographs: --references FOLDER."
        )
    if is_library(place):
        latents = Index.open(place, model).sample(SAMPLED)
    elif Path(place).is_file() and Path(place).suffix.lower() not in EXTENSIONS:
        latents = Bank.load(place).latents
        latents = latents[spread(range(len(latents)), SAMPLED)]
    else:
        paths = find_images([Path(place)])
        latents = encode_files(model, spread(paths, SAMPLED)).latents
    if len(latents) < FEWEST:
        photographs = "photograph" if len(latents) == 1 else "photographs"
        raise InvalidDataError(
            f"{place} holds {len(latents)} {photographs}; restoring needs at least {FEWEST} untouched ones, "
            "better some hundred: --references FOLDER."
        )
    return latents
