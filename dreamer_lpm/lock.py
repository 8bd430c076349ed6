"""One process for one run: a lock on its folder that the kernel drops when the process ends, however it ends.

So a lock cannot go stale. What a killed process leaves behind is a file with its number, and that is how it is told
that it did not end by itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from socket import gethostname
from typing import IO, Self

from dreamer_lpm.types import UserError

LOCK_FILE = ".lock"
LONGEST = 300  # characters of a process's number and its machine's name
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def take(file: IO[str], *, shared: bool = False) -> bool:
    """Lock the file; False while another process holds it.

    Raises UserError, the file closed, where the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        file.close()
        raise UserError(
            f"The file system of {Path(file.name).parent} gives no locks ({error.strerror}): choose a folder on "
            "another one (--runs, --out), or have it mounted with them."
        ) from None
    return True


class RunLock:
    """``with RunLock(run_dir) as lock:`` holds the folder, which is made if need be.

    ``left_by`` names a process that held it and was killed, else None. Raises UserError, naming the process,
    while another one holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir
        self.left_by: str | None = None

    def __enter__(self) -> Self:
        self._made = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / LOCK_FILE
        is_new = not path.exists()
        self._file = path.open("a+", encoding="ascii", errors="replace")
        try:
            taken = self._taken()
        except UserError:
            if is_new:  # else it may be another's, who holds it
                self.__exit__()
            raise
        if not taken:
            holder = self._written()
            self._file.close()
            raise UserError(
                f"{self._folder} is in use by {f'process {holder}' if holder else 'another process'}; wait for it or "
                "stop it, or choose another --run-name."
            )
        self.left_by = self._written()
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{os.getpid()} {gethostname()}")
        self._file.flush()
        return self

    def __exit__(self, *exc: object) -> None:
        (self._folder / LOCK_FILE).unlink(missing_ok=True)  # somebody may have removed the folder
        for made in filter(Path.is_dir, self._made):
            if any(made.iterdir()):
                break
            made.rmdir()  # nothing came of it
        self._file.close()

    def _taken(self) -> bool:
        try:
            if not take(self._file):
                return False
            here = (self._folder / LOCK_FILE).stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), here)  # nobody removed it before it was ours

    def _written(self) -> str | None:
        self._file.seek(0)
        return _name(self._file.read(LONGEST))


def _name(text: str) -> str | None:
    """A process by its number, and its machine where that is another."""
    number, _, host = text.strip().partition(" ")
    if not number.isdecimal():
        return None
    return number if host in ("", gethostname()) else f"{number} on {host}"


def holder(run_dir: Path) -> str | None:
    """The process that holds the run now ("unknown" if it did not say); None if nobody does."""
    path = run_dir / LOCK_FILE
    if not path.is_file():
        return None
    with path.open(encoding="ascii", errors="replace") as file:
        if not take(file, shared=True):
            return _name(file.read(LONGEST)) or "unknown"
    return None
