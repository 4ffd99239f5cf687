"""torch.hub: entry points for every zoo name, from a fresh interpreter outside the repository."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_files import check_model, model_files, pinned_entry

import iwm
from iwm.errors import WeightsUnavailableError
from iwm.zoo import ZOO

REPO = Path(__file__).parents[1]

FRESH = """
import json, sys
import torch

repo = sys.argv[1]
torch.hub._get_cache_or_reload = lambda *args, **kwargs: repo
model = torch.hub.load(repo, "iwm_tiny", source="local")
other = torch.hub.load(repo, "load", "iwm-tiny", source="local")
twin = torch.hub.load(repo, "iwm_tiny_inv", source="local", pretrained=False, dtype=torch.bfloat16)
image = torch.rand(3, 128, 128)
ours = [m for m in sys.modules if m == "iwm" or m.startswith("iwm.")]
errors = {}
for options in ({}, {"pretrain": False}):
    try:
        torch.hub.load(repo, "iwm_equi_18_384", source="local", **options)
    except Exception as error:
        errors[type(error).__name__] = str(error)
result = {
    "shape": list(model.encode(image).tokens.shape),
    "same": torch.equal(model.encode(image).tokens, other.encode(image).tokens),
    "training": model.training,
    "twin": [twin.config.name, str(twin.predictor.project_in.weight.dtype)],
    "entries": torch.hub.list("owner/repo"),
    "help": torch.hub.help("owner/repo", "iwm_tiny"),
    "files": {m: sys.modules[m].__file__ for m in ours},
    "errors": errors,
}
json.dump(result, sys.stdout)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    child = subprocess.run(
        [sys.executable, "-c", FRESH, str(REPO)],
        env=environment, cwd=tmp_path_factory.mktemp("fresh"),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_models_come_through_torch_hub(fresh):
    assert fresh["shape"] == [1, 64, 256]
    assert fresh["same"]
    assert not fresh["training"]
    assert fresh["twin"] == ["iwm-tiny-inv", "torch.bfloat16"]


def test_every_zoo_name_has_an_entry_point(fresh):
    assert {name.replace("-", "_") for name in ZOO} | {"load"} <= set(fresh["entries"])
    assert ZOO["iwm-tiny"].summary in fresh["help"]


def test_options_and_errors_are_those_of_load(fresh):
    assert "iwm pretrain --recipe iwm-equi-18-384" in fresh["errors"]["WeightsUnavailableError"]
    assert "pretrain" in fresh["errors"]["TypeError"]


def third_party(path):
    """Modules from elsewhere that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"iwm"}


def declared_dependencies():
    declared = ast.parse((REPO / "hubconf.py").read_text())
    (value,) = (
        node.value for node in declared.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "dependencies"
    )  # fmt: skip
    return ast.literal_eval(value)


def test_dependencies_are_what_the_loaded_modules_import(fresh):
    assert "iwm.loading" in fresh["files"]
    found = set().union(*(third_party(path) for path in [REPO / "hubconf.py", *fresh["files"].values()]))
    progress_bars = {"rich"}  # Imported where one is asked for.
    assert sorted(declared_dependencies()) == sorted(found | progress_bars)


def test_dependencies_can_be_imported():
    assert all(importlib.util.find_spec(name) for name in declared_dependencies())


def from_hub(entry, *words, **options):
    return torch.hub.load(str(REPO), entry.replace("-", "_"), *words, source="local", **options)


@pytest.mark.parametrize("name", list(ZOO))
def test_every_name_at_random_weights(name, monkeypatch):
    large = ZOO[name].config.parameters > 2e8
    if large:  # Drawing truncated normals would take most of the time.
        monkeypatch.setattr("iwm.stored.init_weights", lambda model: None)
    model = from_hub(name, pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == ZOO[name].config.parameters
    for part in ("encoder", "predictor", "actions", "preprocess", "name"):
        assert getattr(model.config, part) == getattr(ZOO[name].config, part)
    assert large or model.predictor.project_in.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].weights == "recipe only"])
def test_recipes_say_how_to_train_them(name):
    with pytest.raises(
        WeightsUnavailableError, match=f"`iwm pretrain --recipe {name} --data FOLDER --out DIR`"
    ):
        from_hub(name)


def test_the_embedded_weights():
    assert from_hub("iwm-tiny").space == from_hub("load", "iwm-tiny").space == iwm.load().space


def test_a_published_entry(hub, monkeypatch, tiny_config, tmp_path):
    files = model_files(tmp_path / "made", tiny_config().replace(name="my-model"))
    commit = hub.add_repo("org/tiny", files)
    config = tiny_config().replace(name="my-model")
    monkeypatch.setitem(ZOO, "my-model", pinned_entry(config, commit, files))
    options = {"cache_dir": tmp_path / "cache"}
    check_model(from_hub("my-model", **options), files)
    hub.requests.clear()
    check_model(from_hub("load", f"org/tiny@{commit}", local_files_only=True, **options), files)
    assert from_hub("my-model", pretrained=False).config == config
    assert not hub.requests
