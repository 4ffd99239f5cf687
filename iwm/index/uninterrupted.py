"""Letting the interrupt key wait until something is done."""

from __future__ import annotations

import threading
from collections.abc import Callable


def uninterrupted(work: Callable[[], None]) -> None:
    """Do something to its end in another thread; Ctrl-C is heeded afterwards, and a second one at once.

    A commit that nobody waits for any more may still come about: whoever looks at the library meanwhile,
    to go on with the rest, would not see it.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        thread.join()
    except KeyboardInterrupt:
        if thread.ident is not None:  # Started.
            thread.join()
        raise
    if failed:
        raise failed[0]
