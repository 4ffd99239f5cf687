"""`iwm push`: publish a model folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.cli.options import AsJson, Token, console, print_json


def push_command(
    folder: Annotated[Path, typer.Argument(help="Model folder, as training or save_pretrained writes it.")],
    repo: Annotated[str, typer.Argument(help="org/name on the Hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token: Token = None,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish weights, config and model card, and print the zoo entry that pins them."""
    from iwm.publishing import push

    published = push(folder, repo, private=private, token=token, message=message)
    if as_json:
        hub = published.hub
        print_json({"repo": hub.repo, "revision": hub.revision, "sha256": dict(hub.sha256)})
        return
    console.print(f"Published {published.hub.repo}@{published.hub.revision}. Its zoo entry:\n", style="bold")
    console.print(str(published))
