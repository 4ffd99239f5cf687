"""Digests and receipts: what is remembered of a file, and a memory that is damaged itself."""

import json
import os
from hashlib import sha1, sha256

import pytest
from hub_files import check_model, flip, forget_hashes

from iwm import integrity
from iwm.errors import IntegrityError, InvalidConfigError, WeightsUnavailableError
from iwm.integrity import Digest, Receipt, hash_bytes, hash_file, sha256_digests

FILES = ("config.json", "model.safetensors")


GARBAGE = {
    "empty": b"",
    "no JSON": b"\xff\xfe{",
    "half": lambda content: content[: len(content) // 2],
    "deep": b"[" * 100_000,
    "list": b"[]",
    "no files": b'{"source": "x"}',
    "files": b'{"source": "x", "files": ["config.json"]}',
    "digest": b'{"source": "x", "files": {"config.json": "abc"}}',
    "field": b'{"source": "x", "files": {"config.json": {"algorithm": "git", "value": "0", "more": 1}}}',
    "algorithm": b'{"source": "x", "files": {"config.json": {"algorithm": ["git"], "value": "0"}}}',
    "md5": b'{"source": "x", "files": {"config.json": {"algorithm": "md5", "value": "00"}}}',
    "number": b'{"source": "x", "files": {"config.json": {"algorithm": "git", "value": 7}}}',
    "hashed": lambda content: json.dumps(json.loads(content) | {"hashed": 7}).encode(),
    "hashes": lambda content: json.dumps(json.loads(content) | {"hashed": {"config.json": 7}}).encode(),
    "pairs": lambda content: json.dumps(json.loads(content) | {"hashed": [["config.json", 7]]}).encode(),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_receipt_that_cannot_be_understood_is_written_anew(load, hashed, commit, files, receipt, garbage):
    load("org/tiny")
    good = receipt.read_bytes()
    receipt.write_bytes(garbage(good) if callable(garbage) else garbage)
    forget_hashes()
    check_model(load("org/tiny", local_files_only=True), files)
    assert hashed == [*FILES, *FILES]
    assert json.loads(receipt.read_bytes())["hashed"] == json.loads(good)["hashed"]
    load("org/tiny", revision=commit)
    assert len(hashed) == 4


def test_a_receipt_cannot_vouch_for_a_file_it_does_not_describe(load, commit, files, receipt, snapshot):
    load("org/tiny")
    data = json.loads(receipt.read_bytes())
    flip(snapshot / "model.safetensors")
    stat = (snapshot / "model.safetensors").stat()
    data["hashed"]["model.safetensors"][2][1:] = [
        stat.st_ino,
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
    ]
    data["hashed"]["model.safetensors"][1] = "0" * 64
    receipt.write_text(json.dumps(data))
    forget_hashes()
    with pytest.raises(IntegrityError, match=r"^model\.safetensors of org/tiny"):
        load("org/tiny")


def test_digests_say_what_they_are():
    assert str(Digest("git", "a" * 40)) == f"git {'a' * 40}"
    assert sha256_digests({"a": "0" * 64}) == {"a": Digest("sha256", "0" * 64)}
    for algorithm, value in (
        ("git", "a" * 64),
        ("sha256", "a" * 40),
        ("sha256", "A" * 64),
        ("md5", "a" * 32),
    ):
        with pytest.raises(InvalidConfigError, match=f'"{value}" is not a {algorithm} digest'):
            Digest(algorithm, value)


@pytest.mark.parametrize("size", [0, 1, 5, 262_144, 600_000])
def test_hashes_are_those_of_sha256sum_and_git(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    expected = {"sha256": sha256(content), "git": sha1(f"blob {size}\0".encode() + content)}
    for algorithm, digest in expected.items():
        assert hash_bytes(content, algorithm) == digest.hexdigest()
        assert hash_file(tmp_path / "file", algorithm) == digest.hexdigest()
    assert hash_bytes(b"", "git") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # As git prints it.


def test_a_receipt_checks_only_what_it_knows(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    known = Receipt(tmp_path / "receipt.json", "here", {"a": Digest("sha256", sha256(b"a").hexdigest())})
    known.check(tmp_path, ["a"])
    assert Receipt.read(tmp_path / "receipt.json") == known
    with pytest.raises(IntegrityError, match="nothing says what b of here must be"):
        known.check(tmp_path, ["b"])
    (tmp_path / "a").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"Cannot read .*a: .*No such file"):
        known.check(tmp_path, ["a"])


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"a")

    def slow(path, algorithm):
        found = hash_file(path, algorithm)
        os.utime(path, (1, 1))
        return found

    monkeypatch.setattr(integrity, "hash_file", slow)
    forget_hashes()
    known = Receipt(tmp_path / "receipt.json", "here", {"a": Digest("sha256", sha256(b"a").hexdigest())})
    known.check(tmp_path, ["a"])
    assert integrity._HASHED == {}
