"""The wheel: small enough, complete, and working away from the repository."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import iwm

ROOT = Path(iwm.__file__).parents[1]
CHECK = """
import socket

def refuse(*arguments, **options):
    raise AssertionError("the network was touched")

socket.socket.connect = refuse
import iwm

model = iwm.load()
latent = model.encode(__import__("PIL.Image").Image.new("RGB", (200, 150), "teal"))
print(iwm.__file__, model.apply_action(latent, iwm.Action(brightness=0.5)).tokens.shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_is_small_and_holds_what_it_should(wheel):
    assert wheel.stat().st_size < 60e6
    names = set(ZipFile(wheel).namelist())
    weights = {
        f"iwm/weights/iwm-tiny/{n}"
        for n in (
            "model.safetensors", "config.json", "README.md", "LICENSE",
            "task-imagenette-caltech101-clothing.safetensors", "decoder.safetensors",
        )
    }  # fmt: skip
    assert weights | {"iwm/py.typed", "iwm/ui/page.css"} <= names
    assert not [name for name in names if not name.startswith(("iwm/", "iwm-"))]


def test_wheel_works_from_another_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    # The heavy dependencies come from this environment; iwm itself from the wheel.
    heavy = [p for p in sys.path if p.endswith("site-packages")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *heavy])
    child = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-c", CHECK],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith(str(site))
    assert "[1, 64, 256]" in child.stdout
