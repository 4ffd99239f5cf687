"""Serving the page: a port, a private folder for uploads, and an end without noise.

Everything gradio would ask the internet for is switched off before it is imported.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iwm.errors import InvalidConfigError, ServerError
from iwm.ui.desk import MOST_BYTES, Desk
from iwm.ui.guard import Guard
from iwm.ui.places import Shelf
from iwm.world_model import WorldModel

_SILENCE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_FORM_BYTES = 1 << 16
"""Around an uploaded file."""


def check_gradio() -> None:
    """Raise `InvalidConfigError` where gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InvalidConfigError('The page needs gradio: pip install "iwm[demo]"')


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any that is free.

    Raises:
        ServerError: the port is taken or not allowed, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ServerError(f"No machine is called {host}; leave --host out for this one alone.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # Elsewhere this would share a port that is taken.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            free = port + 1 if port < 65535 else 0
            raise ServerError(f"Port {port} is in use; choose another, such as --port {free}.") from error
        raise ServerError(f"Cannot serve at {host}, port {port}: {error.strerror}.") from error
    return listener


def serve(
    model: WorldModel, shelf: Shelf | None, listener: socket.socket, ready: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: the world model.
        shelf: the library, if there is one.
        listener: from `listen`; closed at the end.
        ready: called with the address once the page can be opened.

    Raises:
        InvalidConfigError: gradio is not installed.
        InvalidActionError: the model cannot act.
    """
    check_gradio()
    with tempfile.TemporaryDirectory(prefix="iwm-ui-") as uploads, listener:
        os.environ.update(_SILENCE, GRADIO_TEMP_DIR=uploads)
        app = _application(Desk(model, shelf, Path(uploads)), Path(uploads), listener)
        _run(app, listener, lambda: ready(address_of(listener)))


def address_of(listener: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _application(desk: Desk, uploads: Path, listener: socket.socket) -> Guard:
    import gradio as gr
    from fastapi import FastAPI

    from iwm.ui.page import STYLE, build, theme

    host, port = listener.getsockname()[:2]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build(desk)
    gr.mount_gradio_app(
        app, page, path="/", server_name=host, server_port=port, theme=theme(),
        css=STYLE.read_text(encoding="utf-8"), footer_links=[], show_error=False, max_file_size=MOST_BYTES,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    page.has_launched = True  # Only then does gradio check where the files of events lie.
    own = socket.gethostname().lower()
    names = (
        {*_LOCAL_NAMES, host}
        if (local := ipaddress.ip_address(host).is_loopback)
        else {"localhost", own, f"{own}.local"}
    )
    return Guard(app, uploads, names, addresses=not local, most=MOST_BYTES + _FORM_BYTES)


def _run(app: Guard, listener: socket.socket, started: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: list[Any] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

    # Tabs that are still open hold their connections; they are not waited for.
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # Uvicorn raises it again once all is closed.
        return
