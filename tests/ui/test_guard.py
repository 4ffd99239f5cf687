"""What is let through to the page's server, and what never reaches it."""

import asyncio
import json
from pathlib import Path

import pytest

from iwm.ui.guard import Guard

LOCAL = {"127.0.0.1", "localhost", "::1"}


async def everything(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"reached")]})
    await send({"type": "http.response.body", "body": b"secret"})


async def echo(scope, receive, send):
    body = (await receive())["body"]
    assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def swallow(scope, receive, send):
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    words = b"gone" if message["type"] == "http.disconnect" else str(size).encode()
    await send({"type": "http.response.body", "body": words})


def ask(
    path,
    method="GET",
    hosts=LOCAL,
    kind="http",
    body=b"{}",
    app=everything,
    uploads="/uploads",
    addresses=False,
    most_kept=1 << 31,
    **headers,
):
    """Status, headers and body of one request."""
    sent = []
    coming = [body[:7], body[7:]]

    async def receive():
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    async def send(message):
        sent.append(message)

    headers = {"host": "127.0.0.1:7860"} | headers
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": pairs}
    asyncio.run(
        Guard(app, Path(uploads), hosts, addresses=addresses, most_kept=most_kept)(scope, receive, send)
    )
    if not sent:
        return None, {}, b""
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("HEAD", "/"), ("GET", "/config"), ("GET", "/theme.css"), ("GET", "/assets/index-D_1.js"),
        ("GET", "/static/js/iframeResizer.contentWindow.min.js"), ("GET", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/heartbeat/ab12"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join"),
    ],
)  # fmt: skip
def test_the_pages_own_requests_pass(method, path):
    status, headers, body = ask(path, method, origin="http://127.0.0.1:7860")
    assert (status, body) == (200, b"secret")
    assert headers[b"x-app"] == b"reached"
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"), ("HEAD", "/gradio_api/file=/etc/passwd"), ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"), ("GET", "/gradio_api/proxy=http://example.org/"),
        ("GET", "/assets/../../../etc/passwd"), ("GET", "/static/.."), ("GET", "/assets/a/../../b"),
        ("GET", "/gradio_api/info"), ("GET", "/gradio_api/openapi.json"), ("GET", "/docs"), ("GET", "/openapi.json"),
        ("POST", "/gradio_api/call/take"), ("POST", "/gradio_api/run/predict"), ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/vibe-edit"), ("POST", "/"),
        ("PUT", "/gradio_api/upload"), ("GET", "/gradio_api/upload"), ("GET", "/monitoring"), ("GET", "/config/../x"),
        ("GET", "/assets/a\n"), ("OPTIONS", "/"),
    ],
)  # fmt: skip
def test_nothing_else_does(method, path):
    assert ask(path, method)[::2] == (404, b"Not found.")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "["}, {"origin": "http://["}, {"host": "evil.example"}, {"host": "evil.example:7860"}, {"host": ""}, {"origin": "http://evil.example"},
        {"origin": "null"}, {"origin": "http://127.0.0.1:9999"},
    ],
    ids=str,
)  # fmt: skip
def test_foreign_pages_are_refused(headers):
    assert ask("/", **headers)[::2] == (403, b"Not from here.")
    assert ask("/gradio_api/upload", "POST", **headers)[0] == 403


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860"])
def test_this_machine_has_several_names(host):
    assert ask("/", host=host)[0] == 200


def test_a_page_shown_to_the_network_has_its_names_and_any_address():
    """A name that somebody else owns could be pointed here; an address could not."""
    shown = {"hosts": {"box.lan"}, "addresses": True}
    for host in ("box.lan:7860", "192.168.7.5:7860", "[fe80::1]:7860"):
        assert ask("/", host=host, **shown)[0] == 200
    assert ask("/", host="evil.example:7860", origin="http://evil.example:7860", **shown)[0] == 403
    assert ask("/", host="box.lan:7860", origin="http://evil.example", **shown)[0] == 403


@pytest.mark.parametrize(("path", "most"), [("/gradio_api/cancel", 1 << 20), ("/gradio_api/upload", 1 << 26)])
def test_bodies_end_where_they_grow_too_large(path, most):
    assert ask(path, "POST", body=b"a" * most, app=swallow)[2] == str(most).encode()
    assert ask(path, "POST", body=b"a" * (most + 1), app=swallow)[2] == b"gone"


def test_websockets_get_no_answer():
    assert ask("/gradio_api/queue/join", kind="websocket")[0] is None


def join(value, tmp_path):
    (tmp_path / "uploads").mkdir(exist_ok=True)
    return ask(
        "/gradio_api/queue/join", "POST", body=value if isinstance(value, bytes) else json.dumps(value).encode(),
        app=echo, uploads=tmp_path / "uploads",
    )  # fmt: skip


def test_an_event_may_name_an_upload(tmp_path):
    event = {
        "data": [{"path": str(tmp_path / "uploads" / "a" / "b.png"), "url": None}, 1.5, None],
        "fn_index": 2,
    }
    status, _, body = join(event, tmp_path)
    assert status == 200
    assert json.loads(body) == event


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../secret.png", "b.png", "UPLOADS/../secret.png", "UPLOADS/link/secret.png",
        "http://example.org/x.png", "https://example.org/x.png", "file:///etc/passwd", "", 7, ["/etc/passwd"], "a\0b",
        "UPLOADS-2/x.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("deep", [False, True])
def test_an_event_may_name_nothing_else(tmp_path, path, deep):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "link").symlink_to(tmp_path)
    path = path.replace("UPLOADS", str(tmp_path / "uploads")) if isinstance(path, str) else path
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert join({"data": [[{"deep": file}] if deep else file]}, tmp_path)[::2] == (400, b"Not understood.")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"data":' + b"[" * 900 + b"]" * 900 + b"}", b'"' + b"a" * (1 << 20) + b'"']
)  # fmt: skip
def test_an_event_that_is_none(tmp_path, body):
    assert join(body, tmp_path)[0] == 400


def test_of_two_meanings_the_checked_one_is_passed_on(tmp_path):
    good = str(tmp_path / "uploads" / "x.png")
    body = f'{{"path": "/etc/passwd", "path": "{good}"}}'.encode()
    assert json.loads(join(body, tmp_path)[2]) == {"path": good}
    assert b"passwd" not in join(body, tmp_path)[2]


@pytest.mark.parametrize(("most_kept", "status"), [(3000, 200), (2999, 507)])
def test_uploads_fill_no_disk(tmp_path, most_kept, status):
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1500))
    found = ask("/gradio_api/upload", "POST", uploads=tmp_path, most_kept=most_kept)
    assert found[0] == status
    assert ask("/", uploads=tmp_path, most_kept=most_kept)[0] == 200
