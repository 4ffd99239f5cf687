"""Filters: what they say in SQL, and what they refuse."""

from datetime import UTC, datetime

import numpy as np
import pytest

from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.index.filters import Filter, library_path, quote


def test_conditions_are_joined():
    where = Filter(
        under="/a/it's", taken_from=datetime(2024, 5, 1), taken_before=datetime(2024, 6, 1, 12, 30),
        min_side=600, min_bytes=10, max_bytes=20,
    )  # fmt: skip
    assert where.sql() == (
        "starts_with(path, '/a/it''s/') AND taken >= timestamp '2024-05-01 00:00:00' AND "
        "taken < timestamp '2024-06-01 12:30:00' AND least(width, height) >= 600 AND bytes >= 10 AND bytes <= 20"
    )
    assert Filter().sql() is None


def test_folders_are_made_absolute_and_addresses_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Filter(under="2024/").sql() == f"starts_with(path, {quote(str(tmp_path / '2024'))[:-1]}/')"
    assert Filter(under="s3://b/2024/").sql() == "starts_with(path, 's3://b/2024/')"
    assert library_path(tmp_path / "x" / ".." / "y.jpg") == str(tmp_path / "y.jpg")


def test_sizes_of_numpy_and_names_that_are_no_text():
    assert Filter(min_side=np.int64(3)).sql() == "least(width, height) >= 3"
    for path in ("\udcff", "/photos/\udcff.jpg", "s3://bucket/\udcff"):
        with pytest.raises(InvalidDataError, match="is not valid UTF-8; libraries hold no such names"):
            library_path(path)


@pytest.mark.parametrize("path", ["", None, 3, b"/a"])
def test_what_is_no_path(path):
    with pytest.raises(InvalidDataError, match="is no path; libraries hold files"):
        library_path(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taken_from": datetime(2024, 1, 1, tzinfo=UTC)}, "taken_from is .*without a time zone"),
        ({"taken_before": "2024-01-01"}, "taken_before is '2024-01-01'; pass a datetime"),
        ({"min_side": -1}, "min_side is -1; it must be a whole number of at least 0"),
        ({"min_bytes": 1.5}, "min_bytes is 1.5"),
        ({"min_bytes": 10**30}, "no file or photograph is so large"),
        ({"max_bytes": True}, "max_bytes is True"),
    ],
)
def test_impossible_conditions(settings, message):
    with pytest.raises(InvalidConfigError, match=message):
        Filter(**settings)
