"""`iwm download`: bring models here, to be used without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.cli.options import AsJson, Token, console, print_json


def download_command(
    names: Annotated[list[str], typer.Argument(help="Zoo names, or org/name[@revision] on the Hub.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder for the model (a folder in it for each of several).")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="The Hub's cache, where not the default one.")
    ] = None,
    token: Token = None,
    verify: Annotated[
        str, typer.Option(help="once; or always, to hash again what has not changed.")
    ] = "once",
    as_json: AsJson = False,
) -> None:
    """Download models and verify every file; afterwards they load without a network."""
    import re

    from iwm.errors import SaveError
    from iwm.finding import download
    from iwm.hub_client import HubOptions

    options = HubOptions(cache_dir=cache_dir, token=token, verify=verify)  # type: ignore[arg-type]
    folders = {name: re.split("[/@]", name.partition("@")[0])[-1] for name in names}
    if to and len(set(folders.values())) < len(folders):
        raise SaveError(f"Two of the models would be in one folder of {to}; name them one by one.")
    done = []
    for name, short in folders.items():
        target = to / short if to and len(folders) > 1 else to
        folder = download(name, target, options)
        done.append({"name": name, "folder": str(folder)})
        if as_json:
            continue
        where = f'"{target or name}"' + (f', cache_dir="{cache_dir}"' if cache_dir and not target else "")
        console.print(f"{name}: verified, in {folder}. Load it: iwm.load({where})")
    if as_json:
        print_json(done)
