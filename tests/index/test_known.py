"""Known files: new, touched or unchanged by path, size and time."""

import pyarrow as pa

from iwm.index.known import Known
from iwm.index.walk import Found


def test_states():
    rows = [{"path": f"/фото/{i}.jpg", "bytes": i, "mtime_ns": 10 * i} for i in range(100)]
    known = Known(pa.Table.from_pylist(rows).to_batches(max_chunksize=30))
    assert all(known.state(Found(**row)) == "unchanged" for row in rows)
    assert known.state(Found("/фото/7.jpg", 7, 71)) == "touched"
    assert known.state(Found("/фото/7.jpg", 8, 70)) == "touched"
    assert known.state(Found("/фото/100.jpg", 7, 70)) == "new"


def test_an_empty_library_knows_nothing():
    assert Known([]).state(Found("/a.jpg", 1, 1)) == "new"
