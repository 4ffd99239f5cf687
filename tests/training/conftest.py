"""Runs of a small linear task."""

import pytest
from linear_task import SIZE, loop_config
from PIL import Image

from iwm.training.data import FolderSource
from iwm.training.loop import train
from iwm.training.run_folder import RunFolder


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (40 * i, 200 - 30 * i, 100)).save(file)
    return files


@pytest.fixture
def start(tmp_path, paths):
    def run(task, *, resume=False, export=lambda done, seconds: None, name="run", **changes):
        config = loop_config(**changes)
        folder = RunFolder(tmp_path / name, config, resume=resume)
        done = train(task, FolderSource(paths, SIZE, config, f"{len(paths)} images"), config, folder, export)
        return done, folder

    return run
