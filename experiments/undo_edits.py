r"""Undoing unknown edits: how much nearer to the untouched photograph, and at what risk.

    python experiments/undo_edits.py --data imagenette/val --references imagenette/train

Held-out photographs get random edits (jitter with probability 0.8, every switch with 0.25). For
every way of undoing: the mean squared difference, per feature, to the untouched photograph's
latent; how often it is smaller and larger than without undoing (by 5 %); accuracy of the switches;
how often an edited photograph is called untouched (`missed`), and an untouched one edited (`false`).
`nearest` takes, of 200 random edits and none, the one whose undoing comes nearest to the references
(Mahalanobis distance of pooled latents, the edit's own prior added); `true` is told the edit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

import iwm
from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.images import list_images
from iwm.photometry import transform
from iwm.undoing import EditReader

SHRINKAGE = 0.1
WEIGHT = 0.03
"""Of the squared Mahalanobis distance beside the prior; the best of 0 to 0.5 on 30 photographs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--data", type=Path, required=True, help="held-out photographs")
    parser.add_argument("--references", type=Path, required=True, help="untouched photographs")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--reference-images", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = iwm.load(options.model)
    references = model.encode(spaced(options.references, options.reference_images), progress=True)
    pixels = model.preprocess(spaced(options.data, options.images))
    drawn_from = model.config.actions.distribution.replace(
        grayscale_probability=0.25, blur_probability=0.25, solarize_probability=0.25
    )
    keys = [(0, i) for i in range(len(pixels))]
    truth = draw_photometry(drawn_from, seed=options.seed, keys=keys)
    clean, edited = model.encode(pixels), model.encode(transform(pixels, truth))
    candidates = draw_photometry(drawn_from, seed=options.seed + 1, keys=[(1, i) for i in range(200)])
    reader = EditReader.fit(model, references, seed=options.seed)
    true = [Photometry.from_params(row) for row in truth]

    def guesses(latents: iwm.Latent, told: list[Photometry]) -> dict[str, list[Photometry]]:
        return {
            "nothing": [CLEAN] * len(latents),
            "undo": [report.photometry for report in reader.read(model, latents)],
            "nearest": nearest(model, latents, references, candidates),
            "true": told,
        }

    alarms = {
        name: share(not photometry.is_clean for photometry in found)
        for name, found in guesses(clean, [CLEAN] * len(clean)).items()
    }
    unmoved = difference(edited.tokens, clean.tokens)
    print(
        f"{'':10}{'distance':>9}{'nearer':>8}{'farther':>9}{'grayscale':>11}{'blur':>8}{'solarize':>10}{'missed':>8}{'false':>7}"
    )
    for name, found in guesses(edited, true).items():
        actions = [Action.between(photometry, CLEAN) for photometry in found]
        moved = model.apply_action(edited, actions).tokens
        untouched = torch.tensor([photometry.is_clean for photometry in found])
        left = torch.where(untouched, unmoved, difference(moved, clean.tokens))
        params = torch.tensor([photometry.params for photometry in found])
        right = [((params[:, c] > 0.5) == (truth[:, c] > 0.5)).float().mean() for c in (4, 5, 6)]
        nearer, farther = (left < 0.95 * unmoved).float().mean(), (left > 1.05 * unmoved).float().mean()
        shares = "".join(f"{v:{w}.0%}" for v, w in zip(right, (11, 8, 10), strict=True))
        missed = share(p.is_clean for p, edit in zip(found, true, strict=True) if not edit.is_clean)
        print(
            f"{name:10}{left.mean():9.3f}{nearer:8.0%}{farther:9.0%}{shares}{missed:8.0%}{alarms[name]:7.0%}"
        )


def share(said: Iterable[bool]) -> float:
    """How many of some answers are yes."""
    answers = list(said)
    return sum(answers) / max(len(answers), 1)


def spaced(folder: Path, count: int) -> list[Path]:
    files = list_images(folder)
    return [files[i * len(files) // count] for i in range(min(count, len(files)))]


def difference(found: Tensor, truth: Tensor) -> Tensor:
    """Mean square per feature, image by image."""
    return (found - truth).square().mean(dim=(1, 2))


def nearest(
    model: iwm.WorldModel, edited: iwm.Latent, references: iwm.Latent, params: Tensor
) -> list[Photometry]:
    """The candidate edits whose undoing looks most like the references."""
    pooled = references.mean()
    centre = pooled.mean(0)
    covariance = (pooled - centre).T @ (pooled - centre) / len(pooled)
    round_one = covariance.diagonal().mean() * torch.eye(len(covariance))
    inverse = torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * round_one)
    candidates = [CLEAN, *map(Photometry.from_params, params)]
    views = torch.tensor([photometry.params for photometry in candidates])
    jitter = torch.cat((views[:, :3].clamp_min(0.05).log() / 0.3, views[:, 3:4] / 0.1), dim=1)
    prior = jitter.square().sum(1) / 2 + (views[:, 4:] > 0).sum(1) * 1.1
    actions = [Action.between(photometry, CLEAN) for photometry in candidates[1:]]
    best = []
    for one in edited:
        undone = torch.cat((one.mean(), model.apply_action(one, actions).mean())) - centre
        distance = ((undone @ inverse) * undone).sum(1)
        best.append(candidates[int((WEIGHT * distance + prior).argmin())])
    return best


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
