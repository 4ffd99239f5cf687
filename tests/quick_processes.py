"""Processes that start at once: forked from one that has imported PyTorch and nothing of iwm.

Importing it takes seconds, and tests start many processes. They begin with this process's `sys.path`. What is
read as the interpreter or PyTorch starts, what is said before the first import, and what is imported at all,
has to be tested with `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

_QUICK = "forkserver" in multiprocessing.get_all_start_methods()
_STARTS = multiprocessing.get_context("forkserver" if _QUICK else "spawn")
if _QUICK:
    _STARTS.set_forkserver_preload(["torch", "torchvision"])


class QuickProcess:
    """As much of `subprocess.Popen` as is needed; standard output and error go to files, in text.

    Args:
        words: what follows `python` on a command line: `-m module`, `-c code` or a file, and its arguments.
        env: the environment.
        cwd: the folder to run in.
    """

    def __init__(self, *words, env, cwd=None):
        self._folder = tempfile.TemporaryDirectory(prefix="iwm-tests-")
        self._printed = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = _STARTS.Process(
            target=_main,
            args=([*map(str, words)], dict(env), str(cwd or Path.cwd()), self._printed),
            daemon=True,
        )
        self._process.start()

    @property
    def returncode(self):
        """None while it runs; of one that a signal has ended minus its number."""
        return self._process.exitcode

    def kill(self):
        """End it at once."""
        self._process.kill()
        self._process.join()

    def communicate(self, timeout=120):
        """Wait for its end: what it printed.

        Raises:
            subprocess.TimeoutExpired: it takes longer than that; it is killed.
        """
        self._process.join(timeout)
        late = self.returncode is None
        if late:
            self.kill()
        printed = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self._printed]
        self._folder.cleanup()
        if late:
            raise subprocess.TimeoutExpired("python", timeout, *printed)
        return tuple(printed)


def run_quickly(*words, env, cwd=None, timeout=120):
    """`subprocess.run`, with its output in text, of Python with these words."""
    process = QuickProcess(*words, env=env, cwd=cwd)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def run_ranks(processes, *words, env, cwd=None, timeout=240):
    """The processes of a distributed job without `torchrun`: the highest status, and what all of them printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(processes)
    ]  # fmt: skip
    started = [
        QuickProcess(*words, env=env | {name: str(value) for name, value in rank.items()}, cwd=cwd)
        for rank in ranks
    ]
    deadline = time.monotonic() + timeout
    try:
        printed = [process.communicate(max(deadline - time.monotonic(), 0.0)) for process in started]
    finally:
        for process in started:
            process.kill()
    worst = max((process.returncode for process in started), key=abs)
    return subprocess.CompletedProcess(words, worst, *map("".join, zip(*printed, strict=True)))


def _main(words, env, cwd, printed):
    """What the interpreter does with its command line."""
    _become(env, cwd, printed)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, cwd)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _become(env, cwd, printed):
    """Take on an environment, a folder and files for standard output and error."""
    for number, path in enumerate([os.devnull, *printed]):
        file = os.open(path, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.setsid()
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.current_process()._config["daemon"] = False  # It may have children.
    import torch

    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    multiprocessing.util.Finalize(None, atexit._run_exitfuncs, exitpriority=0)
