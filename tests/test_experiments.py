"""The scripts in experiments/: what they would run, and what they write, without running it."""

import contextlib
import importlib.util
import json
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from adapter_parts import classification, make_model, segmentation, shake
from hub_files import model_files
from labelled_files import write_class_folder, write_segmentation_folder

import iwm
from iwm.config import VECTOR_SIZE
from iwm.evaluation.segmentation import Confusion, segmentation_scores
from iwm.finetuning.folders import read_task
from iwm.finetuning.measure import measure

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


def test_accuracies_are_measured_and_shown_where_they_are_asked_for(ablate, monkeypatch, tmp_path):
    """Every command is one that `iwm` understands; the words of a table's line are read from their results."""
    from typer.testing import CliRunner

    from iwm.cli.main import app

    scores = {"overall": {"mrr": 0.5}, "per_transformation": {"jitter": {"mrr": 0.25}}}
    said = json.dumps(scores | {"accuracy": 0.125, "average": 0.75})
    called = []
    monkeypatch.setattr(ablate, "_run", lambda words, threads: called.append(words) or said)
    tables = []
    for tasks in (False, True):
        options = Namespace(**vars(OPTIONS) | {"tasks": tasks, "images": 3, "out": tmp_path / str(tasks)})
        arm = ablate.arms_of("depth", options)[0]
        arm.folder.mkdir(parents=True)
        result = {arm.name: ablate.train_and_measure(arm, options, 1)}
        online = {"step": 40, "online_apply_mrr": 0.5, "online_undo_mrr": 0.5}
        (arm.folder / "metrics.jsonl").write_text(json.dumps(online))
        tables.append(ablate.table([arm], result, {arm.name: 1.0}, 40).splitlines())
    assert (
        [len(lines[0].split("|")) for lines in tables]
        == [len(lines[2].split("|")) for lines in tables]
        == [11, 14]
    )
    assert "| 12.5% | 12.5% | 12.5% | 75.0% | 1.00 |" in tables[1][2]
    for words in called[5:]:
        command = words[: 2 if words[0] == "eval" else 1]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        if command != ["pretrain"]:
            fields = {"--epochs"}  # Of the recipe, which `iwm finetune` takes without listing them.
            assert all(word in fields or word in shown for word in words if word.startswith("--"))


def test_curves_are_smoothed_and_read_at_a_step(ablate, tmp_path):
    records = [{"step": step, "online_apply_mrr": step / 100, "loss": 1} for step in range(10, 80, 10)]
    records.insert(3, {"step": 35, "loss": 2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    points = ablate.curve(tmp_path, "online_apply_mrr")
    assert points[0] == (10, pytest.approx(0.2))
    assert points[3] == (40, pytest.approx(0.4))
    assert points[6] == (70, pytest.approx(0.6))
    assert ablate.at(points, 45) == pytest.approx(0.4)


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
def paired():
    return _script("paired")


@pytest.fixture(scope="module")
def leverage(paired):
    _script("studies")  # Which the script imports from beside it, as `paired`.
    return _script("leverage")


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """Small folders under the names of the studies' data, in the working directory; CamVid without names."""
    for name in ("imagenette", "caltech101", "clothing", "scenes"):
        write_class_folder(tmp_path / name / "train")
        write_class_folder(tmp_path / name / "val", count=4, seed=1)
    for part in ("train", "val"):
        write_segmentation_folder(tmp_path / "camvid" / part, count=3)
        (tmp_path / "camvid" / part / "labels.txt").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def options(tiny_config, tmp_path):
    """Of leverage.py: a model with its student, and its twin without a world model."""
    model_files(tmp_path / "model", tiny_config(), student=True)
    model_files(tmp_path / "twin", tiny_config(conditioning="none"))
    return Namespace(
        out=Path("out"),
        model=str(tmp_path / "model"),
        twin=str(tmp_path / "twin"),
        images=10,
        jobs=1,
        seeds=2,
    )


class StopError(Exception):
    pass


def test_every_row_is_a_command_that_is_understood(leverage, monkeypatch, data_sets, options):
    """Of all studies, on small folders, up to the first step of training."""
    from iwm import evaluation
    from iwm.cli.main import app
    from iwm.finetuning import probe, run

    asked = {}

    def train(task, source, config, *rest):
        asked.update(config=config, model=task.model, images=sum(source.lengths))
        raise StopError

    def mrr(model, chosen, **settings):
        asked.update(settings, model=model)
        raise StopError

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(probe, "train", train)
    monkeypatch.setattr(evaluation, "mrr", mrr)
    for study in leverage.STUDIES.values():
        leverage.check_models(options, study)
        for row in study.rows:
            job = leverage.make_job(options, study, row, study.data[0], 1)
            asked.clear()
            with pytest.raises(StopError):
                app(list(job.words), standalone_mode=False)
            assert (asked["model"].config.predictor.conditioning == "none") is row.twin
            if row.kind == "mrr":
                assert (asked["seed"], asked["protocol"], asked["distribution"]) == (1, "apply", "full")
                continue
            config = asked["config"]
            assert config.seed == 1
            assert asked["images"] == (3 if study.segments else 10 * len(study.data[0]))
            assert config.init == ("random" if "random" in row.name else "pretrained")
            assert config.output == ("token" if "token" in row.name else "all")
            assert config.branch == ("student" if "student" in row.name else "teacher")


def test_rows_of_one_command_share_a_run(leverage, data_sets, options):
    def folders(name):
        study = leverage.STUDIES[name]
        return {
            row.name: leverage.make_job(options, study, row, ("imagenette",), 0).folder for row in study.rows
        }

    protocols, spectrum = folders("protocols"), folders("spectrum")
    assert spectrum["equivariant, predictor"] == protocols["predictor, pretrained"]
    assert folders("prediction")["null action, teacher, whole image"] == protocols["predictor, pretrained"]
    named = set(protocols.values()) | set(spectrum.values())
    assert len(named) == len(protocols) + len(spectrum) - 1
    shutil.copytree(options.twin, "elsewhere/model")
    options.twin = "elsewhere/model"  # Called like the other one.
    assert len(set(folders("spectrum").values())) == len(spectrum)


def test_a_model_that_a_row_needs_is_asked_for_before_the_first_run(
    leverage, monkeypatch, data_sets, options
):
    monkeypatch.setattr(leverage, "call", lambda *_: pytest.fail("a run was begun"))
    options.model = "iwm-tiny"
    monkeypatch.setattr(sys, "argv", ["leverage.py", "prediction", "--out", "out"])
    with pytest.raises(SystemExit, match=r'"on the student" needs a model with its student(.|\n)*--model'):
        leverage.main()
    options.twin = "missing"
    with pytest.raises(SystemExit, match=r'"equivariant" needs a model, and missing is none(.|\n)*--model'):
        leverage.check_models(Namespace(model="missing", twin="missing"), leverage.STUDIES["domains"])
    with pytest.raises(SystemExit, match=r'"invariant, MRR" needs a model, and missing is none(.|\n)*--twin'):
        leverage.check_models(options, leverage.STUDIES["spectrum"])


def _study(leverage, **fields):
    return leverage.Study(**{"data": (("imagenette",),), "source": "the paper"} | fields)


def test_runs_are_done_once_and_those_of_another_command_refused(leverage, monkeypatch, data_sets, options):
    asked = []

    def call(words, threads):
        asked.append(words)
        return json.dumps({"accuracy": 0.5})

    monkeypatch.setattr(leverage, "call", call)
    study = _study(leverage, rows=(leverage.Row("a", ("--head", "linear"), kind="probe"),))
    first = leverage.run_all(options, study)["a", ("imagenette",)]
    assert leverage.run_all(options, study)["a", ("imagenette",)] == first
    assert len(asked) == 2
    options.images = 5
    leverage.run_all(options, study)
    assert len(asked) == 4
    shutil.copytree(options.model, "elsewhere/model")
    before, options.model = options.model, "elsewhere/model"
    with pytest.raises(SystemExit, match=rf"was made by\n.*{before}(.|\n)*elsewhere/model(.|\n)*--out"):
        leverage.run_all(options, study)
    options.model = before
    options.images = 10
    kept = Path(first[0]["folder"]) / "model.txt"
    kept.write_text("0123\n")
    with pytest.raises(
        SystemExit, match=r"was made with other weights of the same name\. Take another --out"
    ):
        leverage.run_all(options, study)
    (Path(first[0]["folder"]) / "command.txt").unlink()
    with pytest.raises(SystemExit, match="a command that it does not name"):
        leverage.run_all(options, study)
    assert len(asked) == 4


def test_a_multitask_run_without_its_baselines_goes_on(leverage, monkeypatch, data_sets, options):
    tasks = [{"task": "imagenette", "single": None}, {"task": "clothing", "single": None}]
    study = _study(leverage, rows=(leverage.Row("a", ()),), data=(("imagenette", "clothing"),))
    job = leverage.make_job(options, study, study.rows[0], study.data[0], 0)
    file = job.folder / "result.json"

    def call(words, threads):
        file.write_text(json.dumps({"tasks": tasks}))
        tasks[0]["single"] = tasks[1]["single"] = 0.5

    monkeypatch.setattr(leverage, "call", call)
    leverage.run(job, 1)
    assert not leverage.finished(file)
    leverage.run(job, 1)
    assert leverage.finished(file)
    monkeypatch.setattr(leverage, "call", lambda *_: pytest.fail("it was done"))
    leverage.run(job, 1)


def _made_up(leverage, study, folder):
    """Results of a study, and answers of its runs about four images."""
    found = {}
    for data in study.data:
        for number, row in enumerate(study.rows):
            for seed in range(2):
                run = folder / f"{data[0]}-{number}-{seed}"
                for task in data:
                    for place, right in ((run, [1, 1, 0, seed]), (run / "alone" / task, [1, 0, 0, 0])):
                        place.mkdir(parents=True, exist_ok=True)
                        (place / f"answers-{task}.json").write_text(
                            json.dumps(right if number < 2 else [1] * 4)
                        )
                result = {
                    "average": 0.5 + number / 100,
                    "cost": {"trained": 10**6 * (number + 1), "flops": 10**9},
                    "tasks": [{"task": t, "scores": {"accuracy": 0.5}, "single": 0.25} for t in data],
                }
                result = {"overall": {"mrr": 0.9 - 0.8 * row.twin}} if row.kind == "mrr" else result
                result = {"accuracy": 0.5 + number / 100} if row.kind == "probe" else result
                found.setdefault((row.name, data), []).append({"folder": str(run), "result": result})
    return found


def test_claimed_differences_have_intervals(leverage, paired, tmp_path):
    study = leverage.STUDIES["protocols"]
    text = leverage.table(study, ("caltech101",), _made_up(leverage, study, tmp_path), tmp_path)
    assert "| predictor, pretrained | 51.0% | 51.0%, 51.0% | 2.00 M | 1.00 G | 83.3 |" in text
    assert "- predictor, pretrained over predictor, random: +0.0% ± 0.0%" in text
    expected = paired.interval(torch.tensor([0, 0, 1, 0.5]).double())
    assert f"- end to end over predictor, pretrained: {expected}" in text
    told = [line.split(":")[0] for line in text.splitlines() if line.startswith("- ")]
    assert "- predictor, pretrained over encoder" in told
    assert {line for line in told if line.startswith("- end to end over")} == {
        f"- end to end over {row.name}" for row in study.rows[:3]
    }


def test_several_tasks_are_compared_with_each_alone(leverage, paired, tmp_path):
    study = leverage.STUDIES["multitask"]
    text = leverage.table(study, study.data[0], _made_up(leverage, study, tmp_path), tmp_path)
    gain = torch.tensor([0, 1, 0, 0.5]).double()
    assert "| clothing | 50.0% | 50.0%, 50.0% | | | |\n| clothing, alone | 25.0% |" in text
    assert f"- one predictor for all, clothing over alone: {paired.interval(gain)}" in text
    assert f"- one predictor for all, average over alone: {paired.interval(gain, gain, gain)}" in text


def test_probes_are_compared_by_the_answers_they_wrote(leverage, paired, tmp_path):
    study = leverage.STUDIES["marginal"]
    found = _made_up(leverage, study, tmp_path)
    for results in found.values():
        for result in results:
            folder = Path(result["folder"])
            right = json.loads((folder / "answers-imagenette.json").read_text())
            said = [{"image": "x", "class": "a", "answer": "a" if one else "b"} for one in right]
            (folder / "answers.json").write_text(json.dumps(said))
            (folder / "answers-imagenette.json").unlink()
    text = leverage.table(study, study.data[0], found, tmp_path)
    expected = paired.interval(torch.tensor([0, 0, 1, 0.5]).double())
    assert f"- 16 predictions over the encoding: {expected}" in text


@pytest.mark.parametrize("name", ["protocols", "spectrum"])
def test_studies_with_a_figure_draw_it(leverage, monkeypatch, name, tmp_path):
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda figure, path: drawn.append(figure))
    study = leverage.STUDIES[name]
    found = _made_up(leverage, study, tmp_path)
    leverage.picture(name, leverage.only(study, "caltech101"), found, tmp_path / "drawn.png")
    assert [axis.get_title() for axis in drawn.pop().axes] == ["caltech101"]
    leverage.picture(name, leverage.only(study, None), found, tmp_path / "drawn.png")
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["imagenette", "caltech101"]
    lines = {line.get_label(): line for line in axes[0].lines}
    if name == "protocols":
        points = {row.name: lines[row.name].get_xydata().tolist() for row in study.rows}
        assert points == {row.name: [[i + 1, 50 + i]] for i, row in enumerate(study.rows)}
    else:
        assert {"linear", "attentive", "predictor"} <= lines.keys()
        assert lines["linear"].get_xydata() == pytest.approx(torch.tensor([[0.1, 53], [0.9, 52]]).numpy())
        text = leverage.table(study, ("imagenette",), found, tmp_path)
        assert "| invariant, MRR | 0.100 | 0.100, 0.100 | | | 0.09 |" in re.sub(" +", " ", text)


def test_a_data_set_that_a_study_lacks_is_said(leverage):
    with pytest.raises(SystemExit, match="no data set scenes; it has imagenette, caltech101"):
        leverage.only(leverage.STUDIES["protocols"], "scenes")
    with pytest.raises(SystemExit, match=r"no data set clothing; it has imagenette\+caltech101\+clothing"):
        leverage.only(leverage.STUDIES["multitask"], "clothing")


def test_a_study_of_some_rows_tells_their_differences(leverage):
    study = leverage.STUDIES["protocols"]
    some = leverage.only(study, "imagenette", ["encoder", "predictor, pretrained"])
    assert [row.name for row in some.rows] == ["predictor, pretrained", "encoder"]
    assert some.pairs == (("predictor, pretrained", "encoder"),)
    first = study.rows[0].name
    assert leverage.only(study, None, [first]).pairs == ()
    with pytest.raises(SystemExit, match="has the rows predictor, random; predictor, pretrained; encoder"):
        leverage.only(study, None, ["decoder"])


def test_differences_are_paired_by_image(paired):
    before, after = torch.tensor([0, 1, 1, 0.0]), torch.tensor([1, 1, 1, 0.0])
    gain = (after - before).double()
    error = torch.tensor([1, 0, 0, 0.0]).double().std().item() / 2
    assert paired.interval(gain) == f"+25.0% ± {1.96 * error:.1%}"
    none = torch.zeros(8).double()
    assert paired.interval(gain, none) == f"+12.5% ± {1.96 * error / 2:.1%}"


def test_overlaps_of_images_drawn_anew_are_those_of_a_list_with_repeats(paired):
    """As the library counts pixels of the same maps, a class that is absent left out."""
    labels = ("a", "b", "c", "absent")
    true, predicted = torch.randint(3, (2, 5, 6, 7)).unbind()
    counts = []
    for one, other in zip(predicted, true, strict=True):
        confusion = Confusion(len(labels))
        confusion.add(one, other)
        counts.append(confusion.counts.double())
    counts = torch.stack(counts)
    for drawn in ([0, 1, 2, 3, 4], [0, 0, 3, 3, 3]):
        times = torch.tensor(drawn).bincount(minlength=5)[None].double()
        report = segmentation_scores([(predicted[i], true[i]) for i in drawn], labels)
        assert paired._overlaps(torch.stack((counts, counts)), times).item() == pytest.approx(report.miou)
    assert paired.overlap_interval(counts[None], counts[None]) == "+0.0% ± 0.0%"
    better = counts + 100 * torch.eye(4) * torch.tensor([1, 1, 1, 0])
    mean, spread = re.match(r"\+(.*)% ± (.*)%", paired.overlap_interval(better[None], counts[None])).groups()
    assert 30 < float(mean) < 100
    assert 0 < float(spread) < 20


def test_answers_add_up_to_the_scores_of_the_run(paired, tiny_config, data_sets):
    """About every image, of a classifier and of class maps at the images' own sizes; looked at once."""
    model = make_model(
        tiny_config(),
        pets={"tasks": {"imagenette": classification("blue", "red")}, "reads": "encoder"},
        roads={"tasks": {"camvid": segmentation("sky", "road")}, "reads": "encoder"},
    )
    model.save_pretrained(data_sets / "run")
    labels = data_sets / "names.txt"
    labels.write_text("sky\nvoid\nroad\n")
    right = paired.answers(data_sets / "run", "imagenette")
    split = read_task("imagenette").val
    assert right.mean().item() == measure(str(data_sets / "run"), "imagenette", split)["accuracy"]
    counts = paired.answers(data_sets / "run", "camvid", labels)
    assert counts.shape == (3, 2, 2)
    split = read_task("camvid", segmentation=True, labels=labels).val
    miou = paired._overlaps(counts[None], torch.ones(1, 3).double()).item()
    assert miou == pytest.approx(measure(str(data_sets / "run"), "camvid", split)["miou"])
    (data_sets / "run" / "model.safetensors").unlink()
    assert torch.equal(paired.answers(data_sets / "run", "imagenette"), right)


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
