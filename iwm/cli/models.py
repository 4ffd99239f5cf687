"""`iwm list` and `iwm info`: what there is, and everything about one model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iwm.cli.options import AsJson, console, print_json

if TYPE_CHECKING:
    from iwm.config import WorldModelConfig
    from iwm.zoo import ZooEntry

_CITATION = """@article{garrido2024iwm,
  title   = {Learning and Leveraging World Models in Visual Representation Learning},
  author  = {Garrido, Quentin and Assran, Mahmoud and Ballas, Nicolas and Bardes, Adrien and
             Najman, Laurent and LeCun, Yann},
  journal = {arXiv:2403.00504},
  year    = {2024}
}"""


def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern.")] = "*", as_json: AsJson = False
) -> None:
    """List the models that can be loaded or trained by name."""
    from iwm.errors import UnknownModelError, nearest
    from iwm.loading import list_models
    from iwm.zoo import ZOO

    names = list_models(pattern)
    if not names:
        raise UnknownModelError(f'No model matches "{pattern}".{nearest(pattern, ZOO)}')
    rows = [_summary(ZOO[name]) for name in names]
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "parameters", "input", "weights", "licence", "apply-MRR"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        score = _headline(row["metrics"])
        table.add_row(
            row["name"], _millions(row["parameters"]), f"{row['input']} px", row["weights"],
            row["license"].partition(" (")[0], "" if score is None else f"{score:.3f}",
        )  # fmt: skip
    console.print(table)
    console.print("\nMore about one: iwm info NAME", style="dim")


def info_command(
    name: Annotated[str, typer.Argument(help="Zoo name or model folder.")] = "iwm-tiny",
    as_json: AsJson = False,
) -> None:
    """Show everything known about one model: sizes, recipe, provenance, metrics, licence."""
    from pathlib import Path

    from iwm.checkpoint import read_config
    from iwm.config import to_json
    from iwm.zoo import ZOO, find_entry

    entry = None if name not in ZOO and os.path.isdir(name) else find_entry(name)
    config = read_config(Path(name)) if entry is None else _config(entry)
    if as_json:
        import json

        print_json({"parameters": _parameters(config)} | json.loads(to_json(config)))
        return
    counts = {part: _millions(count) for part, count in _parameters(config).items()}
    e, p = config.encoder, config.predictor
    console.print(f"{config.name}: {entry.summary}" if entry else f"{config.name}, in {name}", style="bold")
    lines = {
        "encoder": f"ViT {e.width} x {e.depth}, patch {e.patch_size}, {counts['encoder']} parameters",
        "world model": f"{p.width} x {p.depth}, {p.layout}, {p.conditioning}, "
        f"{counts['predictor']} parameters",
        "input": f"{config.preprocess.size} px (shorter side to {config.preprocess.resize}, centre crop)",
        "actions": f"{config.actions.encoding}, {'symmetric' if config.actions.symmetric else 'targets have jitter only'}",
        "weights": entry.weights if entry else "in this folder",
        "licence": config.license,
    }
    for key, value in lines.items():
        console.print(f"  {key:12} {value}")
    for title, values in (("provenance", _provenance(config)), ("metrics", _headlines(config.metrics))):
        if values:
            console.print(title, style="bold")
            for key, value in values.items():
                console.print(f"  {key:12} {value}")
    if entry:
        console.print("train it", style="bold")
        console.print(f"  {config.recipe.get('command') or entry.recipe_command}")
    console.print("cite", style="bold")
    console.print(_CITATION)


def _summary(entry: ZooEntry) -> dict[str, Any]:
    config = _config(entry)
    return {
        "name": entry.name,
        "parameters": sum(_parameters(config).values()),
        "input": config.preprocess.size,
        "weights": entry.weights,
        "license": config.license,
        "summary": entry.summary,
        "metrics": config.metrics,
    }


def _config(entry: ZooEntry) -> WorldModelConfig:
    """What the checkpoint says where there is one, else the table."""
    from iwm.checkpoint import read_config

    return read_config(entry.folder) if entry.weights == "embedded" else entry.config


def _parameters(config: WorldModelConfig) -> dict[str, int]:
    import torch

    from iwm.world_model import WorldModel

    with torch.device("meta"):
        model = WorldModel(config)
    return {
        "encoder": sum(p.numel() for p in model.encoder.parameters()),
        "predictor": sum(p.numel() for p in model.predictor.parameters()),
    }


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"


def _provenance(config: WorldModelConfig) -> dict[str, str]:
    """One line a fact; data folders with their numbers of images."""
    lines = {key: str(value) for key, value in config.provenance.items()}
    folders = config.provenance.get("data")
    if isinstance(folders, list) and all(isinstance(d, dict) for d in folders):
        lines["data"] = ", ".join(f"{d.get('folder')} ({d.get('images')})" for d in folders)
    return lines


def _headlines(metrics: dict[str, Any]) -> dict[str, str]:
    """One line a metric: its headline number and the command that gives it."""
    lines = {}
    for name, value in metrics.items():
        score = _score(value)
        lines[name] = str(value) if score is None else f"{score:.3f}  {value.get('command', '')}"
    return lines


def _headline(metrics: dict[str, Any]) -> float | None:
    """apply-MRR at the standard size: of the full distribution where it was measured, else of jitter."""
    names = (f"apply-mrr-{drawn}-100x256" for drawn in ("full", "jitter"))
    return next((score for name in names if (score := _score(metrics.get(name))) is not None), None)


def _score(metric: Any) -> float | None:
    """The headline number of a recorded metric; configs may hold any JSON."""
    if not isinstance(metric, dict):
        return None
    overall = metric.get("overall")
    score = overall.get("mrr") if isinstance(overall, dict) else metric.get("accuracy")
    return score if isinstance(score, float) else None
