"""The command line, in process and in fresh processes; photographs and a small random model."""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from quick_processes import run_quickly

import iwm
from iwm.cli.main import main
from iwm.world_model import WorldModel


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The document on standard output; the command succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def error(self):
        """The one line of a command that failed in words, and all that it printed."""
        assert (self.code, self.out) == (1, ""), self
        assert re.fullmatch(r"Error: .+\n", self.err), self.err
        return self.err

    @property
    def words(self):
        """Everything printed, without frames, colours and line breaks."""
        return " ".join(re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]", " ", self.out + self.err).split())


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("list", "--json")` runs `iwm list --json` in this process."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["iwm", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def environment():
    """Of fresh processes: this copy of the package, the threads of this process."""
    kept = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return kept | {
        "PYTHONPATH": str(Path(iwm.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "COLUMNS": "80",
    }


@pytest.fixture(scope="session")
def fresh(environment):
    """`fresh("list", "--json", cwd=folder)` runs `python -m iwm list --json` there."""

    def run(*words, cwd=None):
        done = run_quickly("-m", "iwm", *words, env=environment, cwd=cwd)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def files(photos):
    """The photographs' paths, in order."""
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture
def bad_photo(tmp_path):
    """A file that is called a photograph and is none."""
    path = tmp_path / "broken.jpg"
    path.write_text("not an image")
    return path


@pytest.fixture
def model_folder(tiny_config, tmp_path):
    """A model of random weights whose predictions depend on the action."""
    model = WorldModel(tiny_config())
    for name, weights in model.named_parameters():
        acts = "action" in name or "modulation" in name
        torch.nn.init.normal_(weights, std=1.0 if acts else 0.1 if name.startswith("encoder") else 0.2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def symmetric_folder(model_folder):
    """The same model, of a config that says it can apply every operation."""
    config = json.loads((model_folder / "config.json").read_text())
    config["actions"]["symmetric"] = True
    (model_folder / "config.json").write_text(json.dumps(config))
    return model_folder


@pytest.fixture
def mixed(files, tmp_path):
    """A folder of the photographs a.jpg and c.jpg, of one that is none, and of two that are hidden."""
    folder = tmp_path / "mixed"
    (folder / ".thumbs").mkdir(parents=True)
    for source, name in zip(files, ("a.jpg", "c.jpg", ".d.jpg", ".thumbs/e.jpg"), strict=False):
        shutil.copy(source, folder / name)
    (folder / "br[bold].jpg").write_text("not an image")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """A command that loads a model fails the test."""

    def refuse(*_):
        raise AssertionError("a model was loaded")

    for name in ("demo", "encode", "evaluate", "figure"):
        monkeypatch.setattr(f"iwm.cli.{name}.load_model", refuse)


@pytest.fixture(scope="session")
def pretrain_words():
    """Options that make the recipe `iwm-tiny` tiny indeed: 4 x 4 patches of 8 pixels."""
    sizes = {
        "model.encoder.width": 32, "model.encoder.depth": 1, "model.encoder.heads": 2,
        "model.encoder.patch_size": 8, "model.encoder.image_size": 32, "model.preprocess.size": 32,
        "model.preprocess.resize": 32, "model.predictor.width": 32, "model.predictor.depth": 1,
    }  # fmt: skip
    words = ["--batch-size", "4", "--device", "cpu", "--precision", "float32", "--data.workers", "0"]
    return words + [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
