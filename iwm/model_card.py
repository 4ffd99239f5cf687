"""The model card of a checkpoint, written from its config: nothing in it was typed by hand.

The front matter is what the Hugging Face Hub reads: licence, library, task, data, scores.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from iwm.config import WorldModelConfig
from iwm.fields import Json

_PAPER = "https://arxiv.org/abs/2403.00504"
_SPLITS = ("train", "val", "valid", "validation", "test", "images")
_LICENSES = (
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "openrail",
)  # fmt: skip

CARD_FILE = "README.md"
MARK = "<!-- Written from config.json, and again with it. Take this line out to keep what you change. -->"
"""Of a card that nobody has changed."""

CITATION = """@article{garrido2024iwm,
  title   = {Learning and Leveraging World Models in Visual Representation Learning},
  author  = {Garrido, Quentin and Assran, Mahmoud and Ballas, Nicolas and Bardes, Adrien and
             Najman, Laurent and LeCun, Yann},
  journal = {arXiv:2403.00504},
  year    = {2024}
}"""


def write_card(config: WorldModelConfig, repo_id: str | None = None) -> str:
    """The text of `README.md`, of a repository of the Hub or of a folder.

    Args:
        config: of the checkpoint; scores, data and licence are taken from it.
        repo_id: `org/name`, for the example and the title; None for a folder.
    """
    name = (repo_id or config.name).rpartition("/")[2]
    return f"---\n{_front_matter(config, name)}\n---\n\n{MARK}\n\n{_body(config, name, repo_id or 'FOLDER')}"


def may_replace(path: Path) -> bool:
    """Whether there is no card in this place, or one that nobody has made their own."""
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return True
    except OSError:  # Somebody's folder of this name, or a file that may not be read.
        return False


def scores(metrics: Json) -> dict[str, tuple[str, float]]:
    """Headline number of every recorded metric that has one: name to (kind of score, value)."""
    found = {}
    for name, metric in metrics.items():
        if not isinstance(metric, dict):
            continue
        overall = metric.get("overall")
        if isinstance(overall, dict):
            kind, value = "mrr", overall.get("mrr")
        else:
            kind = "miou" if "miou" in metric else "accuracy"
            value = metric.get(kind)
        if isinstance(metric.get("predicted"), dict):  # A decoder's: how well predictions are seen.
            kind, value = "ssim", metric["predicted"].get("ssim")
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            found[name] = (kind, float(value))
    return found


def datasets(provenance: Json) -> list[str]:
    """Names of the data folders, without where they lay on somebody's disk, and without splits."""
    folders = provenance.get("data")
    if not isinstance(folders, list):
        return []
    names = []
    for folder in folders:
        path = str(folder.get("folder", "")) if isinstance(folder, dict) else ""
        parts = PurePosixPath(path.replace("\\", "/")).parts
        while parts and parts[-1].lower() in _SPLITS:
            parts = parts[:-1]
        name = re.sub(r"[^\w.-]", "", parts[-1]).strip(".-") if parts else ""
        if name and name not in names:
            names.append(name)
    return names


def _front_matter(config: WorldModelConfig, title: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    known = config.license.lower() in _LICENSES
    measured = [("image-feature-extraction", config.metrics)]
    for adapter in config.adapters.values():
        for name, task in adapter.tasks.items():
            measured.append((f"image-{task.kind}", {name: adapter.metrics.get(name)}))
    results = [
        EvalResult(
            task_type=kind_of_task, dataset_type=_dataset_of(name, metrics[name]), metric_type=kind,
            dataset_name=_dataset_of(name, metrics[name]), metric_name=name, metric_value=round(value, 4),
        )
        for kind_of_task, metrics in measured
        for name, (kind, value) in scores(metrics).items()
    ]  # fmt: skip
    card = ModelCardData(
        license=config.license.lower() if known else "other",
        license_name=None
        if known
        else (re.sub(r"[^a-z0-9]+", "-", config.license.lower()).strip("-") or "unspecified"),
        library_name="iwm",
        pipeline_tag="image-feature-extraction",
        tags=["world-model", "jepa", "self-supervised", "arxiv:2403.00504"],
        datasets=datasets(config.provenance) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return card.to_yaml().strip()


def _dataset_of(name: str, metric: Json) -> str:
    """What a metric was measured on, by its command's data folder, else by its own name."""
    try:
        command = shlex.split(str(metric.get("command", "")))
    except ValueError:  # A stranger's.
        return name
    for option in ("--data", "--val"):
        if option in command[:-1]:
            named = datasets({"data": [{"folder": command[command.index(option) + 1]}]})
            if named:
                return named[0]
    return name


def _body(config: WorldModelConfig, title: str, place: str) -> str:
    e, p = config.encoder, config.predictor
    strength = config.actions.distribution
    lines = [
        f"# {title}",
        "",
        f"An Image World Model ([arXiv 2403.00504]({_PAPER})) for the `iwm` library: an encoder and a world",
        "model that applies photometric actions to its latents.",
        "",
        "```python",
        "import iwm",
        "",
        f'model = iwm.load("{place}")',
        'latent = model.encode("photo.jpg")',
        *([] if config.tuned else ["moved = model.apply_action(latent, iwm.Action(brightness=1.4))"]),
        *_example(config),
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| encoder | ViT, {e.depth} x {e.width} (depth x width), {e.heads} heads, patch {e.patch_size} |",
        f"| world model | {p.depth} x {p.width}, layout `{p.layout_name}`, conditioning `{p.conditioning}` |",
        f"| parameters | {config.parameters:,} |",
        f"| input | {config.preprocess.size} x {config.preprocess.size} pixels, shorter side resized to {config.preprocess.resize} |",
        f"| actions | encoded as `{config.actions.encoding}`; "
        f"{'targets had grayscale, blur and solarize too' if config.actions.symmetric else 'targets had jitter alone'} |",
        f"| trained range | brightness, contrast, saturation, hue up to {strength.brightness}, {strength.contrast}, "
        f"{strength.saturation}, {strength.hue} from neutral |",
        f"| licence of the weights | {_line(config.license)} |",
        "",
    ]
    lines += _tasks(config)
    measured = scores(config.metrics)
    if measured:
        lines += ["## Scores", "", "| metric | value | command |", "|---|---|---|"]
        lines += [
            f"| {_line(name)} | {kind} {value:.3f} | "
            f"`{_line(config.metrics[name].get('command', 'not recorded'))}` |"
            for name, (kind, value) in measured.items()
        ]
        lines.append("")
    lines += _training(config)
    lines += ["## Citation", "", "```bibtex", CITATION, "```", ""]
    return "\n".join(lines)


def _example(config: WorldModelConfig) -> list[str]:
    """A line for the first task."""
    for name, task in config.tasks.items():
        if task.kind == "segmentation":
            return [f'classes = model.segment("photo.jpg", task="{name}")  # [H, W]']
        return [f'print(model.classify(latent, task="{name}", topk=3))']
    return []


def _tasks(config: WorldModelConfig) -> list[str]:
    if not config.adapters:
        return []
    lines = ["## Tasks", "", "| task | classes | head | score | adapter | data | licence |", "|---" * 7 + "|"]
    for adapter_name, adapter in config.adapters.items():
        measured = scores(adapter.metrics)
        size = f"{config.adapter_parameters(adapter_name) / 1e6:.2f} M parameters"
        for name, task in adapter.tasks.items():
            kind, value = measured.get(name, ("", 0.0))
            cells = (
                name, len(task.labels), f"{task.head} ({task.kind})",
                f"{kind} {value:.3f}" if kind else "not measured", f"{adapter_name}, {size}",
                ", ".join(datasets(adapter.provenance)) or "not recorded", adapter.license,
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(_line, cells))} |")
    lines.append("")
    if config.tuned:
        lines += ["The model itself was finetuned for them: its world model no longer applies actions.", ""]
    return lines


def _training(config: WorldModelConfig) -> list[str]:
    lines = []
    names = datasets(config.provenance)
    if names:
        lines.append(f"- data: {', '.join(names)}")
    facts: dict[str, Any] = {key: value for key, value in config.provenance.items() if key != "data"}
    lines += [f"- {_line(key.replace('_', ' '))}: {_line(in_words(value))}" for key, value in facts.items()]
    if not lines:
        return ["Nothing is recorded about its training.", ""]
    return ["## Training", "", *lines, "", "Every setting stands in `config.json`.", ""]


def in_words(fact: Any) -> str:
    """What a provenance says of something; the sittings of a training one after another."""
    if (
        not isinstance(fact, list)
        or not fact
        or not all(isinstance(s, dict) and "from_step" in s for s in fact)
    ):
        return str(fact)
    sittings = [
        ", ".join(f"{name} {value}" for name, value in sitting.items() if name != "from_step")
        for sitting in fact
    ]
    return "; ".join(f"from step {s['from_step']} on {told}" for s, told in zip(fact, sittings, strict=True))


def _line(value: Any) -> str:
    """Whatever a config holds as one line that fits into a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
