"""The scripts in experiments/: what they would run, and what they write, without running it."""

import contextlib
import importlib.util
import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from adapter_parts import classification, make_model, shake
from labelled_files import write_class_folder, write_segmentation_folder

import iwm
from iwm.config import VECTOR_SIZE

ROOT = Path(iwm.__file__).parents[1]


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # Dataclasses look there.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ablate():
    return _script("ablate")


@pytest.fixture(scope="module")
def embedded():
    return _script("embedded")


OPTIONS = Namespace(steps=40, seed=0, data=["photos"], out=Path("out"), held_out="val", neighbours="train")


def test_every_arm_changes_what_its_name_says_and_nothing_else(ablate):
    folders = {}
    for name in ablate.ABLATIONS:
        arms = ablate.arms_of(name, OPTIONS)
        assert len({arm.folder for arm in arms}) == len(arms)
        for arm in arms:
            config = arm.config()
            assert (config.model.preprocess.size, config.batch_size) == (64, 16)
            # The same folder is the same run, whatever the ablation it belongs to.
            assert folders.setdefault(arm.folder, config) == config
            assert "pretrain" not in arm.words(OPTIONS)
    by_name = {a.name: a.config() for a in ablate.arms_of("layout", OPTIONS)}
    assert by_name["append, feature (the paper's)"].model.predictor.layout == "append"
    assert by_name["append, feature (the paper's)"].model.predictor.conditioning == "feature"
    assert by_name["inplace, adaln"] == folders[Path("out/base-40-seed0")]
    masks = {a.name: a.config().masks.unmasked for a in ablate.arms_of("masking", OPTIONS)}
    assert masks == {
        "none in 20 % of the steps": 0.2,
        "in every step": 0.0,
        "none in 60 %": 0.6,
        "never": 1.0,
    }


def test_the_words_of_an_arm_are_its_config(ablate, monkeypatch):
    """The command that is printed asks for the very run whose step is timed."""
    from iwm.cli.main import main
    from iwm.pretraining import run

    asked = []
    monkeypatch.setattr(run, "pretrain", lambda config, *rest, **options: asked.append(config) or True)
    for arm in ablate.arms_of("augmentation", OPTIONS):
        monkeypatch.setattr(sys, "argv", ["iwm", "pretrain", *arm.words(OPTIONS)])
        with contextlib.suppress(SystemExit):
            main()
        timed = arm.config().replace(steps=40, checkpoint_every=2000, monitor_every=1)
        assert asked.pop() == timed


def test_curves_are_smoothed_and_read_at_a_step(ablate, tmp_path):
    records = [{"step": step, "online_apply_mrr": step / 100, "loss": 1} for step in range(10, 80, 10)]
    records.insert(3, {"step": 35, "loss": 2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    points = ablate.curve(tmp_path, "online_apply_mrr")
    assert points[0] == (10, pytest.approx(0.2))
    assert points[3] == (40, pytest.approx(0.4))
    assert points[6] == (70, pytest.approx(0.6))
    assert ablate.at(points, 45) == pytest.approx(0.4)


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


@pytest.fixture(scope="module")
def leverage():
    return _script("leverage")


def test_every_row_is_a_command_that_is_understood(leverage, monkeypatch, tmp_path):
    """Options of all studies, on small folders, up to where training would begin."""
    from iwm.cli.main import app
    from iwm.finetuning import run

    class StopError(Exception):
        pass

    def stop(config, plan, **options):
        asked.append(config)
        raise StopError

    asked = []
    monkeypatch.chdir(tmp_path)
    for name in ("imagenette", "caltech101", "clothing"):
        write_class_folder(tmp_path / name)
    write_segmentation_folder(tmp_path / "camvid")
    monkeypatch.setattr(run, "finetune", stop)
    monkeypatch.setattr(leverage, "call", lambda words, threads: app(words, standalone_mode=False))
    options = Namespace(out=tmp_path, model="iwm-tiny", twin="iwm-tiny-inv", images=3000, jobs=2)
    for name, study in leverage.STUDIES.items():
        options.study = name
        for row in () if study.probes else study.rows:
            with pytest.raises(StopError):
                leverage.run(options, study, row, study.data[0], 1)
            config = asked.pop()
            assert (config.seed, config.images) == (1, 3000)
            assert config.init == ("random" if "random" in row.name else "pretrained")
            assert config.output == ("token" if "token" in row.name else "all")
            assert config.branch == ("student" if "student" in row.name else "teacher")


def test_differences_are_paired_by_image(leverage):
    import torch

    before, after = torch.tensor([0, 1, 1, 0.0]), torch.tensor([1, 1, 1, 0.0])
    error = torch.tensor([1, 0, 0, 0.0]).double().std().item() / 2
    assert leverage.interval((after - before).double()) == f"+25.0% ± {1.96 * error:.1%}"


@pytest.mark.parametrize("conditioning", ["feature", "adaln"])
@pytest.mark.parametrize("fused", [True, False])
def test_shared_source_tokens_are_those_of_the_source_alone(tiny_config, conditioning, fused):
    """What the library's own blocks make of them, without mask tokens and without an action."""
    config = tiny_config(layout="append", conditioning=conditioning)
    predictor = _script("shared_source").SharedSourcePredictor(config).eval().requires_grad_(False)
    shake(predictor, 0.2)
    for block in predictor.blocks:
        block.attn.fused_attn = fused
    grid, source = (4, 4), torch.randn(1, 16, config.encoder.width)
    actions = torch.randn(2, VECTOR_SIZE[config.actions.encoding])
    x, read = predictor._sequence(source, actions, grid)
    alone = x[:1, : read.start]
    for block in predictor.blocks:
        alone = (
            block(alone, torch.zeros(1, config.predictor.width)) if conditioning == "adaln" else block(alone)
        )
    shared = predictor._run(x, actions)[-1][:, : read.start]
    assert torch.allclose(shared, alone.expand(2, -1, -1), atol=1e-5)
    predicted = predictor(source, actions, grid)
    moved = source + torch.eye(16)[0][:, None]  # One token: all that are predicted see it.
    assert (predictor(moved, actions, grid) - predicted).abs().amax((0, 2)).min() > 1e-3
    assert (predicted[0] - predicted[1]).abs().max() > 1e-2


def test_every_reader_is_asked_for_a_sigma(acting_model):
    """Where an edit is read as unblurred, sigma is that of the best hypothesis with a blur."""
    pytest.importorskip("sklearn")
    script = _script("read_edits")
    before = acting_model.encode(torch.rand(2, 3, 32, 32))
    after = acting_model.apply_action(before, [iwm.Action(brightness=0.7), iwm.Action(blur=1.5)])
    plain, blurred = acting_model.infer_actions(before, after, steps=20)
    assert plain.action.target.blur == 0 < blurred.action.target.blur
    best = next(h.photometry.blur for h in plain.runner_ups if h.photometry.blur > 0)
    read = torch.stack([script.numbers(plain), script.numbers(blurred)])
    assert read[:, 5].tolist() == pytest.approx([-best, blurred.action.target.blur])
    truth = torch.tensor([iwm.Photometry(blur=v).params for v in (1.5, 1.5)])
    errors, _ = script.score(read, truth)
    assert errors["blur"] < 1.5
