"""How long a training program takes until it has solved its env, by the wall clock, whoever's program it is.

A program is watched through the file to which it appends its episodes, as ``metrics.jsonl`` has them; its clock starts
with its process. It is killed, with all that it started, once it has solved the env or its time is up.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from dreamer_lpm.types import UserError

EPISODES = 5  # in the mean that must pass the threshold
LOOK_EVERY = 0.25  # seconds


@dataclass(frozen=True)
class Attempt:
    """A program that trains. Appends to ``log`` JSON lines with "kind", "step" and, if that is "episode", "return"."""

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Episode:
    """One training episode: when it was told (s since the program's start), env steps until then, its return."""

    seconds: float
    step: int
    value: float


def means(returns: Sequence[float]) -> list[float]:
    """The mean return of the last 5 episodes, from the fifth episode on."""
    return [statistics.fmean(returns[i - EPISODES : i]) for i in range(EPISODES, len(returns) + 1)]


def solve(attempt: Attempt, threshold: float, bound: float) -> dict[str, Any]:
    """Run it until the mean return of 5 episodes is above ``threshold``, or for ``bound`` seconds.

    Returns "solved", and if so after how many "seconds"; "env_steps" until the end of the last episode; "updates" as
    last told (a program may tell of them less often than of episodes; None: never); "ran_seconds"; the "best_mean" of 5
    episodes and its "best_env_steps" (None before the fifth episode); every episode as [seconds, env steps, return];
    "about": what the program said of itself. Raises UserError with a program's last words when it fails.
    """
    episodes: list[Episode] = []
    about: dict[str, Any] = {}
    updates: int | None = None
    solved = False
    with tempfile.TemporaryFile("w+") as said, _running(attempt, said) as process:
        start = time.perf_counter()
        rows = _rows(attempt.log)
        while not solved:
            ended = process.poll()  # before the last look at what it wrote
            passed = time.perf_counter() - start
            for row in next(rows):
                updates = row.get("updates", updates)
                if row["kind"] == "about":
                    about = {key: value for key, value in row.items() if key not in ("kind", "step", "updates")}
                if row["kind"] == "episode":
                    episodes.append(Episode(passed, row["step"], row["return"]))
                    solved = any(mean > threshold for mean in means([e.value for e in episodes[-EPISODES:]]))
                    if solved:
                        break
            if ended:
                failed(f"'{attempt.name}'", said)
            if passed > bound or ended is not None:
                break
            time.sleep(LOOK_EVERY)
    best = max(enumerate(means([e.value for e in episodes])), key=lambda pair: pair[1], default=None)
    last = episodes[-1] if episodes else None
    return {
        "solved": solved,
        "seconds": last.seconds if solved and last else None,
        "env_steps": last.step if last else 0,
        "updates": updates,
        "ran_seconds": passed,
        "best_mean": best and best[1],
        "best_env_steps": best and episodes[best[0] + EPISODES - 1].step,
        "about": about,
        "episodes": [[round(e.seconds, 2), e.step, round(e.value, 2)] for e in episodes],
    }


def in_words(name: str, found: Mapping[str, Any], threshold: float) -> str:
    """One line about what ``solve`` found."""
    steps = f"{found['env_steps']:,} env steps"
    if found["solved"]:
        minutes = found["seconds"] / 60
        return f"{name}: the mean of {EPISODES} episodes passed {threshold:g} after {minutes:.1f} min ({steps})."
    best = "no 5 episodes"
    if found["best_mean"] is not None:
        best = f"best mean of {EPISODES}: {found['best_mean']:.0f} at step {found['best_env_steps']:,}"
    return f"{name}: not solved in {found['ran_seconds'] / 60:.1f} min ({best}; {steps})."


@contextmanager
def _running(attempt: Attempt, said: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Its process, in a group of its own that is killed at the end: a peer may ignore milder signals, or have others
    work for it.
    """
    environment = {**os.environ, **attempt.environment}
    with _ended_by_sigterm():
        process = subprocess.Popen(
            attempt.command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this program as an exception does, so that nobody trains on without it."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python forbids it
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Each time the whole lines that came since the last; none while there is no file."""
    at = 0
    while True:
        new = b""
        if path.is_file():
            with path.open("rb") as file:
                file.seek(at)
                new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        at += len(whole)
        yield [json.loads(line) for line in whole.splitlines()]


def failed(who: str, said: IO[str]) -> NoReturn:
    """Raises UserError with the last words of a program, from the file of all that it said."""
    said.seek(0)
    lines = [line for line in said.read().splitlines() if line.strip()] or ["it said nothing"]
    raise UserError(f"{who} stopped: {lines[-1].strip()}")
