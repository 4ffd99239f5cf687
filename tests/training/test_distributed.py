"""How processes find each other."""

from datetime import timedelta

import torch.distributed as dist

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
