"""A small model on the Hub of the test, a cache of the test's own, and what is read of it."""

import multiprocessing
from functools import partial

import pytest
from hub_files import forget_hashes, model_files

import iwm
from iwm import integrity
from iwm.checkpoint import save_model
from iwm.encoder import Encoder
from iwm.finding import download
from iwm.hub_client import HubOptions
from iwm.integrity import hash_file
from iwm.world_model import WorldModel


@pytest.fixture
def files(tmp_path, tiny_config):
    """The files of `org/tiny`; a model of theirs is in `saved`."""
    return model_files(tmp_path / "saved", tiny_config())


@pytest.fixture
def commit(hub, files):
    """Of `org/tiny` on the Hub."""
    return hub.add_repo("org/tiny", files)


@pytest.fixture
def cache(tmp_path):
    """Where the cache will be."""
    return tmp_path / "cache"


@pytest.fixture
def options(cache):
    """To use that cache by."""
    return HubOptions(cache_dir=cache)


@pytest.fixture
def load(cache):
    """`iwm.load` with that cache."""
    return partial(iwm.load, cache_dir=cache)


@pytest.fixture
def snapshot(cache, commit):
    """Where the files of the commit are in the cache."""
    return cache / "models--org--tiny" / "snapshots" / commit


@pytest.fixture
def receipt(cache, commit):
    """The receipt of the commit."""
    return cache / "models--org--tiny" / ".iwm" / f"{commit}.json"


@pytest.fixture
def copy(commit, options, tmp_path):
    """A folder made by `iwm download`."""
    return download("org/tiny", tmp_path / "copy", options)


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read through for their hash, as it happens."""
    names = []

    def counting(path, algorithm):
        names.append(path.name)
        return hash_file(path, algorithm)

    monkeypatch.setattr(integrity, "hash_file", counting)
    forget_hashes()
    return names


@pytest.fixture
def make(tiny_config, tmp_path):
    """`make("folder", student=True, **changes of the config)`: a model folder of other weights each time."""

    def save(folder="model", student=False, **changes):
        model = WorldModel(tiny_config().replace(**changes))
        extra = Encoder(model.config.encoder, model.config.preprocess) if student else None
        save_model(tmp_path / folder, model.config, model, extra)
        return tmp_path / folder

    return save


@pytest.fixture(scope="session")
def processes():
    """Processes of their own, in which the library is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hub_files", "iwm.loading", "huggingface_hub.file_download"])
    return context
