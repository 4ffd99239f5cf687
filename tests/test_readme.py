"""The documents: the first example runs, commands exist, numbers are recorded, links lead somewhere."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import iwm
from iwm.cli.main import app
from iwm.pretraining.config import PretrainConfig

ROOT = Path(iwm.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
LINES = sorted(
    {
        line
        for document in DOCUMENTS
        for line in (ROOT / document).read_text(encoding="utf-8").splitlines()
        if line.startswith("iwm ")
    }
)


def _blocks(language, text=README):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [text for kind, text in blocks if kind == language]


def test_the_first_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    left, right = Image.new("RGB", (80, 120), "teal"), Image.new("RGB", (80, 120), "orange")
    photo = Image.new("RGB", (160, 120))
    photo.paste(left, (0, 0))
    photo.paste(right, (80, 0))
    photo.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(_blocks("python")[0], names)
    assert names["moved"].tokens.shape == names["latent"].tokens.shape
    assert names["hits"].ids[0][0] == "darker"
    assert capsys.readouterr().out.startswith("['darker', ")


@pytest.mark.parametrize("line", LINES)
def test_commands_have_the_options_that_are_shown(line):
    words = line.split("#")[0].split()[1:]
    while words and not words[-1].isidentifier():
        words.pop()
    command = words[: 2 if words[0] in ("eval", "figure") else 1]
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(PretrainConfig)}
    known = fields if command == ["pretrain"] else set()
    for option in re.findall(r"(?<= )--?[a-z-]+", line.split("#")[0]):
        assert option in known or option in shown.output


def _file_map():
    """Paths of the map, from the lowest of the library on."""
    (listed,) = (block for block in _blocks("") if "iwm/errors.py " in block)
    return [line.split()[0] for line in listed.splitlines()]


def _imported(path):
    """Files of the library that a module imports where it begins."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "iwm":
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                file = name.replace(".", "/")
                yield from (f for f in (f"{file}.py", f"{file}/__init__.py") if (ROOT / f).is_file())


def test_modules_import_from_those_above_them_in_the_file_map():
    listed = _file_map()

    def line(path):
        return next(
            i for i, place in enumerate(listed) if path == place or path.startswith(f"{place.rstrip('/')}/")
        )

    paths = [p.relative_to(ROOT).as_posix() for p in (ROOT / "iwm").rglob("*.py")]
    doors = {
        "iwm/__init__.py",
        "iwm/__main__.py",
        "iwm/pretraining/__main__.py",
        "iwm/finetuning/__main__.py",
    }
    upwards = [
        (path, other) for path in set(paths) - doors for other in _imported(path) if other not in doors
    ]
    assert len(upwards) > 500
    assert [pair for pair in upwards if line(pair[1]) > line(pair[0])] == []


def test_the_file_map_lists_what_there_is():
    listed = set(_file_map())
    missing = sorted(path for path in listed if not (ROOT / path).exists())
    assert not missing
    modules = {f"iwm/{p.name}" for p in (ROOT / "iwm").glob("*.py") if not p.name.startswith("__")}
    assert modules <= listed
    folders = {f"iwm/{p.parent.name}/" for p in (ROOT / "iwm").glob("*/__init__.py")}
    assert folders <= listed


@pytest.mark.parametrize("document", ["README.md", "MODEL_CARD.md"])
def test_numbers_are_those_recorded_with_the_weights(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    metrics = iwm.load().config.metrics
    for name in ("apply-mrr-full-100x256", "undo-mrr-full-100x256"):
        recorded = metrics[name]
        assert recorded["command"] in text
        for scores in (recorded["overall"], *recorded["per_transformation"].values()):
            cells = (scores["mrr"], *scores["hits"].values())
            assert "| " + " | ".join(f"{cell:.3f}" for cell in cells) + " |" in text
    knn = metrics["knn-20-imagenette/val"]
    assert knn["command"] in text
    assert f"{knn['accuracy']:.1%}" in text
    assert f"{knn['random_encoder']:.1%}" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / document).parent / target).exists(), target
