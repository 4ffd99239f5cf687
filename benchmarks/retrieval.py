"""Libraries on disk: recall against brute force, latency, size and time to index.

    python benchmarks/retrieval.py --photos imagenette/train --rows 10000 100000

Recall is over real photographs: the first rows of a library are encodings of them, and where a
library is to have more rows than there are photographs, the rest are mosaics, each quarter of a
grid from another photograph. Queries are photographs that are in no row, one half as they are and
one half acted on by the world model. Truth is brute force over float32 tokens. `--first-stage` shows
what other short vectors and what int8 tokens would find; `--speed N` compares indexing with bare
`encode` on N files, in turn; `--memory N` indexes N files in a process of its own, a commit for every
eighth of them, and prints the most memory it took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import iwm
from iwm.bank import distances
from iwm.images import list_images
from iwm.index.encoding import Encoded, to_rows
from iwm.index.photo import Photo
from iwm.index.sketch import sketch
from iwm.index.store import schema
from iwm.index.walk import Found
from iwm.latent import Latent

K = 10
PIECE = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--real", type=int, default=4000, help="photographs to encode")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--first-stage", action="store_true")
    parser.add_argument("--speed", type=int, default=0, metavar="N")
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to make the libraries; a temporary folder by default"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    model = iwm.load()
    files = list_images(options.photos)
    order = torch.randperm(len(files)).tolist()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        if options.speed:
            chosen = [files[i] for i in order[: options.speed]]
            print(json.dumps(indexing_speed(model, chosen, options.rounds, Path(temporary))), flush=True)
        if options.memory:
            chosen = [files[i] for i in order[: options.memory]]
            print(json.dumps(indexing_memory(chosen, Path(temporary))), flush=True)
        if not options.rows and not options.first_stage:
            return
        tokens = model.encode([files[i] for i in order[: options.real]]).tokens
        held, rows = tokens[: options.queries], tokens[options.queries :]
        half = options.queries // 2
        moved = model.apply_action(
            Latent(held[half:], *about(model)), iwm.Action.sample(options.queries - half, seed=0)
        )
        queries = torch.cat([held[:half], moved.tokens])
        if options.first_stage:
            first_stages(queries, rows)
        for size in options.rows:
            print(json.dumps(measure(model, queries, rows, size, Path(temporary))), flush=True)


def about(model: iwm.WorldModel) -> tuple[tuple[int, int], str]:
    """Grid and space of a model's latents."""
    side = model.preprocess.size // model.config.encoder.patch_size
    return (side, side), model.space


def indexing_speed(model: iwm.WorldModel, files: list[Path], rounds: int, folder: Path) -> dict[str, float]:
    """Seconds of indexing and of bare `encode` on the same files, in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {"encode": [], "index": []}
    for turn in range(rounds + 1):
        library = iwm.Index.create(folder / f"speed-{turn}.lance", model)
        works: dict[str, Callable[[], object]] = {
            "encode": lambda: model.encode(files),
            "index": lambda library=library: library.update(model, files),  # type: ignore[misc]
        }
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["index"], seconds["encode"], strict=True)]
    return {name: round(statistics.median(values), 3) for name, values in seconds.items()} | {
        "files": len(files), "ratio": round(statistics.median(ratios), 3), "load": round(os.getloadavg()[0], 1)
    }  # fmt: skip


INDEXING = """
import json, resource, sys
import iwm
from iwm.index import update
update.COMMIT_ROWS = int(sys.argv[2])
peak = lambda: round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
model = iwm.load()
library = iwm.Index.create(sys.argv[1], model)
taken = [peak()]
library.update(model, json.load(sys.stdin), on_commit=lambda _: taken.append(peak()))
print(json.dumps(taken + [peak()]))
"""


def indexing_memory(files: list[Path], folder: Path) -> dict[str, object]:
    """Peak of the resident memory of a process that indexes: before, after each commit, at the end."""
    commit = max(len(files) // 8, 1)
    done = subprocess.run(
        [sys.executable, "-c", INDEXING, folder / "memory.lance", str(commit)],
        input=json.dumps([str(file.absolute()) for file in files]), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"files": len(files), "files a commit": commit, "peak MB": json.loads(done.stdout)}


def mosaics(rows: Tensor, size: int) -> Iterator[Tensor]:
    """`size` latents in pieces: all rows, then quarters of four rows each."""
    side = int(rows.shape[1] ** 0.5)
    place = torch.arange(side * side)
    quarter = place // side // (side // 2) * 2 + place % side // (side // 2)
    generator = torch.Generator().manual_seed(1)
    for start in range(0, size, PIECE):
        count = min(PIECE, size - start)
        piece = rows[start : start + count].clone()
        more = count - len(piece)
        if more:
            sources = torch.randint(0, len(rows), (more, 4), generator=generator)
            made = torch.empty(more, *rows.shape[1:], dtype=rows.dtype)
            for q in range(4):
                made[:, quarter == q] = rows[sources[:, q]][:, quarter == q]
            piece = torch.cat([piece, made])
        yield piece


def measure(
    model: iwm.WorldModel, queries: Tensor, rows: Tensor, size: int, folder: Path
) -> dict[str, object]:
    """Build a library of `size` rows and search it."""
    path = folder / f"{size}.lance"
    index = iwm.Index.create(path, model)
    nearest, writing, start = torch.empty(len(queries), 0), 0.0, 0
    names = torch.empty(len(queries), 0, dtype=torch.long)
    for piece in mosaics(rows, size):
        begin = time.perf_counter()
        photos = [
            Photo(Found(f"/{start + i}.jpg", 1, 1), "", 1, 1, None, "", None) for i in range(len(piece))
        ]
        encoded = Encoded(
            photos=photos, known=[False] * len(piece), tokens=piece.flatten(1).half().numpy(),
            sketches=sketch(piece).half().numpy(), same=[], skipped=[],
        )  # fmt: skip
        index._store.append(to_rows([(encoded, list(range(len(piece))))], schema(index._store.about)))
        writing += time.perf_counter() - begin
        joined = torch.cat([nearest, distances(queries, piece)], dim=1)
        labels = torch.cat([names, torch.arange(start, start + len(piece)).expand(len(queries), -1)], dim=1)
        kept = joined.topk(min(K, joined.shape[1]), largest=False)
        nearest, names, start = kept.values, labels.gather(1, kept.indices), start + len(piece)
    begin = time.perf_counter()
    index._store.maintain()
    maintaining = time.perf_counter() - begin
    used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    latents = Latent(queries, *about(model))
    index.search(latents[:1], K)
    times, hits, work = [], [], time.process_time()
    for i in range(len(queries)):
        begin = time.perf_counter()
        found = index.search(latents[i], K)
        times.append(1e3 * (time.perf_counter() - begin))
        wanted = {f"/{name}.jpg" for name in names[i].tolist()}
        hits.append(len(wanted & set(found.ids[0])) / K)
    work = 1e3 * (time.process_time() - work) / len(queries)
    half = len(queries) // 2
    times.sort()
    return {
        "rows": size,
        "recall@10, photographs": round(statistics.mean(hits[:half]), 3),
        "recall@10, predictions": round(statistics.mean(hits[half:]), 3),
        "p50 ms": round(statistics.median(times), 1),
        "p99 ms": round(times[int(0.99 * (len(times) - 1))], 1),
        "min ms": round(times[0], 1),
        "CPU ms": round(work, 1),
        "writing s": round(writing, 1),
        "index of sketches s": round(maintaining, 1),
        "bytes an image": round(used / size),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load": round(os.getloadavg()[0], 1),
    }


def first_stages(queries: Tensor, rows: Tensor) -> None:
    """Distances; the share of the ten nearest that shorter vectors find; tokens in fewer bits."""
    every = distances(queries, rows)
    near = every.topk(K, largest=False)
    truth = near.indices
    tenth, median = near.values[:, -1].median().item(), every.median().item()
    print(f"distance of the {K}th nearest: {tenth:.0f}; of any row: {median:.0f} (medians)")
    counts = (100, 200, 400)
    print(f"| first stage, {len(rows)} rows | numbers | " + " | ".join(map(str, counts)) + " |")
    stages: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("mean of all tokens", lambda t: _blocks(t, 1)),
        ("means of the quarters", lambda t: _blocks(t, 2)),
        ("means of 2 x 2 tokens", lambda t: _blocks(t, 4)),
        ("sketch", lambda t: sketch(t).half().float()),
    ]
    for name, short in stages:
        vectors = torch.cat([short(rows[i : i + PIECE]) for i in range(0, len(rows), PIECE)])
        order = torch.cdist(short(queries), vectors).topk(counts[-1], largest=False).indices
        recalls = [recall(truth, order[:, :count]) for count in counts]
        print(f"| {name} | {vectors.shape[1]} | " + " | ".join(f"{r:.3f}" for r in recalls) + " |")
    for name, stored in (("float16", rows.half()), ("int8, a scale a token", _int8(rows))):
        order = distances(queries, stored).topk(K, largest=False).indices
        off = (rows - stored.float()).flatten(1).norm(dim=1).median().item()
        print(
            f"tokens in {name}: recall@10 {recall(truth, order):.4f}, a row's distance from itself {off:.2f}",
            flush=True,
        )


def recall(truth: Tensor, found: Tensor) -> float:
    """Share of the true neighbours that are found."""
    return (truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean().item()


def _blocks(tokens: Tensor, count: int) -> Tensor:
    side = int(tokens.shape[1] ** 0.5)
    grid = tokens.view(len(tokens), count, side // count, count, side // count, -1)
    return grid.mean(dim=(2, 4)).flatten(1)


def _int8(tokens: Tensor) -> Tensor:
    """Tokens rounded to 127 steps of the largest number of each."""
    rounded = []
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        scale = piece.abs().amax(dim=2, keepdim=True) / 127
        rounded.append((piece / scale).round() * scale)
    return torch.cat(rounded)


if __name__ == "__main__":
    main()
