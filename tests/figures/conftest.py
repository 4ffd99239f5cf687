"""Photographs of random colours, for all pictures."""

import numpy as np
import pytest


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(3)]
