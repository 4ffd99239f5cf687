"""`iwm figure`: files in a fresh process, numbers that the functions give too, errors before the work."""

import re

import numpy as np
import pytest
from PIL import Image

import iwm
from iwm.demo import retrieve
from iwm.figures.invariant import marginalise
from iwm.figures.retrieval import NAMED, random_actions
from iwm.figures.similarity import draw_augmentations, similarity
from iwm.figures.sweep import sweep

COMMANDS = {
    "retrieval": ["--bank-size", 14],
    "sweep": ["--bank-size", 13, "--steps", 4],
    "similarity": ["--views", 3],
    "invariant": ["--bank-size", 6, "--shown", 3],
}


def _page(path):
    """Width and height of a PDF in inches."""
    found = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", path.read_bytes())
    return tuple(float(number) / 72 for number in found.groups())


def test_a_pdf_in_a_fresh_process(fresh, files, symmetric_folder, tmp_path):
    out = tmp_path / "new" / "a.pdf"
    options = ["-m", symmetric_folder, *COMMANDS["sweep"], "--out", out]
    shown = fresh("figure", "sweep", *files[:2], *options)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[-1] == f"Picture: {out}"
    content = out.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    assert [path.name for path in out.parent.iterdir()] == ["a.pdf"]


@pytest.mark.parametrize("name", COMMANDS)
def test_pictures_fit_a_page(command, files, symmetric_folder, tmp_path, name):
    words = ["figure", name, *files[:2], "-m", symmetric_folder, *COMMANDS[name], "--out"]
    assert command(*words, tmp_path / "a.pdf").code == 0
    assert command(*words, tmp_path / "a.png", "--dpi", 50).code == 0
    width, height = _page(tmp_path / "a.pdf")
    assert 3 < width <= 6.76
    assert 1 < height < 11
    assert b"/CIDFontType2" in (tmp_path / "a.pdf").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == pytest.approx((width * 50, height * 50), abs=1)
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.fixture
def told(command, files, symmetric_folder, tmp_path):
    """What a command says in JSON, and the model it asked."""

    def run(name, *words):
        out = tmp_path / "a.svg"
        options = ["-m", symmetric_folder, *COMMANDS[name], *words, "--out", out, "--json"]
        shown = command("figure", name, *files[:2], *options).json
        assert shown["picture"] == str(out)
        assert out.read_bytes().startswith(b"<?xml")
        return shown, iwm.load(symmetric_folder)

    return run


@pytest.mark.parametrize("words", [(), ("--random", 4, "--protocol", "undo", "--seed", 3)])
def test_retrievals_in_numbers(told, files, words):
    shown, model = told("retrieval", *words)
    seed = 3 if words else 0
    actions = random_actions(model, 4, "undo", seed=seed) if words else NAMED
    rows = list(retrieve(model, files[:2], actions, bank_size=14, seed=seed))
    assert [row["rank"] for row in shown["rows"]] == [row.rank for row in rows]
    assert [row["action"] for row in shown["rows"]] == [row.name.replace("\n", " ") for row in rows]


@pytest.mark.parametrize(
    ("words", "blocks"),
    [
        ((), [("brightness", 0), ("contrast", 1), ("saturation", 0), ("hue", 1)]),
        (("--parameter", "hue"), [("hue", 0), ("hue", 1)]),
        (("--parameter", "blur", "--from", 0.5, "--to", 1.5), [("blur", 0), ("blur", 1)]),
    ],
)
def test_sweeps_in_numbers(told, files, words, blocks):
    shown, model = told("sweep", *words)
    ends = words[3::2]
    exact = [sweep(model, files[turn], name, *ends, steps=4, bank_size=13) for name, turn in blocks]
    for one, other in zip(shown["sweeps"], exact, strict=True):
        assert one["parameter"] == other.parameter
        assert one["image"] == str(files[exact.index(other) % 2])
        assert (one["asked"], one["found"]) == (other.asked, other.found)


def test_similarities_in_numbers(told, files, symmetric_folder):
    shown, model = told("similarity", "--against", symmetric_folder, "--undo", "--seed", 4)
    params = draw_augmentations(model, 2, 3, seed=4)
    exact = [similarity(model, files[:2], params, undo=undo) for undo in (False, True)] * 2
    assert [panel["undone"] for panel in shown["panels"]] == [False, True, False, True]
    for panel, other in zip(shown["panels"], exact, strict=True):
        np.testing.assert_allclose(panel["matrix"], other.matrix, atol=1e-3)


def test_averages_in_numbers(told, files):
    shown, model = told("invariant", "--curve", "--distribution", "full", "--seed", 2)
    for index, one in enumerate(shown["photographs"]):
        exact = marginalise(model, files[index], 6, distribution="full", shown=3, seed=2, index=index)
        assert (one["rank"], one["bank_size"]) == (exact.rank, 7)
        assert list(one["curve"].values()) == pytest.approx(list(exact.curve.values()), rel=1e-2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["retrieval"], "end its name in .png, .pdf or .svg"),
        (["retrieval", "--random", "2", "--protocol", "aply"], 'Did you mean "apply"?'),
        (["sweep", "--parameter", "brigthness"], 'Did you mean "brightness"?'),
        (["sweep", "--parameter", "solarize"], "on or off and cannot be swept"),
        (["sweep", "--parameter", "hue", "--from", "-0.6"], "hue is -0.6; it must be -0.5 to 0.5 turns."),
        (["sweep", "--parameter", "hue", "--from", "0.2", "--to", "0.1"], "the first must be the smaller"),
        (["sweep", "--bank-size", "6"], "at least the 7 steps"),
        (["similarity", "--compare", "poled"], 'Did you mean "pooled"?'),
        (["invariant", "--distribution", "jiter"], 'Did you mean "jitter"?'),
        (["invariant"], "end its name in .png, .pdf or .svg"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_errors_come_before_the_work(command, files, tmp_path, words, message):
    out = tmp_path / ("a.txt" if len(words) == 1 else "a.png")
    assert message in command("figure", *words, files[0], "--out", out).error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_read_in_a_folder_is_skipped(command, mixed, symmetric_folder, tmp_path, name):
    words = ["figure", name, mixed, "-m", symmetric_folder, *COMMANDS[name], "--out", tmp_path / "a.png"]
    shown = command(*words, "--dpi", 40)
    assert shown.code == 0, shown.err
    bad = mixed / "br[bold].jpg"
    assert shown.err.startswith(f"Warning: skipped: Cannot read {bad} as an image")
    assert shown.err.count("skipped") == 1
    assert (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("no_model")
def test_what_is_named_and_cannot_be_read_is_an_error_before_the_work(command, mixed, files, tmp_path):
    bad = mixed / "br[bold].jpg"
    words = ["figure", "similarity", files[0], bad, "--out", tmp_path / "a.png"]
    assert f"Cannot read {bad} as an image" in command(*words).error
    (tmp_path / "bad").mkdir()
    bad.rename(tmp_path / "bad" / "b.jpg")
    shown = command("figure", "sweep", tmp_path / "bad", "--out", tmp_path / "a.png")
    assert shown.err.splitlines()[-1] == "Error: None of the 1 images can be read."


def test_decoding_without_a_decoder(command, files, model_folder, tmp_path):
    words = ["figure", "sweep", files[0], "-m", model_folder, "--decode", "--out", tmp_path / "a.png"]
    assert "has no decoder" in command(*words).error
    assert not (tmp_path / "a.png").exists()


def test_values_outside_the_trained_range_are_warned_of(command, files, model_folder, tmp_path):
    out = tmp_path / "a.png"
    words = [
        "--parameter",
        "hue",
        "--from",
        "-0.4",
        "--to",
        "0.4",
        "--bank-size",
        9,
        "--out",
        out,
        "--dpi",
        40,
    ]
    shown = command("figure", "sweep", files[0], "-m", model_folder, *words)
    assert shown.code == 0
    assert shown.err.startswith("Warning: tiny was not trained for hue -0.4 in the target view")


def test_the_default_photographs(command, symmetric_folder, tmp_path):
    pytest.importorskip("skimage")
    words = ["-m", symmetric_folder, "--views", 2, "--out", tmp_path / "a.png", "--dpi", 40, "--json"]
    shown = command("figure", "similarity", *words).json
    assert [panel["photographs"] for panel in shown["panels"]] == [4]
