"""One process for one run: a lock on its folder that the kernel drops when the process ends, however it ends.

So a lock cannot go stale. What a killed process leaves behind is a file with its number, and that is how it is told
that it did not end by itself.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from dreamer_lpm.types import UserError

LOCK_FILE = ".lock"


class RunLock:
    """``with RunLock(run_dir) as lock:`` holds the folder, which is made if need be.

    ``left_by`` is the number of a process that held it and was killed, else None. Raises UserError, naming the process,
    while another one holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir
        self.left_by: int | None = None

    def __enter__(self) -> Self:
        self._made = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / LOCK_FILE).open("a+", encoding="ascii", errors="replace")
        if not self._taken():
            holder = self._written()
            self._file.close()
            raise UserError(
                f"{self._folder} is in use by {f'process {holder}' if holder else 'another process'}; wait for it or "
                "stop it, or choose another --run-name."
            )
        self.left_by = self._written()
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._folder / LOCK_FILE).unlink(missing_ok=True)  # somebody may have removed the folder
        for made in filter(Path.is_dir, self._made):
            if any(made.iterdir()):
                break
            made.rmdir()  # nothing came of it
        self._file.close()

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = (self._folder / LOCK_FILE).stat()
        except (BlockingIOError, FileNotFoundError):
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), here)  # nobody removed it before it was ours

    def _written(self) -> int | None:
        self._file.seek(0)
        text = self._file.read(20).strip()
        return int(text) if text.isdecimal() else None


def holder(run_dir: Path) -> int | None:
    """Number of the process that holds the run now (0 if it did not say); None if nobody does."""
    path = run_dir / LOCK_FILE
    if not path.is_file():
        return None
    with path.open(encoding="ascii", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(20).strip()
            return int(text) if text.isdecimal() else 0
    return None
