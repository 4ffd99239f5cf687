r"""The whole chain behind the embedded weights: train, measure, compare, install, document.

    cd FOLDER  # that holds imagenette/, caltech101/, clothing/ and photos/
    python .../experiments/embedded.py

It trains `iwm-tiny` by its recipe, measures it on imagenette's validation split, sets the scores
beside those of the weights in the package, and stops there if the new ones are not better on every
measure (`--force` goes on). What hangs on the weights comes next: an adapter for three tasks, a
decoder, the invariant twin. Then it replaces all of them in the package, writes the scores into
README.md and MODEL_CARD.md and makes the documents' pictures again. Every command is printed; what is
done already is not done again. `--without decoder` leaves a part out, of the package too: nothing
that belongs to other weights stays behind.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

import iwm
from iwm.config import WorldModelConfig
from iwm.files import write_text
from iwm.model_card import write_card
from iwm.model_folder import CONFIG_FILE, DECODER_FILE, WEIGHTS_FILE, read_config, task_file, write_config
from iwm.zoo import WEIGHTS, ZOO

ROOT = Path(iwm.__file__).parents[1]
MODEL, TWIN = "iwm-tiny", "iwm-tiny-inv"
PARTS = ("tasks", "decoder", TWIN)
DATA = ("imagenette/train", "caltech101/train", "clothing/train", "photos")
TASKS = ("imagenette", "caltech101", "clothing")
LICENSE = "research only (trained on ImageNet photographs)"
APPLY, UNDO, KNN = "apply-mrr-full-100x256", "undo-mrr-full-100x256", "knn-20-imagenette/val"
DECODED = "decoder-100x4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="run folders are made in it")
    parser.add_argument("--without", action="append", choices=PARTS, default=[], help="leave a part out")
    parser.add_argument("--force", action="store_true", help="replace better weights too")
    parser.add_argument("--dry", action="store_true", help="train, measure and compare only")
    options = parser.parse_args()
    base, shipped = options.runs / MODEL, WEIGHTS / MODEL
    train(MODEL, base)
    measure(base)
    worse = compare(read_config(shipped), read_config(base))
    same = filecmp.cmp(shipped / WEIGHTS_FILE, base / WEIGHTS_FILE, shallow=False)
    if options.dry:
        return
    if worse and not same and not options.force:
        sys.exit(f"Not better on every measure ({', '.join(worse)}): nothing was replaced.")
    tasks, decoder, twin = (None if part in options.without else options.runs / part for part in PARTS)
    if tasks:
        learn_tasks(base, tasks)
    if decoder:
        learn_to_decode(base, decoder)
    if twin:
        train(TWIN, twin)
        measure(twin)
    install(base, shipped, tasks, decoder)
    if twin:
        install(twin, WEIGHTS / TWIN)
    elif (WEIGHTS / TWIN).is_dir():
        shutil.rmtree(WEIGHTS / TWIN)
    document(read_config(shipped), read_config(WEIGHTS / TWIN) if twin else None)
    draw(ROOT / "docs")
    print(f"Left to do by hand: {'; '.join(left_by_hand())}.", flush=True)


def draw(docs: Path) -> None:
    """Make the documents' pictures again, by the commands that stand beside them."""
    from skimage.data import coffee

    call("demo", "--out", str(docs / "demo.png"))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "coffee.png"
        Image.fromarray(coffee()).save(photo)
        swept = ["--parameter", "brightness", "--parameter", "hue", "--decode", "--dpi", "78"]
        call("figure", "sweep", str(photo), *swept, "--out", str(docs / "sweep.png"))
    call("figure", "similarity", "--undo", "--out", str(docs / "similarity.png"), "--dpi", "110")


def left_by_hand() -> list[str]:
    """What this script does not do."""
    known = [
        f"embedded={not e.embedded} for {e.name} in iwm/zoo.py"
        for e in ZOO.values()
        if e.embedded != e.folder.is_dir()
    ]
    return ["docs/ui.png, a picture of `iwm ui`", "the tables of docs/", *known]


def train(name: str, run: Path) -> None:
    """By the recipe; a finished run is only exported again, with its scores and where it was trained."""
    before = read_config(run) if (run / CONFIG_FILE).is_file() else None
    folders = [word for folder in DATA for word in ("--data", folder)]
    call("pretrain", "--recipe", name, *folders, "--out", str(run), "--model.license", LICENSE)
    exported = read_config(run)
    if before and before.provenance["steps"] == exported.provenance["steps"]:
        exported = exported.replace(metrics=before.metrics, provenance=before.provenance)
        write_config(run, exported)


def measure(run: Path) -> None:
    """Record the scores that are not recorded yet."""
    known = read_config(run).metrics
    model = ["--model", str(run), "--record"]
    for metric, protocol in ((APPLY, "apply"), (UNDO, "undo")):
        if metric not in known:
            call("eval", "mrr", *model, "--data", "imagenette/val", "--protocol", protocol, "--distribution", "full")  # fmt: skip
    if KNN not in known:
        call("eval", "knn", *model, "--train", "imagenette/train", "--val", "imagenette/val")


def learn_tasks(model: Path, run: Path) -> None:
    """An adapter for all tasks at once [section 5.2]."""
    if not (run / "result.json").is_file():
        folders = [word for name in TASKS for word in ("--data", name)]
        call("finetune", "--model", str(model), *folders, "--out", str(run), "--license", LICENSE)


def learn_to_decode(model: Path, run: Path) -> None:
    """A decoder, and what it gets back of photographs it was not trained on."""
    known = read_config(run).metrics if (run / CONFIG_FILE).is_file() else {}
    if DECODED not in known:
        folders = [word for folder in DATA for word in ("--data", folder)]
        call("pretrain-decoder", "--model", str(model), *folders, "--out", str(run), "--license", LICENSE)
        call("eval", "decoder", "--model", str(run), "--data", "imagenette/val", "--record")


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


def install(model: Path, folder: Path, tasks: Path | None = None, decoder: Path | None = None) -> None:
    """Copy a model into the package, with the adapter and the decoder that other runs made for it.

    Commands are about the name that the model has there. Files of parts that are not there any
    more are removed.
    """
    config, files = read_config(model), {WEIGHTS_FILE: model}
    space = iwm.load(model).space
    if tasks:
        config = config.replace(adapters=read_config(tasks).adapters)
        files |= dict.fromkeys(map(task_file, config.adapters), tasks)
        for adapter in config.adapters.values():
            check_space(adapter.space, space, tasks)
    if decoder:
        made = read_config(decoder)
        check_space(made.decoder.space if made.decoder else "", space, decoder)
        config = config.replace(decoder=made.decoder, metrics=config.metrics | made.metrics)
        files[DECODER_FILE] = decoder
    folder.mkdir(exist_ok=True)
    for name, run in files.items():
        shutil.copyfile(run / name, folder / name)
    text = config.to_json()
    for run in {model, *files.values()}:
        text = re.sub(f'--model {re.escape(shlex.quote(str(run)))}(?=[ "])', f"--model {folder.name}", text)
        text = text.replace(f'"model": {json.dumps(str(run))}', f'"model": "{folder.name}"')
    write_text(folder / CONFIG_FILE, text)
    for file in folder.glob("*.safetensors"):
        if file.name not in files:
            file.unlink()
    if folder.name != MODEL:  # Whose licence is there, and whose card is MODEL_CARD.md.
        shutil.copyfile(WEIGHTS / MODEL / "LICENSE", folder / "LICENSE")
        write_text(folder / "README.md", write_card(read_config(folder), folder.name))


def check_space(found: str, expected: str, run: Path) -> None:
    """End the script if a part was trained on another encoder."""
    if found != expected:
        sys.exit(
            f"{run} was trained on other weights (space {found}, now {expected}); remove it and start again."
        )


def document(model: WorldModelConfig, twin: WorldModelConfig | None) -> None:
    """Write scores and training into the marked places of README.md and MODEL_CARD.md."""
    places = {"scores": scores(model, twin), "training": training(model), "parts": parts(model)}
    for name in ("README.md", "MODEL_CARD.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        if "<!-- scores: begin -->" not in text:
            sys.exit(f"{name} has no place for scores.")
        for place, content in places.items():
            before, begin, rest = text.partition(f"<!-- {place}: begin -->\n")
            _, end, after = rest.partition(f"\n<!-- {place}: end -->")
            if end:
                text = before + begin + content + end + after
        write_text(ROOT / name, text)


def scores(model: WorldModelConfig, twin: WorldModelConfig | None) -> str:
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
        if twin is not None:
            other = twin.metrics[APPLY if word == "apply" else UNDO]
            lines.append(_row(f"{word}, baseline: the invariant twin", other["overall"]))
    others = [f"the same encoder at random weights {knn['random_encoder']:.1%}"]
    if twin is not None:
        others.insert(0, f"the invariant twin {twin.metrics[KNN]['accuracy']:.1%}")
    return "\n".join(
        [
            *lines, "", "```", apply["command"], undo["command"], "```", "",
            "What its pooled latents know without training, 20-nearest-neighbour accuracy on imagenette (ten classes):",
            f"{knn['accuracy']:.1%}, {', '.join(others)}.", "", "```", knn["command"], "```",
        ]
    )  # fmt: skip


def parts(model: WorldModelConfig) -> str:
    """What comes with the weights: tasks and the decoder, their scores and commands."""
    lines = []
    for name, adapter in model.adapters.items():
        lines += ["| task | classes | accuracy | photographs |", "|---|---|---|---|"]
        commands = []
        for task, described in adapter.tasks.items():
            values = adapter.metrics[task]
            lines.append(
                f"| {task} | {len(described.labels)} | {values['accuracy']:.1%} | {values['images']} |"
            )
            commands.append(values["command"])
        size = (WEIGHTS / MODEL / task_file(name)).stat().st_size / 1e6
        lines += [
            "", f"One adapter of {size:.1f} MB, on the frozen encoder. Its best weights were chosen on these photographs.",
            "", "```", adapter.recipe["command"], *commands, "```", "",
        ]  # fmt: skip
    if model.decoder is not None:
        values = model.metrics[DECODED]
        lines += ["| decoded, against the photograph itself or transformed | PSNR | SSIM |", "|---|---|---|"]
        for kind, words in {
            "encoded": "encoded",
            "predicted": "encoded and acted on",
            "transformed": "transformed, then encoded",
            "untouched": "baseline: encoded, not acted on",
        }.items():
            lines.append(f"| {words} | {values[kind]['psnr']:.2f} dB | {values[kind]['ssim']:.3f} |")
        size = (WEIGHTS / MODEL / DECODER_FILE).stat().st_size / 1e6
        lines += [
            "", f"A decoder of {size:.1f} MB, trained on the frozen encoder.",
            "", "```", model.decoder.recipe["command"], values["command"], "```", "",
        ]  # fmt: skip
    return (
        "\n".join(lines).strip() or "No adapters and no decoder yet: `iwm finetune`, `iwm pretrain-decoder`."
    )


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
