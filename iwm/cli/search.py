"""`iwm search`: a photograph, transformed in latent space, looked up in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.cli.options import (
    AsJson,
    BatchSize,
    Device,
    ModelName,
    console,
    encode_files,
    find_images,
    load_model,
    print_json,
)


def search_command(
    folder: Annotated[Path, typer.Argument(help="Folder of images to search.")],
    image: Annotated[Path, typer.Option("--image", "-i", help="The photograph to start from.")],
    brightness: Annotated[float, typer.Option(help="Factor, 1 leaves it.")] = 1.0,
    contrast: Annotated[float, typer.Option(help="Factor, 1 leaves it.")] = 1.0,
    saturation: Annotated[float, typer.Option(help="Factor, 1 leaves it.")] = 1.0,
    hue: Annotated[float, typer.Option(help="Turns of the colour circle, -0.5 to 0.5.")] = 0.0,
    grayscale: Annotated[bool, typer.Option("--grayscale", help="Without colour.")] = False,
    blur: Annotated[float, typer.Option(help="Gaussian sigma in pixels of the model's input.")] = 0.0,
    solarize: Annotated[bool, typer.Option("--solarize", help="Bright values inverted.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 5,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    as_json: AsJson = False,
) -> None:
    """Find images that look like a photograph after an action, without transforming a pixel.

    The folder is encoded on the spot. Without any action options, finds similar images.
    """
    from iwm.actions import Action
    from iwm.errors import InvalidDataError

    if not folder.is_dir():
        raise InvalidDataError(f"No such folder: {folder}")
    action = Action(
        brightness=brightness, contrast=contrast, saturation=saturation, hue=hue,
        grayscale=grayscale, blur=blur, solarize=solarize,
    )  # fmt: skip
    paths = find_images([folder])
    world_model = load_model(model, device)
    query = world_model.encode(image)
    moved = query if action.is_identity else world_model.apply_action(query, action)
    bank = encode_files(world_model, paths, batch_size=batch_size)
    hits = bank.search(moved, k=k)
    found = [
        {"path": path, "distance": round(d, 4)}
        for path, d in zip(hits.ids[0], hits.distances[0].tolist(), strict=True)
    ]
    if as_json:
        print_json({"image": str(image), "action": str(action), "images": len(bank), "hits": found})
        return
    console.print(f"{image} {'as it is' if action.is_identity else f'as {action}'}; nearest of {len(bank)}")
    for rank, hit in enumerate(found, start=1):
        console.print(f"{rank:>3}  {hit['distance']:8.2f}  {hit['path']}")
