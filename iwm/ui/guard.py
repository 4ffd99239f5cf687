"""What stands between the network and the page: only the few requests that the page itself makes.

Gradio's server can do much more than this page needs, reading files of its cache among it; and an
event that names a file makes it fetch that file, from the disk or the internet. So there is a short
list of what is let through, events may name uploads alone, pages of other origins are refused, and
the browser is told to ask nobody else for anything.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_EVENT = "/gradio_api/queue/join"
_UPLOAD = "/gradio_api/upload"
_LARGEST_EVENT = 1 << 20
_GET = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/[\w./@-]+"
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
        uploads: the folder of the only files that an event may name.
        hosts: names by which the page may be called, so that no foreign name can be pointed at
            this machine.
        addresses: whether any address in numbers will do as well; those cannot be pointed elsewhere.
        most: bytes of one upload; other requests are small.
        most_kept: bytes of all uploads on the disk, above which no other is taken.
    """

    def __init__(
        self, app: App, uploads: Path, hosts: Collection[str], *, addresses: bool = False,
        most: int = 1 << 26, most_kept: int = 1 << 31,
    ) -> None:  # fmt: skip
        self._app, self._uploads, self._hosts = app, uploads.resolve(), frozenset(hosts)
        self._addresses, self._most, self._most_kept = addresses, most, most_kept

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # A websocket is never answered, which closes it.
        status = self._refusal(scope)
        receive = _counted(receive, self._most if scope["path"] == _UPLOAD else _LARGEST_EVENT)
        if not status and scope["path"] == _EVENT:
            body = self._checked(await _read(receive))
            if body is None:
                status = 400
            else:
                scope, receive = _with_body(scope, receive, body)
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
        try:
            known = self._knows(urlsplit(f"//{host}").hostname or "")
            if not known or (origin is not None and urlsplit(origin).netloc != host):
                return 403
        except ValueError:  # Half a bracket, say.
            return 403
        path, method = scope["path"], scope["method"]
        allowed = _GET if method in ("GET", "HEAD") else _POST if method == "POST" else None
        if allowed is None or ".." in path or not allowed.fullmatch(path):
            return 404
        return 507 if path == _UPLOAD and self._is_full() else 0

    def _knows(self, host: str) -> bool:
        if host in self._hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._addresses

    def _checked(self, event: Any) -> bytes | None:
        """An event written anew, so that no two readers of JSON can understand it differently; None is refused."""
        try:
            named = event is not None and self._names_uploads_alone(event)
            return json.dumps(event).encode() if named else None
        except RecursionError:
            return None

    def _is_full(self) -> bool:
        """Whether uploads fill as much of the disk as they may; old ones go by themselves."""
        sizes = (file.stat().st_size for file in self._uploads.rglob("*") if file.is_file())
        try:
            return sum(sizes) > self._most_kept
        except OSError:  # One went meanwhile.
            return False

    def _names_uploads_alone(self, value: Any) -> bool:
        if isinstance(value, list):
            return all(self._names_uploads_alone(item) for item in value)
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        if path is not None and not (isinstance(path, str) and self._is_upload(path)):
            return False
        return all(self._names_uploads_alone(item) for item in value.values())

    def _is_upload(self, path: str) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self._uploads)
        except (OSError, ValueError):  # Too long, or with a zero byte.
            return False


def _counted(receive: Receive, most: int) -> Receive:
    """The same, to the sender's end where more bytes come than they may."""
    count = 0

    async def receiving() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        return message if count <= most else {"type": "http.disconnect"}

    return receiving


async def _read(receive: Receive) -> Any:
    """The JSON of a request's body; None where it is none, or too long."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _with_body(
    scope: MutableMapping[str, Any], receive: Receive, body: bytes
) -> tuple[MutableMapping[str, Any], Receive]:
    """The same request with another body, before whatever else will be received."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}, receiving


async def _refuse(send: Send, status: int) -> None:
    body = {
        400: b"Not understood.",
        403: b"Not from here.",
        404: b"Not found.",
        507: b"Too many photographs at a time; come back in a quarter of an hour.",
    }[status]
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
