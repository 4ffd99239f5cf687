"""Nothing is asked of the network, and nothing of LanceDB is imported before it is needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import iwm

# Refuses every socket but those of the machine to itself, in this process and in its children's libraries.
GUARDED = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"network: {args}")

socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = refuse
import iwm
loaded = {name.partition(".")[0] for name in sys.modules}
assert loaded.isdisjoint({"lancedb", "pyarrow", "torch", "ray"}), loaded
model = iwm.WorldModel.from_pretrained(sys.argv[1])
iwm.Bank
loaded = {name.partition(".")[0] for name in sys.modules}
assert loaded.isdisjoint({"lancedb", "pyarrow", "ray"}), loaded
iwm.Index
loaded = {name.partition(".")[0] for name in sys.modules}
assert loaded.isdisjoint({"lancedb", "pyarrow", "ray"}), loaded
index = iwm.Index.create(sys.argv[2], model)
index.update(model, sys.argv[3])
print(len(index), len(index.search(model.encode(sys.argv[4]), 3).ids[0]))
"""


def test_indexing_and_searching_make_no_request(child, model, photos, library, tmp_path):
    model.save_pretrained(tmp_path / "model")
    process = child(GUARDED, tmp_path / "model", library, photos, next(photos.rglob("*.jpg")))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "12 3\n"), err


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_no_connection(model, photos, library, tmp_path):
    """LanceDB is not Python: the system calls are what it really does."""
    model.save_pretrained(tmp_path / "model")
    image = next(photos.rglob("*.jpg"))
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=connect,sendto", "-o", tmp_path / "calls", sys.executable, "-c", GUARDED,
         tmp_path / "model", library, photos, image],
        env=os.environ | {"PYTHONPATH": str(Path(iwm.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in (tmp_path / "calls").read_text()
