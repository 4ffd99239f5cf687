"""What stands between the network and the page: only the few requests that the page itself makes.

Gradio's server can do much more than this page needs, reading files of its cache among it. So there
is a short list of what is let through, pages of other origins are refused, and the browser is told
to ask nobody else for anything.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_GET = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon(/\d+)?|/(assets|static)/[\w./@-]+"
    r"|/gradio_api/(queue/data|upload_progress|startup-events|app_id|theme\.css|heartbeat/\w+)"
)
_POST = re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)")

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    # Gradio's own components are written with inline scripts and templates that are compiled.
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware that lets the page's own requests through.

    Args:
        app: what answers them.
        hosts: names by which the page may be called, so that no foreign name can be pointed at
            this machine; empty for any.
    """

    def __init__(self, app: App, hosts: Collection[str] = ()) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # A websocket is never answered, which closes it.
        status = self._refusal(scope)
        if status:
            await _refuse(send, status)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self._app(scope, receive, sending)

    def _refusal(self, scope: MutableMapping[str, Any]) -> int:
        """A status to refuse with, or 0."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._hosts and urlsplit(f"//{host}").hostname not in self._hosts:
            return 403
        if origin is not None and urlsplit(origin).netloc != host:
            return 403
        path, method = scope["path"], scope["method"]
        allowed = _GET if method in ("GET", "HEAD") else _POST if method == "POST" else None
        if allowed is None or ".." in path or not allowed.fullmatch(path):
            return 404
        return 0


async def _refuse(send: Send, status: int) -> None:
    body = b"Not found." if status == 404 else b"Not from here."
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
