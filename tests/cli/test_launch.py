"""The words that start a command again, by what `torchrun` leaves in the environment."""

import pytest

from iwm.cli.launch import is_main, launcher, started_processes


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "iwm pretrain"),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "iwm pretrain"),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "torchrun --nproc-per-node 8 -m iwm.pretraining"),
        ({"WORLD_SIZE": "2"}, "torchrun --nproc-per-node 2 -m iwm.pretraining"),
        (
            {"WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node0"},
            "torchrun --nnodes 4 --rdzv-backend c10d --rdzv-endpoint node0:29500 --nproc-per-node 8 -m iwm.pretraining",
        ),
    ],
    ids=str,
)
def test_a_command_is_started_as_it_was(monkeypatch, variables, words):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher("pretrain") == words.split()
    assert (
        launcher("finetune")
        == words.replace("iwm.pretraining", "iwm.finetuning").replace("iwm pretrain", "iwm finetune").split()
    )
    assert launcher("pretrain-decoder")[-2:] == ["iwm", "pretrain-decoder"]
    assert started_processes() == int(variables.get("WORLD_SIZE", 1))


def test_the_first_process_prints(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main()
    monkeypatch.setenv("RANK", "1")
    assert not is_main()
