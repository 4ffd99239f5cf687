"""`iwm ui`: the web page, on this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from iwm.cli.index import library_model
from iwm.cli.options import Device, console, load_model


def ui_command(
    library: Annotated[
        str | None, typer.Argument(help="Library made by iwm index; by default views of your photograph.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 0.0.0.0 shows the page to the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 7860,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Zoo name, model folder, or org/name on the Hub; default: the library's, or iwm-tiny.",
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Try a model by hand in a browser: act, undo, grids. Nothing leaves this machine; Ctrl-C ends it."""
    from iwm.ui.server import check_gradio, listen

    check_gradio()
    listener = listen(host, port)

    def ready(address: str) -> None:
        console.print(f"Open {address}  (Ctrl-C ends it)")
        sys.stdout.flush()  # Also where it is read by a program.
        if browser:
            import webbrowser

            webbrowser.open(address)

    try:
        from iwm.ui.places import Shelf
        from iwm.ui.server import serve

        if library is None:
            serve(load_model(model or "iwm-tiny", device), None, listener, ready)
        else:
            from iwm.index import Index

            index = Index.open(library)
            world_model = library_model(index, model, device)
            serve(world_model, Shelf(index, world_model), listener, ready)
    except KeyboardInterrupt:  # While the model is loading.
        pass
    finally:
        listener.close()
