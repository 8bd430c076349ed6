"""Many small kernels as few large ones: functions of tensors that are compiled, alone or for a batch of agents."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


def cannot_fuse(device: torch.device) -> str:
    """What is missing, in words; empty where everything is there."""
    if device.type != "cuda":
        return f"is for CUDA devices, not for '{device.type}'"
    if find_spec("triton") is None:
        return "needs the package triton"
    if shutil.which(os.environ.get("CC", "gcc")) is None and shutil.which("clang") is None:
        return "needs a C compiler"
    return ""


@lru_cache
def fused(function: Callable[..., Any], fuse: bool = True) -> Callable[..., Any]:
    """``function`` compiled, once for each set of shapes; or the function itself."""
    if not fuse:
        return function
    torch._dynamo.config.recompile_limit = 64  # sets of shapes; torch's 8 is meant for those that come by mistake
    return torch.compile(function, dynamic=False)


def any_length(x: Tensor, fuse: bool = True) -> Tensor:
    """``x`` (..., N, C), for which what is compiled need not be compiled again where only N is another."""
    if fuse:
        torch._dynamo.mark_dynamic(x, x.dim() - 2)
    return x


def fuse(module: nn.Module) -> None:
    """Have everything in it that can be fused worked out so from now on. The first calls take seconds to compile."""
    for part in module.modules():
        if hasattr(part, "fused"):
            part.fused = True  # type: ignore[assignment]


def in_front(info: Any, in_dims: Sequence[int | None], inputs: Sequence[Any]) -> Iterator[Any]:
    """The inputs of a ``vmap`` rule with the batch as the first dimension of every tensor."""
    for x, place in zip(inputs, in_dims, strict=True):
        if not isinstance(x, Tensor):
            yield x
        else:
            yield x.expand(info.batch_size, *x.shape) if place is None else x.movedim(place, 0)
