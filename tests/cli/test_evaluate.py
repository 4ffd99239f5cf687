"""`iwm eval`: the library's own scores, and what `--record` writes into a model folder."""

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

import iwm
from iwm.errors import SaveError
from iwm.evaluation import knn, mrr
from iwm.model_folder import read_config


def _plain(value):
    return json.loads(json.dumps(value))


def _sha256(root, files):
    listing = "".join(f"{path.relative_to(root).as_posix()}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


@pytest.fixture
def classes(photos, files, tmp_path):
    """Train and validation folders of two classes."""
    for i, path in enumerate(files):
        place = tmp_path / "set" / ("val" if i % 3 == 0 else "train") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return tmp_path / "set" / "train", tmp_path / "set" / "val"


@pytest.mark.parametrize("distribution", ["full", "jitter"])
@pytest.mark.parametrize("protocol", ["apply", "undo", "transfer"])
def test_mrr_is_the_librarys(command, photos, files, model_folder, protocol, distribution):
    shown = command(
        "eval", "mrr", "--data", photos, "-m", model_folder, "--images", 2, "--protocol", protocol,
        "--distribution", distribution, "--bank-size", 8, "--seed", 3, "--json",
    ).json  # fmt: skip
    report = mrr(
        iwm.load(model_folder), [files[0], files[6]], bank_size=8, protocol=protocol,
        distribution=distribution, seed=3,
    )  # fmt: skip
    assert shown.pop("files_sha256") == _sha256(photos, [files[0], files[6]])
    assert shlex.split(shown.pop("command")) == [
        "iwm", "eval", "mrr", "--model", str(model_folder), "--data", str(photos), "--images", "2",
        "--protocol", protocol, "--distribution", distribution, "--bank-size", "8", "--seed", "3",
    ]  # fmt: skip
    assert shown == _plain(report.to_dict())


@pytest.mark.parametrize(
    ("folder", "protocol", "drawn"),
    [
        ("model_folder", "apply", "jitter"),
        ("model_folder", "transfer", "jitter"),
        ("model_folder", "undo", "full"),
        ("symmetric_folder", "apply", "full"),
        ("symmetric_folder", "transfer", "full"),
        ("symmetric_folder", "undo", "full"),
    ],
)
def test_the_distribution_is_by_default_what_was_trained(
    request, command, photos, files, folder, protocol, drawn
):
    place = request.getfixturevalue(folder)
    words = ["eval", "mrr", "--data", photos, "-m", place, "--images", 2, "--bank-size", 8]
    shown = command(*words, "--protocol", protocol, "--json").json
    chosen = [files[0], files[6]]
    report = mrr(iwm.load(place), chosen, bank_size=8, protocol=protocol, distribution=drawn)
    typed = shlex.split(shown["command"])
    assert typed[typed.index("--distribution") + 1] == shown["distribution"] == drawn
    assert shown["overall"] == _plain(report.to_dict()["overall"])


@pytest.mark.parametrize(
    ("images", "chosen"), [(1, [0]), (5, [0, 2, 4, 7, 9]), (12, range(12)), (100, range(12))]
)
def test_photographs_are_evenly_spaced(command, photos, files, model_folder, images, chosen):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", images, "--bank-size", 2]
    shown = command(*words, "--json").json
    assert shown["images"] == len(chosen)
    assert shown["files_sha256"] == _sha256(photos, [files[i] for i in chosen])
    report = mrr(iwm.load(model_folder), [files[i] for i in chosen], bank_size=2, distribution="jitter")
    assert shown["overall"] == _plain(report.to_dict()["overall"])


def test_the_mrr_table_in_a_fresh_process_shows_the_scores(fresh, command, photos, model_folder):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", 2, "--bank-size", 16]
    done, exact = fresh(*words), command(*words, "--json").json
    assert (done.code, done.err) == (0, "")
    heading, columns, *lines = done.out.strip().splitlines()
    assert heading.strip() == "apply: photographs 2, views of each 16, jitter distribution"
    assert columns.split() == ["MRR", "hits@1", "hits@5", "hits@10", "queries"]
    printed = {" ".join(line.split()[:-5]): line.split()[-5:] for line in lines}
    baselines = {f"baseline: {name.replace('_', ' ')}": s for name, s in exact["baselines"].items()}
    expected = {"all": exact["overall"]} | exact["per_transformation"] | baselines
    assert printed.keys() == expected.keys()
    for name, (*scores, queries) in printed.items():
        values = expected[name]
        wanted = [values["mrr"], *(values["hits"][k] for k in ("1", "5", "10"))]
        assert [float(score) for score in scores] == pytest.approx(wanted, abs=2e-3), name
        assert int(queries) == values["queries"]


def test_knn_is_the_librarys(command, classes, model_folder):
    train, val = classes
    words = ["eval", "knn", "--train", train, "--val", val, "-m", model_folder, "-k", 3]
    evaluated = [sorted(root.rglob("*.jpg")) for root in (train, val)]
    for root in (train, val):
        for place in (root, root / ".class0"):
            place.mkdir(exist_ok=True)
            shutil.copy(evaluated[0][0], place / "stray.jpg")
    shown = command(*words, "--json").json
    report = knn(iwm.load(model_folder), train, val, 3, random_baseline=True)
    assert shown.pop("train_files_sha256") == _sha256(train, evaluated[0])
    assert shown.pop("val_files_sha256") == _sha256(val, evaluated[1])
    assert shlex.split(shown.pop("command")) == [
        "iwm", "eval", "knn", "--model", str(model_folder), "--train", str(train), "--val", str(val),
        "-k", "3",
    ]  # fmt: skip
    assert shown == report.to_dict()
    assert (shown["train_images"], shown["val_images"], shown["classes"], shown["k"]) == (8, 4, 2, 3)
    words_shown = command(*words).words
    assert f"3-NN accuracy {report.accuracy:.1%} (4 images, 2 classes, 8 neighbours" in words_shown
    assert f"random encoder {report.random_encoder:.1%}, most frequent class 50.0%" in words_shown


def test_the_command_shown_gives_the_number_again(command, monkeypatch, photos, classes, model_folder):
    place = classes[0].parent / "my set's model; $HOME"
    model_folder.rename(place)
    monkeypatch.chdir(place.parent)
    for words in (
        ["mrr", "--data", photos, "--images", 2, "--protocol", "undo", "--bank-size", 5, "--seed", 4],
        ["mrr", "--data", photos, "--images", 1, "--bank-size", 5, "--strength", "strong"],
        ["knn", "--train", "train", "--val", "val", "-k", 2],
    ):
        shown = command("eval", *words, "-m", place.name, "--json").json
        typed = shlex.split(shown["command"])
        assert typed[typed.index("--model") + 1] == place.name
        assert command(*typed[1:], "--json").json == shown


def test_record_adds_to_the_config_and_leaves_the_rest(
    command, monkeypatch, photos, classes, model_folder, tmp_path
):
    monkeypatch.chdir(tmp_path)
    described = json.loads((model_folder / "config.json").read_text())
    described |= {"metrics": {"probe": {"accuracy": 0.5}}, "provenance": {"images": 7}, "license": "mine"}
    (model_folder / "config.json").write_text(json.dumps(described))
    weights = (model_folder / "model.safetensors").read_bytes()
    eval_mrr = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", 1, "--bank-size", 4]
    eval_knn = ["eval", "knn", "--train", "set/train", "--val", "set/val", "-m", model_folder]
    recorded = {
        "apply-mrr-jitter-1x4": command(*eval_mrr, "--record", "--json").json,
        "undo-mrr-jitter-1x4": command(
            *eval_mrr, "--protocol", "undo", "--distribution", "jitter", "--record", "--json"
        ).json,
        "knn-8-set/val": command(*eval_knn, "--record", "--json").json,
        "knn-3-set/val": command(*eval_knn, "-k", 3, "--record", "--json").json,
    }
    assert json.loads((model_folder / "config.json").read_text()) == described | {
        "metrics": described["metrics"] | recorded
    }
    assert (model_folder / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in model_folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert command("info", model_folder, "--json").json["metrics"].items() >= recorded.items()


def test_a_record_is_in_the_card_too(command, classes, model_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    iwm.load(model_folder).save_pretrained("saved")
    card = Path("saved", "README.md")
    assert "## Scores" not in card.read_text(encoding="utf-8")
    words = ["eval", "knn", "--train", "set/train", "--val", "set/val", "-m", "saved", "-k", 3, "--record"]
    accuracy = command(*words, "--json").json["accuracy"]
    assert f"| knn-3-set/val | accuracy {accuracy:.3f} |" in card.read_text(encoding="utf-8")
    card.write_text("Mine.")
    command(*words, "--json")
    assert card.read_text() == "Mine."


def test_a_knn_record_is_named_after_the_neighbours_and_the_folder(
    command, monkeypatch, classes, model_folder, tmp_path
):
    monkeypatch.chdir(tmp_path)
    words = ["eval", "knn", "--train", "set/train", "-m", model_folder, "-k", 2, "--record", "--val"]
    for val in ("set/val", "set/val/", "./set/val", classes[1]):
        assert command(*words, val).code == 0
    expected = {"knn-2-set/val", f"knn-2-{'/'.join(classes[1].parts[-2:])}"}
    assert read_config(model_folder).metrics.keys() == expected


@pytest.mark.usefixtures("no_model")
def test_nothing_is_recorded_in_the_package(command, photos):
    refused = command("eval", "mrr", "--data", photos, "--images", 1, "--record")
    assert refused.error == "Error: iwm-tiny is published; --record writes to a model folder of your own.\n"


def test_a_score_of_other_photographs_is_not_replaced(command, photos, model_folder, tmp_path):
    (tmp_path / "others").mkdir()
    shutil.copy(next(photos.rglob("*.jpg")), tmp_path / "others" / "another.jpg")
    words = ["-m", model_folder, "--images", 1, "--bank-size", 4, "--record", "--data"]
    assert command("eval", "mrr", *words, photos).code == 0
    before = (model_folder / "config.json").read_bytes()
    refused = command("eval", "mrr", *words, tmp_path / "others").error
    assert "has apply-mrr-jitter-1x4 of other photographs: iwm eval mrr " in refused
    assert (model_folder / "config.json").read_bytes() == before


def test_recording_again_replaces_the_score(command, photos, model_folder):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", 1, "--record", "--json"]
    for seed in (0, 1):
        shown = command(*words, "--bank-size", 4, "--seed", seed).json
        assert read_config(model_folder).metrics == {"apply-mrr-jitter-1x4": shown}
        assert shown["seed"] == seed


def test_a_record_is_named_after_what_was_measured(command, photos, model_folder):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--record", "--json"]
    options = {
        "apply-mrr-jitter-1x2": ["--images", 1, "--bank-size", 2],
        "apply-mrr-jitter-1x3": ["--images", 1, "--bank-size", 3],
        "apply-mrr-full-2x3": ["--images", 2, "--bank-size", 3, "--distribution", "full"],
        "transfer-mrr-jitter-2x3": ["--images", 2, "--bank-size", 3, "--protocol", "transfer"],
        "undo-mrr-full-12x2": ["--images", 100, "--bank-size", 2, "--protocol", "undo"],
    }
    recorded = {name: command(*words, *option).json for name, option in options.items()}
    assert read_config(model_folder).metrics == recorded


@pytest.mark.parametrize("kind", ["mrr", "knn"])
def test_a_result_that_cannot_be_recorded_is_shown_all_the_same(
    command, monkeypatch, photos, classes, model_folder, kind
):
    def refuse(path, text):
        raise SaveError(f"Cannot write {path}: no space left.")

    words = {
        "mrr": ["--data", photos, "--images", 1, "--bank-size", 2],
        "knn": ["--train", classes[0], "--val", classes[1]],
    }[kind]
    exact = command("eval", kind, *words, "-m", model_folder, "--json").json
    monkeypatch.setattr("iwm.model_folder.write_text", refuse)
    shown = command("eval", kind, *words, "-m", model_folder, "--json", "--record")
    assert shown.code == 1
    assert json.loads(shown.out) == exact
    assert shown.err == f"Error: Cannot write {model_folder / 'README.md'}: no space left.\n"


@pytest.mark.parametrize("kind", ["mrr", "knn"])
@pytest.mark.usefixtures("no_model")
def test_a_folder_without_permission_is_told_before_the_work(
    command, monkeypatch, photos, classes, model_folder, kind
):
    words = {"mrr": ["--data", photos], "knn": ["--train", classes[0], "--val", classes[1]]}[kind]
    monkeypatch.setattr("os.access", lambda path, mode: (str(path), mode) != (str(model_folder), os.W_OK))
    error = command("eval", kind, *words, "-m", model_folder, "--record").error
    place = model_folder / "config.json"
    assert error == f"Error: Cannot write {place}: no permission to write in {model_folder}.\n"


def test_nothing_is_recorded_unless_asked(command, photos, model_folder):
    before = (model_folder / "config.json").read_bytes()
    command("eval", "mrr", "--data", photos, "-m", model_folder, "--images", 1, "--bank-size", 2)
    assert (model_folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", ["iwm-equi-18-384", "iwm-tyni", "nowhere/model"])
@pytest.mark.parametrize("kind", ["mrr", "knn"])
@pytest.mark.usefixtures("no_model")
def test_a_model_without_a_folder_is_told_before_the_work(command, photos, classes, kind, name):
    words = {"mrr": ["--data", photos], "knn": ["--train", classes[0], "--val", classes[1]]}[kind]
    error = command("eval", kind, *words, "--model", name, "--record").error
    assert name in error
    assert "folder" in error.lower()


@pytest.mark.usefixtures("no_model")
def test_a_negative_seed_is_a_usage_error(command, photos):
    shown = command("eval", "mrr", "--data", photos, "--seed", -1)
    assert (shown.code, shown.out) == (2, "")
    assert "Invalid value for '--seed'" in shown.words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mrr", "--data", "missing"], "No such folder: missing"),
        (["mrr", "--data", "empty"], "No images in empty"),
        (["mrr", "--data", ".", "--protocol", "aply"], 'No protocol is called "aply". Did you mean "apply"?'),
        (["mrr", "--data", ".", "--distribution", "ful"], 'is called "ful". Did you mean "full"?'),
        (["knn", "--train", "set/train", "--val", "missing"], "No such folder: missing"),
        (["knn", "--train", "empty", "--val", "set/val"], "expected empty/cat/1.jpg and so on"),
        (["knn", "--train", "set/train", "--val", "set"], "only the validation images have: train, val"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("classes")
def test_what_cannot_be_evaluated(command, monkeypatch, tmp_path, model_folder, words, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert message in command("eval", *words, "-m", model_folder).error


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("kind", ["mrr", "decoder"])
def test_what_cannot_be_read_is_told_before_the_work(command, mixed, kind):
    error = command("eval", kind, "--data", mixed).error
    assert error.startswith(f"Error: 1 of the 3 photographs of {mixed} to be measured on cannot be used: ")
    assert "br[bold].jpg" in error
    assert error.endswith("Mend or remove them.\n")
