"""What `iwm` says about itself: help, examples that can be typed, suggestions, errors in one line."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from typer.main import get_command

import iwm
from iwm.cli.main import app
from iwm.cli.pretrain import parse_overrides
from iwm.fields import to_json
from iwm.pretraining.recipes import find_recipe


def _commands(group, *path):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command


ROOT = get_command(app)
COMMANDS = dict(_commands(ROOT))


def _example(text):
    """The command between the first bold marks that hold options, as words."""
    words = shlex.split(max(re.findall(r"\[bold\](.+?)\[/bold\]", text), key=len))
    assert words[0] == "iwm"
    return words[1:]


def _parse(words):
    """Read a command line as the program would, without running it; what is left over comes back."""
    path = tuple(words[:2]) if tuple(words[:2]) in COMMANDS else tuple(words[:1])
    context = COMMANDS[path].make_context(path[-1], words[len(path) :])
    return path, context.args


def test_help_lists_every_command_and_what_to_type_first(command):
    shown = command("--help")
    assert shown.code == 0
    for name in ROOT.commands:
        assert re.search(rf"^│ {name} +\w", shown.out, re.MULTILINE), name
    first_steps = "First steps: iwm demo, then iwm search FOLDER --image photo.jpg --brightness 0.6"
    assert shown.words.endswith(first_steps)
    for group in ("eval", "figure"):
        for name in ROOT.commands[group].commands:
            assert re.search(rf"^│ {name} +\w", command(group, "--help").out, re.MULTILINE), name


@pytest.mark.parametrize("words", [[], ["eval"], ["figure"]], ids=["iwm", "iwm eval", "iwm figure"])
def test_nothing_to_do_shows_the_help(command, words):
    asked, bare = command(*words, "--help"), command(*words)
    assert bare.words == asked.words
    assert (asked.code, bare.code) == (0, 2)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("path", [("eval",), ("figure",), *COMMANDS], ids=" ".join)
def test_every_help_ends_with_an_example(command, path, flag):
    shown = command(*path, flag)
    example = shlex.split(shown.words.rpartition("Example: ")[2])
    assert shown.code == 0
    assert example[: len(path) + 1] == ["iwm", *path]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_example_can_be_typed(path):
    found, left = _parse(_example(COMMANDS[path].epilog))
    assert found == path
    if path == ("pretrain",):
        assert parse_overrides(left, json.loads(to_json(find_recipe("iwm-tiny"))))
    else:
        assert left == []


@pytest.mark.parametrize(
    ("group", "path"),
    [
        (ROOT, ("search",)),
        (ROOT.commands["eval"], ("eval", "mrr")),
        (ROOT.commands["figure"], ("figure", "retrieval")),
    ],
    ids=["iwm", "iwm eval", "iwm figure"],
)
def test_the_example_of_a_group_can_be_typed(group, path):
    assert _parse(_example(group.epilog)) == (path, [])


def test_version(command):
    shown = command("--version")
    assert (shown.code, shown.out, shown.err) == (0, f"iwm {iwm.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["serch"], "Did you mean 'search'?"),
        (["eval", "mmr"], "Did you mean 'mrr'?"),
        (["list", "--jsn"], "--json"),
        (["encode", "a.jpg", "--uot", "b.safetensors"], "--out"),
        (["search", "photos", "--image", "a.jpg", "--brightnes", "1"], "--brightness"),
        (["eval", "knn", "--trian", "a", "--val", "b"], "--train"),
        (["demo", "--bank-sizes", "20"], "--bank-size"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_word_gets_a_suggestion(command, words, suggestion):
    shown = command(*words)
    assert (shown.code, shown.out) == (2, "")
    assert suggestion in shown.words.replace(" ".join(words), "")


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["encode"], "images"),
        (["encode", "a.jpg"], "--out"),
        (["search", "photos"], "--image"),
        (["eval", "mrr"], "--data"),
        (["eval", "knn", "--train", "a"], "--val"),
        (["finetune", "--model", "iwm-tiny"], "--data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_is_missing_is_named(command, words, missing):
    shown = command(*words)
    assert (shown.code, shown.out) == (2, "")
    assert re.search(rf"Missing (argument|option) '{missing}(\.\.\.)?'", shown.words, re.IGNORECASE)


def test_an_error_in_a_fresh_process_is_one_line_and_exit_status_1(fresh):
    assert fresh("info", "iwm-tinny").error == (
        'Error: No model, folder or repository is called "iwm-tinny". Did you mean "iwm-tiny" or "iwm-tiny-inv"? See `iwm list`.\n'
    )


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["encode", "", "--out", "a.safetensors"], "encode"),
        (["export", "--out", ""], "--out"),
        (["export", "--out="], "--out"),
        ([""], "iwm"),
    ],
    ids=" ".join,
)
def test_an_empty_word_is_not_the_current_folder(command, tmp_path, monkeypatch, words, place):
    monkeypatch.chdir(tmp_path)
    assert f'The word after "{place}" is empty' in command(*words).error
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_without_memory_is_said_in_words(command, monkeypatch):
    def load(*words, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("iwm.cli.options.load_model", load)
    monkeypatch.setattr("iwm.cli.encode.load_model", load)
    shown = command("encode", "photo.jpg", "--out", "a.safetensors")
    assert "take a smaller --batch-size, or --device cpu. (CUDA out of memory" in shown.error


def test_a_place_that_may_not_be_entered_is_said_in_words(command, monkeypatch):
    def load(*words, **options):
        raise PermissionError(13, "Permission denied", "private/photo.jpg")

    monkeypatch.setattr("iwm.cli.encode.find_images", load)
    shown = command("encode", "private/photo.jpg", "--out", "a.safetensors")
    assert shown.error == "Error: Cannot use private/photo.jpg: Permission denied.\n"


def test_an_empty_field_of_a_recipe_is_a_value(command):
    for words in (["--augment.rand_augment", ""], ["--augment.rand_augment="]):
        assert (
            "is empty; a shell variable"
            not in command("finetune", *words, "--data", "nowhere", "--out", "x").err
        )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_said_in_words(environment):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "iwm", "list"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space is left where the output goes.\n")


@pytest.mark.parametrize("name", ["[bold]x[/y]", "br[/x]", ":cat:", "a word " * 20])
def test_an_error_shows_names_as_they_are(command, name):
    assert f'No model, folder or repository is called "{name}".' in command("info", name).error


@pytest.mark.parametrize("words", [["encode", "PHOTOS", "--out", "OUT"], ["eval", "mrr", "--data", "PHOTOS"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "iwm-tyni"], 'called "iwm-tyni".*Did you mean "iwm-tiny"'),
        (["--model", "iwm-equi-18-384"], r"recipe only.*`iwm pretrain --recipe iwm-equi-18-384 "),
        (["--model", "MODEL", "--device", "gpux"], 'Cannot use device "gpux"; try "cpu" or "auto"'),
    ],
    ids=["unknown", "unpublished", "device"],
)
def test_a_model_that_cannot_be_had(command, photos, model_folder, tmp_path, words, options, message):
    places = {"PHOTOS": photos, "OUT": tmp_path / "out.safetensors", "MODEL": model_folder}
    assert re.search(message, command(*[places.get(word, word) for word in words + options]).error)
    assert not (tmp_path / "out.safetensors").exists()


def test_help_loads_no_heavy_module(environment):
    code = "import sys, iwm.cli.main; print(*{'torch', 'timm', 'pydantic', 'matplotlib', 'gradio'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
