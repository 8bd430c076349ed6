"""A CUDA graph's stand-in on the CPU: a function is recorded once, op by op, and then only the ops are replayed.

What a graph forbids shows here too: a look at a value (raises), state that moves to a new place in memory (the replay
goes on reading and writing the old one), a Python number that changes from call to call (it stays as it was recorded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dreamer_lpm.capture import WARM_UP


class _Tape(TorchDispatchMode):
    """Notes every op below autograd, with the very tensors that went in and came out."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a look at a value, for which a device would have to be waited for")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.ops.append((func, args, kwargs, out))
        return out


class Recorded:
    """Like ``capture.Captured`` where it records, for tests."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, **inputs: Tensor) -> Any:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.function(**inputs)
        if self.calls == WARM_UP + 1:
            self._inputs = {name: x.clone() for name, x in inputs.items()}
            with _Tape() as self._tape:
                self._result = self.function(**self._inputs)
            return self._result  # unlike CUDA, recording has done the work
        now = {id(mine): inputs[name] for name, mine in self._inputs.items()}

        def current(x: Tensor) -> Tensor:
            return now.get(id(x), x)

        for func, args, kwargs, out in self._tape.ops:
            args, kwargs = pytree.tree_map_only(Tensor, current, (args, kwargs))
            with torch.no_grad():  # the backward pass is among the ops
                new = func(*args, **kwargs)
            before, after = pytree.tree_leaves(out), pytree.tree_leaves(new)
            now.update({id(x): y for x, y in zip(before, after, strict=True) if isinstance(x, Tensor) and y is not x})
        return pytree.tree_map_only(Tensor, current, self._result)
