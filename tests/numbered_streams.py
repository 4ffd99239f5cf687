"""Streams of pictures that tell their numbers: tar shards, parquet files, folders; and what comes out of them."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.training.config import DataConfig, RunConfig
from iwm.training.distributed import World
from iwm.training.streams import StreamSource

datasets = pytest.importorskip("datasets")

SIZE = 8
CPU = torch.device("cpu")
WHOLE = DataConfig(workers=2, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0)
LENGTHS = (5, 8, 3, 6)
"""Rows of the shards."""


def jpeg(number, side=12):
    """A picture of one colour, which tells the number."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (10 * number % 256, 7 * number, 200 - 6 * number)).save(file, "JPEG")
    return file.getvalue()


def colour(content):
    """What a crop of the picture is filled with."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").getpixel((4, 4))


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_shards(folder):
    """Shards of pictures with labels beside them; the numbers in each."""
    numbers = np.split(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
    for shard, inside in enumerate(numbers):
        files = {}
        for n in inside.tolist():
            files |= {f"{n:04}.jpg": jpeg(n), f"{n:04}.cls": str(n).encode()}
        write_tar(folder / f"{shard:02}.tar", files)
    return [set(inside.tolist()) for inside in numbers]


def stream_config(**changes):
    return RunConfig(**{"steps": 17, "batch_size": 4, "seed": 3, "data": WHOLE} | changes)


def run_stream(name, first=0, state=None, world=None, **changes):
    """All batches of a stream, and its state after each."""
    source = StreamSource(name, SIZE, stream_config(**changes))
    batches, states = [], []
    for batch in source.batches(first, world or World(CPU), state):
        batches.append(batch)
        states.append(source.state())
    return batches, states


def numbers_of(batches):
    """The pictures of every epoch, in order."""
    colours = {colour(jpeg(n)): n for n in range(sum(LENGTHS))}
    assert len(colours) == sum(LENGTHS)
    found = {}
    for crops, epochs, _ in batches:
        for crop, epoch in zip(crops, epochs.tolist(), strict=True):
            found.setdefault(epoch, []).append(colours[tuple(crop[:, 4, 4].tolist())])
    return list(found.values())


def assert_same_batches(some, others):
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def parquet_files(folder):
    """A dataset of three parquet files in row groups of three, beside a column of labels."""
    datasets.disable_progress_bars()
    for shard, numbers in enumerate(np.split(np.arange(22), [5, 15])):
        cells = [{"bytes": jpeg(n), "path": None} for n in numbers.tolist()]
        table = datasets.Dataset.from_dict({"label": numbers.tolist(), "picture": cells})
        table = table.cast_column("picture", datasets.Image())
        table.to_parquet(folder / f"train-{shard:05}-of-00003.parquet", batch_size=3)
    return f"hf:{folder}"


def image_folder(folder):
    """A folder of images, whose dataset holds paths and no bytes."""
    for n in range(22):
        path = folder / "train" / f"class{n % 2}" / f"{n:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n))
    return f"hf:{folder}"
