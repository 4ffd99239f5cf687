"""`iwm list` and `iwm info`: as tables for people and as JSON that holds the same."""

import json
import re
import subprocess
import sys

import pytest
from adapter_parts import classification, make_model, segmentation
from hub_files import model_files, pinned_entry

import iwm
from iwm.model_card import CITATION
from iwm.model_folder import read_config
from iwm.zoo import ZOO


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("pattern", ["*", "iwm-tiny*", "*equi*", "iwm-inv-12-384"])
def test_list_json(command, pattern):
    rows = {row["name"]: row for row in command("list", pattern, "--json").json}
    assert list(rows) == iwm.list_models(pattern)
    for name, row in rows.items():
        assert row["weights"] == ZOO[name].weights
        assert row["summary"] == ZOO[name].summary
        assert row["input"] == ZOO[name].config.preprocess.size
        assert isinstance(row["license"], str)
        assert row["license"]


@pytest.mark.parametrize("words", [["list"], ["info"], ["info", "iwm-equi-18-384"], ["info", "iwm-tinny"]])
def test_what_is_in_tables_is_told_without_torch(environment, words):
    code = (
        "import sys; from iwm.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'iwm.finding' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "False True"
    assert done.returncode == (1 if "iwm-tinny" in words else 0)


def test_list_counts_parameters(command):
    rows = {row["name"]: row["parameters"] for row in command("list", "--json").json}
    for name in ("iwm-tiny", "iwm-tiny-inv"):
        assert rows[name] == _count(iwm.load(name, pretrained=False))
    assert round(rows["iwm-equi-18-384"] / 1e6, 1) == 118.6


def test_list_shows_every_model_on_one_line(command):
    shown = command("list")
    assert (shown.code, shown.err) == (0, "")
    heading, *lines = shown.out.splitlines()
    assert heading.split() == ["name", "params", "input", "weights", "licence", "apply", "undo", "20-NN"]
    rows = {row["name"]: row for row in command("list", "--json").json}
    for line, (name, row) in zip(lines, rows.items(), strict=False):
        assert len(line) <= 80
        for value in (name, f"{row['parameters'] / 1e6:.1f} M", f"{row['input']} px", row["weights"]):
            assert value in line
    assert lines[-1] == "More about one: iwm info NAME"


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [("iwm-tyni", 'Did you mean "iwm-tiny"'), ("zzz*", "Choose from: iwm-equi-12-384, ")],
)
def test_list_without_a_match_names_what_there_is(command, pattern, suggestion):
    for options in ([], ["--json"]):
        error = command("list", pattern, *options).error
        assert f'No model matches "{pattern}".' in error
        assert suggestion in error


def test_list_shows_a_recorded_score(command, monkeypatch, model_folder):
    _give_metrics(model_folder)
    monkeypatch.setattr("iwm.zoo.ZooEntry.folder", model_folder)
    assert command("list", "iwm-tiny").out.splitlines()[1].split()[-1] == "0.625"
    assert command("list", "iwm-tiny", "--json").json[0]["metrics"] == read_config(model_folder).metrics


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("apply-mrr-full-100x256", "0.625"),
        ("apply-mrr-jitter-100x256", "0.625"),
        ("apply-mrr-full", "unspecified"),
        ("apply-mrr-full-12x256", "unspecified"),
        ("apply-mrr-full-100x64", "unspecified"),
        ("undo-mrr-full-100x256", "0.625"),
        ("undo-mrr-jitter-100x256", "unspecified"),
        ("knn-20-elsewhere/val", "0.625"),
        ("knn-5-imagenette/val", "unspecified"),
        ("transfer-mrr-full-100x256", "unspecified"),
    ],
)
def test_list_shows_scores_of_the_standard_size_alone(command, monkeypatch, model_folder, name, score):
    config = json.loads((model_folder / "config.json").read_text())
    config["metrics"] = {name: {"accuracy": 0.625} if "knn" in name else {"overall": {"mrr": 0.625}}}
    (model_folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("iwm.zoo.ZooEntry.folder", model_folder)
    assert command("list", "iwm-tiny").out.splitlines()[1].split()[-1] == score


def _give_metrics(folder):
    described = json.loads((folder / "config.json").read_text())
    described["metrics"] = {
        "apply-mrr-full-100x256": {"overall": {"mrr": 0.625}, "command": "iwm eval mrr --data a"},
        "knn-b": {"accuracy": 0.5, "command": "iwm eval knn --train b"},
    }
    data = [{"folder": "my photos", "images": 8}, {"folder": "b", "images": 4}]
    described["provenance"] = {"data": data, "images": 12, "machine": "a heap of sand"}
    (folder / "config.json").write_text(json.dumps(described))


def test_info_json_is_the_config_and_the_parameters(command, model_folder):
    _give_metrics(model_folder)
    shown = command("info", model_folder, "--json").json
    model = iwm.load(model_folder)
    assert shown.pop("parameters") == {
        "encoder": _count(model.encoder),
        "predictor": _count(model.predictor),
    }
    assert shown == json.loads((model_folder / "config.json").read_text())


def test_info_of_a_folder(command, model_folder, monkeypatch):
    _give_metrics(model_folder)
    monkeypatch.chdir(model_folder.parent)
    shown = command("info", "model")
    assert shown.code == 0
    model = iwm.load(model_folder)
    for line in (
        "tiny, in model",
        f"encoder ViT 2 x 48, patch 8, {_count(model.encoder):,} parameters",
        f"world model 2 x 32, inplace, adaln, {_count(model.predictor):,} parameters",
        "data my photos (8), b (4)",
        "licence unspecified",
        "images 12",
        "machine a heap of sand",
        "apply-mrr-full-100x256 0.625 iwm eval mrr --data a",
        "knn-b 0.500 iwm eval knn --train b",
    ):
        assert line in [" ".join(printed.split()) for printed in shown.out.splitlines()]
    assert "arXiv:2403.00504" in shown.out


def test_info_of_an_exported_folder_says_how_to_load_it(command, model_folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(model_folder.parent)
    iwm.load("model").export("served", "onnx", "fp32")
    shown = command("info", "served").out
    assert 'exported for onnx, fp32: iwm.load("served", backend="onnx")' in shown
    expected = {"backend": "onnx", "precision": "fp32", "space": iwm.load("model").space}
    assert command("info", "served", "--json").json["export"] == expected
    assert "export" not in command("info", "model", "--json").json


@pytest.mark.parametrize("name", ["br[final]", "br[/x]", "[bold]a[/bold]", "a name of many words " * 8])
def test_a_folder_like_markup_is_shown_as_it_is(command, model_folder, tmp_path, name):
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True)
    model_folder.rename(folder)
    shown = command("info", folder)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[0] == f"tiny, in {folder}"


@pytest.mark.parametrize(
    ("count", "printed"),
    [
        (0, "0"),
        (999, "999"),
        (1234, "1,234"),
        (99_999, "99,999"),
        (100_000, "0.1 M"),
        (118_600_000, "118.6 M"),
    ],
)
def test_small_counts_are_plain_numbers(command, monkeypatch, model_folder, count, printed):
    monkeypatch.setattr("iwm.cli.models._parameters", lambda config: {"encoder": count, "predictor": 7})
    shown = command("info", model_folder).words
    assert f"patch 8, {printed} parameters" in shown
    assert "adaln, 7 parameters" in shown


@pytest.mark.parametrize("name", ["iwm-tiny-inv", "iwm-equi-36-512"])
def test_info_of_a_recipe_says_how_to_train_it(command, name):
    shown = command("info", name)
    assert shown.code == 0
    assert f"iwm pretrain --recipe {name} --data FOLDER --out DIR" in shown.words
    assert f"licence {ZOO[name].config.license}" in shown.words
    assert "weights recipe only" in shown.words


def test_info_tells_of_the_default_model(command):
    assert command("info", "--json").json == command("info", "iwm-tiny", "--json").json
    assert command("info").out.startswith("iwm-tiny: ")
    assert command("info", "--json").json["name"] == iwm.load().config.name


@pytest.mark.parametrize(
    ("name", "message"),
    [("iwm-equi-18-483", 'Did you mean "iwm-equi-18-384"'), ("FOLDER", "is not a model folder")],
)
def test_info_of_something_else(command, photos, name, message):
    assert message in command("info", photos if name == "FOLDER" else name).error


def test_info_shows_whatever_json_a_config_holds(command, model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text())
    odd = {"metrics": {"mrr": 0.5}, "provenance": {"data": "ImageNet"}}
    (tmp_path / "config.json").write_text(json.dumps(config | odd))
    shown = command("info", tmp_path)
    assert shown.code == 0, shown.err
    assert "0.5" in shown.out
    assert "ImageNet" in shown.out


def test_info_of_a_name_too_long_for_a_file(command):
    assert "No model, folder or repository is called" in command("info", "a" * 300).error


def test_list_tells_of_every_entry_where_its_weights_are(command):
    rows = {row["name"]: row for row in command("list", "--json").json}
    assert {name: row["weights"] for name, row in rows.items()} == {
        name: "embedded" if name == "iwm-tiny" else "recipe only" for name in ZOO
    }
    for name, row in rows.items():
        assert row["parameters"] == ZOO[name].config.parameters
        assert row["license"] == ZOO[name].config.license
    embedded = read_config(ZOO["iwm-tiny"].folder).metrics
    assert [row["metrics"] for row in rows.values()] == [embedded] + [{}] * (len(ZOO) - 1)
    first, *others = command("list").out.splitlines()[1 : len(ZOO) + 1]
    apply, undo = (embedded[f"{p}-mrr-full-100x256"]["overall"]["mrr"] for p in ("apply", "undo"))
    knn = embedded["knn-20-imagenette/val"]["accuracy"]
    assert first.split()[-3:] == [f"{score:.3f}" for score in (apply, undo, knn)]
    assert all(re.search(r"recipe only +none yet *$", line) for line in others)


@pytest.mark.parametrize("name", list(ZOO))
def test_info_of_every_entry(command, name):
    shown = command("info", name).out
    config = read_config(ZOO[name].folder) if ZOO[name].embedded else ZOO[name].config
    encoder, predictor = (f"{count / 1e6:.1f} M parameters" for count in config.counts)
    side, weights = config.preprocess.size, ZOO[name].weights
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == f"{name}: {ZOO[name].summary}"
    for pattern in (
        rf"encoder ViT .*, {encoder}", rf"world model .*, {predictor}", rf"input {side} px .*",
        rf"weights {weights}", rf"licence {re.escape(config.license)}", r"iwm pretrain --recipe .*",
    ):  # fmt: skip
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    assert lines.index("train it") < lines.index("cite")
    assert CITATION in shown
    assert command("info", name, "--json").json.items() >= json.loads(config.to_json()).items()


@pytest.fixture
def files(tiny_config, tmp_path):
    """The files of a model whose config says more than the zoo's."""
    config = tiny_config().replace(
        name="pinned", license="mit", recipe={"command": "iwm pretrain --data a"}, provenance={"steps": 5},
        metrics={"apply-mrr-full-100x256": {"overall": {"mrr": 0.875}, "command": "iwm eval mrr --data a"}},
    )  # fmt: skip
    return model_files(tmp_path / "made", config)


@pytest.fixture
def pinned(hub, files, tiny_config, monkeypatch, tmp_path):
    """The commit of `org/tiny`, which the zoo calls `pinned`; the cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = hub.add_repo("org/tiny", files)
    config = tiny_config().replace(name="pinned", license="mit (by the zoo)")
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(config, commit, files))
    return commit


def test_a_published_entry_before_and_after_it_is_in_the_cache(hub, pinned, command):
    count = f"{ZOO['pinned'].config.parameters:,}"
    assert command("list", "pinned").out.splitlines()[1].split() == [
        "pinned",
        count,
        "32",
        "px",
        "hub",
        "mit",
    ]
    (row,) = command("list", "pinned", "--json").json
    assert (row["weights"], row["license"], row["metrics"]) == ("hub", "mit (by the zoo)", {})
    shown = command("info", "pinned").words
    assert f"weights hub: org/tiny@{pinned}" in shown
    assert "licence mit (by the zoo)" in shown
    assert "iwm pretrain --recipe pinned --data FOLDER --out DIR" in shown
    assert not hub.requests
    iwm.load("pinned")
    hub.requests.clear()
    assert command("list", "pinned").out.splitlines()[1].split()[-2:] == ["mit", "0.875"]
    (row,) = command("list", "pinned", "--json").json
    assert (row["weights"], row["license"]) == ("hub", "mit")
    assert row["metrics"]["apply-mrr-full-100x256"]["overall"] == {"mrr": 0.875}
    shown = command("info", "pinned").words
    for words in (f"weights hub: org/tiny@{pinned}", "licence mit", "steps 5", "0.875 iwm eval mrr --data a"):
        assert words in shown
    assert "iwm pretrain --data a" in shown
    assert not hub.requests


def test_a_damaged_config_in_the_cache_is_not_shown(pinned, command, tmp_path):
    iwm.load("pinned")
    (path,) = (tmp_path / "cache").glob("models--org--tiny/snapshots/*/config.json")
    path.resolve().write_text(path.read_text().replace("0.875", "0.975"))
    assert command("list", "pinned", "--json").json[0]["metrics"] == {}


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@main", "hf-hub:org/tiny"])
def test_info_of_a_repository_fetches_its_config_alone(hub, pinned, command, name):
    shown = command("info", name)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"pinned, in {name}\n")
    for words in (f"weights in {name}", "licence mit", "steps 5", "0.875 iwm eval mrr --data a"):
        assert words in shown.words
    assert hub.requests
    assert not [request for request in hub.requests if "safetensors" in request.path + request.subject]
    assert command("info", name, "--json").json["provenance"] == {"steps": 5}


@pytest.mark.parametrize(
    ("name", "message"),
    [("org/none", "There is no org/none"), ("org/tiny@none", 'org/tiny has no revision "none"')],
)
def test_info_of_a_repository_that_is_not_there(pinned, command, name, message):
    assert message in command("info", name).error


def test_info_of_a_repository_without_a_network(pinned, command, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "Check the network" in command("info", "org/tiny").error


@pytest.fixture
def solved(tmp_path, tiny_config):
    """A folder of a model with tasks."""
    config = tiny_config()
    model = make_model(
        config,
        pets={
            "tasks": {"pets": classification(head="attentive"), "cars": classification("a", "b")},
            "predictor": config.predictor,
            "license": "CC-BY-NC-4.0 [x]",
            "metrics": {"pets": {"accuracy": 0.8125}},
        },
        street={"tasks": {"street": segmentation()}, "reads": "encoder"},
    )
    model.save_pretrained(tmp_path / "solved")
    return tmp_path / "solved"


def test_info_shows_the_tasks(command, solved):
    config = read_config(solved)
    shown = [" ".join(line.split()) for line in command("info", solved).out.splitlines()]
    size = f"{config.adapter_parameters('pets'):,} parameters"
    assert f"pets classification, 3 classes, accuracy 0.812; pets ({size}); CC-BY-NC-4.0 [x]" in shown
    assert f"cars classification, 2 classes, not measured; pets ({size}); CC-BY-NC-4.0 [x]" in shown
    assert any(line.startswith("street segmentation, 4 classes, not measured; street (") for line in shown)
    parameters = command("info", solved, "--json").json["parameters"]
    model = iwm.load(solved)
    assert parameters["adapters"] == {name: _count(model.load_adapter(name)) for name in ("pets", "street")}
    assert command("info", solved, "--json").json["adapters"]["street"]["tasks"]["street"]["labels"] == [
        "sky", "road", "car", "tree",
    ]  # fmt: skip


def test_info_of_a_model_without_tasks_has_no_such_lines(command, model_folder):
    assert "tasks" not in command("info", model_folder).out.split()
    assert "adapters" not in command("info", model_folder, "--json").json["parameters"]


def test_info_says_that_a_tuned_model_does_not_act(command, solved):
    config = read_config(solved).replace(tuned="encoder")
    (solved / "config.json").write_text(config.to_json())
    assert "actions none: it was finetuned as a whole" in command("info", solved).words
