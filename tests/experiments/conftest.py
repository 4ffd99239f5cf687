"""The scripts of experiments/, as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

import iwm

ROOT = Path(iwm.__file__).parents[1]


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # Dataclasses look there.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    """Loads one by its name."""
    return _script


@pytest.fixture(scope="module")
def ablate():
    return _script("ablate")


@pytest.fixture(scope="module")
def embedded():
    return _script("embedded")


@pytest.fixture(scope="module")
def paired():
    return _script("paired")


@pytest.fixture(scope="module")
def leverage(paired):
    _script("studies")  # Which the script imports from beside it, as `paired`.
    return _script("leverage")
