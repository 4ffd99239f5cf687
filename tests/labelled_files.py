"""Small labelled folders: of classes, and of images with masks."""

import numpy as np
from PIL import Image


def write_class_folder(root, classes=("blue", "red"), count=8, seed=0):
    """Photographs whose mean colour gives away their class, under noise."""
    rng = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (40, 48, 3))
            pixels[..., c % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


def write_segmentation_folder(root, count=6, labels=("sky", "void", "road"), seed=0):
    """Images of a bright upper and a dark lower part, with masks 0 and 2, and a void column."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for i in range(count):
        split = int(rng.integers(12, 28))
        pixels, mask = rng.integers(0, 60, (40, 48, 3)), np.full((40, 48), 2)
        pixels[:split] += 180
        mask[:split] = 0
        mask[:, :3] = 1
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "labels.txt").write_text("\n".join(labels) + "\n")
    return root
