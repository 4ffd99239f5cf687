"""A picture to resize and compress."""

import numpy as np
from PIL import Image


def smooth(width, height):
    """A smooth colourful picture, so that resizing has little to alias."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = np.stack((np.sin(x + y), np.cos(2 * x), np.sin(3 * y)), axis=-1)
    return Image.fromarray(((waves * 0.4 + 0.5) * 255).astype(np.uint8))
