"""Photographs and libraries in an object store: a real S3 server, moto's, on loopback, and fresh processes."""

import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("lancedb", reason='pip install "iwm[retrieval]"')
pytest.importorskip("moto.server", reason='pip install "moto[server]"')
boto3 = pytest.importorskip("boto3", reason='pip install "moto[server]"')


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Address and credentials of a server, as environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        }  # fmt: skip
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def bucket(store, files, environment, monkeypatch):
    """A bucket with twelve photographs and an empty file, and commands that know where it is."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(environment, name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="album")
    for number, file in enumerate(files):
        client.upload_file(str(file), "album", f"photos/sub folder {number % 2}/{number:02}.jpg")
    client.put_object(Bucket="album", Key="photos/broken.jpg", Body=b"")
    yield client
    client.close()


def test_photographs_and_the_library_may_lie_in_an_object_store(bucket, fresh, files, model_folder, tmp_path):
    for library in ("s3://album/library.lance", str(tmp_path / "library.lance")):
        index = ("index", "s3://album/photos", "--out", library, "--model", model_folder)
        made = fresh(*index)
        assert (made.code, made.err) == (
            0,
            "Warning: skipped: s3://album/photos/broken.jpg is empty: zero bytes.\n",
        )
        assert "12 added, 0 updated, 0 unchanged, 0 removed, 1 skipped; 12 photographs" in made.out
        asked = ("--image", files[3], "--model", model_folder, "-k", 1)
        found = fresh("search", library, *asked)
        assert (found.code, found.err) == (0, "")
        assert found.out.splitlines()[1].endswith("s3://album/photos/sub folder 1/03.jpg")
    bucket.delete_object(Bucket="album", Key="photos/sub folder 1/03.jpg")
    again = fresh(*index, "--prune", "--json").json
    assert (again["unchanged"], again["removed"], again["photos"]) == (11, 1, 11)
