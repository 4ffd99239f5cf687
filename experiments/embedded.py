r"""The whole chain behind the embedded weights: train, measure, compare, install, document.

    cd FOLDER  # that holds imagenette/, caltech101/, clothing/ and photos/
    python .../experiments/embedded.py

It trains `iwm-tiny` and its invariant twin by their recipes, measures both on imagenette's
validation split, sets the scores beside those of the weights in the package, and stops there if
the new ones are not better on every measure (`--force` goes on). Then it replaces the weights,
writes the scores into README.md and MODEL_CARD.md and makes the demo's picture again. Every
command is printed; what is done already is not done again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import iwm
from iwm.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_config
from iwm.config import WorldModelConfig
from iwm.files import write_text
from iwm.model_card import write_card
from iwm.zoo import WEIGHTS

ROOT = Path(iwm.__file__).parents[1]
NAMES = ("iwm-tiny", "iwm-tiny-inv")
DATA = ("imagenette/train", "caltech101/train", "clothing/train", "photos")
LICENSE = "research only (trained on ImageNet photographs)"
APPLY, UNDO, KNN = "apply-mrr-full-100x256", "undo-mrr-full-100x256", "knn-20-imagenette/val"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="run folders are made in it")
    parser.add_argument("--force", action="store_true", help="replace better weights too")
    parser.add_argument("--dry", action="store_true", help="train, measure and compare only")
    options = parser.parse_args()
    for name in NAMES:
        train(name, options.runs / name)
        measure(options.runs / name)
    worse = compare(read_config(WEIGHTS / "iwm-tiny"), read_config(options.runs / "iwm-tiny"))
    if options.dry:
        return
    if worse and not options.force:
        sys.exit(f"Not better on every measure ({', '.join(worse)}): nothing was replaced.")
    for name in NAMES:
        install(options.runs / name, WEIGHTS / name)
    document(read_config(WEIGHTS / "iwm-tiny"), read_config(WEIGHTS / "iwm-tiny-inv"))
    call("demo", "--out", str(ROOT / "docs" / "demo.png"))


def train(name: str, run: Path) -> None:
    """By the recipe; a finished run is only exported again."""
    folders = [word for folder in DATA for word in ("--data", folder)]
    call("pretrain", "--recipe", name, *folders, "--out", str(run), "--model.license", LICENSE)


def measure(run: Path) -> None:
    """Record the scores that are not recorded yet."""
    known = read_config(run).metrics
    model = ["--model", str(run), "--record"]
    for metric, protocol in ((APPLY, "apply"), (UNDO, "undo")):
        if metric not in known:
            call("eval", "mrr", *model, "--data", "imagenette/val", "--protocol", protocol, "--distribution", "full")  # fmt: skip
    if KNN not in known:
        call("eval", "knn", *model, "--train", "imagenette/train", "--val", "imagenette/val")


def call(*words: str) -> None:
    """One `iwm` command, printed as it can be typed."""
    print(shlex.join(["iwm", *words]), flush=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-m", "iwm", *words], env=environment, check=True)


def headline(config: WorldModelConfig) -> dict[str, float]:
    """What is compared."""
    apply, undo, knn = (config.metrics[name] for name in (APPLY, UNDO, KNN))
    return {
        "apply-MRR": apply["overall"]["mrr"],
        "undo-MRR": undo["overall"]["mrr"],
        "undo-MRR, jitter alone": undo["per_transformation"]["jitter"]["mrr"],
        "20-NN": knn["accuracy"],
    }


def compare(old: WorldModelConfig, new: WorldModelConfig) -> list[str]:
    """Print both; the measures on which the new weights are not better."""
    before, after = headline(old), headline(new)
    for name, value in after.items():
        print(f"{name:25} {before[name]:.3f} -> {value:.3f}")
    return [name for name, value in after.items() if value <= before[name]]


def install(run: Path, folder: Path) -> None:
    """Copy a run's model into the package, its commands about the name it has there."""
    folder.mkdir(exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(run / name, folder / name)
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    write_text(folder / CONFIG_FILE, text.replace(f"--model {run}", f"--model {folder.name}"))
    if folder.name != "iwm-tiny":  # Whose licence is there, and whose card is MODEL_CARD.md.
        shutil.copyfile(WEIGHTS / "iwm-tiny" / "LICENSE", folder / "LICENSE")
        write_text(folder / "README.md", write_card(read_config(folder), folder.name))


def document(model: WorldModelConfig, twin: WorldModelConfig) -> None:
    """Write scores and training into the marked places of README.md and MODEL_CARD.md."""
    places = {"scores": scores(model, twin), "training": training(model)}
    for name in ("README.md", "MODEL_CARD.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for place, content in places.items():
            before, begin, rest = text.partition(f"<!-- {place}: begin -->\n")
            _, end, after = rest.partition(f"\n<!-- {place}: end -->")
            if end:
                text = before + begin + content + end + after
        write_text(ROOT / name, text)


def scores(model: WorldModelConfig, twin: WorldModelConfig) -> str:
    """The table of scores, and the commands that give them."""
    apply, undo, knn = (model.metrics[name] for name in (APPLY, UNDO, KNN))
    lines = ["| | MRR | hits@1 | hits@5 | hits@10 |", "|---|---|---|---|---|"]
    baselines = {
        "wrong_action": "wrong action",
        "floor": "floor",
        "no_action": "no action",
        "chance": "chance",
    }
    for word, report in (("apply", apply), ("undo", undo)):
        lines.append(_row(f"**{word}**", report["overall"]))
        for kind, values in report["per_transformation"].items():
            lines.append(_row(f"{word}, {'jitter alone' if kind == 'jitter' else kind}", values))
        for kind, values in report["baselines"].items():
            lines.append(_row(f"{word}, baseline: {baselines[kind]}", values))
        other = twin.metrics[APPLY if word == "apply" else UNDO]
        lines.append(_row(f"{word}, baseline: the invariant twin", other["overall"]))
    other_knn = twin.metrics[KNN]
    return "\n".join(
        [
            *lines, "", "```", apply["command"], undo["command"], "```", "",
            "What pooled latents know without training, 20-nearest-neighbour accuracy on imagenette (ten classes):",
            f"{knn['accuracy']:.1%}; the invariant twin's {other_knn['accuracy']:.1%}; the same encoder at random weights",
            f"{knn['random_encoder']:.1%}.", "", "```", knn["command"], "```",
        ]
    )  # fmt: skip


def training(model: WorldModelConfig) -> str:
    """How the weights were made."""
    facts: dict[str, Any] = model.provenance
    batch = model.recipe["batch_size"]
    return "\n".join(
        [
            f"{facts['images_seen']:,} crops ({facts['steps']:,} steps of {batch}) of {facts['images']:,} photographs, "
            f"{facts['hours']:.1f} hours on {facts['machine']}:",
            "", "```", model.recipe["command"], "```",
        ]
    )  # fmt: skip


def _row(name: str, values: dict[str, Any]) -> str:
    cells = (values["mrr"], *values["hits"].values())
    return f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


if __name__ == "__main__":
    main()
