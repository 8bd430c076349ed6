"""A console that may lose its reader."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from rich.console import Console

from dreamer_lpm.types import printable


def print_to_nobody() -> None:
    """From now on, so that what is printed otherwise, and Python's end, do not fail either."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(console: Console, text: str, *, prose: bool = False) -> None:
    """Print ``text`` as it is: a line that somebody may copy. ``prose``: a terminal may break it between words."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=not (prose and console.is_terminal))


def share_of(done: int, total: int) -> float:
    """How much of it is done, in [0, 1]: many envs may take more steps than were asked for."""
    return min(1.0, done / max(1, total))


class Terminal(Console):
    """Goes silent where nobody reads any more: ``| head``, a lost connection, a terminal that was closed.

    Whoever writes to it goes on: a run is worth more than its progress bar.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        print_to_nobody()

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:  # a terminal that is gone, where a pipe would be broken
            self.on_broken_pipe()
