"""Tables of tasks: every row's command, differences paired by image, and pictures."""

import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from adapter_parts import classification, make_model, segmentation
from hub_files import model_files
from labelled_files import write_class_folder, write_segmentation_folder

from iwm.evaluation.segmentation import Confusion, segmentation_scores
from iwm.fields import to_json
from iwm.finetuning.folders import read_task
from iwm.finetuning.measure import measure


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
        steps=None,
        eval_every=None,
        jobs=1,
        seeds=2,
    )


class StopError(Exception):
    pass


@pytest.mark.parametrize("steps", [None, 7])
def test_every_row_is_a_command_that_is_understood(leverage, monkeypatch, data_sets, options, steps):
    """Of all studies, on small folders, up to the first step of training."""
    from iwm import evaluation
    from iwm.cli.main import app
    from iwm.finetuning import probe, run

    asked = {}
    options.steps = options.eval_every = steps

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
            if row.kind == "finetune" and steps:
                assert (config.steps, config.epochs, config.monitor_every) == (steps, 0, steps)
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


def test_seeds_of_a_centre_view_share_its_latents(leverage, data_sets, options):
    study = leverage.STUDIES["spectrum"]
    for row in study.rows:
        words = [leverage.make_job(options, study, row, study.data[0], seed).words for seed in range(2)]
        places = [w[w.index("--cache") + 1] if "--cache" in w else None for w in words]
        assert places == ([str(Path("out/cache"))] * 2 if "--centre" in row.options else [None] * 2)


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


@pytest.mark.parametrize("kind", ["finetune", "probe"])
def test_runs_with_what_a_recipe_was_before_are_refused(leverage, monkeypatch, data_sets, options, kind):
    options.seeds = 1
    words = ("--epochs", "20", "--tune", "encoder") if kind == "finetune" else ("--head", "linear")
    study = _study(leverage, rows=(leverage.Row("a", words, kind=kind),))
    job = leverage.make_job(options, study, study.rows[0], study.data[0], 0)
    kept = job.folder / "run.json"

    def call(words, threads):
        result = {"accuracy": 0.5, "train_images": 10}
        if kind == "finetune":  # As `iwm finetune` leaves them.
            kept.write_text(to_json(leverage.configuration(job, 10)))
            (job.folder / "result.json").write_text(json.dumps(result))
        return json.dumps(result)

    monkeypatch.setattr(leverage, "call", call)
    leverage.run_all(options, study)
    monkeypatch.setattr(leverage, "call", lambda *_: pytest.fail("it was done"))
    settings = json.loads(kept.read_text())
    assert settings["seed"] == 0
    kept.write_text(json.dumps(settings | {"device": "cuda", "log_every": 7}))
    leverage.run_all(options, study)
    lr = settings["optim"]["lr"]
    kept.write_text(json.dumps(settings | {"optim": settings["optim"] | {"lr": 0.25}}))
    with pytest.raises(
        SystemExit, match=rf"optim.lr was 0.25, now {lr}.\nTake another --out, or remove that folder"
    ):
        leverage.run_all(options, study)
    kept.unlink()
    with pytest.raises(
        SystemExit, match=r"^out/runs/\S+ does not say with what settings it was made(.|\n)*--out, or remove"
    ):
        leverage.run_all(options, study)


def test_a_command_that_was_stopped_leaves_no_result(leverage, monkeypatch, data_sets, options):
    """An `iwm eval probe` whose signal came from elsewhere."""
    study = _study(leverage, rows=(leverage.Row("a", (), kind="probe"),))
    stopped = subprocess.CompletedProcess([], 130, stdout="Stopped", stderr="")
    monkeypatch.setattr(leverage.subprocess, "run", lambda *_, **settings: stopped)
    with pytest.raises(SystemExit, match="ended with 130"):
        leverage.run_all(options, study)
    assert not list(Path("out").rglob("result.json"))


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


@pytest.mark.parametrize(
    ("protocols", "drawn"),
    [(["linear"], False), (["linear", "MRR"], True), (["MRR"], False), (["linear", "MRR", "half"], False)],
)
def test_a_figure_without_all_its_rows_is_left_out_and_the_table_is_not(
    leverage, monkeypatch, capsys, tmp_path, protocols, drawn
):
    pytest.importorskip("matplotlib.figure")
    names = [f"{m}, {p}" for p in protocols if p != "half" for m in ("equivariant", "invariant")]
    names += ["invariant, attentive"] if "half" in protocols else []
    monkeypatch.setattr(leverage, "check_models", lambda *_: None)
    monkeypatch.setattr(
        leverage, "run_all", lambda options, study: _made_up(leverage, study, tmp_path / "runs")
    )
    words = ["spectrum", "--out", tmp_path / "out", "--data", "imagenette"]
    words += [word for name in names for word in ("--row", name)]
    monkeypatch.setattr(sys, "argv", ["leverage.py", *map(str, words)])
    leverage.main()
    assert f"| {names[0]} |" in capsys.readouterr().out
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {f"spectrum-imagenette-some.{end}" for end in ["md", "json"] + ["png"] * drawn}


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
