"""Real processes, killed with SIGKILL at several moments; and a search beside one that indexes."""

import random
import shutil
import time

import pytest
import torch

import iwm
from iwm.index import store as store_module

# Commits every few photographs, merges files often, and names what is committed as soon as it is.
INDEX = """
import sys
from iwm.index import Index, store, update
from iwm.world_model import WorldModel
library, model, photos, engine = sys.argv[1:]
update.COMMIT_ROWS, store.FRAGMENTS = 4, 8
def say(paths):
    print("\\n".join(paths), flush=True)
print("ready", flush=True)
index, model = Index.open(library), WorldModel.from_pretrained(model)
index.update(model, photos, batch_size=2, on_commit=say, engine=engine)
print("done", flush=True)
"""


@pytest.fixture
def many(photos, tmp_path):
    """Ninety-six photographs; some of them will change."""
    folder = tmp_path / "many"
    folder.mkdir()
    sources = sorted(photos.rglob("*.jpg"))
    for i in range(96):
        shutil.copy(sources[i % 12], folder / f"фото {i:02}.jpg")
    return folder


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rows(library):
    """Paths and tokens of a library as a fresh reader sees it."""
    store = iwm.Index.open(library)._store
    table = store._table.search().select(["path", "tokens"]).limit(10_000).to_arrow()
    return dict(zip(table["path"].to_pylist(), table["tokens"].to_pylist(), strict=True)), table.num_rows


@pytest.mark.parametrize("attempt", range(2))
def test_a_kill_loses_nothing_acknowledged_and_doubles_nothing(attempt, child, many, saved, library, photos):
    """Killed again and again, after another number of commits each time or in the middle of one."""
    model = iwm.WorldModel.from_pretrained(saved)
    iwm.Index.create(library, model)
    draw = random.Random(attempt)
    acknowledged, kills = set(), 0
    for _ in range(3):
        process = child(INDEX, library, saved, many, "local")
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if len(lines) > 4 * draw.randrange(1, 8):
                break
        time.sleep(draw.random() * 0.02)
        process.kill()
        lines += [line.strip() for line in process.stdout if line.endswith("\n")]
        kills += "done" not in lines
        acknowledged |= set(lines) - {"ready", "done"}
        there, count = rows(library)
        assert count == len(there)
        assert acknowledged <= set(there)
        # The next round has changed photographs to encode, too.
        shutil.copy(next(photos.rglob("03.jpg")), many / f"фото {draw.randrange(96):02}.jpg")
    assert kills >= 2
    index = iwm.Index.open(library)
    report = index.update(model, many)
    there, count = rows(library)
    assert (report.photos, count, len(there)) == (96, 96, 96)
    files = sorted(many.iterdir())
    truth = model.encode(files).tokens.flatten(1)
    stored = torch.tensor([there[str(file)] for file in files])
    torch.testing.assert_close(stored, truth, rtol=2e-3, atol=2e-3)


def test_a_kill_while_files_are_merged_and_the_index_is_made(child, library, model, tmp_path):
    """A library of noise; the process is killed at three moments of its maintenance."""
    from test_library import fill

    index = iwm.Index.create(library, model)
    for start in range(0, 3000, 150):
        fill(index, torch.randn(150, 16, 48), first=start)
    code = (
        "import sys\nfrom iwm.index import Index, store\nstore.FRAGMENTS, store.ANN_ROWS = 4, 1000\n"
        "index = Index.open(sys.argv[1])\nprint('ready', flush=True)\nindex._store.maintain()\nprint('done', flush=True)\n"
    )
    query = iwm.Latent(torch.randn(1, 16, 48), index.grid, index.space)
    before = index.search(query, 10, exact=True)
    for moment in (0.0, 0.05, 0.2):
        process = child(code, library)
        assert process.stdout.readline() == "ready\n"
        time.sleep(moment)
        process.kill()
        process.wait()
        again = iwm.Index.open(library)
        assert len(again) == 3000
        assert again.search(query, 10, exact=True).ids == before.ids
    assert child(code, library).wait(timeout=120) == 0
    assert iwm.Index.open(library)._store._has_ann()


def test_searching_while_another_process_indexes(child, many, saved, library, monkeypatch):
    monkeypatch.setattr("iwm.index.library.EXACT_ROWS", 0)
    model = iwm.WorldModel.from_pretrained(saved)
    index = iwm.Index.create(library, model)
    first = sorted(many.iterdir())[0]
    query = model.encode(first)
    process = child(INDEX, library, saved, many, "local")
    assert process.stdout.readline() == "ready\n"
    sizes, deadline = [], time.monotonic() + 120
    while time.monotonic() < deadline and (not sizes or sizes[-1] < 96):
        hits = index.search(query, 96)
        assert len(set(hits.ids[0])) == len(hits.ids[0])
        sizes.append(len(hits.ids[0]))
        if sizes[-1]:
            assert hits.distances[0, 0].item() == pytest.approx(0.0, abs=0.1)
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2
    assert sizes[-1] == 96


def test_the_lock_goes_with_its_process(child, library, index, model, folder):
    code = (
        "import sys, time\nfrom iwm.index import Index\nwith Index.open(sys.argv[1])._store.writing():\n"
        "    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    process = child(code, library)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(iwm.errors.LibraryError, match="is being written by another process"):
        index.update(model, folder)
    process.kill()
    process.wait()
    assert index.update(model, folder).added == 12
    assert store_module.is_library(library)
