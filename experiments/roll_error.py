r"""How the error of rolled predictions grows with the number of steps.

    python experiments/roll_error.py --data imagenette/val --images 100

Every photograph goes along a path of random views, one after another in latent space, each
prediction the next one's source. Printed for every step: the mean squared difference, per feature,
to the encoding of the true view (`rolled`), that of one step straight from the photograph
(`straight`), of the view before it as it is (`stay`), and of another photograph's view (`other`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import iwm
from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.images import list_images
from iwm.photometry import transform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = iwm.load(options.model)
    files = list_images(options.data)
    pixels = model.preprocess([files[i * len(files) // options.images] for i in range(options.images)])
    clean = model.encode(pixels)
    jitter = model.config.actions.distribution.replace(jitter_probability=1.0)
    for name, distribution in (("jitter alone", jitter.without_destructive()), ("all operations", jitter)):
        print(f"\n{name}\n{'step':>4}{'rolled':>10}{'straight':>10}{'stay':>10}{'other':>10}")
        rolled = truth = clean
        views = [CLEAN] * options.images
        for step in range(1, options.steps + 1):
            keys = [(step, i) for i in range(options.images)]
            params = draw_photometry(distribution, seed=options.seed, keys=keys)
            following = [Photometry.from_params(row) for row in params]
            rolled = model.apply_action(rolled, between(views, following))
            straight = model.apply_action(clean, between([CLEAN] * options.images, following))
            before, truth, views = truth, model.encode(transform(pixels, params)), following
            errors = [
                difference(found.tokens, truth.tokens)
                for found in (rolled, straight, before, truth[list(range(-1, options.images - 1))])
            ]
            print(f"{step:4}" + "".join(f"{error:10.3f}" for error in errors), flush=True)


def between(sources: list[Photometry], targets: list[Photometry]) -> list[Action]:
    return [Action.between(a, b) for a, b in zip(sources, targets, strict=True)]


def difference(found: Tensor, truth: Tensor) -> float:
    """Per feature; a token's features have variance 1."""
    return float((found - truth).square().mean(dim=(1, 2)).mean())


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
