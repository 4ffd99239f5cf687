"""How processes find each other."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from iwm.training import distributed
from iwm.training.distributed import joined


def test_processes_wait_longer_than_rank_0_works_alone(monkeypatch):
    asked = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **settings: asked.update(settings))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined("cpu") as world:
        assert (world.rank, world.size) == (1, 2)
    assert asked["timeout"] >= timedelta(hours=2)


@pytest.mark.parametrize(("device", "ended"), [("cuda", []), ("cpu", [True])])
def test_a_process_that_fails_waits_for_no_other(monkeypatch, device, ended):
    """NCCL's groups end together, and the others would not: they wait for this process in a reduction."""
    done = []
    monkeypatch.setattr(distributed, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append(True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OSError, match="full disk"), joined(device):
        raise OSError("full disk")
    assert done == ended
    with joined(device):
        pass
    assert done == [*ended, True]


def test_a_single_process_makes_its_gpu_the_current_one(monkeypatch):
    taken = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(distributed, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append(str(device)))
    for device in ("cpu", "cuda", "cuda:1"):
        with joined(device) as world:
            assert str(world.device) == device
    assert taken == ["cuda:1"]


@pytest.mark.parametrize(
    ("device", "expected"), [("auto", "cuda:3"), ("cuda", "cuda:3"), ("cuda:0", "cuda:3"), ("cpu", "cpu")]
)
def test_a_process_touches_no_gpu_but_its_own(monkeypatch, device, expected):
    """A GPU that is only looked at keeps some hundred megabytes of every process that did."""
    asked, taken, backends = [], [], []

    def resolve(name):
        asked.append(str(name))
        return torch.device(name)

    monkeypatch.setattr(distributed, "resolve_device", resolve)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append(str(device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: backends.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 11)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with joined(device) as world:
        assert (str(world.device), world.rank, world.size) == (expected, 11, 16)
    assert asked == [expected]
    assert taken == ([] if expected == "cpu" else [expected])
    assert backends == ["gloo" if expected == "cpu" else "nccl"]
