"""What this machine can do, and how to use it: device, arithmetic, threads, memory allocator."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from dreamer_lpm.types import UserError

Precision = Literal["fp32", "tf32", "bf16"]
X = TypeVar("X")
Y = TypeVar("Y")
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def pick_device(wanted: str) -> torch.device:
    """The device by name; "auto" takes CUDA, then MPS, then CPU.

    Raises UserError when the one asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, ok in there.items() if ok))
    if not there.get(wanted.split(":")[0], False):
        raise UserError(
            f"Device '{wanted}' is not available here; use --device auto, or one of: "
            f"{', '.join(k for k, ok in there.items() if ok)}."
        )
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"'{wanted}' is no device; name one as cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no {wanted} here: the last one is cuda:{torch.cuda.device_count() - 1}.")
    return device


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """ "auto" takes bf16 where it is faster: on CUDA by hardware generation, on a CPU by timing one product."""
    if wanted == "tf32" and device.type != "cuda":
        raise UserError("precision tf32 is for CUDA devices; take fp32 here, or bf16.")
    if wanted != "auto":
        return cast(Precision, wanted)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return "bf16" if bf16_slowdown() < 0.7 else "fp32"


@lru_cache(1)
def bf16_slowdown() -> float:
    """Times as long as in fp32 that a product takes in bf16 on this CPU: 0.2 with units for it, 80 where emulated."""
    return _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def set_tf32(on: bool) -> None:
    """Let CUDA round the inputs of fp32 products and convolutions to 10 bits of mantissa, and be many times as fast."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def use_arithmetic(device: str, precision: str) -> None:
    """TF32 is a switch of the whole process: before each turn of a run it is set as that run wants it."""
    if device == "cuda":
        set_tf32(precision != "fp32")


def _product_seconds(dtype: torch.dtype) -> float:
    x = torch.ones(512, 512, dtype=dtype)
    times: list[float] = []
    with lanes(torch.device("cpu")):
        # Of many the best counts, for others may have the core meanwhile; but an emulated one takes 0.3 s.
        while len(times) < 3 or sum(times) < 0.1:
            start = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - start)
    return min(times)


def pick_threads(wanted: int) -> int:
    """CPU threads for torch.

    0: the cores there are, but 2 at most, because networks this small gain nothing from more.
    """
    return wanted or min(2, cores())


def cores() -> int:
    """CPU cores that this process may keep busy: those it may run on, and no more than a container's quota pays for.

    A quota (cgroup v2: ``docker run --cpus 4``, a cluster's CPU limit) hides no core: of the machine's 64 processes all
    would start, and be stopped for most of each period.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    found = [len(os.sched_getaffinity(0))]
    for group in cgroups():
        with suppress(OSError, ValueError):  # "quota period" in microseconds, or "max period"
            quota, period = map(int, (group / "cpu.max").read_text(encoding="utf-8").split())
            found.append(math.ceil(quota / period))
    return min(found)


def cgroups() -> list[Path]:
    """Folders of the control groups (v2) that this process is in, from its own up to the root's: each may limit it.

    A container that is shown its own group as the root has that one alone.
    """
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    path = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    own = CGROUPS if ".." in path else CGROUPS / path  # "..": a group beside the one that is shown as the root
    return [own, *(folder for folder in own.parents if folder.is_relative_to(CGROUPS))]


@contextmanager
def lanes(device: torch.device) -> Iterator[int]:
    """One thread for each operation while this lasts, and how many of them may go side by side (see :func:`at_once`).

    Two threads inside of every operation gain little where most are small, and lose all where another process has one
    of the cores: each waits for both. Two halves of an update side by side wait for each other once.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield 2
    finally:
        torch.set_num_threads(threads)


def at_once(
    first: Callable[[], X], second: Callable[[], Y], lanes: int, device: torch.device | None = None
) -> tuple[X, Y]:
    """Both results, worked out side by side where there are two lanes, or on CUDA; the bits are the same.

    They must not write what the other reads. Autocast on the CPU and no_grad hold for both.
    """
    if device is not None and device.type == "cuda":
        return _on_two_streams(first, second, device)
    return cast(tuple[X, Y], tuple(all_at_once((first, second), lanes)))


def all_at_once(tasks: Sequence[Callable[[], Any]], lanes: int) -> list[Any]:
    """The results of any number of tasks, as :func:`at_once`. A task may have tasks of its own, and a lane that has
    done its part takes over what no lane has begun.
    """
    if lanes < 2 or len(tasks) < 2:
        return [task() for task in tasks]
    grad, on, kind = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def there(task: Callable[[], Any]) -> Any:
        torch.set_num_threads(1)  # a new thread begins with as many as there are cores
        _this_thread.is_lane = True
        with torch.set_grad_enabled(grad), torch.autocast("cpu", kind, enabled=on, cache_enabled=False):
            return task()

    futures = [_two_lanes().submit(there, task) for task in tasks]
    try:
        # A lane does what would else wait for it; any other thread only waits, for there are lanes enough.
        mine = {i: task() for i, task in enumerate(tasks) if _this_thread.is_lane and futures[i].cancel()}
        return [mine[i] if i in mine else future.result() for i, future in enumerate(futures)]
    finally:
        wait([future for future in futures if not future.cancel()])


def _on_two_streams(first: Callable[[], X], second: Callable[[], Y], device: torch.device) -> tuple[X, Y]:
    """A fork in the recorded graph: neither half alone fills the card. What both read must live until they are done."""
    stream = torch.cuda.current_stream(device)
    other = _second_stream(stream)
    other.wait_stream(stream)
    with torch.cuda.stream(other):
        second_result = second()
    first_result = first()
    stream.wait_stream(other)
    return first_result, second_result


@lru_cache
def _second_stream(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """Each has one of its own: what is freed on it was used by its first stream alone."""
    return torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1)
def _two_lanes() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "lane")


class _Thread(threading.local):
    is_lane = False


_this_thread = _Thread()


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of handing it back to the system; returns whether it could.

    An update frees and takes again hundreds of megabytes. Without this the kernel clears those pages anew each time,
    which took a quarter of the update (5.6 s against 4.3 s at the DreamerV3 1M sizes).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    # One arena for all threads: those of other threads give empty stretches back whatever they are told.
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28), (arena_max, 1))
    taken: list[int] = [mallopt(name, value) for name, value in settings]
    return all(taken)


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def let_streams_run_side_by_side() -> None:
    """Give CUDA as many queues to the device as it can have; more than 8 streams would else wait for each other.

    Only before the first use of CUDA.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
