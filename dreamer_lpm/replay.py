"""The memory of past steps: preallocated uint8 pictures and the state the agent was in, sampled as sequences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dreamer_lpm.types import Batch, UserError


class Replay:
    """Ring buffer of ``capacity`` steps for each of N environments. Field -> (capacity, N, ...).

    A sequence is T consecutive rows of one environment; it may cross episode borders (``is_first`` marks them) but
    never the seam where the newest row meets the oldest.
    """

    def __init__(
        self,
        capacity: int,
        fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        num_envs: int,
        device: torch.device,
    ):
        self.capacity, self.num_envs, self.device = capacity, num_envs, device
        # torch.empty commits no memory until it is written.
        self.data = {
            k: torch.empty(capacity, num_envs, *shape, dtype=dtype, device=device)
            for k, (shape, dtype) in fields.items()
        }
        self.added = 0

    def __len__(self) -> int:
        """Rows held, for each environment."""
        return min(self.added, self.capacity)

    def add(self, row: Mapping[str, Tensor]) -> None:
        """One row, field -> (N, ...)."""
        self.put(self.slot().to(self.device), {key: value.to(self.device) for key, value in row.items()})
        self.added += 1

    def slot(self) -> Tensor:
        """Where the next row goes, (1,) on the CPU."""
        return torch.tensor([self.added % self.capacity])

    def put(self, slot: Tensor, row: Mapping[str, Tensor]) -> None:
        """Write a row, field -> (N, ...), into ``slot`` (1,), all on the replay's device. It counts with ``added``."""
        assert row.keys() == self.data.keys(), (sorted(row), sorted(self.data))
        for key, value in row.items():
            self.data[key][slot] = value.unsqueeze(0)

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Batch:
        """``batch`` sequences of ``length`` rows: :meth:`gather` of what :meth:`draw` says."""
        return self.gather(self.draw(rng, batch, length).to(self.device), length)

    def draw(self, rng: np.random.Generator, batch: int, length: int) -> Tensor:
        """Places of ``batch`` sequences, uniformly over all where one fits: numbers of first rows, and envs. (2, B).

        Each comes with the state before it, so ``length`` + 1 rows must be held; raises UserError where they are not.
        """
        places = len(self) - length
        if places < 1:
            raise UserError(
                f"The replay holds {len(self)} steps, a sequence needs {length + 1}; raise prefill or lower seq_length."
            )
        oldest = self.added - len(self)
        start = rng.integers(1, places + 1, batch) + oldest
        return torch.from_numpy(np.stack([start, rng.integers(0, self.num_envs, batch)]))

    def gather(self, places: Tensor, length: int) -> Batch:
        """The sequences of ``length`` rows at ``places`` (2, B), on the replay's device as they are."""
        start, env = places.unbind(0)
        rows = (start[:, None] + torch.arange(length, device=self.device)) % self.capacity
        before = (start - 1) % self.capacity
        at = {
            k: self.data[k][rows, env[:, None]] for k in ("obs", "action", "reward", "is_first", "is_terminal", "tv_on")
        }
        return Batch(**at, deter=self.data["deter"][before, env], stoch=self.data["stoch"][before, env])

    def rows(self, first: int) -> dict[str, np.ndarray]:
        """Rows number ``first`` (counted from the run's beginning) and on, for saving: field -> (rows, N, ...)."""
        first = max(first, self.added - len(self))
        slots = torch.arange(first, self.added, device=self.device) % self.capacity
        return {key: held[slots].cpu().numpy() for key, held in self.data.items()}

    def restore(self, first: int, rows: Mapping[str, np.ndarray]) -> None:
        """Put saved rows back where they were, row number ``first`` and on.

        Raises UserError when they are another run's: other fields, or other shapes.
        """
        for key, held in self.data.items():
            value = rows.get(key)
            if value is None or value.shape[1:] != held.shape[1:]:
                got = None if value is None else value.shape
                raise UserError(
                    f"The saved replay holds '{key}' as {got}, this run needs {tuple(held.shape)}; resume with the "
                    "same settings."
                )
            slots = torch.arange(first, first + len(value), device=self.device) % self.capacity
            held[slots] = torch.from_numpy(value).to(self.device)
            self.added = first + len(value)
