"""`iwm explain` and `iwm restore`: what was done to a photograph, and taking it back."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    one_line,
    photographs_of,
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
_COLOURED = ("RGB", "RGBA", "RGBX", "P", "PA")
"""Modes whose colour profile is one of RGB."""
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

    EXIF data, colour profile and resolution are kept. Where nothing is taken back, --out is a copy of the file if it ends alike.
    """
    from iwm.edits import in_words
    from iwm.images import EXTENSIONS
    from iwm.opening import open_rgb
    from iwm.restoring import restore
    from iwm.undoing import undo

    check_output(out, [image])
    check_output(out, photographs_of(references, out))
    if out.suffix.lower() not in EXTENSIONS:
        raise typer.BadParameter(f"{out} is no image file; end it in .jpg or .png.", param_hint="--out")
    picture = open_rgb(image)
    world_model = load_model(model, device, exported=True)
    _, report = undo(world_model, picture, _read_references(references, world_model), seed=seed)
    restored = restore(picture, report.photometry)
    left_behind = _write(restored, image, out)
    if as_json:
        said = {"undone": in_words(restored.undone), "lost": list(restored.lost), "left_behind": left_behind}
        print_json({"out": str(out)} | said | report.to_dict())
        return
    console.print(str(report))
    console.print(f"undone in pixels: {in_words(restored.undone)}")
    for line in restored.lost:
        console.print(f"not undone: {line}")
    for line in left_behind:
        console.print(f"not kept: {line}")
    console.print(f"Wrote {one_line(str(out))}.")


def _write(restored: Restored[Image.Image], source: Path, out: Path) -> list[str]:
    """The image as its source was stored; or the source's own bytes, where nothing was undone.

    Returns:
        What the file has not, and its source had.
    """
    from PIL import Image

    from iwm.actions import Photometry
    from iwm.files import atomic_write

    with atomic_write(out) as temporary:
        if restored.undone == Photometry() and out.suffix.lower() == source.suffix.lower():
            shutil.copyfile(source, temporary)
            return []
        kind = Image.registered_extensions()[out.suffix.lower()]
        with Image.open(source) as opened:
            exif = _about_the_photograph(opened, kind)
            stored = _about_the_pixels(opened)
            left_behind = _left_behind(opened)
        restored.image.save(temporary, format=kind, exif=exif.tobytes(), quality=_QUALITY, **stored)
        return left_behind


def _about_the_pixels(image: Image.Image) -> dict[str, Any]:
    """Colour profile and resolution, as options of `PIL.Image.Image.save`."""
    stored: dict[str, Any] = {}
    profile, dpi = image.info.get("icc_profile"), image.info.get("dpi")
    if profile and image.mode in _COLOURED:  # One of CMYK or of grey says nothing of RGB.
        stored["icc_profile"] = profile
    if isinstance(dpi, tuple) and len(dpi) == 2 and all(0 < float(value) < 65_536 for value in dpi):
        stored["dpi"] = tuple(float(value) for value in dpi)
    return stored


def _left_behind(image: Image.Image) -> list[str]:
    """What an RGB image of 8 bits has not."""
    said = []
    if image.has_transparency_data:
        said.append("transparency, which is white now")
    deep = any(
        ";16" in str(tile[-1]) for tile in getattr(image, "tile", [])
    )  # Of colour images the mode does not say it.
    if deep or image.mode.startswith("I;16") or image.mode in ("I", "F"):
        said.append("more than 8 bits a channel")
    if image.info.get("icc_profile") and image.mode not in _COLOURED:
        said.append(f"the colour profile of {image.mode}")
    if getattr(image, "n_frames", 1) > 1:
        said.append("frames after the first")
    return said


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
