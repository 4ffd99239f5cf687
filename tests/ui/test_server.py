"""The real command: its port, what can be asked of it over HTTP, and its end."""

import http.client
import io
import json
import re
import socket
import sys
import urllib.parse
import uuid
from pathlib import Path

import pytest

import iwm.ui
from iwm.errors import InvalidConfigError, ServerError
from iwm.ui.server import address_of, check_gradio, listen

from .conftest import serving


def test_a_port_in_use_is_named(fresh_port):
    with pytest.raises(ServerError, match=rf"Port {fresh_port} is in use; choose another, such as --port"):
        listen("127.0.0.1", fresh_port)


@pytest.fixture
def fresh_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_the_last_port_in_use(monkeypatch):
    with socket.create_server(("127.0.0.1", 65535)), pytest.raises(ServerError, match=r"such as --port 0\."):
        listen("127.0.0.1", 65535)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_is_no_name(host):
    with pytest.raises(ServerError, match="No machine is called"):
        listen(host, 0)


def test_a_host_that_is_not_here(monkeypatch):
    with pytest.raises(ServerError, match=r"Cannot serve at 192\.0\.2\.1, port 0"):
        listen("192.0.2.1", 0)


def test_addresses_can_be_opened():
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")):
        with listen(host, 0) as listener:
            assert address_of(listener) == f"http://{shown}:{listener.getsockname()[1]}/"


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InvalidConfigError, match=r'pip install "iwm\[demo\]"'):
        check_gradio()


class Asker:
    """Plain HTTP to a served page: paths go out as they are written."""

    def __init__(self, address):
        self.host = urllib.parse.urlsplit(address).netloc

    def __call__(self, path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def ask(server):
    return Asker(server.address)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/file=/etc/passwd",
        "/gradio_api/file%3D/etc/passwd", "/gradio_api/file=SCRATCH", "/gradio_api/file/etc/passwd",
        "/assets/../../../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2f..%2fetc%2fpasswd", "/gradio_api/proxy=http://127.0.0.1:1/", "/svelte/../../x",
        "/gradio_api/stream/a/b/1/playlist-file", "/gradio_api/info", "/gradio_api/openapi.json", "/docs",
        "/gradio_api/custom_component/a/b/c/d", "/monitoring/summary", "/gradio_api/vibe-code",
    ],
)  # fmt: skip
def test_no_file_of_the_machine_can_be_had(ask, server, path):
    status, body = ask(path.replace("SCRATCH", str(server.scratch)))
    assert status == 404
    assert body == b"Not found."


def test_the_page_says_nothing_of_the_machines_folders(ask, server):
    status, page = ask("/")
    assert status == 200
    assert b"Image world model" in page
    assert str(server.scratch).encode() not in page
    assert not re.search(rb'"/(home|root|tmp|usr)/', page)
    config = json.loads(ask("/config")[1])
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    assert not re.search(
        r"https?://(?!127\.0\.0\.1)[\w.]*(google|gstatic|cdn|gradio\.app)", json.dumps(config)
    )


def test_foreign_names_and_pages_are_refused(ask):
    assert ask("/", Host="evil.example")[0] == 403
    assert ask("/gradio_api/upload", "POST", b"", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "http://127.0.0.1:1/x.png"])
def test_an_event_cannot_name_a_file_that_was_not_uploaded(ask, path):
    config = json.loads(ask("/config")[1])
    event = next(d for d in config["dependencies"] if d["targets"][0][1] == "upload")
    sliders = [1, 1, 1, 0, False, 0, False]
    file = {"path": path, "url": None, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    session = uuid.uuid4().hex[:10]
    body = {"data": [file, None, "hue", *sliders, *sliders], "fn_index": event["id"], "session_hash": session}
    joined = ask("/gradio_api/queue/join", "POST", json.dumps(body), **{"Content-Type": "application/json"})
    assert joined == (400, b"Not understood.")


def _sent(ask, session, event, data, said=None):
    """What an event of the page answers, once it is done."""
    body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": said}
    ask("/gradio_api/queue/join", "POST", json.dumps(body), **{"Content-Type": "application/json"})
    lines = ask(f"/gradio_api/queue/data?session_hash={session}")[1].decode().splitlines()
    (done,) = (
        message for line in lines if line and (message := json.loads(line[6:]))["msg"] == "process_completed"
    )
    assert done["success"], done
    return done["output"]["data"]


def test_a_number_field_may_be_empty_or_beyond_an_end(ask, colours):
    config = json.loads(ask("/config")[1])
    names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
    events = {
        (names.get(part), kind): event for event in config["dependencies"] for part, kind in event["targets"]
    }
    image = io.BytesIO()
    colours.save(image, "png")
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n--b--\r\n'
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    (path,) = json.loads(ask("/gradio_api/upload", "POST", form % image.getvalue(), **multipart)[1])
    file = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    neutral = [1, 1, 1, 0, False, 0, False]
    session = uuid.uuid4().hex[:10]
    _sent(ask, session, events["iwm-photo", "upload"], [file, None, "hue", *neutral, *neutral])

    for tab, inputs in (("act", [None]), ("undo", [None, None])):
        moved = events[f"iwm-{tab}-brightness", "change"]
        shown = {
            value: _sent(ask, session, moved, [*inputs, value, *neutral[1:]])[0]
            for value in (1, None, 1.5, 9, 0.5, -9)
        }
        assert shown[None] == shown[1]
        assert shown[9] == shown[1.5]
        assert shown[-9] == shown[0.5]
        assert len(set(shown.values())) == 3
        left = events[f"iwm-{tab}-brightness", "release"]
        assert _sent(ask, session, left, []) == [1]
        assert _sent(ask, session, left, [], 0.7) == [{"__type__": "update"}]
    assert not Path(iwm.ui.__file__).with_name("controls.pyi").exists()


def _left_in(scratch):
    """But for the Hub's cache, and what the client of Weights & Biases makes where gradio finds it."""
    return [p.name for p in scratch.iterdir() if p.name != "hub" and "wandb" not in p.name]


def test_ctrl_c_ends_it_without_noise(needs_gradio, tmp_path):
    with serving(tmp_path / "scratch") as served:
        assert Asker(served.address)("/")[0] == 200
        # A tab that is still open, and would be for hours.
        tab = http.client.HTTPConnection(Asker(served.address).host, timeout=60)
        tab.request("GET", "/gradio_api/heartbeat/abc")
        assert tab.getresponse().status == 200
        assert [name[:7] for name in _left_in(served.scratch)] == ["iwm-ui-"]
        assert served.end() == (0, "")
        assert _left_in(served.scratch) == []
        tab.close()
