r"""Whether reading an edit notices that two photographs do not show the same scene.

    python experiments/tell_scenes.py --data imagenette/val --data caltech101/val --data clothing/val

Pairs of one photograph: with a random edit of the training strength, and with one after which it
was cropped, re-compressed or blurred once more. Pairs of two: mirrored, turned by 180 degrees,
another of the same class, another of another class. For each kind the residual, the residual over
that of doing nothing, and `EditReport.mismatch`, as quantiles; how many pairs `same_scene` accepts; and
for bounds on the residual, how many of each kind they would.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
from read_edits import AGAIN, once_more
from torch import Tensor

import iwm
from iwm.actions import draw_photometry
from iwm.edits import EditReport
from iwm.evaluation.labelled import read_class_folder
from iwm.opening import open_rgb
from iwm.photometry import transform

BOUNDS = (0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", action="append", required=True, type=Path, help="class folder")
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--pairs", type=int, default=20, help="of every kind and folder")
    parser.add_argument("--seed", type=int, default=0, help="of the draws of photographs and edits")
    parser.add_argument("--batch", type=int, default=10, help="pairs at a time")
    options = parser.parse_args()
    model = iwm.load(options.model).requires_grad_(False)
    reports: dict[str, list[EditReport]] = {}
    for folder in options.data:
        for kind, pairs in make_pairs(model, folder, options.pairs, options.seed).items():
            for at in range(0, len(pairs), options.batch):
                first, second = zip(*pairs[at : at + options.batch], strict=True)
                found = model.infer_actions(torch.stack(first), torch.stack(second))
                reports.setdefault(kind, []).extend(found)
        print(f"{folder} is read", flush=True)
    print("| pairs | count | residual: 5, 50, 95 % | over doing nothing | mismatch | accepted |")
    print("|---|---|---|---|---|---|")
    for kind, found in reports.items():
        columns = [[r.residual for r in found], [r.residual / max(r.unmoved, 1e-9) for r in found]]
        columns.append([r.mismatch for r in found])
        accepted = sum(r.same_scene for r in found) / len(found)
        print(f"| {kind} | {len(found)} | {' | '.join(map(quantiles, columns))} | {accepted:.0%} |")
    print("\n| residual at most | " + " | ".join(map(str, BOUNDS)) + " |")
    print("|---" * (len(BOUNDS) + 1) + "|")
    for kind, found in reports.items():
        shares = [sum(r.residual <= bound for r in found) / len(found) for bound in BOUNDS]
        print(f"| {kind} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")


def make_pairs(
    model: iwm.WorldModel, folder: Path, count: int, seed: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Pairs of every kind, of photographs drawn from a folder."""
    data = read_class_folder(folder)
    rng = random.Random(seed)
    chosen = rng.sample(range(len(data.images)), count)

    def pixels(index: int) -> Tensor:
        return model.preprocess.one(open_rgb(data.images[index]))

    def another(index: int, accept: Callable[[str], bool]) -> Tensor:
        others = [i for i in range(len(data.images)) if i != index and accept(data.labels[i])]
        return pixels(rng.choice(others))

    own = model.config.actions.distribution.replace(jitter_probability=1.0)
    params = draw_photometry(own, seed=seed, keys=[(0, i) for i in range(count)])
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for place, index in enumerate(chosen):
        photo, target = pixels(index), data.labels[index]
        edited = transform(photo[None], params[place : place + 1])[0]
        for kind, second in (
            ("one, edited", edited),
            (f"one, edited, then {AGAIN[place % len(AGAIN)]}", once_more(edited, place)),
            ("one, mirrored", photo.flip(-1)),
            ("one, upside down", photo.flip(-1, -2)),
            ("two of one class", another(index, target.__eq__)),
            ("two of two classes", another(index, target.__ne__)),
        ):
            pairs.setdefault(kind, []).append((photo, second))
    return pairs


def quantiles(values: list[float]) -> str:
    """Of 5, 50 and 95 percent."""
    found = torch.tensor(values).quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return ", ".join(f"{value:.3f}" for value in found)


if __name__ == "__main__":
    main()
