r"""How well edits are read: the world model against a regression on colours and a network on latents.

    python experiments/read_edits.py --data imagenette/val --train imagenette/train --out OUT

Photographs get random edits of the training strength, every switch with probability 0.5. Three ways
of reading them: `model.infer_actions`, which was never trained for it; ridge and logistic regression
(scikit-learn) on colour statistics of both images; a small network on pairs of latents. The two
baselines are trained on edits of the photographs in --train. `plain` pairs are the edit alone;
`ambiguous` ones are cropped, re-compressed or blurred once more after it, one of the three each.

Hue and saturation count where the edit is not grayscale, sigma where it is 0.5 and more; a blur of
less counts neither as one nor as none. Sigma counts whether or not a reader says that there is a
blur: where the world model says none, it is that of its best hypothesis with one. The guess is the median (of the distribution's draws), the
accuracy of a switch is balanced: the mean over both cases. OUT gets read_edits.json and .md.
Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import iwm
from iwm.actions import draw_photometry
from iwm.edits import EditReport
from iwm.images import list_images, to_pil, to_tensor
from iwm.opening import open_rgb
from iwm.photometry import transform

CONTINUOUS = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3, "blur": 5}
SWITCHES = {"grayscale": 4, "blur": 5, "solarize": 6}
AGAIN = ("cropped", "re-compressed", "blurred again")
Reader = Callable[[Tensor, Tensor], Tensor]
"""From images before and after, `[B, 3, S, S]` each, to photometries `[B, 7]`."""


@dataclass(frozen=True)
class Row:
    """What one way of reading scored on one kind of pairs."""

    reader: str
    kind: str
    error: dict[str, float]
    accuracy: dict[str, float]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--data", type=Path, required=True, help="held-out photographs")
    parser.add_argument("--train", type=Path, required=True, help="photographs the baselines learn from")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--train-pairs", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=30, help="of the network on latents")
    parser.add_argument("--kinds", nargs="+", default=["plain", "ambiguous"])
    parser.add_argument("--solver", default="gradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = iwm.load(options.model).requires_grad_(False)
    distribution = model.config.actions.distribution.replace(
        jitter_probability=1.0, grayscale_probability=0.5, blur_probability=0.5, solarize_probability=0.5
    )

    def pairs(folder: Path, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        files = list_images(folder)
        chosen = [files[i * len(files) // count % len(files)] for i in range(count)]
        params = draw_photometry(distribution, seed=seed, keys=[(0, i) for i in range(count)])
        before = model.preprocess(chosen)
        return before, transform(before, params), params

    before, after, truth = pairs(options.data, options.images, options.seed + 1)
    known = pairs(options.train, options.train_pairs, options.seed + 2)
    reports: list[EditReport] = []

    def planning(first: Tensor, second: Tensor) -> Tensor:
        reports[:] = model.infer_actions(first, second, solver=options.solver, seed=options.seed)
        return torch.stack([numbers(report) for report in reports])

    readers: dict[str, Reader] = {
        "guess": lambda first, _: guess(known[2]).expand(len(first), -1),
        "colour statistics": colour_reader(*known),
        "network on latents": latent_reader(model, *known, epochs=options.epochs),
        "world model": planning,
    }
    rows: list[Row] = []
    trust = {}
    for kind in options.kinds:
        seen = after if kind == "plain" else torch.stack([once_more(x, i) for i, x in enumerate(after)])
        for name, reader in readers.items():
            started = time.perf_counter()
            read = reader(before, seen)
            took = (time.perf_counter() - started) / len(before)
            rows.append(Row(name, kind, *score(read, truth), took))
            print(rows[-1], flush=True)
        trust[kind] = calibration(reports, truth)
    write(options.out, rows, trust, vars(options))


def numbers(report: EditReport) -> Tensor:
    """The photometry of a report `[7]`; if it is not blurred, the best sigma of a blur, below 0."""
    found = torch.tensor(report.action.target.params)
    blurred = [h.photometry.blur for h in report.runner_ups if h.photometry.blur > 0]
    if found[5] == 0 and blurred:
        found[5] = -blurred[0]
    return found


def guess(params: Tensor) -> Tensor:
    """The median of every parameter, `[7]`: sigma's where there is a blur to see."""
    middle = params.median(dim=0).values
    middle[5] = params[params[:, 5] >= 0.5, 5].median()
    return middle


def once_more(pixels: Tensor, index: int) -> Tensor:
    """Crop and resize, re-compress, or blur an edited image `[3, S, S]`, by its index."""
    size = pixels.shape[-1]
    how = AGAIN[index % len(AGAIN)]
    if how == "cropped":
        margin = max(size // 16, 1)
        inner = pixels[None, :, margin:-margin, margin:-margin]
        return F.interpolate(inner, size=size, mode="bicubic", antialias=True).clamp(0, 1)[0]
    if how == "re-compressed":
        file = io.BytesIO()
        to_pil(pixels).save(file, "JPEG", quality=40)
        return to_tensor(open_rgb(file.getvalue()))
    return transform(pixels[None], torch.tensor([[1.0, 1, 1, 0, 0, 1.0, 0]]))[0]


def colour_statistics(images: Tensor) -> Tensor:
    """What pixels tell without a network, `[B, 47]`: of channels, luma, colourfulness, hue and edges."""
    red, green, blue = images.unbind(1)
    luma = 0.2989 * red + 0.587 * green + 0.114 * blue
    spread = images.amax(1) - images.amin(1)
    planes = torch.stack((red, green, blue, luma, spread), dim=1).flatten(2)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    quantiles = planes.quantile(levels, dim=2).permute(1, 0, 2).flatten(1)
    angle = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)
    hues = [(spread * turn(k * angle)).mean(dim=(1, 2)) for k in (1, 2) for turn in (torch.cos, torch.sin)]
    edges = [
        (luma.diff(n=n, dim=d)).abs().mean(dim=(1, 2)).clamp_min(1e-5).log() for n in (1, 2) for d in (1, 2)
    ]
    bright = (images >= 0.5).float().mean(dim=(1, 2, 3))
    extra = torch.stack((*hues, *edges, bright, spread.clamp_min(1e-4).log().mean(dim=(1, 2))), dim=1)
    return torch.cat((planes.mean(2), planes.std(2), quantiles, extra), dim=1)


def colour_reader(before: Tensor, after: Tensor, params: Tensor) -> Reader:
    """Ridge regression for the numbers, logistic regression for the switches."""

    def features(first: Tensor, second: Tensor) -> NDArray[np.float32]:
        a, b = colour_statistics(first), colour_statistics(second)
        found: NDArray[np.float32] = torch.cat((a, b, b - a, (b - a).square()), dim=1).numpy()
        return found

    inputs = features(before, after)
    models = {}
    for name, column in CONTINUOUS.items():
        rows = counted(name, params).numpy()
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))
        models[name] = model.fit(inputs[rows], params[rows, column])
    switched = {}
    for name, column in SWITCHES.items():
        rows, on = (part.numpy() for part in switch_rows(name, params[:, column]))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
        switched[name] = model.fit(inputs[rows], on[rows])

    def read(first: Tensor, second: Tensor) -> Tensor:
        x = features(first, second)
        out = torch.zeros(len(x), 7)
        for name, column in CONTINUOUS.items():
            out[:, column] = torch.from_numpy(models[name].predict(x))
        on = {name: torch.from_numpy(switched[name].predict(x)) for name in SWITCHES}
        return with_switches(out, on)

    return read


def latent_reader(
    model: iwm.WorldModel, before: Tensor, after: Tensor, params: Tensor, *, epochs: int
) -> Reader:
    """Two hidden layers on the means and deviations over the patches of both latents and their difference."""

    def features(first: Tensor, second: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(first), 256):
            a, b = (model.encode(x[start : start + 256]).tokens for x in (first, second))
            d = b - a
            parts.append(torch.cat((a.mean(1), b.mean(1), d.std(1), d.abs().mean(1)), dim=1))
        return torch.cat(parts)

    inputs = features(before, after)
    centre, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    inputs = (inputs - centre) / scale
    spread = params.std(0)
    network = nn.Sequential(
        nn.Linear(inputs.shape[1], 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 8)
    )  # fmt: skip
    steps = epochs * max(len(inputs) // 128, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        some = torch.randint(len(inputs), (128,), generator=order)
        wanted, out = params[some], network(inputs[some])
        loss = out.new_zeros(())
        for name, column in CONTINUOUS.items():
            rows = counted(name, wanted)
            error = (out[rows, column] - wanted[rows, column] / spread[column]).abs()
            loss = loss + error.sum() / max(int(rows.sum()), 1)
        for position, (name, column) in zip((4, 7, 6), SWITCHES.items(), strict=True):
            rows, on = switch_rows(name, wanted[:, column])
            loss = loss + F.binary_cross_entropy_with_logits(out[rows, position], on[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()

    @torch.no_grad()
    def read(first: Tensor, second: Tensor) -> Tensor:
        out = network((features(first, second) - centre) / scale)
        on = {"grayscale": out[:, 4] > 0, "blur": out[:, 7] > 0, "solarize": out[:, 6] > 0}
        return with_switches(out[:, :7] * spread, on)

    return read


def with_switches(params: Tensor, on: dict[str, Tensor]) -> Tensor:
    """Numbers and switches as one photometry; a sigma that is switched off keeps its sign below 0."""
    out = params.clone()
    out[:, 4], out[:, 6] = on["grayscale"].float(), on["solarize"].float()
    sigma = out[:, 5].clamp_min(0.5)
    out[:, 5] = torch.where(on["blur"], sigma, -sigma)
    return out


def counted(name: str, params: Tensor) -> Tensor:
    """The rows that a continuous parameter's error is taken over."""
    if name in ("saturation", "hue"):
        return params[:, 4] == 0
    return params[:, 5] >= 0.5 if name == "blur" else torch.ones(len(params), dtype=torch.bool)


def switch_rows(name: str, column: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that a switch is judged on, and whether it is on in each."""
    if name == "blur":
        return (column == 0) | (column >= 0.5), column >= 0.5
    return torch.ones(len(column), dtype=torch.bool), column > 0


def score(read: Tensor, truth: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Median absolute errors of the numbers, balanced accuracies of the switches."""
    errors = {}
    for name, column in CONTINUOUS.items():
        rows = counted(name, truth)
        value = read[:, column].abs() if name == "blur" else read[:, column]
        errors[name] = float((value[rows] - truth[rows, column]).abs().median())
    accuracies = {}
    for name, column in SWITCHES.items():
        rows, on = switch_rows(name, truth[:, column])
        said = read[:, column] >= 0.5 if name == "blur" else read[:, column] > 0
        right = [float((said[rows & case] == on[rows & case]).float().mean()) for case in (on, ~on)]
        accuracies[name] = sum(right) / 2
    return errors, accuracies


def calibration(reports: list[EditReport], truth: Tensor) -> dict[str, float]:
    """Mean confidence beside the share of pairs whose three switches were all right."""
    confidences, right = [], []
    for report, params in zip(reports, truth, strict=True):
        if 0 < params[5] < 0.5:
            continue
        found = torch.tensor(report.action.target.params)
        confidences.append(report.confidence)
        right.append(bool(((found[4:] > 0) == (params[4:] > 0)).all()))
    said = torch.tensor(confidences)
    sure = said >= 0.9
    hits = torch.tensor(right, dtype=torch.float32)
    return {
        "confidence": float(said.mean()),
        "right": float(hits.mean()),
        "share at 0.9 and more": float(sure.float().mean()),
        "right there": float(hits[sure].mean()),
        "median residual": float(torch.tensor([r.residual for r in reports]).median()),
        "highest mismatch": max(r.mismatch for r in reports),
    }


def write(out: Path, rows: list[Row], trust: dict[str, dict[str, float]], options: dict[str, object]) -> None:
    """The table for people and the numbers for programs."""
    out.mkdir(parents=True, exist_ok=True)
    names = [*CONTINUOUS, *(f"{name}?" for name in SWITCHES)]
    lines = [
        f"Median absolute error of every parameter, balanced accuracy of every switch; {options['images']} pairs.",
        "",
        f"| pairs | reader | {' | '.join(names)} | s/pair |",
        "|" + "---|" * (len(names) + 3),
    ]
    for row in rows:
        cells = [f"{v:.3f}" for v in row.error.values()] + [f"{v:.1%}" for v in row.accuracy.values()]
        lines.append(f"| {row.kind} | {row.reader} | {' | '.join(cells)} | {row.seconds:.2f} |")
    for kind, values in trust.items():
        lines += ["", f"{kind}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())]
    (out / "read_edits.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = {"options": {k: str(v) for k, v in options.items()}, "rows": [asdict(r) for r in rows]}
    (out / "read_edits.json").write_text(
        json.dumps(plain | {"trust": trust}, indent=2) + "\n", encoding="utf-8"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
