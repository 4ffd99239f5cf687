"""`iwm encode`: images to a file of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.cli.options import (
    AsJson,
    BatchSize,
    Device,
    ModelName,
    check_no_image,
    check_output,
    console,
    encode_files,
    find_images,
    load_model,
    one_line,
    print_json,
)


def encode_command(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .safetensors.")],
    model: ModelName = "iwm-tiny",
    half: Annotated[bool, typer.Option("--half", help="Store float16: half the size.")] = False,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    as_json: AsJson = False,
) -> None:
    """Encode images into a bank of latents, to be searched from Python with iwm.Bank.load."""
    import torch

    from iwm.bank import Bank
    from iwm.errors import InvalidDataError

    check_output(out)
    check_no_image(out)
    files: dict[Path, Path] = {}
    for path in find_images(images):
        if path.resolve() in files and path in images:
            raise InvalidDataError(f"{path} is given twice.")
        files.setdefault(path.resolve(), path)  # A folder may hold links to its own photographs.
    paths = list(files.values())
    world_model = load_model(model, device, exported=True)
    bank = encode_files(world_model, paths, named=images, batch_size=batch_size)
    if half:
        bank = Bank.from_latents(bank.latents, bank.ids, dtype=torch.float16)
    bank.save(out)
    shape = list(bank.latents.tokens.shape)
    if as_json:
        print_json({"out": str(out), "images": len(bank), "tokens": shape, "space": bank.latents.space})
        return
    size = out.stat().st_size / 2**20
    console.print(
        f"Wrote {len(bank)} latents of {shape[1]} x {shape[2]} to {one_line(str(out))} ({size:.1f} MiB)."
    )
    console.print(f'Search them: iwm.Bank.load("{one_line(str(out))}").search(latent)', style="dim")
