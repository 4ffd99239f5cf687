"""How a training command was started: by itself, or in many processes by `torchrun`."""

from __future__ import annotations

import os

_MODULES = {"pretrain": ["iwm.pretraining"], "finetune": ["iwm.finetuning"]}


def started_processes() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def launcher(command: str) -> list[str]:
    """The words before the options that start a command as it was started, `iwm pretrain` and the like.

    Several nodes meet at a port that no process is told; it is the one of the documentation.
    """
    processes = started_processes()
    if processes == 1:
        return ["iwm", command]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    nodes = []
    if processes > here:
        meeting = f"{os.environ.get('MASTER_ADDR', 'HOST')}:29500"
        nodes = ["--nnodes", str(processes // here), "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting]
    return ["torchrun", *nodes, "--nproc-per-node", str(here), "-m", *_MODULES.get(command, ["iwm", command])]
