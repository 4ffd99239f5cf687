"""What strangers wrote into a config: shown as text, on the line where it belongs, and never obeyed."""

import json

import pytest
from hub_files import model_files

HOSTILE = "\x1b[2J\x1b]0;pwned\x07\x9b31m\r\b\x00\u202e"
SHOWN = r"\x1b[2J\x1b]0;pwned\x07\x9b31m \x08\x00\u202e"
BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.fixture
def publish(hub, tiny_config, tmp_path, monkeypatch):
    """`publish({...})` puts a model on the Hub, as `org/hostile`, whose config says this too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    files = model_files(tmp_path / "made", tiny_config())

    def add(fields):
        config = json.loads(files["config.json"]) | fields
        hub.add_repo("org/hostile", files | {"config.json": json.dumps(config).encode()})

    return add


@pytest.fixture
def describe(model_folder):
    """`describe({...})` makes the config of a model folder say this too; the folder."""

    def write(fields):
        config = json.loads((model_folder / "config.json").read_text())
        (model_folder / "config.json").write_text(json.dumps(config | fields))
        return model_folder

    return write


def check_harmless(text):
    """Nothing in it moves a cursor, clears a screen or turns text around."""
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_strangers_words_reach_no_terminal_raw(command, publish):
    fields = {
        "recipe": {"command": f"command{HOSTILE}"},
        "provenance": {f"key{HOSTILE}": f"value{HOSTILE}", "data": [{"folder": HOSTILE, "images": HOSTILE}]},
        "metrics": {
            f"metric{HOSTILE}": {"accuracy": 0.5, "command": HOSTILE},
            "odd": HOSTILE,
            "list": [HOSTILE],
        },
    }
    publish(fields)
    shown = command("info", "org/hostile")
    assert (shown.code, shown.err) == (0, "")
    check_harmless(shown.out)
    for start in ("command", "key", "value", "metric"):
        assert start + SHOWN in shown.out
    shown = command("info", "org/hostile", "--json")
    check_harmless(shown.out)
    assert shown.json["recipe"] == fields["recipe"]


@pytest.mark.parametrize(
    "odd",
    [
        {f"field{HOSTILE}\nx": 1},
        {"name": f"a{HOSTILE}\n"},
        {"license": HOSTILE},
        {"encoder": {"depth": HOSTILE}},
        {HOSTILE * 10_000: 1},
    ],
)
def test_errors_about_a_strangers_config_are_one_harmless_line(command, publish, odd):
    publish(odd)
    error = command("info", "org/hostile").error
    check_harmless(error)
    assert len(error) < 600


@pytest.mark.parametrize("place", ["command", "fact", "folder", "metric", "value", "score"])
@pytest.mark.parametrize("end", BREAKS, ids=ascii)
def test_a_config_cannot_forge_a_line(command, describe, model_folder, place, end):
    forged = f"harmless{end}  licence      mit{end}cite"
    fields = {
        "command": {"recipe": {"command": forged}},
        "fact": {"provenance": {forged: forged}},
        "folder": {"provenance": {"data": [{"folder": forged, "images": forged}]}},
        "metric": {"metrics": {forged: 0.5}},
        "value": {"metrics": {"mrr": [forged], "knn": forged}},
        "score": {"metrics": {forged: {"accuracy": 0.5, "command": forged}}},
    }[place]
    before = command("info", model_folder).out.splitlines()
    shown = command("info", describe(fields))
    assert (shown.code, shown.err) == (0, "")
    new = [line for line in shown.out.splitlines() if line not in before]
    assert any("harmless" in line for line in new)
    assert {line for line in new if "harmless" not in line} <= {"provenance", "metrics", "train it"}
    assert all(line in shown.out.splitlines() for line in before)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "0.5", [0.5], None, True])
def test_scores_that_are_none(command, describe, monkeypatch, value):
    metrics = {"apply-mrr-full-100x256": {"overall": {"mrr": value}}, "knn": {"accuracy": value}}
    folder = describe({"metrics": metrics})
    shown = command("info", folder)
    assert shown.code == 0
    assert "apply-mrr-full-100x256" in shown.out
    monkeypatch.setattr("iwm.zoo.ZooEntry.folder", folder)
    assert command("list", "iwm-tiny").out.splitlines()[1].split()[-1] == "unspecified"


def test_a_long_key_does_not_widen_the_others(command, describe):
    folder = describe({"provenance": {"k" * 100_000: 1} | {f"fact{i}": i for i in range(100)}})
    assert len(command("info", folder).out) < 120_000
