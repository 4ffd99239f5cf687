"""Loading a ViT-B-size checkpoint from the disk: iwm, timm and transformers, in one run.

Every load is a fresh process, from its start to its end, imports included; the libraries take
turns, so that a noisy machine disturbs all of them. Files are float16, models float32, and files
are in the page cache. For each library: the same process with the imports alone; the difference
is what loading itself costs. `iwm, first` has never seen the files and hashes them; `iwm` has.

    python benchmarks/load.py --rounds 5

Needs `transformers` for its row (an I-JEPA with a ViT-B encoder, local folder).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_IMPORTS = {
    "iwm": "import iwm; iwm.load",
    "iwm, first": "import iwm; iwm.load",
    "timm": "import timm, safetensors.torch",
    "transformers": "import torch; from transformers import IJepaModel",
}
_LOADS = {
    "iwm": "iwm.load('bench/vit-b@{commit}', cache_dir='{folder}/iwm', local_files_only=True)",
    "iwm, first": "iwm.load('bench/vit-b@{commit}', cache_dir='{folder}/iwm', local_files_only=True)",
    "timm": "timm.create_model('vit_base_patch16_224', pretrained=True, num_classes=0, "
    "pretrained_cfg_overlay=dict(file='{folder}/timm/model.safetensors', num_classes=0))",
    "transformers": "IJepaModel.from_pretrained('{folder}/transformers', dtype=torch.float32)",
}


@dataclass
class Cost:
    """Wall time in seconds and peak resident memory in bytes of one process."""

    seconds: float
    peak: float


def make_files(folder: Path, names: list[str]) -> dict[str, int]:
    """Write a checkpoint for each library; the bytes of weights, by library."""
    from safetensors.torch import save_file

    sizes = {}
    for name in names:
        target = folder / name.partition(",")[0]
        if name == "iwm":
            import iwm
            from iwm.integrity import hash_file

            saved = folder / "saved"
            iwm.load("iwm-equi-18-384", pretrained=False).save_pretrained(saved)
            repo = target / "models--bench--vit-b"
            (repo / "blobs").mkdir(parents=True)
            (repo / "snapshots" / COMMIT).mkdir(parents=True)
            for file, algorithm in (("config.json", "git"), ("model.safetensors", "sha256")):
                blob = hash_file(saved / file, algorithm)  # type: ignore[arg-type]
                shutil.move(saved / file, repo / "blobs" / blob)
                (repo / "snapshots" / COMMIT / file).symlink_to(f"../../blobs/{blob}")
                sizes[name] = sizes["iwm, first"] = (repo / "blobs" / blob).stat().st_size
        elif name == "timm":
            import timm

            model = timm.create_model("vit_base_patch16_224", num_classes=0)
            target.mkdir()
            half = {key: value.half().contiguous() for key, value in model.state_dict().items()}
            save_file(half, target / "model.safetensors")
            sizes[name] = (target / "model.safetensors").stat().st_size
        elif name == "transformers":
            from transformers import IJepaConfig, IJepaModel

            IJepaModel(IJepaConfig()).half().save_pretrained(target)
            sizes[name] = (target / "model.safetensors").stat().st_size
    return sizes


def run(code: str) -> Cost:
    """Run Python code in a fresh process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    start = time.perf_counter()
    null = os.open(os.devnull, os.O_WRONLY)
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", code], environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)],
    )  # fmt: skip
    _, status, usage = os.wait4(child, 0)
    os.close(null)
    if status:
        raise SystemExit(f"failed: {code}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(time.perf_counter() - start, usage.ru_maxrss * unit)


def forget(folder: Path) -> None:
    """As if iwm had never seen the files."""
    shutil.rmtree(folder / "iwm" / "models--bench--vit-b" / ".iwm", ignore_errors=True)


def measure(folder: Path, names: list[str], rounds: int) -> dict[str, dict[str, list[Cost]]]:
    """Costs of importing and of loading, by library; the first round only warms up."""
    costs: dict[str, dict[str, list[Cost]]] = {n: {"imports": [], "load": []} for n in names}
    for turn in range(rounds + 1):
        for name in names:
            if name == "iwm, first":
                forget(folder)
            imports = run(_IMPORTS[name])
            load = run(f"{_IMPORTS[name]}\n{_LOADS[name].format(folder=folder, commit=COMMIT)}")
            if turn:
                costs[name]["imports"].append(imports)
                costs[name]["load"].append(load)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = ["iwm, first", "iwm", "timm"]
    if importlib.util.find_spec("transformers"):
        names.append("transformers")
    if options.make:
        (options.make / "sizes.json").write_text(json.dumps(make_files(options.make, names)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In a process of its own: a child's peak memory counts from its parent's.
        subprocess.run([sys.executable, __file__, "--make", temporary], check=True)
        sizes = json.loads((folder / "sizes.json").read_text())
        costs = measure(folder, names, options.rounds)
    rows = []
    for name in names:
        median = {
            (kind, field): statistics.median(getattr(cost, field) for cost in costs[name][kind])
            for kind in ("imports", "load")
            for field in ("seconds", "peak")
        }
        weights = 2 * sizes[name]  # In memory: float32.
        rows.append(
            {
                "name": name,
                "file_mb": sizes[name] / 1e6,
                "seconds": median["load", "seconds"],
                "imports_seconds": median["imports", "seconds"],
                "seconds_per_gb": median["load", "seconds"] / sizes[name] * 1e9,
                "loading_seconds_per_gb": (median["load", "seconds"] - median["imports", "seconds"]) / sizes[name] * 1e9,
                "peak_mb": median["load", "peak"] / 1e6,
                "peak_ratio": median["load", "peak"] / (weights + median["imports", "peak"]),
            }
        )  # fmt: skip
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs; medians of {options.rounds} rounds\n")
    print(
        "| | file | whole process | imports alone | per GB of file | per GB, less imports | peak memory | peak / (weights + imports) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['file_mb']:.0f} MB | {row['seconds']:.2f} s | {row['imports_seconds']:.2f} s "
            f"| {row['seconds_per_gb']:.1f} s | {row['loading_seconds_per_gb']:.1f} s "
            f"| {row['peak_mb']:.0f} MB | {row['peak_ratio']:.2f} |"
        )  # fmt: skip


if __name__ == "__main__":
    main()
