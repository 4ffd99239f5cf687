"""`iwm list` and `iwm info`: what there is, and everything about one model."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iwm.cli.options import AsJson, console, print_json, printable

if TYPE_CHECKING:
    from iwm.config import WorldModelConfig
    from iwm.zoo import ZooEntry


_HEADLINES = {
    "apply": ("apply-mrr-full-100x256", "apply-mrr-jitter-100x256"),
    "undo": ("undo-mrr-full-100x256",),
    "20-NN": ("knn-20-imagenette/val", "knn-20-"),
}
"""Columns of scores (MRR, MRR, accuracy), and the metrics they show: the first that was measured."""


def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern.")] = "*", as_json: AsJson = False
) -> None:
    """List the models that can be loaded or trained by name."""
    from iwm.errors import UnknownModelError, nearest
    from iwm.finding import list_models
    from iwm.zoo import ZOO

    names = list_models(pattern)
    if not names:
        raise UnknownModelError(f'No model matches "{pattern}".{nearest(pattern, ZOO)}')
    rows = [_summary(ZOO[name]) for name in names]
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("name", "params", "input", "weights", "licence", *_HEADLINES):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"], _millions(row["parameters"]), f"{row['input']} px", row["weights"],
            row["license"].partition(" (")[0], *_headline(row["metrics"]),
        )  # fmt: skip
    console.print(table)
    console.print("\nMore about one: iwm info NAME", style="dim")


def info_command(
    name: Annotated[str, typer.Argument(help="Zoo name, model folder, or org/name on the Hub.")] = "iwm-tiny",
    as_json: AsJson = False,
) -> None:
    """Show everything known about one model: sizes, recipe, provenance, metrics, licence."""
    from iwm.fields import to_json
    from iwm.finding import read_architecture
    from iwm.model_card import CITATION
    from iwm.zoo import ZOO

    entry = ZOO.get(name)
    config = _config(entry) if entry else read_architecture(name)
    exported = None if entry else _exported(name)
    if as_json:
        import json

        sizes: dict[str, Any] = dict(_parameters(config))
        if config.adapters:
            sizes["adapters"] = {name: config.adapter_parameters(name) for name in config.adapters}
        about = {"export": exported} if exported else {}
        print_json({"parameters": sizes} | about | json.loads(to_json(config)))
        return
    counts = {part: _millions(count) for part, count in _parameters(config).items()}
    e, p = config.encoder, config.predictor
    _say(f"{config.name}: {entry.summary}" if entry else f"{config.name}, in {name}", style="bold")
    lines = {
        "encoder": f"ViT {e.depth} x {e.width}, patch {e.patch_size}, {counts['encoder']} parameters",
        "world model": f"{p.depth} x {p.width}, {p.layout_name}, {p.conditioning}, "
        f"{counts['predictor']} parameters",
        "input": f"{config.preprocess.size} px (shorter side to {config.preprocess.resize}, centre crop)",
        "actions": "none: it was finetuned as a whole"
        if config.tuned
        else f"{config.actions.encoding}, {'symmetric' if config.actions.symmetric else 'targets have jitter only'}",
        "weights": _place(entry) if entry else _folder(name, exported),
        "licence": config.license,
    }
    _say_pairs(lines)
    for title, values in (
        ("tasks", _tasks(config)),
        ("provenance", _provenance(config)),
        ("metrics", _headlines(config.metrics)),
    ):
        if values:
            _say(title, style="bold")
            _say_pairs(values)
    command = config.recipe.get("command") or (entry.recipe_command if entry else None)
    if command:
        _say("train it", style="bold")
        _say(f"  {_line(command)}")
    _say("cite", style="bold")
    _say(CITATION)


def _tasks(config: WorldModelConfig) -> dict[str, str]:
    """One line a task: classes, score, and the adapter that solves it."""
    from iwm.model_card import scores

    lines = {}
    for adapter_name, adapter in config.adapters.items():
        measured = scores(adapter.metrics)
        size = f"{adapter_name} ({_millions(config.adapter_parameters(adapter_name))} parameters)"
        for name, task in adapter.tasks.items():
            kind, value = measured.get(name, ("", 0.0))
            score = f"{kind} {value:.3f}" if kind else "not measured"
            lines[name] = f"{task.kind}, {len(task.labels)} classes, {score}; {size}; {adapter.license}"
    return lines


def _say(text: str, style: str | None = None) -> None:
    console.print(printable(text), style=style)


def _say_pairs(values: dict[str, str]) -> None:
    width = min(40, max(12, *map(len, values)))
    for key, value in values.items():
        _say(f"  {_line(key):{width}} {_line(value)}")


def _line(text: object) -> str:
    """On one line: a value must not look like the line of another."""
    return " ".join(str(text).split())


def _place(entry: ZooEntry) -> str:
    return f"hub: {entry.hub.repo}@{entry.hub.revision}" if entry.hub else entry.weights


def _exported(name: str) -> dict[str, str] | None:
    """Backend, precision and space of a folder that `iwm export` wrote for another runtime."""
    from iwm.model_folder import EXPORT_FILE

    if not os.path.isfile(os.path.join(name, EXPORT_FILE)):
        return None
    from iwm.runtimes import read_about  # It needs torch.

    return read_about(Path(name))


def _folder(name: str, exported: dict[str, str] | None) -> str:
    if exported is None:
        return f"in {name}"
    backend, precision = exported["backend"], exported["precision"]
    return f'exported for {backend}, {precision}: iwm.load("{name}", backend="{backend}")'


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
    """What the checkpoint says where it is here, else the table."""
    from iwm.errors import IWMError
    from iwm.finding import fetch_entry, read_architecture
    from iwm.hub_client import HubOptions
    from iwm.model_folder import CONFIG_FILE, read_config

    if entry.embedded:
        return read_architecture(entry.name)
    if entry.hub is not None:
        with contextlib.suppress(IWMError):  # Not in the cache: listing makes no request.
            fetched = fetch_entry(entry.hub, [CONFIG_FILE], None, HubOptions(local_files_only=True))
            return read_config(fetched.folder)
    return entry.config


def _parameters(config: WorldModelConfig) -> dict[str, int]:
    encoder, predictor = config.counts
    return {"encoder": encoder, "predictor": predictor}


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"


def _provenance(config: WorldModelConfig) -> dict[str, str]:
    """One line a fact; data folders with their numbers of images."""
    from iwm.model_card import in_words

    lines = {key: in_words(value) for key, value in config.provenance.items()}
    folders = config.provenance.get("data")
    if isinstance(folders, list) and all(isinstance(d, dict) for d in folders):
        lines["data"] = ", ".join(f"{d.get('folder')} ({d.get('images')})" for d in folders)
    return lines


def _headlines(metrics: dict[str, Any]) -> dict[str, str]:
    """One line a metric: its headline number and the command that gives it."""
    from iwm.model_card import scores

    measured = scores(metrics)
    return {
        name: f"{measured[name][1]:.3f}  {value.get('command', '')}" if name in measured else str(value)
        for name, value in metrics.items()
    }


def _headline(metrics: dict[str, Any]) -> list[str]:
    """A model's scores in the columns of `_HEADLINES`, where they were measured."""
    from iwm.model_card import scores

    measured = scores(metrics)
    cells = []
    for prefixes in _HEADLINES.values():
        found = next((measured[n][1] for p in prefixes for n in measured if n.startswith(p)), None)
        cells.append("" if found is None else f"{found:.3f}")
    return cells
