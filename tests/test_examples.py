"""The example script, as a user runs it, on the model inside the package."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import iwm
from iwm.zoo import find_entry

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir() or not find_entry("iwm-tiny").folder.is_dir(), reason="needs a source folder"
)


def _run(*words):
    environment = os.environ | {
        "PYTHONPATH": str(Path(iwm.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "retrieve.py"), *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Five photographs; of the first there is a gray twin."""
    for i in range(5):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((160, 128), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{i}.jpg", quality=95)
        if i == 0:
            picture.convert("L").save(tmp_path / "gray.jpg", quality=95)
    return tmp_path


def test_retrieve_finds_what_was_asked_for(photos):
    done = _run(photos / "gray.jpg", photos)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[::4] == [f"gray.jpg {how}:" for how in ("darker", "in grayscale", "with another hue")]
    hits = [line.split(maxsplit=1) for line in lines[5:8]]
    distances = [float(distance) for distance, _ in hits]
    assert hits[0][1] == str(photos / "gray.jpg")
    assert distances == sorted(distances)
    model = iwm.load()
    predicted = model.predict(photos / "gray.jpg", iwm.Action(grayscale=True))
    nearest = iwm.Bank.from_images(model, sorted(photos.glob("*.jpg"))).search(predicted, k=3)
    assert [path for _, path in hits] == nearest.ids[0]
    assert distances == pytest.approx(nearest.distances[0].tolist(), abs=0.02)


def test_retrieve_says_how_it_is_called():
    done = _run()
    assert done.returncode == 2
    assert "the following arguments are required: photo, folder" in done.stderr
