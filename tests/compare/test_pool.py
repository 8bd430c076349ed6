"""Processes side by side: none twice, retries that go on, and a stop that lets everyone save."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dreamer_lpm import types
from dreamer_lpm.compare.pool import Job, Locked, Pool, Together, _whom_to_end, last_words, steps_done
from dreamer_lpm.report.screen import Screen
from dreamer_lpm.types import UserError

# Each start of a cell adds a line to "starts".
HEAD = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
here.mkdir(exist_ok=True)
starts = here / "starts"
with starts.open("a") as file:
    file.write("x")
tries = len(starts.read_text())
def finish():
    (here / "done").touch()
"""


class Yard:
    """Cells that are short scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = io.StringIO()

    def job(self, name: str, script: str) -> Job:
        folder = self.folder / name
        return Job(
            name, folder, 100, self.folder / f"{name}.log",
            lambda: [sys.executable, "-c", HEAD + script, str(folder)], lambda: (folder / "done").exists(),
        )  # fmt: skip

    def starts(self, name: str) -> int:
        path = self.folder / name / "starts"
        return len(path.read_text()) if path.exists() else 0

    def run(
        self, jobs: list[Job], *, side_by_side: int = 2, retries: int = 2, together: Together | None = None
    ) -> tuple[list[str], int | None]:
        screen = Screen(cells=len(jobs), finished=0, steps=100 * len(jobs), done=0, console=Console(file=self.said))
        with Locked(self.folder) as lock, screen:
            pool = Pool(jobs=side_by_side, retries=retries, threads=1, lock=lock, screen=screen, together=together)
            return pool.run(jobs), pool.caught


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_all_run_once_and_finished_ones_never_again(yard: Yard) -> None:
    jobs = [yard.job(name, "finish()") for name in "abc"]
    assert yard.run(jobs) == ([], None)
    assert yard.run(jobs) == ([], None)
    assert [yard.starts(name) for name in "abc"] == [1, 1, 1]
    assert "c is finished (3 of 3)." in yard.said.getvalue()


def test_no_more_side_by_side_than_asked(yard: Yard) -> None:
    script = (
        "(here / 'on').touch(); time.sleep(0.5); (here / 'most').write_text(str(len(list(here.parent.glob('*/on')))));"
    )
    script += "(here / 'on').unlink(); finish()"
    yard.run([yard.job(name, script) for name in "abcd"], side_by_side=1)
    assert {(yard.folder / name / "most").read_text() for name in "abcd"} == {"1"}


def test_a_killed_cell_is_tried_again(yard: Yard) -> None:
    killed = "os.kill(os.getpid(), signal.SIGKILL) if tries < 3 else finish()"
    assert yard.run([yard.job("a", killed)]) == ([], None)
    assert yard.starts("a") == 3
    assert "a was killed (SIGKILL); trying again (2 of 2)." in yard.said.getvalue()


def test_after_its_tries_a_cell_is_left_and_the_others_go_on(yard: Yard) -> None:
    failed, _ = yard.run([yard.job("a", "sys.exit('no luck')"), yard.job("b", "finish()")], side_by_side=1, retries=1)
    assert failed == ["a"]
    assert (yard.starts("a"), yard.starts("b")) == (2, 1)
    assert "a ended with status 1, and is left. no luck" in yard.said.getvalue()


def test_a_users_mistake_is_not_tried_again(yard: Yard) -> None:
    assert yard.run([yard.job("a", "print('error: no such env'); sys.exit(2)")]) == (["a"], None)
    assert yard.starts("a") == 1
    assert "error: no such env" in yard.said.getvalue()


def test_a_failed_cell_of_several_is_told_with_its_own_words_and_the_log_that_there_is(yard: Yard) -> None:
    jobs = [yard.job(name, "") for name in "abc"]
    lines = [f"{jobs[0].folder}: error: no luck", f"{jobs[1].folder}: error: no env", f"{jobs[2].folder}: return 1.0"]
    script = f"import pathlib, sys; print({chr(10).join(lines)!r})\n"
    script += f"pathlib.Path({str(jobs[2].folder)!r}).mkdir(); pathlib.Path({str(jobs[2].folder / 'done')!r}).touch()\n"
    script += "sys.exit(2)"
    assert sorted(yard.run(jobs, together=(lambda cells: [sys.executable, "-c", script], 3))[0]) == ["a", "b"]
    for name, line in zip("ab", lines, strict=False):
        assert f"{name} ended with status 2, and is left. {line} ({yard.folder / 'a.log'})" in yard.said.getvalue()
    assert [path.name for path in yard.folder.glob("*.log")] == ["a.log"]


SAVES = """
signal.signal(signal.SIGTERM, lambda *a: ((here / "saved").touch(), sys.exit(143)))
(here / "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_every_cell_save_and_starts_no_more(yard: Yard, signum: signal.Signals) -> None:
    jobs = [yard.job(name, SAVES) for name in "abc"]
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background

    def stop() -> None:
        wait_for(lambda: all((yard.folder / name / "ready").exists() for name in "ab"))
        os.kill(os.getpid(), signum)

    threading.Thread(target=stop).start()
    assert yard.run(jobs) == ([], signum)
    assert [(yard.folder / name / "saved").exists() for name in "abc"] == [True, True, False]
    assert yard.starts("c") == 0
    assert signal.getsignal(signal.SIGINT) is before


SLOWLY = """
signal.signal(signal.SIGTERM, lambda *a: (time.sleep(1), (here / "saved").touch(), sys.exit(143)))
(here / "ready").touch()
time.sleep(60)
"""


def test_a_stop_that_comes_twice_is_one_stop(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a terminal that closes, or of a kill that names the cells too."""
    monkeypatch.setattr(types, "INSISTS_AFTER", 0.0)

    def stop() -> None:
        wait_for((yard.folder / "a" / "ready").exists)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    threading.Thread(target=stop).start()
    assert yard.run([yard.job("a", SLOWLY)]) == ([], signal.SIGTERM)
    assert (yard.folder / "a" / "saved").exists()


def test_each_cell_that_finishes_is_tidied(yard: Yard) -> None:
    tidied = []
    jobs = [yard.job("a", "finish()"), yard.job("b", "sys.exit(2)"), yard.job("c", "finish()")]
    screen = Screen(cells=3, finished=0, steps=300, done=0, console=Console(file=yard.said))
    with Locked(yard.folder) as lock, screen:
        Pool(jobs=1, retries=0, threads=1, lock=lock, screen=screen, tidy=lambda job: tidied.append(job.name)).run(jobs)
    assert tidied == ["a", "c"]


def test_whom_to_end() -> None:
    """The compare alone, which has its cells saved; of one that was killed, those that it left behind."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    me = str(os.getpid())
    assert _whom_to_end(f"{me} {ended.pid}") == me
    assert _whom_to_end(f"{ended.pid} {me}") == me
    assert _whom_to_end("") == "", "it is just being written"


def test_another_ctrl_c_ends_a_cell_that_will_not(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "INSISTS_AFTER", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
    deaf = "signal.signal(signal.SIGTERM, lambda *a: (here / 'heard').touch()); (here / 'ready').touch()\n"
    deaf += "while True: time.sleep(1)"

    def stop() -> None:
        for sign in ("ready", "heard"):
            wait_for((yard.folder / "a" / sign).exists)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    assert yard.run([yard.job("a", deaf)]) == ([], signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert "Ending the cells at once." in yard.said.getvalue()


def test_a_folder_is_held_by_one_alone(tmp_path: Path) -> None:
    with Locked(tmp_path), pytest.raises(UserError, match=f"Another compare.*processes {os.getpid()}"):
        Locked(tmp_path)
    with Locked(tmp_path):
        pass


def test_a_folder_that_another_machine_holds(tmp_path: Path) -> None:
    """A number of its processes is somebody else's here."""
    with Locked(tmp_path):
        (tmp_path / ".lock").write_text(f"{os.getpid()}\nnode7")
        with pytest.raises(UserError, match=rf"\(processes {os.getpid()} on node7\); wait for it, or end it there\.$"):
            Locked(tmp_path)


def test_a_cell_left_behind_holds_the_folder(tmp_path: Path) -> None:
    with Locked(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fd])
        lock.note([child.pid])
    with pytest.raises(UserError, match=str(child.pid)):
        Locked(tmp_path)
    child.communicate(b"\n")
    with Locked(tmp_path):
        pass


def test_steps_done_reads_whole_lines_from_the_end(tmp_path: Path) -> None:
    assert steps_done(tmp_path) == 0
    lines = "".join(f'{{"step": {i}, "kind": "train", "x": "{"y" * 900}"}}\n' for i in range(0, 2000, 10))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"st')
    assert steps_done(tmp_path) == 1990


def test_last_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none") == ""
    (tmp_path / "log").write_text("one\nerror: two\n\n")
    assert last_words(tmp_path / "log") == "error: two"
    assert last_words(tmp_path / "log", "one") == "one"
    assert last_words(tmp_path / "log", "three") == "error: two"


def test_of_a_traceback_the_exception_is_said(tmp_path: Path) -> None:
    """Notes follow it, such as where the run was; a chain ends with the last of its tracebacks."""
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\n'
    chain = f"{trace}KeyError: 1\n\nDuring handling, another:\n\n{trace}RuntimeError: the motor burned\nat step 120.\n"
    (tmp_path / "log").write_text(chain)
    assert last_words(tmp_path / "log") == "RuntimeError: the motor burned"
    (tmp_path / "log").write_text(f"{chain}error: and then this\n")
    assert last_words(tmp_path / "log") == "error: and then this"
    (tmp_path / "log").write_text(trace)
    assert last_words(tmp_path / "log") == "f()"


# --- the screen -------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_counts_only_what_was_made_now() -> None:
    clock, said = Clock(), io.StringIO()
    screen = Screen(cells=3, finished=1, steps=3000, done=1000, console=Console(file=said, width=200), clock=clock)
    assert screen.left() is None
    screen.update({"b": (500, 1000)})  # resumed: these steps took no time now
    assert screen.left() is None
    clock.now = 10.0
    screen.update({"b": (600, 1000)})
    assert screen.left() == pytest.approx(1400 / 10)
    screen.done("b", 1000)
    clock.now = 20.0
    screen.update({"c": (0, 1000)})
    assert screen.left() == pytest.approx(1000 / (500 / 20))
    clock.now = 40.0
    screen.update({"c": (0, 1000)})
    assert "2 of 3 cells | 2,000 of 3,000 steps (67%) | 0:01:20 left | c 0%" in said.getvalue()


def test_what_is_left_behind_is_counted_and_not_waited_for() -> None:
    clock, said = Clock(), io.StringIO()
    screen = Screen(cells=2, finished=0, steps=2000, done=0, console=Console(file=said, width=200), clock=clock)
    screen.update({"a": (100, 1000), "b": (0, 1000)})
    clock.now = 10.0
    screen.update({"a": (200, 1000), "b": (100, 1000)})
    screen.gone("a")
    assert screen.left() == pytest.approx(900 / 20)
    clock.now = 40.0
    screen.update({"b": (100, 1000)})
    assert "0 of 2 cells | 300 of 2,000 steps (15%)" in said.getvalue()
    screen.gone("b")
    assert screen.left() is None, "nothing goes on"
    screen.update({"a": (200, 1000), "b": (100, 1000)})  # tried again
    assert screen._total() == 300


def test_steps_past_the_end_take_no_time_back() -> None:
    """Many envs pass the last step together, and an evaluation follows."""
    clock, said = Clock(), io.StringIO()
    screen = Screen(cells=1, finished=0, steps=1000, done=0, console=Console(file=said, width=200), clock=clock)
    screen.update({"a": (500, 1000)})
    clock.now = 40.0
    screen.update({"a": (1216, 1000)})
    assert screen.left() == 0
    assert said.getvalue().splitlines()[-1].endswith("1,216 of 1,000 steps (100%) | 0:00:00 left | a 100%")


def test_a_terminal_gets_bars() -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=100)
    with Screen(cells=2, finished=0, steps=200, done=0, console=console) as screen:
        screen.update({"lpm-remote-0": (50, 100)})
        screen.say("[not] markup")
    assert "lpm-remote-0" in said.getvalue()
    assert "50 / 100" in said.getvalue()
    assert "[not] markup" in said.getvalue()


def test_the_whole_grids_figures_stand_below_its_bar() -> None:
    """A bar ends without a newline: what follows it at once falls off the right edge."""
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, color_system="truecolor", width=80)
    with Screen(cells=40, finished=3, steps=240_000, done=18_000, console=console) as screen:
        screen.update({"lpm-remote-0": (50, 6_000)})
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.getvalue()).splitlines()
    assert any(line.strip() == "3 of 40 cells · 18,050 of 240,000 steps (8%)" for line in lines)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux")
def test_a_cell_has_threads_a_process_group_and_a_hold_on_the_folder_of_its_own(yard: Yard) -> None:
    """Ctrl-C is for the grid alone; and whoever kills the grid leaves cells that still hold its folder."""
    script = """
import json
files = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
threads = [os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")]
(here / "about").write_text(json.dumps([threads, os.getpgrp() == os.getpid(), files]))
finish()
"""
    yard.run([yard.job("a", script)])
    threads, leads, files = json.loads((yard.folder / "a" / "about").read_text())
    assert threads == ["1", "1"]
    assert leads
    assert str((yard.folder / ".lock").resolve()) in files
