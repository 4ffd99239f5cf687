"""An HTTP server on 127.0.0.1 that misbehaves on demand; what it answers is up to a subclass."""

import json
import re
import socket
import struct
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Status:
    """Answer with this status and do nothing else."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class Cut:
    """Announce the whole body, send its first bytes and end the connection.

    `ignore_range`: the body is the whole file even if a range was asked for. `reset`: the connection ends with a
    TCP reset, as when a machine fails, instead of an orderly end of data.
    """

    after: int
    ignore_range: bool = False
    reset: bool = False


@dataclass(frozen=True)
class Short:
    """Serve a file of which only the first bytes are left; what is said elsewhere about its size stays."""

    size: int


@dataclass(frozen=True)
class Corrupt:
    """Serve a file with one bit of the byte at the offset flipped."""

    offset: int = 0


@dataclass(frozen=True)
class Stall:
    """Send the headers and the first bytes, then nothing until the fault is healed or the server closed."""

    after: int


@dataclass(frozen=True)
class Hang:
    """Take the request and never answer, until the fault is healed or the server closed."""


Fault = Status | Cut | Short | Corrupt | Stall | Hang


@dataclass
class Request:
    """A request as it arrived; the status is None until it is answered."""

    method: str
    path: str  # as sent, with the query
    headers: dict[str, str]  # names in lower case
    status: int | None = None

    @property
    def subject(self) -> str:
        """What faults match: the decoded path, or the one that redirected here as `?for=` tells."""
        url = urlsplit(self.path)
        return parse_qs(url.query).get("for", [unquote(url.path)])[0]


@dataclass(frozen=True)
class Answer:
    """An answer; a client may ask for a range of the body if the headers say Accept-Ranges."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer in JSON."""
    about = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, about, json.dumps(value).encode())


@dataclass
class _Injected:
    fault: Fault
    path: str
    method: str
    left: int | None
    released: threading.Event = field(default_factory=threading.Event)


class LoopbackServer(ABC):
    """The server: `with` starts it at `url`; the end of the block cuts all connections."""

    def __init__(self) -> None:
        self.requests: list[Request] = []  # in order of arrival
        self.lock = threading.RLock()
        self._injected: list[_Injected] = []

    @abstractmethod
    def answer(self, request: Request, body: bytes) -> Answer:
        """What a healthy server answers; called by one thread at a time."""

    def __enter__(self) -> Self:
        self._sockets = _Sockets(self)
        self.url = f"http://127.0.0.1:{self._sockets.server_port}"
        self._thread = threading.Thread(target=self._sockets.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._sockets.shutdown()
        self._thread.join()
        self.heal()
        self._sockets.close_connections()
        self._sockets.server_close()
        if self._sockets.errors and error[0] is None:
            raise RuntimeError("the loopback server itself failed") from self._sockets.errors[0]

    def inject(
        self,
        fault: Fault,
        path: str = "*/resolve/*/model.safetensors",
        method: str = "GET",
        times: int | None = None,
    ) -> None:
        """From now on, meet requests to matching paths with the fault; the first live one that matches wins.

        `times=None` is always. `Status` and `Hang` meet any request, before it has an effect; the others meet
        only a request whose answer has a body to damage, such as the one that a redirect leads to.
        """
        with self.lock:
            self._injected.append(_Injected(fault, path, method, times))

    def heal(self) -> None:
        """Remove all faults; connections that stall or hang are closed."""
        with self.lock:
            for injected in self._injected:
                injected.released.set()
            self._injected.clear()

    def meet(self, request: Request, *kinds: type[Fault]) -> _Injected | None:
        """Use up the fault that awaits this request, if it is of these kinds."""
        with self.lock:
            for injected in self._injected:
                if injected.left == 0 or injected.method != request.method:
                    continue
                if fnmatchcase(request.subject, injected.path):
                    if not isinstance(injected.fault, kinds):
                        return None
                    injected.left = None if injected.left is None else injected.left - 1
                    return injected
            return None


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, meets the faults, sends answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Sockets"

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self) -> None:
        site = self.server.site
        request = Request(self.command, self.path, {key.lower(): self.headers[key] for key in self.headers})
        site.requests.append(request)
        body = self._body()
        if (injected := site.meet(request, Status, Hang)) is None:
            with site.lock:
                answer = site.answer(request, body)
        elif isinstance(fault := injected.fault, Status):
            answer = json_answer({"error": fault.message}, fault.code, fault.headers)
        else:
            injected.released.wait()
            self.close_connection = True
            return
        if answer.status == 200 and self.command != "HEAD":
            injected = site.meet(request, Cut, Short, Corrupt, Stall)
            answer = self._part(answer, injected.fault if injected else None)
        request.status = answer.status
        self._send(answer, injected)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self._read(size + 2)[:-2])
        self.rfile.readline()
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError("the client left within its request")
        return data

    def _part(self, answer: Answer, fault: Fault | None) -> Answer:
        """The body after damage to it; of a file, the range that was asked for."""
        content = bytearray(answer.body)
        if isinstance(fault, Corrupt):
            content[fault.offset] ^= 1
        if isinstance(fault, Short):
            del content[fault.size :]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        ignored = isinstance(fault, Cut) and fault.ignore_range
        if asked is None or not any(asked.groups()) or ignored or "Accept-Ranges" not in answer.headers:
            return Answer(200, answer.headers, bytes(content))
        first, last, size = asked[1], asked[2], len(content)
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            return Answer(416, {**answer.headers, "Content-Range": f"bytes */{size}"})
        headers = {**answer.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return Answer(206, headers, bytes(content[start:end]))

    def _send(self, answer: Answer, injected: _Injected | None) -> None:
        self.send_response(answer.status)
        for key, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if injected is None or not isinstance(fault := injected.fault, Cut | Stall):
            self.wfile.write(answer.body)
            return
        self.wfile.write(answer.body[: fault.after])
        self.close_connection = True
        if isinstance(fault, Stall):
            injected.released.wait()
        elif fault.reset:
            time.sleep(0.05)  # a reset overtakes what is still under way
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())


class _Sockets(ThreadingHTTPServer):
    """The listening socket, and all open connections so that they can be cut."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, site: LoopbackServer) -> None:
        self.site = site
        self.errors: list[BaseException] = []
        self._open: set[socket.socket] = set()
        self._ended = threading.Condition()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._ended:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._ended:
            self._open.discard(request)
            self._ended.notify_all()

    def close_connections(self) -> None:
        """Cut all connections and wait until their threads are through."""
        with self._ended:
            for connection in self._open:
                with suppress(OSError):  # the client was first
                    connection.shutdown(socket.SHUT_RDWR)
            assert self._ended.wait_for(lambda: not self._open, timeout=10), "connections are still open"

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):  # OSError: the client left
            self.errors.append(error)
