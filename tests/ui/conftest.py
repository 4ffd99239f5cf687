"""Small models and photographs for what the tabs compute; the real command in a process of its own."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import iwm
from iwm.ui.photo import encode_photo
from iwm.ui.places import Views

# Every connection of the server that leaves this machine is written down, and fails.
WATCHED = """
import socket, sys

def local(address):
    return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")

def watched(name):
    original = getattr(socket.socket, name)
    def connect(self, address):
        if not local(address):
            print("LEFT THE MACHINE:", address, file=sys.stderr, flush=True)
            raise OSError("no network")
        return original(self, address)
    setattr(socket.socket, name, connect)

for name in ("connect", "connect_ex"):
    watched(name)

asked = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        print("LEFT THE MACHINE:", host, file=sys.stderr, flush=True)
    return asked(host, *rest, **named)
socket.getaddrinfo = getaddrinfo

from iwm.cli.main import main
main()
"""


@dataclass
class Served:
    """A running `iwm ui`."""

    process: subprocess.Popen
    address: str
    scratch: Path
    words: list = field(default_factory=list)

    def end(self):
        """Ctrl-C; the exit status, and all that was printed since the address, errors too."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(120)
        return status, "".join(self.words)


@contextmanager
def serving(scratch, *words):
    """`iwm ui` with some options, on a free port, writing temporary files to `scratch` alone."""
    scratch.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {
        "PYTHONPATH": str(Path(iwm.__file__).parents[1]), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch),
        "HF_HOME": str(scratch / "hub"), "COLUMNS": "200",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, "ui", "--port", "0", *map(str, words)],
        env=environment, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        found = re.match(r"Open (http://127\.0\.0\.1:\d+/)", line)
        assert found, line + process.stdout.read()
        served = Served(process, found[1], scratch)
        reading = threading.Thread(target=lambda: served.words.extend(process.stdout), daemon=True)
        reading.start()
        yield served
        process.send_signal(signal.SIGINT) if process.poll() is None else None
        process.wait(120)
        reading.join(10)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def needs_gradio():
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('the page needs gradio: pip install "iwm[demo]"')


@pytest.fixture(scope="session")
def server(needs_gradio, tmp_path_factory):
    """The page of `iwm-tiny`, without a library."""
    with serving(tmp_path_factory.mktemp("ui") / "scratch") as served:
        yield served
    assert "".join(served.words) == ""
    assert served.process.returncode == 0


@pytest.fixture
def colours():
    """A smooth picture that is the same every time."""
    coarse = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((100, 80), Image.Resampling.BICUBIC)


@pytest.fixture
def photo(acting_model, colours):
    return encode_photo(acting_model, colours, "colours.png")


@pytest.fixture
def views(acting_model, photo):
    """Fifteen random views."""
    return Views(acting_model, photo, 15)


@pytest.fixture(scope="session")
def tiny():
    """The embedded model, whose world model is right about most actions."""
    torch.manual_seed(0)
    return iwm.load()
