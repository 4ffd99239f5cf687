"""`iwm list` and `iwm info`: as tables for people and as JSON that holds the same."""

import json

import pytest

import iwm
from iwm.checkpoint import read_config
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


def test_list_counts_parameters(command):
    rows = {row["name"]: row["parameters"] for row in command("list", "--json").json}
    for name in ("iwm-tiny", "iwm-tiny-inv"):
        assert rows[name] == _count(iwm.load(name, pretrained=False))
    assert round(rows["iwm-equi-18-384"] / 1e6, 1) == 118.6


def test_list_shows_every_model_on_one_line(command):
    shown = command("list")
    assert (shown.code, shown.err) == (0, "")
    heading, *lines = shown.out.splitlines()
    assert heading.split() == ["name", "parameters", "input", "weights", "licence", "apply-MRR"]
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
        ("undo-mrr-full-100x256", "unspecified"),
        ("transfer-mrr-full-100x256", "unspecified"),
    ],
)
def test_list_shows_scores_of_the_standard_size_alone(command, monkeypatch, model_folder, name, score):
    config = json.loads((model_folder / "config.json").read_text())
    config["metrics"] = {name: {"overall": {"mrr": 0.625}}}
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
        f"encoder ViT 48 x 2, patch 8, {_count(model.encoder):,} parameters",
        f"world model 32 x 2, inplace, adaln, {_count(model.predictor):,} parameters",
        "data my photos (8), b (4)",
        "licence unspecified",
        "images 12",
        "machine a heap of sand",
        "apply-mrr-full-100x256 0.625 iwm eval mrr --data a",
        "knn-b 0.500 iwm eval knn --train b",
    ):
        assert line in [" ".join(printed.split()) for printed in shown.out.splitlines()]
    assert "arXiv:2403.00504" in shown.out


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
