"""A function of tensors as one CUDA graph: thousands of small kernels, launched with one call.

Networks this small are bound by launches, not by arithmetic. A graph is recorded once, while the function runs, and
replayed from then on; several agents' graphs, each on its agent's stream, run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

R = TypeVar("R")
WARM_UP = 3  # calls before the recording, in which everything that lasts gets its place in memory


class Captured(Generic[R]):
    """``function(**tensors)``, recorded at its fourth call on CUDA; on other devices the function itself.

    What it asks of the function: the same shapes at each call, no look at values (that would wait for the device), and
    all state changed in place. Results are overwritten by the next call. Must be called on a stream of its own.
    """

    def __init__(self, function: Callable[..., R], device: torch.device) -> None:
        self.function = function
        self.records = device.type == "cuda"
        self.device = device
        self.calls = 0
        self._inputs: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: R

    def __call__(self, **inputs: Tensor) -> R:
        self.calls += 1
        if not self.records or self.calls <= WARM_UP:
            return self.function(**inputs)
        if self._graph is None:
            self._record(inputs)
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _record(self, inputs: dict[str, Tensor]) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do meanwhile (W&B's, TensorBoard's) is none of this graph's business.
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            self._result = self.function(**self._inputs)


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A queue of its own on a CUDA device, for ``torch.cuda.stream``; None, which changes nothing there, elsewhere."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a new stream, after all that the current one was given; that one goes on after it."""
    stream = new_stream(device)
    if stream is None:
        yield
        return
    before = torch.cuda.current_stream(device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


def upload(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device, without waiting for it: a copy from pinned memory, if it is another device than the CPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Download:
    """The way back for one tensor of a fixed shape: ``start`` right after it was made, ``numpy`` when it is needed.

    Waits for that tensor alone, not for what the device was given to do afterwards.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._held: Tensor | None = None
        self._there: torch.cuda.Event | None = None

    def start(self, x: Tensor) -> None:
        if not self._cuda:
            self._held = x
            return
        if self._held is None or self._there is None:
            self._held = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._held.copy_(x, non_blocking=True)
        self._there.record()

    def numpy(self) -> np.ndarray:
        assert self._held is not None
        if self._there is not None:
            self._there.synchronize()
        return self._held.cpu().numpy().copy()


def compact(data: Any) -> Any:
    """Nested dicts, lists and tuples with each view of a larger memory copied, for a file would hold all of that."""
    if isinstance(data, Tensor):
        return data.clone() if data.untyped_storage().nbytes() > data.numel() * data.element_size() else data
    if isinstance(data, dict):
        return {key: compact(value) for key, value in data.items()}
    return type(data)(compact(value) for value in data) if type(data) in (list, tuple) else data


def save_tensors(tensors: Mapping[str, Any], file: IO[bytes]) -> None:
    """``torch.save`` without the memory behind views. Raises OSError where the disk does."""
    try:
        torch.save(compact(dict(tensors)), file)
    except RuntimeError as error:  # torch's word for a disk that took less than it was given
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
