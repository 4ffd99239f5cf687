"""What is let through to the page's server, and what never reaches it."""

import asyncio

import pytest

from iwm.ui.guard import Guard

LOCAL = {"127.0.0.1", "localhost", "::1"}


async def everything(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"reached")]})
    await send({"type": "http.response.body", "body": b"secret"})


def ask(path, method="GET", hosts=LOCAL, kind="http", **headers):
    """Status, headers and body of one request."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = {"host": "127.0.0.1:7860"} | headers
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": pairs}
    asyncio.run(Guard(everything, hosts)(scope, None, send))
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
        {"host": "evil.example"}, {"host": "evil.example:7860"}, {"host": ""}, {"origin": "http://evil.example"},
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


def test_a_page_shown_to_the_network_has_any_name():
    assert ask("/", hosts=(), host="box.lan:7860")[0] == 200
    assert ask("/", hosts=(), host="box.lan:7860", origin="http://evil.example")[0] == 403


def test_websockets_get_no_answer():
    assert ask("/gradio_api/queue/join", kind="websocket")[0] is None
