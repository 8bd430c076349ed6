"""Will it fit? What a run will take of memory and disk, against what there is, before it starts."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from dreamer_lpm.machine import cgroups
from dreamer_lpm.types import UserError

MEMINFO, OWN_PAGES = Path("/proc/meminfo"), Path("/proc/self/statm")
SPARE = 1 << 28  # bytes of a process with nothing in it, and of room that a disk should keep


@dataclass(frozen=True)
class Forecast:
    """What a run comes to, in bytes at most."""

    rows: int  # steps that the replay will hold, of all envs
    row: int  # bytes of one, before compression
    weights: int  # bytes of everything that learns
    runs: int = 1  # like this one, in the same memory
    reserved: int = 0  # steps for which memory is taken at the start, where it is not taken as it is filled

    @property
    def memory(self) -> int:
        """Replay; weights, gradients and the optimizer's two moments; of all runs."""
        return self.runs * (self._in_memory * self.row + 4 * self.weights)

    @property
    def _in_memory(self) -> int:
        return max(self.rows, self.reserved)

    def disk(self, keep: int) -> int:
        """Replay, as if it could not be compressed; ``keep`` checkpoints and one being written, each of three copies
        of the weights (two are the optimizer's); two agent files.
        """
        return self.rows * self.row + (3 * (keep + 1) + 2) * self.weights

    def check_memory(self, device: torch.device) -> None:
        """Raises UserError, with the arithmetic, if the device has less memory than the run takes."""
        there = free_memory(device)
        if there is not None:
            there += _held(device)
        several = f"{self.runs} runs, each " if self.runs > 1 else ""
        if there is not None and self.memory + SPARE > there:
            raise UserError(
                f"Memory does not suffice: {several}{self._replay(self._in_memory)} + {_size(4 * self.weights)} of "
                f"weights, gradients and optimizer + {_size(SPARE)} to spare, and {device.type} has {_size(there)} "
                "free; lower replay_capacity or choose a smaller preset."
            )

    def check_disk(self, run_dir: Path, keep: int) -> None:
        """Raises UserError, with the arithmetic, if the disk has less room than the run may take."""
        there, used = shutil.disk_usage(run_dir).free, _used(run_dir)
        if self.disk(keep) - used + SPARE > there:
            others = _size(self.disk(keep) - self.rows * self.row)
            raise UserError(
                f"The disk of {run_dir} does not suffice: {self._replay(self.rows)} (less once compressed) + {others} "
                f"of checkpoints and agents + {_size(SPARE)} to spare, and {_size(there + used)} are free; make room "
                "or lower replay_capacity."
            )

    def _replay(self, rows: int) -> str:
        return f"{rows:,} steps x {self.row:,} bytes = {_size(rows * self.row)} of replay"


def free_memory(device: torch.device) -> int | None:
    """Bytes that a program may still take on the device; None where nobody says.

    Off Linux, and beside CUDA, all memory of the machine, free or not.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if sys.platform != "linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    words = next((line.split() for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable")), None)
    known = [] if words is None else [int(words[1]) * 1024]
    known += [left for group in cgroups() if (left := _left_to(group)) is not None]
    return min(known, default=None)


def _left_to(group: Path) -> int | None:
    """What a control group may still take. Cached files count as used there, but the kernel gives them up."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def _held(device: torch.device) -> int:
    """Bytes that count as taken and are this process's own.

    What its runs have filled already is part of what they come to, and what an earlier session of a run gave back, the
    allocator keeps for the next.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(OWN_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if sys.platform == "linux" else 0


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
