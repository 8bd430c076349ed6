"""What watches over learning: numbers that are none, and signs that a part of the agent has died.

A NaN or infinity in a loss or gradient would spread to every weight with the next step of the optimizer, so the run
goes back to its last checkpoint, which never holds one. A collapse is slower: it is named, and left to the user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamer_lpm.types import Batch, NotFinite

WATCHED = ("loss/", "grad/")
TOLD_AT_ONCE = ("cpu",)  # devices that are looked at after each update
FIRST_ALARM = 1_000  # updates before which nothing that has not begun to live is called dead


class Guard:
    """Notes the first update with a loss or a gradient norm that is not finite, and what it learned from.

    On a CPU it is told at once. Elsewhere looking would make the program wait for the device, so the note stays there
    until ``ask``: the batch is kept by selection on the device, not by a branch, and always in the same place, so that
    a CUDA graph can do it.
    """

    def __init__(self, device: torch.device) -> None:
        self._waits = device.type not in TOLD_AT_ONCE
        self._names: list[str] = []
        self._first = torch.full((), -1, device=device)
        self._flags: Tensor | None = None
        self._batch: Batch | None = None

    def look(self, update: Tensor, metrics: Mapping[str, Tensor], batch: Batch) -> None:
        """Look at the metrics of update number ``update`` (). On a CPU, raises NotFinite."""
        self._names = [key for key in metrics if key.startswith(WATCHED)]
        flags = ~torch.stack([metrics[key].float() for key in self._names]).isfinite()
        bad = flags.any()
        if not self._waits:
            if bad:
                self._first, self._flags, self._batch = update, flags, batch
                self.ask()
            return
        if self._flags is None or self._batch is None:
            self._flags, self._batch = flags, Batch(*(x.clone() for x in batch))
        new = bad & (self._first < 0)
        for kept, now in zip((self._first, self._flags, *self._batch), (update, flags, *batch), strict=True):
            kept.copy_(torch.where(new, now, kept))

    def tensors(self) -> dict[str, Tensor]:
        """The note, on the device."""
        if self._flags is None or self._batch is None:
            return {"first": self._first}
        return {"first": self._first, "flags": self._flags, **self._batch._asdict()}

    def hold(self, tensors: dict[str, Tensor]) -> None:
        """Note in these places from now on."""
        self._first = tensors["first"]
        if "flags" in tensors:
            self._flags = tensors["flags"]
            self._batch = Batch(**{name: tensors[name] for name in Batch._fields})

    def ask(self) -> None:
        """Wait for the device. Raises NotFinite if an update since the last start was bad."""
        update = int(self._first)
        if update < 0 or self._flags is None or self._batch is None:
            return
        names = [name for name, bad in zip(self._names, self._flags.tolist(), strict=True) if bad]
        batch = {key: value.cpu().numpy() for key, value in self._batch._asdict().items()}
        raise NotFinite(f"update {update + 1}: {', '.join(names)} not finite", batch)


def check_finite(tensors: Mapping[str, Any], where: str = "") -> None:
    """Raises NotFinite, naming the tensor, if one in nested dicts and lists holds a NaN or an infinity."""
    for key, value in tensors.items():
        name = f"{where}{key}"
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            check_finite(value, f"{name}.")
        elif isinstance(value, Tensor | np.ndarray) and not np.isfinite(_lowest_and_highest(value)).all():
            raise NotFinite(f"{name} not finite")


def _lowest_and_highest(x: Tensor | np.ndarray) -> tuple[float, float]:
    """Both are finite if and only if all of ``x`` is, and no copy of it is made."""
    x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    if not x.is_floating_point() or not x.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(x)
    return float(low), float(high)


def save_batch(folder: Path, step: int, batch: Mapping[str, np.ndarray]) -> Path:
    """Keep what the bad update learned from, field -> (B, T, ...), for inspection with ``numpy.load``."""
    folder.mkdir(exist_ok=True)
    path = folder / f"batch_at_step_{step:09d}.npz"
    with path.open("wb") as file:
        np.savez_compressed(file, **batch)  # type: ignore[arg-type]
    return path


def alarms(values: Mapping[str, float]) -> dict[str, str]:
    """What the training metrics say has died, by metric: one sentence each, with what to try.

    ``health/dead_latents`` and ``health/entropy`` are shares in [0, 1], ``health/kl`` is in nats (agent.py).
    """
    found = {}
    if values.get("health/kl", math.inf) < 0.01:
        found["health/kl"] = (
            f"Alarm: the latents hardly follow the pictures any more (KL {values['health/kl']:.4f} nats); try a "
            "smaller world.rep-scale or world_lr."
        )
    if values.get("health/dead_latents", 0.0) > 0.95:
        found["health/dead_latents"] = (
            f"Alarm: {values['health/dead_latents']:.0%} of the latents never change; try a smaller world_lr or fewer "
            "of them (world.rssm.stoch)."
        )
    if values.get("health/entropy", 1.0) < 0.01:
        found["health/entropy"] = (
            f"Alarm: the policy has stopped trying things (entropy {values['health/entropy']:.1%} of its range); try "
            "a larger behavior.entropy or a smaller actor_lr."
        )
    return found
