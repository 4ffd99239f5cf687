"""The embedded checkpoint: what its config says of it, and that it acts on real photographs."""

import pytest
import torch

import iwm
from iwm.checkpoint import read_config
from iwm.demo import photographs
from iwm.evaluation import mrr
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
    assert apply["overall"]["mrr"] >= 0.75
    assert apply["overall"]["mrr"] >= 4 * apply["baselines"]["wrong_action"]["mrr"]
    assert apply["overall"]["hits"]["5"] >= 0.85
    assert undo["overall"]["mrr"] >= 0.45
    assert undo["overall"]["mrr"] > undo["baselines"]["no_action"]["mrr"]
    assert knn["accuracy"] >= knn["random_encoder"] + 0.04


@pytest.mark.parametrize(("protocol", "least"), [("apply", 0.75), ("undo", 0.45)])
def test_it_acts_on_photographs_it_has_never_seen(protocol, least):
    torch.set_float32_matmul_precision("highest")
    report = mrr(iwm.load(), photographs(), bank_size=64, protocol=protocol, seed=1)
    assert report.mrr >= least
    assert report.mrr >= 4 * report.baselines["floor" if protocol == "apply" else "chance"].mrr
