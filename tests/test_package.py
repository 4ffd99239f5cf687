"""The package root: what it exports, and how little it imports."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import iwm

PACKAGE = Path(iwm.__file__).parent
ROOMS_BEYOND_INFERENCE = (
    "training",
    "pretraining",
    "finetuning",
    "evaluation",
    "cli",
    "demo",
    "figures",
    "planning",
    "edits",
    "undoing",
    "export",
    "runtimes",
    "index",
    "ui",
)

# The sockets fail, so this also shows that the embedded model needs no network.
FRESH = """
import json, socket, sys

class NoNetwork(socket.socket):
    def __init__(self, *args, **kwargs):
        raise AssertionError("network")

def refuse(*args, **kwargs):
    raise AssertionError("network")

socket.socket = NoNetwork
socket.create_connection = socket.getaddrinfo = refuse

seen = {}
import iwm
seen["root"] = sorted(sys.modules)
print(iwm.Action(brightness=2), iwm.errors.IWMError, dir(iwm), file=sys.stderr)
seen["action"] = sorted(sys.modules)
iwm.list_models()
seen["zoo"] = sorted(sys.modules)
model = iwm.load()
seen["load"] = sorted(sys.modules)
import torch
model.predict(torch.zeros(3, 128, 128), iwm.Action(brightness=2))
seen["predict"] = sorted(sys.modules)
json.dump(seen, sys.stdout)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Modules loaded in a fresh interpreter, by stage; the embedded model runs without a network."""
    folder = tmp_path_factory.mktemp("fresh")
    child = subprocess.run(
        [sys.executable, "-c", FRESH],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "HF_HOME": str(folder)},
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert list(folder.iterdir()) == []
    return {stage: set(modules) for stage, modules in json.loads(child.stdout).items()}


def tops(modules):
    return {module.partition(".")[0] for module in modules}


def test_the_root_loads_nothing_of_its_own(fresh):
    assert {module for module in fresh["root"] if module.startswith("iwm.")} == set()
    assert tops(fresh["root"]).isdisjoint({"torch", "timm", "numpy", "PIL", "pydantic", "safetensors"})


@pytest.mark.parametrize(("stage", "needed"), [("action", "iwm.actions"), ("zoo", "iwm.finding")])
def test_actions_and_the_zoo_load_no_torch(fresh, stage, needed):
    assert {needed, "iwm.errors"} <= fresh[stage]
    assert tops(fresh[stage]).isdisjoint({"torch", "timm", "torchvision", "safetensors"})


@pytest.mark.parametrize("stage", ["load", "predict"])
def test_inference_loads_inference_alone(fresh, stage):
    assert {"iwm.loading", "iwm.world_model", "torch", "timm"} <= fresh[stage]
    rooms = {module.split(".")[1] for module in fresh[stage] if module.startswith("iwm.")}
    assert rooms.isdisjoint(ROOMS_BEYOND_INFERENCE)
    assert tops(fresh[stage]).isdisjoint(
        {"matplotlib", "skimage", "typer", "pooch", "lancedb", "pyarrow", "ray", "gradio", "uvicorn"}
    )
    assert tops(fresh[stage]).isdisjoint({"openvino", "onnx", "onnxruntime", "onnxscript", "sklearn"})


def exported_to_type_checkers():
    """Names that the root imports under `if TYPE_CHECKING`."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def test_all_is_what_type_checkers_and_users_see():
    assert set(iwm.__all__) == exported_to_type_checkers() | {"__version__"}
    assert len(iwm.__all__) == len(set(iwm.__all__))
    assert dir(iwm) == sorted(iwm.__all__)
    namespace = {}
    exec("from iwm import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(iwm.__all__)


@pytest.mark.parametrize("name", sorted(set(iwm.__all__) - {"__version__", "errors", "evaluation"}))
def test_names_come_from_the_module_that_defines_them(name):
    value = getattr(iwm, name)
    assert value.__name__ == name
    assert value.__module__ == iwm._HOMES[name]
    assert getattr(iwm, name) is value


def test_rooms_of_the_root():
    assert iwm.errors.__name__ == "iwm.errors"
    assert iwm.evaluation.__name__ == "iwm.evaluation"
    assert {name: getattr(iwm.evaluation, name).__name__ for name in iwm.evaluation.__all__} == {
        name: name for name in ("KNNReport", "MRRReport", "Scores", "knn", "mrr")
    }


def test_documented_modules_need_no_import_of_their_own():
    code = "import iwm; print(iwm.index.Filter, iwm.undoing.EditReader, iwm.images.to_pil, iwm.figures, iwm.planning)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_no_catch_all():
    """With a module's `__getattr__` in sight they would take every misspelt name for a good one."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    hidden = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "not TYPE_CHECKING"]
    assert [f.name for n in hidden for f in n.body if isinstance(f, ast.FunctionDef)] == ["__getattr__"]
    assert "__getattr__" not in [f.name for f in tree.body if isinstance(f, ast.FunctionDef)]


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(AttributeError, match=r'"iwm" has no attribute "Latnet"\. Did you mean "Latent"'):
        iwm.Latnet  # noqa: B018
    assert not hasattr(iwm, "utils")


def test_the_package_holds_no_pickle():
    pickled = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
    assert [path for path in PACKAGE.rglob("*") if path.suffix in pickled] == []
