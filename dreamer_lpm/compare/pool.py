"""Runs the cells of a grid as processes, some side by side, each with its log; retries, resumes, stops cleanly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from types import FrameType
from typing import Self

from dreamer_lpm.lock import LOCK_FILE, take
from dreamer_lpm.report.metrics import METRICS_FILE
from dreamer_lpm.report.screen import Screen
from dreamer_lpm.types import MISTAKE, STOPS, UserError, insists

LOOK_EVERY = 0.2  # seconds
_TRACEBACK = "Traceback (most recent call last):"
_STEP = re.compile(rb'^\{"step": (\d+)')
_TAIL = 1 << 16  # bytes; a line of an evaluation is a few thousand


@dataclass(frozen=True)
class Job:
    """A cell to run: its folder, the env steps it takes, its log, and the command to start it or to go on with it."""

    name: str
    folder: Path
    steps: int
    log: Path
    command: Callable[[], list[str]]
    finished: Callable[[], bool]


Together = tuple[Callable[[Sequence[Job]], list[str]], int]


@dataclass
class _Running:
    jobs: list[Job]
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """Of them all: the first one's."""
        return self.jobs[0].log


class Locked:
    """Holds the grid's folder for this process and those it starts, so that no cell is ever run twice at a time.

    Processes that outlive this one (it was killed) keep holding it. Raises UserError, naming them, if it is held.
    """

    def __init__(self, folder: Path):
        self._file = (folder / LOCK_FILE).open("a+")
        if not take(self._file):
            self._file.seek(0)
            who, _, host = self._file.read().strip().partition("\n")
            self._file.close()
            here = host in ("", gethostname())
            raise UserError(
                f"Another compare, or cells that it left behind, is at work in {folder} (processes {who}"
                f"{'' if here else f' on {host}'}); wait for it, or end it "
                f"{f'with: kill {_whom_to_end(who)}' if here else 'there.'}"
            )
        self.note([])

    def note(self, children: Sequence[int]) -> None:
        """Write down who is at work."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(" ".join(map(str, [os.getpid(), *children])) + f"\n{gethostname()}")
        self._file.flush()

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _whom_to_end(who: str) -> str:
    """Of "compare cell cell": the compare, which ends its cells, or those that it left behind."""
    alive = [pid for pid in who.split() if _alive(int(pid))]
    compare_lives = bool(alive) and who.startswith(alive[0])
    return alive[0] if compare_lives else " ".join(alive) or who


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


class Pool:
    """``Pool(jobs=2, retries=2, lock=lock, screen=screen).run(cells)`` returns the names of the cells that failed.

    ``jobs``: processes at a time. ``together``: the command for several cells in one process, and how many at most;
    None: a process for each. ``threads``: of each process. After SIGINT, SIGTERM or SIGHUP the cells are told to stop,
    which saves them, and ``caught`` is that signal; another Ctrl-C ends them at once. Each process is a process group
    of its own, so a Ctrl-C reaches them only through here. ``tidy`` is called with each cell that has finished.
    """

    def __init__(
        self,
        *,
        jobs: int,
        retries: int,
        threads: int,
        lock: Locked,
        screen: Screen,
        together: Together | None = None,
        tidy: Callable[[Job], None] | None = None,
    ):
        self._tidy = tidy
        self._together = together
        self._jobs, self._retries, self._threads, self._lock, self._screen = jobs, retries, threads, lock, screen
        self._running: list[_Running] = []
        self._tries: dict[str, int] = {}
        self._failed: list[str] = []
        self._since = 0.0  # the first signal
        self._at_once = False
        self._told: bool | None = None  # what _at_once was when the cells were told
        self.caught: int | None = None

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Run every job that is not finished. Returns the names of those that failed, in the order they did."""
        waiting = deque(job for job in jobs if not job.finished())
        handlers = {s: signal.signal(s, self._note) for s in STOPS if signal.getsignal(s) != signal.SIG_IGN}
        try:
            while self._running or (waiting and self.caught is None):
                while waiting and len(self._running) < self._jobs and self.caught is None:
                    many = self._together[1] if self._together else 1
                    self._start([waiting.popleft() for _ in range(min(many, len(waiting)))])
                time.sleep(LOOK_EVERY)
                self._pass_on()
                self._show()
                for running in [r for r in self._running if r.process.poll() is not None]:
                    self._running.remove(running)
                    self._lock.note([r.process.pid for r in self._running])
                    for job in reversed(running.jobs):  # those to try again keep their order at the head
                        self._ended(job, running, waiting)
        finally:
            for running in self._running:  # only after an error here
                running.process.terminate()
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        return self._failed

    def _start(self, jobs: list[Job]) -> None:
        job = jobs[0]
        command = self._together[0](jobs) if self._together and len(jobs) > 1 else job.command()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(self._threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True, pass_fds=[self._lock.fd],
            )  # fmt: skip
        self._running.append(_Running(jobs, process))
        self._lock.note([r.process.pid for r in self._running])

    def _ended(self, job: Job, running: _Running, waiting: deque[Job]) -> None:
        if job.finished():
            self._screen.done(job.name, job.steps)
            if self._tidy:
                self._tidy(job)
            return
        self._screen.gone(job.name)
        if self.caught is not None:
            return
        tries = self._tries[job.name] = self._tries.get(job.name, 0) + 1
        status = running.process.returncode
        why = f"ended with status {status}" if status >= 0 else f"was killed ({signal.Signals(-status).name})"
        if status != MISTAKE and tries <= self._retries:
            self._screen.say(f"{job.name} {why}; trying again ({tries} of {self._retries}).")
            waiting.appendleft(job)
        else:
            self._failed.append(job.name)
            words = last_words(running.log, f"{job.folder}: " if len(running.jobs) > 1 else "")
            self._screen.say(f"{job.name} {why}, and is left. {words} ({running.log})")

    def _show(self) -> None:
        every = [job for running in self._running for job in running.jobs]
        self._screen.update({job.name: (steps_done(job.folder), job.steps) for job in every})

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.caught is None:
            self.caught, self._since = signum, time.monotonic()
        elif insists(signum, self._since):
            self._at_once = True

    def _pass_on(self) -> None:
        """Tell the cells what this process was told."""
        at_once = self._at_once
        if self.caught is None or self._told is at_once:
            return
        self._told = at_once
        self._screen.say("Ending the cells at once." if at_once else "Stopping: every cell saves, which takes seconds.")
        for running in self._running:
            if at_once:
                running.process.kill()
            else:
                running.process.terminate()


def steps_done(folder: Path) -> int:
    """Env steps that a run has logged; 0 before it has."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        found = [match for line in file.read().splitlines() if (match := _STEP.match(line))]
    return int(found[-1][1]) if found else 0


def last_words(log: Path, beginning: str = "") -> str:
    """What a log ends with: its last line, of those with that beginning if there are such; else empty.

    Of a traceback the exception, for notes may follow it.
    """
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    said = [line for line in lines if line.strip()]
    if beginning and (own := [line for line in said if line.startswith(beginning)]):
        return own[-1]
    if said and not said[-1].startswith("error: ") and _TRACEBACK in said:
        last = len(said) - said[::-1].index(_TRACEBACK)
        said = [line for line in said[last:] if not line[0].isspace()][:1] or said
    return (said or [""])[-1].strip()
