"""Live progress of a run: a bar with the figures that matter in a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreamer_lpm.report.terminal import Terminal, say, share_of

RETURNS = 5  # episodes in the mean that is shown
SPEED_WINDOW = 20.0  # seconds of the past that steps/s and the time left look at


class Progress:
    """Shows how far a run has come. ``with Progress(10_000, title="my-run") as progress: progress.update(step, ...)``.

    ``total_steps`` and ``start_step`` count env steps; a resumed run starts above 0. In a terminal: a bar that redraws
    itself. Elsewhere: plain lines, one every 10 s at most, ever rarer in a long run.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        title: str = "training",
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._step, self._title = total_steps, start_step, title
        self._console = console or Terminal()
        self._clock = clock
        self._returns: deque[float] = deque(maxlen=RETURNS)
        self._tv_share: float | None = None
        self._note = ""
        self._start = clock()
        self._marks = deque([(self._start, start_step)])
        self._last_line = self._start
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4) if live else None

    def __enter__(self) -> Self:
        self._start = self._last_line = self._clock()
        self._marks = deque([(self._start, self._step)])
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._note = ""
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def update(
        self, step: int, *, episode_return: float | None = None, tv_share: float | None = None, note: str = ""
    ) -> None:
        """Show that the run is at env step ``step``.

        ``episode_return``: of an episode that ended just now; the mean of the last 5 is shown. ``tv_share``: part of
        the steps with the TV on, in [0, 1]; shown until the next comes. ``note``: what goes on now ("evaluating").
        """
        self._step, self._note = step, note
        if episode_return is not None:
            self._returns.append(episode_return)
        if tv_share is not None:
            self._tv_share = tv_share
        now = self._clock()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] > SPEED_WINDOW:
            self._marks.popleft()
        if self._live is None and now - self._last_line >= max(10.0, (now - self._start) / 60):
            self._print_line()

    def say(self, text: str, *, prose: bool = False) -> None:
        """Print one message of its own, above the bar if there is one; a terminal may break ``prose`` between words."""
        say(self._console, text, prose=prose)

    def _speed(self) -> float | None:
        """Env steps per second of late; None before it is known."""
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / (now - then) if now > then and after > before else None

    def _figures(self) -> list[str]:
        figures = []
        if self._returns:
            count = f"last {len(self._returns)}" if len(self._returns) > 1 else "1 episode"
            figures.append(f"return {sum(self._returns) / len(self._returns):.1f} ({count})")
        if self._tv_share is not None:
            figures.append(f"TV share {self._tv_share:.0%}")
        speed = self._speed()
        if speed is not None:
            figures.append(f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.1f} steps/s")
            if self._step < self._total:
                figures.append(f"{_duration((self._total - self._step) / speed)} left")
        if self._note:
            figures.append(self._note)
        return figures

    def _print_line(self) -> None:
        self._last_line = self._clock()
        share = share_of(self._step, self._total)
        self.say(" | ".join([f"{self._title}: {self._step:,}/{self._total:,} steps ({share:.0%})", *self._figures()]))

    def _draw(self) -> RenderableType:
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(Text(self._title, style="bold"), Text(f"{self._step:,} / {self._total:,} steps"))
        body = Table.grid(expand=True)
        body.add_row(ProgressBar(total=max(self._total, 1), completed=self._step))
        body.add_row(Text(" · ".join(self._figures()), style="cyan"))
        return Group(head, body)


def _duration(seconds: float) -> str:
    """``125`` -> "2 min 05 s"; the two coarsest units that count."""
    seconds = round(max(seconds, 0))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds % 60:02d} s" if minutes else f"{seconds} s"
