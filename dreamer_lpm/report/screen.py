"""Progress of a whole grid: bars in a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreamer_lpm.report.terminal import Terminal, say, share_of

SPEED_WINDOW = 600.0  # seconds of the past that the time left looks at: evaluations and prefill even out
LINE_EVERY = 30.0  # seconds between plain lines, at least


class Screen:
    """``with Screen(cells=40, finished=3, steps=240_000, done=18_000) as screen: screen.update(...)``.

    ``steps`` and ``done`` count the env steps of all cells, and of those that are finished. ``unit``: what a cell is
    called.
    """

    def __init__(
        self,
        *,
        cells: int,
        finished: int,
        steps: int,
        done: int,
        unit: str = "cells",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._cells, self._finished, self._steps, self._done = cells, finished, steps, done
        self._unit = unit
        self._console = console or Terminal()
        self._clock = clock
        self._running: dict[str, tuple[int, int]] = {}
        self._gone: dict[str, tuple[int, int]] = {}  # ended unfinished, until they go on
        self._made = 0  # steps made since this screen is up; those that a resumed cell brings were made before
        self._marks: deque[tuple[float, int]] = deque()
        self._start = self._last_line = clock()
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=2) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def update(self, running: Mapping[str, tuple[int, int]]) -> None:
        """Show that these cells are at (env step, of how many)."""
        for name, (step, _) in running.items():
            self._made += max(0, step - self._running[name][0]) if name in self._running else 0
        self._running = dict(running)
        self._gone = {name: at for name, at in self._gone.items() if name not in running}
        now = self._clock()
        self._marks.append((now, self._made))
        while len(self._marks) > 2 and now - self._marks[1][0] > SPEED_WINDOW:
            self._marks.popleft()
        if self._live is None and now - self._last_line >= max(LINE_EVERY, (now - self._start) / 60):
            self._print_line()

    def done(self, name: str, steps: int) -> None:
        """A cell of ``steps`` env steps is finished."""
        self._made += max(0, steps - self._running.pop(name, (steps, steps))[0])
        self._gone.pop(name, None)
        self._finished += 1
        self._done += steps
        self.say(f"{name} is finished ({self._finished} of {self._cells}).")

    def gone(self, name: str) -> None:
        """A cell has ended, unfinished."""
        if at := self._running.pop(name, None):
            self._gone[name] = at

    def say(self, text: str, *, prose: bool = False) -> None:
        """Print one message, above the bars if there are any; a terminal may break ``prose`` between words."""
        say(self._console, text, prose=prose)

    def _total(self) -> int:
        return self._done + sum(step for step, _ in (*self._running.values(), *self._gone.values()))

    def left(self) -> float | None:
        """Seconds until all cells that still go on are finished, at the speed of late; None before it is known."""
        if len(self._marks) < 2:
            return None
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        to_do = self._steps - self._total() - sum(of - step for step, of in self._gone.values())
        if to_do <= 0 and not self._running:  # all have ended
            return None
        return max(0, to_do) * (now - then) / (after - before) if after > before else None

    def _figures(self) -> str:
        left = self.left()
        known = "" if left is None else f" | {timedelta(seconds=round(left))} left"
        share = share_of(self._total(), self._steps)
        return (
            f"{self._finished} of {self._cells} {self._unit} | {self._total():,} of {self._steps:,} steps"
            f" ({share:.0%}){known}"
        )

    def _print_line(self) -> None:
        self._last_line = self._clock()
        cells = ", ".join(f"{name} {share_of(step, of):.0%}" for name, (step, of) in self._running.items())
        self.say(self._figures() + (f" | {cells}" if cells else ""))

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(ratio=2)
        table.add_column(no_wrap=True, justify="right")
        for name, (step, of) in self._running.items():
            table.add_row(Text(name), ProgressBar(total=max(1, of), completed=step), Text(f"{step:,} / {of:,}"))
        whole = Table.grid(expand=True)  # a bar alone ends without a newline, and what follows would stand behind it
        whole.add_row(ProgressBar(total=max(1, self._steps), completed=self._total()))
        return Group(table, Text(""), whole, Text(self._figures().replace(" | ", " · "), style="cyan"))
