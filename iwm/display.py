"""What long jobs show: a progress bar on a terminal, nothing in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], words: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` behind a progress bar on standard error."""
    console = Console(stderr=True)
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=words)
