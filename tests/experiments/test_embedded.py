"""The chain behind the embedded weights: what it compares, installs, writes and draws."""

import json
import re
from pathlib import Path

import pytest
import torch
from adapter_parts import classification, make_model

import iwm
from iwm import zoo
from iwm.model_folder import read_config

ROOT = Path(iwm.__file__).parents[1]


def test_pictures_are_made_by_the_commands_beside_them(embedded, monkeypatch, tmp_path):
    pytest.importorskip("skimage", reason='pip install "iwm[demo]"')
    called = []
    monkeypatch.setattr(embedded, "call", lambda *words: called.append(words))
    embedded.draw(tmp_path)
    beside = (ROOT / "docs" / "FIGURES.md").read_text(encoding="utf-8")
    lines = [
        {Path(word).name for word in line.split()} for line in beside.splitlines() if "--out docs/" in line
    ]
    assert [{Path(word).name for word in ("iwm", *words)} for words in called[1:]] == lines
    assert called[0] == ("demo", "--out", str(tmp_path / "demo.png"))


def test_documents_are_as_the_script_would_write_them(embedded):
    """Where the twin has been measured too; until then the table has no row for it."""
    model = iwm.load().config
    for name in ("README.md", "MODEL_CARD.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        place = re.search(r"<!-- scores: begin -->\n(.*?)\n<!-- scores: end -->", text, re.DOTALL)[1]
        for report in (embedded.APPLY, embedded.UNDO):
            for row in model.metrics[report]["per_transformation"].values():
                assert embedded._row("", row)[3:] in place


def test_only_weights_that_are_better_everywhere_pass(embedded):
    old = iwm.load().config
    assert embedded.compare(old, old) == ["apply-MRR", "undo-MRR", "undo-MRR, jitter alone", "20-NN"]
    metrics = json.loads(json.dumps(old.metrics))
    metrics[embedded.APPLY]["overall"]["mrr"] += 0.1
    metrics[embedded.KNN]["accuracy"] += 0.01
    assert embedded.compare(old, old.replace(metrics=metrics)) == ["undo-MRR", "undo-MRR, jitter alone"]


def test_what_is_installed_loads_under_its_name_and_nothing_stale_stays(
    embedded, tiny_config, tmp_path, monkeypatch
):
    """A folder with an adapter; then one without: its file is gone."""
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights" / "iwm-tiny").mkdir(parents=True)
    (tmp_path / "weights" / "iwm-tiny" / "LICENSE").write_text("terms")
    base, tasks = tmp_path / "runs" / "iwm-tiny", tmp_path / "runs" / "tasks"
    metrics = {
        "mrr": {"command": f"iwm eval mrr --model {base} --data d"},
        "pets": {"command": f"iwm eval finetune --model {tasks} --task pets --data d"},
    }
    model = make_model(
        tiny_config().replace(metrics=metrics), pets={"tasks": {"pets": classification()}, "reads": "encoder"}
    )
    model.save_pretrained(base)
    model.save_pretrained(tasks)
    installed = tmp_path / "weights" / "iwm-tiny"
    embedded.install(base, installed, tasks=tasks)
    loaded = iwm.load(installed, task="pets")
    assert [m["command"].split()[4] for m in loaded.config.metrics.values()] == ["iwm-tiny"] * 2
    assert len(loaded.classify(torch.rand(3, 32, 32), topk=2).labels[0]) == 2
    make_model(tiny_config()).save_pretrained(base)
    embedded.install(base, installed)
    assert sorted(path.name for path in installed.iterdir()) == [
        "LICENSE",
        "config.json",
        "model.safetensors",
    ]
    assert not iwm.load(installed).config.adapters
    embedded.install(base, tmp_path / "weights" / "iwm-tiny-inv")
    assert (tmp_path / "weights" / "iwm-tiny-inv" / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize("before", [45, 90])
def test_scores_stay_with_the_steps_they_were_measured_at(
    embedded, tmp_path, monkeypatch, tiny_config, before
):
    run = tmp_path / "run"
    measured = tiny_config().replace(
        metrics={"knn": {"accuracy": 0.4}}, provenance={"steps": before, "hours": 1}
    )

    def pretrain(*words):
        done = measured.replace(metrics={}, provenance={"steps": 90, "hours": 2})
        (run / "config.json").write_text(done.to_json())

    run.mkdir()
    (run / "config.json").write_text(measured.to_json())
    monkeypatch.setattr(embedded, "call", pretrain)
    embedded.train("iwm-tiny", run)
    found = read_config(run)
    assert found.metrics == ({} if before == 45 else measured.metrics)
    assert found.provenance == {"steps": 90, "hours": 2 if before == 45 else 1}


def test_it_says_what_the_table_of_models_must_say_of_new_files(embedded, monkeypatch, tmp_path):
    assert len(embedded.left_by_hand()) == 2
    (tmp_path / "iwm-tiny-inv").mkdir()
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert embedded.left_by_hand()[2:] == [
        "embedded=False for iwm-tiny in iwm/zoo.py",
        "embedded=True for iwm-tiny-inv in iwm/zoo.py",
    ]


def test_parts_that_hang_on_the_weights_are_made_once(embedded, tmp_path, monkeypatch):
    asked = []

    def call(*words):
        asked.append(words)
        out = Path(words[words.index("--out") + 1]) if "--out" in words else None
        if words[0] == "finetune":
            out.mkdir()
            (out / "result.json").write_text("{}")

    monkeypatch.setattr(embedded, "call", call)
    base = tmp_path / "iwm-tiny"
    for _ in range(2):
        embedded.learn_tasks(base, tmp_path / "tasks")
    embedded.learn_to_decode(base, tmp_path / "decoder")
    assert [words[:3] for words in asked] == [
        ("finetune", "--model", str(base)),
        ("pretrain-decoder", "--model", str(base)),
        ("eval", "decoder", "--model"),
    ]
