"""`iwm export`: a model for OpenVINO or ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from iwm.cli.options import AsJson, ModelName, console, find_images, one_line, print_json

if TYPE_CHECKING:
    from iwm.export import Format, Precision


def export_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    model: ModelName = "iwm-tiny",
    format: Annotated[str, typer.Option(help="openvino, onnx or torch.")] = "openvino",  # noqa: A002
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp16",
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of photographs that int8 measures its ranges on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder that iwm.load(folder, backend=...) runs without the PyTorch weights."""
    from iwm.errors import InvalidDataError
    from iwm.export import export
    from iwm.loading import load

    if calibration is not None and not calibration.exists():
        raise InvalidDataError(f"No such folder: {calibration}")
    images = None if calibration is None else find_images([calibration])
    images = images and images[:: -(-len(images) // 64)]
    export(
        load(model), out, format=cast("Format", format), precision=cast("Precision", precision),
        calibration=images,
    )  # fmt: skip
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    if as_json:
        print_json({"out": str(out), "format": format, "precision": precision, "bytes": sizes})
        return
    total = sum(sizes.values()) / 2**20
    console.print(f"Wrote {one_line(str(out))} ({total:.1f} MiB).")
    words = "" if format == "torch" else f', backend="{format}"'
    console.print(f'Run it: iwm.load("{out}"{words})', style="dim")
