"""`iwm demo`: the main job on a few photographs, a picture and a table of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.cli.options import (
    AsJson,
    Device,
    ModelName,
    check_output,
    console,
    find_images,
    load_model,
    print_json,
)


def demo_command(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Photographs and folders; by default four that scikit-image ships."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write: .png, .pdf or .svg.")] = Path(
        "demo.png"
    ),
    bank_size: Annotated[
        int, typer.Option(min=10, max=65_536, help="Transformed views in each photograph's bank.")
    ] = 256,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Act on photographs in latent space, retrieve the views asked for, show how well it went."""
    from iwm.cli.report import default_distribution, print_report
    from iwm.demo import ACTIONS, photographs, retrieve
    from iwm.display import track
    from iwm.evaluation import mrr
    from iwm.evaluation.mrr import Protocol
    from iwm.figures import check_picture, save_retrievals
    from iwm.opening import open_rgb

    paths = find_images(images or [])
    check_output(out, paths)
    check_picture(out)
    photos = [open_rgb(path) for path in paths] if images else photographs()
    world_model = load_model(model, device)
    rows = retrieve(world_model, photos, bank_size=bank_size)
    retrievals = list(track(rows, "acting and retrieving", total=len(ACTIONS)))
    save_retrievals(retrievals, out)
    protocols: tuple[Protocol, ...] = ("apply", "undo")
    reports = [
        mrr(
            world_model, photos, bank_size=bank_size, protocol=protocol,
            distribution=default_distribution(world_model, protocol), progress=True,
        )
        for protocol in protocols
    ]  # fmt: skip
    if as_json:
        rows_json = [{"action": r.name, "rank": r.rank, "bank_size": r.bank_size} for r in retrievals]
        print_json({"picture": str(out), "retrievals": rows_json, "mrr": [r.to_dict() for r in reports]})
        return
    for report in reports:
        print_report(report)
    right = sum(r.rank == 1 for r in retrievals)
    console.print(f"Picture: {out} ({right} of {len(retrievals)} actions retrieved the view asked for)")
