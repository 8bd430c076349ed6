"""One process for one run: refused while it is held, free as soon as the holder is dead, however it died."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from socket import gethostname

import pytest

from dreamer_lpm.compare.pool import Locked
from dreamer_lpm.lock import LOCK_FILE, RunLock, holder
from dreamer_lpm.types import UserError

HOLD = """
import sys
from pathlib import Path
from dreamer_lpm.lock import RunLock
with RunLock(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "work").touch()
    print("held", flush=True)
    sys.stdin.read()
"""


def held_by_another(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str], signum: int | None = None) -> None:
    if signum is not None:
        process.send_signal(signum)
    process.communicate(timeout=60)


def test_a_second_process_is_refused_in_one_line_and_changes_nothing(tmp_path: Path) -> None:
    process = held_by_another(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=f"is in use by process {process.pid}; wait for it or stop it, or choose"),
            RunLock(tmp_path),
        ):
            pytest.fail("two hold it")
        assert holder(tmp_path) == str(process.pid)
        assert (tmp_path / LOCK_FILE).read_text() == f"{process.pid} {gethostname()}"
    finally:
        end(process)
    with RunLock(tmp_path) as lock:
        assert lock.left_by is None, "that process ended by itself"
    assert holder(tmp_path) is None


def test_a_lock_does_not_outlive_a_process_that_is_killed_and_tells_of_it(tmp_path: Path) -> None:
    process = held_by_another(tmp_path)
    end(process, signal.SIGKILL)
    assert holder(tmp_path) is None
    with RunLock(tmp_path) as lock:
        assert lock.left_by == str(process.pid)
    with RunLock(tmp_path) as lock:
        assert lock.left_by is None


def test_two_locks_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match="in use"), RunLock(tmp_path):
        pytest.fail("held twice")


def test_a_folder_that_somebody_removes_is_no_error_of_its_own(tmp_path: Path) -> None:
    with RunLock(tmp_path / "runs" / "a"):
        shutil.rmtree(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_came_of_is_gone_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    with RunLock(folder):
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with RunLock(folder):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"], "what was there before stays"
    with RunLock(folder):
        (folder / "work").touch()
    assert list(folder.iterdir()) == [folder / "work"]


@pytest.mark.parametrize("text", ["", "no number", "-3", "é" * 99, "4" * 99])
def test_whatever_the_file_says_the_kernel_decides(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with RunLock(tmp_path) as lock:
        assert lock.left_by is None or lock.left_by.isdecimal()


def test_a_process_of_another_machine_is_named_with_it(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("4711 node7")
    with RunLock(tmp_path) as lock:
        assert lock.left_by == "4711 on node7"
    with (tmp_path / LOCK_FILE).open("w") as file:
        file.write("4711 node7")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(tmp_path) == "4711 on node7"
        with pytest.raises(UserError, match="is in use by process 4711 on node7; wait for it"), RunLock(tmp_path):
            pytest.fail("two hold it")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"The file system of .*run gives no locks .*choose a folder on another"):
        RunLock(tmp_path / "run").__enter__()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOCK_FILE).write_text("4711")
    with pytest.raises(UserError, match="gives no locks"):
        RunLock(tmp_path).__enter__()
    assert (tmp_path / LOCK_FILE).exists(), "another may hold it"
    with pytest.raises(UserError, match="gives no locks"):
        Locked(tmp_path)
