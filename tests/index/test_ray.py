"""The Ray engine on a local cluster of two workers: the same library, resumable."""

import importlib.util

import pytest
import torch

import iwm

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "iwm[ray]"'
)

# In a process of its own: Ray leaves threads and warnings behind.
INDEX = """
import json, os, sys
from dataclasses import asdict
from iwm.index import Index, update
from iwm.world_model import WorldModel
library, model, *photos = sys.argv[1:]
update.COMMIT_ROWS = 4
def say(paths):
    print(json.dumps(paths), flush=True)
index, model = Index.open(library), WorldModel.from_pretrained(model)
report = index.update(model, photos, engine="ray", workers=2, batch_size=2, on_commit=say)
print(json.dumps(asdict(report)), os.environ["RAY_USAGE_STATS_ENABLED"], flush=True)
"""


def stored(index):
    table = index._store._table.search().limit(1000).to_arrow().drop_columns(["mtime_ns"])
    return {row["path"]: row for row in table.to_pylist()}


def test_it_makes_the_library_that_the_local_engine_makes_and_goes_on(
    child, model, folder, library, tmp_path
):
    model.save_pretrained(tmp_path / "model")
    model = iwm.WorldModel.from_pretrained(tmp_path / "model")
    (folder / "zero.jpg").touch()
    index = iwm.Index.create(library, model)
    process = child(INDEX, library, tmp_path / "model", folder)
    assert process.stdout.readline().startswith("[")
    process.kill()  # After a first commit.
    process.wait()
    resumed = len(index)
    assert 0 < resumed <= 12
    process = child(INDEX, library, tmp_path / "model", f"file://{folder}/class1", folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    *_, last = out.splitlines()
    assert last.endswith(" 0")
    assert f'"added": {12 - resumed + 6}, "updated": 0, "unchanged": {resumed}' in last
    assert last.count("zero bytes") == 1
    local = iwm.Index.create(tmp_path / "local.lance", model)
    local.update(model, [f"file://{folder}/class1", folder])
    ours, theirs = stored(iwm.Index.open(library)), stored(local)
    assert ours.keys() == theirs.keys()
    for path, row in theirs.items():
        for name in ("tokens", "sketch"):
            torch.testing.assert_close(
                torch.tensor(ours[path].pop(name)), torch.tensor(row.pop(name)), rtol=2e-3, atol=2e-2
            )
        assert ours[path] == row
