"""What this machine can do, and how to use it: device, arithmetic, threads, memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Literal, cast

import torch

from dreamer_lpm.types import UserError

Precision = Literal["fp32", "tf32", "bf16"]


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
    return torch.device(wanted)


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
    return "bf16" if _product_seconds(torch.bfloat16) < 0.7 * _product_seconds(torch.float32) else "fp32"


def set_tf32(on: bool) -> None:
    """Let CUDA round the inputs of fp32 products and convolutions to 10 bits of mantissa, and be many times as fast."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def _product_seconds(dtype: torch.dtype) -> float:
    x = torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return min(times)


def pick_threads(wanted: int) -> int:
    """CPU threads for torch.

    0: the cores there are, but 2 at most, because networks this small gain nothing from more.
    """
    return wanted or min(2, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


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
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 2**28))


def let_streams_run_side_by_side() -> None:
    """Give CUDA as many queues to the device as it can have; more than 8 streams would else wait for each other.

    Only before the first use of CUDA.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
