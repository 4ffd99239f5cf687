"""Encoding on several processes or machines, through Ray Data.

Every worker holds the model and does to its batches what the local engine does; the process that
started them writes. So a library does not tell which engine made it, and a run with one engine
goes on where a run with the other was stopped.
"""

from __future__ import annotations

import copy
import itertools
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iwm.errors import InvalidConfigError
from iwm.index.encoding import Encoded, Job, encode, read_jobs

if TYPE_CHECKING:
    from iwm.world_model import WorldModel

BLOCK = 4096
"""Batches handed to Ray at a time: bounds the memory of the process that started it."""


class Worker:
    """A process that encodes.

    Args:
        model: a reference to the model in Ray's object store.
        device: what it runs on.
    """

    def __init__(self, model: Any, device: str) -> None:
        import ray

        self.model: WorldModel = ray.get(model[0]).to(device)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """Encode the batch of one row; both ways pickled by this program for itself."""
        encoded = encode(self.model, read_jobs(pickle.loads(row["jobs"]), self.model.preprocess))
        return {"encoded": pickle.dumps(encoded)}


def ray_engine(model: WorldModel, jobs: Iterator[list[Job]], workers: int) -> Iterator[Encoded]:
    """Encode batches in several processes; they come back in any order.

    Uses the cluster that `ray.init` or `RAY_ADDRESS` has connected, or a local one of `workers`
    processes, which ends with the run. With a model on CUDA every worker takes a GPU.

    Raises:
        InvalidConfigError: Ray is not installed.
    """
    # Read when Ray is first imported: it would report its use to its makers over the network.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InvalidConfigError('The engine "ray" needs Ray: pip install "iwm[ray]"') from error
    first = list(itertools.islice(jobs, BLOCK))
    if not first:
        return
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": workers + 1, "include_dashboard": False}
        with warnings.catch_warnings():
            # LanceDB warns of every fork; these become Ray's own programs at once.
            warnings.filterwarnings("ignore", "lancedb fork support")
            ray.init(log_to_driver=False, logging_level="ERROR", **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        device = model.device.type
        # Kept here to the end: a worker that Ray starts anew asks for it again.
        reference = ray.put(model if device == "cpu" else copy.deepcopy(model).cpu())
        block = first
        while block:
            rows = ray.data.from_items([{"jobs": pickle.dumps(batch)} for batch in block])
            encoded = rows.map(
                Worker, fn_constructor_args=([reference], device),
                compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1, num_gpus=1 if device == "cuda" else 0,
            )  # fmt: skip
            for row in encoded.iter_rows():
                yield pickle.loads(row["encoded"])
            block = list(itertools.islice(jobs, BLOCK))
    finally:
        if ours:
            ray.shutdown()
