"""`iwm eval`: the library's own scores, and what `--record` writes into a model folder."""

import hashlib
import json
import shutil

import pytest

import iwm
from iwm.checkpoint import read_config
from iwm.evaluation import knn, mrr


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
    for option in (f"--protocol {protocol}", f"--distribution {distribution}", "--bank-size 8", "--seed 3"):
        assert option in shown["command"]
    assert shown.pop("command").startswith("iwm eval mrr ")
    assert shown == _plain(report.to_dict())


@pytest.mark.parametrize(
    ("images", "chosen"), [(1, [0]), (5, [0, 2, 4, 7, 9]), (12, range(12)), (100, range(12))]
)
def test_photographs_are_evenly_spaced(command, photos, files, model_folder, images, chosen):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", images, "--bank-size", 2]
    shown = command(*words, "--json").json
    assert shown["images"] == len(chosen)
    assert shown["files_sha256"] == _sha256(photos, [files[i] for i in chosen])
    report = mrr(iwm.load(model_folder), [files[i] for i in chosen], bank_size=2)
    assert shown["overall"] == _plain(report.to_dict()["overall"])


def test_the_mrr_table_in_a_fresh_process_shows_the_scores(fresh, command, photos, model_folder):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", 2, "--bank-size", 16]
    done, exact = fresh(*words), command(*words, "--json").json
    assert (done.code, done.err) == (0, "")
    heading, columns, *lines = done.out.strip().splitlines()
    assert heading.strip() == "apply: 2 photographs, 16 views each, full distribution"
    assert columns.split() == ["MRR", "hits@1", "hits@5", "queries"]
    printed = {" ".join(line.split()[:-4]): line.split()[-4:] for line in lines}
    baselines = {f"baseline: {name.replace('_', ' ')}": s for name, s in exact["baselines"].items()}
    expected = {"all": exact["overall"]} | exact["per_transformation"] | baselines
    assert printed.keys() == expected.keys()
    for name, (score, first, fifth, queries) in printed.items():
        values = expected[name]
        wanted = (values["mrr"], values["hits"]["1"], values["hits"]["5"])
        assert (float(score), float(first), float(fifth)) == pytest.approx(wanted, abs=2e-3), name
        assert int(queries) == values["queries"]


def test_knn_is_the_librarys(command, classes, model_folder):
    train, val = classes
    words = ["eval", "knn", "--train", train, "--val", val, "-m", model_folder, "-k", 3]
    shown = command(*words, "--json").json
    report = knn(iwm.load(model_folder), train, val, 3, random_baseline=True)
    assert shown.pop("train_files_sha256") == _sha256(train, sorted(train.rglob("*.jpg")))
    assert shown.pop("val_files_sha256") == _sha256(val, sorted(val.rglob("*.jpg")))
    assert shown.pop("command").endswith(f"--train {train} --val {val} -k 3")
    assert shown == report.to_dict()
    assert (shown["train_images"], shown["val_images"], shown["classes"], shown["k"]) == (8, 4, 2, 3)
    words_shown = command(*words).words
    assert f"3-NN accuracy {report.accuracy:.1%} (4 images, 2 classes, 8 neighbours" in words_shown
    assert f"random encoder {report.random_encoder:.1%}, most frequent class 50.0%" in words_shown


def test_record_adds_to_the_config_and_leaves_the_rest(command, photos, classes, model_folder):
    described = json.loads((model_folder / "config.json").read_text())
    described |= {"metrics": {"probe": {"accuracy": 0.5}}, "provenance": {"images": 7}, "license": "mine"}
    (model_folder / "config.json").write_text(json.dumps(described))
    weights = (model_folder / "model.safetensors").read_bytes()
    eval_mrr = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", 1, "--bank-size", 4]
    eval_knn = ["eval", "knn", "--train", classes[0], "--val", classes[1], "-m", model_folder]
    recorded = {
        "apply-mrr-full": command(*eval_mrr, "--record", "--json").json,
        "undo-mrr-jitter": command(
            *eval_mrr, "--protocol", "undo", "--distribution", "jitter", "--record", "--json"
        ).json,
        "knn-set": command(*eval_knn, "--record", "--json").json,
    }
    assert json.loads((model_folder / "config.json").read_text()) == described | {
        "metrics": described["metrics"] | recorded
    }
    assert (model_folder / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in model_folder.iterdir()) == ["config.json", "model.safetensors"]
    assert command("info", model_folder, "--json").json["metrics"]["knn-set"] == recorded["knn-set"]


def test_recording_again_replaces_the_score(command, photos, model_folder):
    words = ["eval", "mrr", "--data", photos, "-m", model_folder, "--images", 1, "--record", "--json"]
    for size in (4, 5):
        shown = command(*words, "--bank-size", size).json
        assert read_config(model_folder).metrics == {"apply-mrr-full": shown}
        assert shown["bank_size"] == size


def test_nothing_is_recorded_unless_asked(command, photos, model_folder):
    before = (model_folder / "config.json").read_bytes()
    command("eval", "mrr", "--data", photos, "-m", model_folder, "--images", 1, "--bank-size", 2)
    assert (model_folder / "config.json").read_bytes() == before


def test_record_needs_a_model_folder(command, photos):
    words = ["eval", "mrr", "--data", photos, "--images", 1, "--bank-size", 2, "--record"]
    error = command(*words, "--model", "iwm-tiny", "--json").error
    assert "iwm-tiny" in error
    assert "folder" in error


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
