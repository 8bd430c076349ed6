"""A save that dies, or finds the disk full, at every single file operation. ``python -m tests.faults.victim FOLDER``.

Each case runs in a fork of this process, on a copy of a run with checkpoints at steps 10 and 20, and saves step 30. The
n-th operation kills the fork with SIGKILL (before it is done; a write: after half of it), or fails, as do all later
ones, with ENOSPC. Prints one JSON object: operation -> cases, and every case in which not all was well.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dreamer_lpm import checkpoint
from dreamer_lpm.checkpoint import Saved

Mode = Literal["kill", "full"]
FULL = 3  # exit status of a fork that met a full disk and said so


class Failpoints:
    """Counts the file operations of this process, and strikes at the ``strike``-th (from 1; 0 never)."""

    def __init__(self, mode: Mode, strike: int, record: Path) -> None:
        self.mode, self.strike, self.record, self.count = mode, strike, record, 0

    def meet(self, name: str, half: Callable[[], object] = lambda: None) -> None:
        """One operation is about to be done; ``half`` does a part of it."""
        self.count += 1
        if self.count == self.strike:
            with REAL_OPEN(self.record, "w") as file:
                file.write(name)
            if self.mode == "kill":
                half()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "full" and 0 < self.strike <= self.count and name not in ("unlink", "rmdir", "close"):
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self) -> None:
        """From now on every operation on files meets the failpoints."""
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        io.open = self._opening  # pathlib's

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            self.meet(name)
            return function(*args, **more)

        return counted

    def _opening(self, file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "w" not in mode and "a" not in mode:
            return REAL_OPEN(file, mode, *args, **more)
        self.meet("open")
        return Watched(REAL_OPEN(file, mode, *args, **more), self)


REAL_OPEN = io.open


class Watched:
    """A file whose writes, flushes and closing meet the failpoints."""

    def __init__(self, file: Any, points: Failpoints) -> None:
        self.file, self.points = file, points

    def write(self, data: Any) -> Any:
        def half() -> None:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()

        self.points.meet("write", half)
        return self.file.write(data)

    def flush(self) -> None:
        self.points.meet("flush")
        self.file.flush()

    def close(self) -> None:
        self.points.meet("close")
        self.file.close()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def save_step(run_dir: Path, step: int) -> None:
    """What a run does at a checkpoint: the rows since the last one, then the state. Three rows back are forgotten."""
    newest = checkpoint.load_newest(run_dir)[0]
    pieces = {} if newest is None else dict(newest.replay)
    rows = {"obs": np.arange(step - 10, step, dtype=np.uint8), "reward": np.ones((10, 1), np.float32)}
    piece = checkpoint.save_rows(run_dir, step - 10, rows)
    pieces = {**pieces, piece: checkpoint.sha256(piece)}
    pieces = {path: digest for path, digest in pieces.items() if checkpoint.span(path)[1] > step - 20}
    tensors = {"weight": torch.full((500,), float(step)), "optimizer": {"state": [torch.ones(3) * step]}}
    checkpoint.save(run_dir, Saved(step, tensors, {"at": step}, pieces, "run", 0))


def strike(mode: Mode, number: int, base: Path, work: Path) -> tuple[str, list[str]]:
    """Save with a strike at operation ``number``. Returns its name ("" if there is none) and what is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    record = work.with_name("struck")
    record.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Failpoints(mode, number, record).install()
            save_step(work, 30)
            status = 0
        except OSError as error:
            status = FULL if error.errno == errno.ENOSPC else 1
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    name = record.read_text() if record.exists() else ""
    wrong = []
    if ended not in ((0,) if not name else (-signal.SIGKILL,) if mode == "kill" else (0, FULL)):
        wrong.append(f"the save ended with {ended}")
    saved, damaged = checkpoint.load_newest(work, "run")
    if saved is None or saved.step not in (20, 30) or damaged:
        wrong.append(f"left {saved and saved.step}, damaged {damaged}")
    elif not (saved.tensors["weight"] == saved.step).all() or saved.plain != {"at": saved.step}:
        wrong.append("the tensors are others")
    if saved is not None and saved.step == 20:
        save_step(work, 30)  # there is room again
    leftovers = [p.name for p in work.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    again, damaged = checkpoint.load_newest(work, "run")
    if again is None or again.step != 30 or damaged or (saved is not None and saved.step == 20 and leftovers):
        wrong.append(f"goes on to {again and again.step}, damaged {damaged}, leftovers {leftovers}")
    return name, wrong


def main(folder: Path) -> None:
    """All strikes of both kinds."""
    base, work = folder / "base", folder / "work"
    for step in (10, 20):
        save_step(base, step)
    cases: dict[str, Counter[str]] = {"kill": Counter(), "full": Counter()}
    wrong = []
    for mode in ("kill", "full"):
        number = 1
        while True:
            name, problems = strike(mode, number, base, work)
            wrong += [f"{mode} at operation {number} ({name}): {problem}" for problem in problems]
            if not name:
                break
            cases[mode][name] += 1
            number += 1
    print(json.dumps({"cases": cases, "wrong": wrong}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
