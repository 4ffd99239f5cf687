"""The Makefile: what it lists, and what its two main targets would run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (ROOT / "Makefile").is_file(), reason="needs make and a source folder"
)


def _make(*words):
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PHOTOS", "VENV", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        ["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_help_lists_what_there_is():
    listed = dict(line.split(maxsplit=1) for line in _make("help").splitlines())
    declared = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert list(listed) == declared
    assert {"demo", "test"} <= listed.keys()
    assert "demo.png" in listed["demo"]


def test_help_is_the_default():
    assert _make() == _make("help")


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (["demo"], ["iwm demo --out demo.png"]),
        (["demo", "PHOTOS=a.jpg b.jpg"], ["iwm demo a.jpg b.jpg --out demo.png"]),
        (
            ["test"],
            [
                "ruff check .",
                "ruff format --check .",
                "mypy",
                "python -m pytest --numprocesses auto --dist loadfile",
            ],
        ),
    ],
    ids=["demo", "photographs", "test"],
)
def test_a_target_sets_up_its_environment_and_runs(tmp_path, words, commands):
    lines = [" ".join(line.split()) for line in _make("-n", *words, f"VENV={tmp_path}").splitlines()]
    assert any("pip install" in line and '".[dev]"' in line for line in lines)
    assert lines[-len(commands) :] == [f"{tmp_path}/bin/{command}" for command in commands]
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_is_ready_is_used_as_it_is(tmp_path):
    (tmp_path / ".ready").touch()
    assert _make("-n", "test", f"VENV={tmp_path}").count("\n") == 4
