"""The embedded checkpoint: what its config says of it, and that it acts on real photographs."""

import pytest

import iwm
from iwm.demo import photographs
from iwm.evaluation import mrr
from iwm.model_folder import read_config
from iwm.zoo import ZOO

pytest.importorskip("skimage", reason="real photographs come with scikit-image")


@pytest.fixture(scope="module")
def config():
    return read_config(ZOO["iwm-tiny"].folder)


def test_config_records_where_the_weights_come_from(config):
    assert config.recipe["command"].startswith("iwm pretrain --recipe iwm-tiny --data ")
    assert config.provenance["steps"] == config.recipe["steps"]
    assert config.provenance["images"] == sum(d["images"] for d in config.provenance["data"])
    assert all(len(d["files_sha256"]) == 64 for d in config.provenance["data"])
    assert config.provenance["hours"] > 0
    assert config.license.startswith("research only")


def test_recorded_metrics_name_their_command_and_reach_their_mark(config):
    metrics = config.metrics
    assert all(m["command"].startswith("iwm eval ") for m in metrics.values())
    apply, undo = metrics["apply-mrr-full-100x256"], metrics["undo-mrr-full-100x256"]
    (knn,) = (metric for name, metric in metrics.items() if name.startswith("knn-20-"))
    assert (apply["images"], apply["bank_size"], undo["images"], undo["bank_size"]) == (100, 256, 100, 256)
    assert apply["overall"]["mrr"] >= 0.85
    assert apply["overall"]["mrr"] >= 4 * apply["baselines"]["wrong_action"]["mrr"]
    assert apply["overall"]["hits"]["5"] >= 0.95
    assert undo["overall"]["mrr"] >= 0.55
    assert undo["overall"]["mrr"] > undo["baselines"]["no_action"]["mrr"]
    assert knn["accuracy"] >= knn["random_encoder"] + 0.1


@pytest.mark.parametrize(("protocol", "least"), [("apply", 0.85), ("undo", 0.55)])
def test_it_acts_on_photographs_it_has_never_seen(protocol, least):
    report = mrr(iwm.load(), photographs(), bank_size=64, protocol=protocol, seed=1)
    assert report.mrr >= least
    assert report.mrr >= 4 * report.baselines["floor" if protocol == "apply" else "chance"].mrr


def test_its_tasks_answer_from_one_encoding(config):
    """On photographs of none of their classes: labels of the task, likeliest first, and others for others."""
    model = iwm.load(task="imagenette")
    latent = model.encode(photographs())
    assert {name: len(task.labels) for name, task in config.tasks.items()} == {
        "imagenette": 10, "caltech101": 100, "clothing": 10,
    }  # fmt: skip
    for name, task in config.tasks.items():
        answer = model.classify(latent, task=name, topk=3)
        assert all(set(labels) <= set(task.labels) for labels in answer.labels)
        assert (answer.probabilities.diff(dim=1) <= 0).all()
        assert (answer.probabilities[:, 0] > 1 / len(task.labels)).all()
        adapter = config.adapters[config.adapter_of(name)]
        assert (
            adapter.metrics[name]["accuracy"] >= {"imagenette": 0.7, "caltech101": 0.4, "clothing": 0.5}[name]
        )
        assert adapter.metrics[name]["command"].startswith(
            f"iwm eval finetune --model iwm-tiny --task {name} "
        )
    assert (
        answer.probabilities - model.classify(photographs(), task=name, topk=3).probabilities
    ).abs().max() < 1e-5
