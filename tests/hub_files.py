"""Files of small models to put on a Hub, and what must hold of a cache whatever has happened to it."""

import os
from collections.abc import Callable
from hashlib import sha1, sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load

import iwm
from iwm import hub_client, integrity, zoo
from iwm.checkpoint import save_model
from iwm.config import WorldModelConfig
from iwm.encoder import Encoder
from iwm.errors import IWMError
from iwm.world_model import WorldModel
from iwm.zoo import HubFiles, ZooEntry

_made: dict[tuple[str, int, bool], dict[str, bytes]] = {}


def model_files(
    folder: Path, config: WorldModelConfig, seed: int = 0, student: bool = False
) -> dict[str, bytes]:
    """Config and weights of a model with random weights, put into `folder`, by name; no model card."""
    key = (config.to_json(), seed, student)
    if key not in _made:
        torch.manual_seed(seed)
        model = WorldModel(config)
        save_model(folder, config, model, Encoder(config.encoder, config.preprocess) if student else None)
        (folder / "README.md").unlink()
        _made[key] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _made[key].items():
        (folder / name).write_bytes(content)
    return dict(_made[key])


def pinned_entry(config: WorldModelConfig, revision: str, files: dict[str, bytes]) -> ZooEntry:
    """A zoo entry for files of `org/tiny`."""
    digests = {name: sha256(content).hexdigest() for name, content in files.items()}
    hub = HubFiles(repo="org/tiny", revision=revision, sha256=digests)
    return ZooEntry(config=config, summary="a test's", hub=hub)


def flip(path: Path, offset: int = -1) -> None:
    """Change one bit of a file; its size stays."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def forget_hashes() -> None:
    """As in a new process: what was hashed is known by receipts alone."""
    integrity._HASHED.clear()


def load_and_tell(endpoint: str, cache: Path, results: Connection, seconds: float) -> None:
    """What a process does that loads `org/tiny`: sends the model's `space`, or why there is none."""
    os.environ["HF_ENDPOINT"] = endpoint
    hub_client.GRACE_SECONDS, hub_client.SLOWEST_BYTES_PER_SECOND = seconds, 1 << 40
    try:
        results.send(iwm.load("org/tiny", cache_dir=cache).space)
    except IWMError as error:
        results.send(f"{type(error).__name__}: {error}")


def evaluate(text: str) -> ZooEntry:
    """What a printed zoo entry is, by the names of the module it is pasted into."""
    entry = eval(text, vars(zoo))
    assert isinstance(entry, ZooEntry)
    return entry


def check_model(model: WorldModel, files: dict[str, bytes]) -> None:
    """The model is the one in these files, value for value."""
    assert model.config == WorldModelConfig.from_json(files["config.json"])
    check_tensors(model.state_dict(), files["model.safetensors"])


def check_tensors(state: dict[str, torch.Tensor], content: bytes) -> None:
    """The tensors are those of a safetensors file."""
    stored = load(content)
    assert state.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in state.items())


def check_entry(entry: ZooEntry, hub: LoopbackHub, repo: str, config: WorldModelConfig) -> None:
    """The entry is a model's and pins the newest commit of a repository, and every file of it."""
    assert entry.config == config.replace(recipe={}, provenance={}, metrics={}, adapters={})
    assert (entry.name, entry.weights) == (config.name, "hub")
    assert entry.hub is not None
    assert (entry.hub.repo, entry.hub.revision) == (repo, hub.repo(repo).refs["main"])
    assert entry.hub.sha256 == {
        name: sha256(content).hexdigest()
        for name, content in hub.files(repo).items()
        if name != ".gitattributes"
    }


def check_same(model: WorldModel, other: WorldModel) -> None:
    """Two models are one, value for value."""
    assert model.config == other.config
    assert model.space == other.space
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def check_cache(cache: Path) -> None:
    """No file of a Hub's cache holds anything but what its name says, and no link leads nowhere."""
    for path in cache.glob("models--*/blobs/*"):
        content = path.read_bytes()
        if path.suffix != ".incomplete":
            git = sha1(b"blob %d\0" % len(content) + content).hexdigest()
            assert path.name in (git, sha256(content).hexdigest()), f"{path} holds something else"
    for link in cache.glob("models--*/snapshots/*/*"):
        assert link.exists(), f"{link} leads nowhere"


def check_failure(
    load: Callable[..., WorldModel], name: str, error: type[IWMError], words: str, **options: Any
) -> None:
    """Loading fails in these words, which tell no token."""
    with pytest.raises(error, match=words) as caught:
        load(name, **options)
    assert type(caught.value) is error
    assert not any(f"hf_{secret}" in str(caught.value) for secret in ("good", "bad", "other"))


def check_healed(
    hub: LoopbackHub, load: Callable[..., WorldModel], cache: Path, files: dict[str, bytes]
) -> None:
    """Nothing wrong is in the cache; without its faults `org/tiny` loads, and then without a network."""
    check_cache(cache)
    hub.heal()
    check_model(load("org/tiny"), files)
    check_model(load("org/tiny", local_files_only=True), files)
    check_cache(cache)
