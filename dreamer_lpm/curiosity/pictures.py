"""Small views of frames, for bonuses that look at pictures with networks of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SIDE = 16
"""Pixels a side. A bonus need not see more: at 64 these networks would cost as much as the world model's own."""


def shrink(frames: Tensor) -> Tensor:
    """Square frames (..., 64, 64, 3), or of any other size, -> block means (..., 3, 16, 16)."""
    times = SIDE // math.gcd(frames.shape[-2], SIDE)  # 1 for all sizes in use; pixels that no block could share evenly
    if times > 1:
        frames = frames.repeat_interleave(times, -2).repeat_interleave(times, -3)
    # Rows first, in one pass over memory: three times as fast here as a pooling layer.
    lead, (height, width) = frames.shape[:-3], frames.shape[-3:-1]
    rows = frames.reshape(*lead, SIDE, height // SIDE, width * 3).mean(-2)
    return rows.reshape(*lead, SIDE, SIDE, width // SIDE, 3).mean(-2).movedim(-1, -3)


class SmallEncoder(nn.Module):
    """Two convolutions and a linear layer: small frames (..., 3, 16, 16) around 0 -> (..., outputs).

    Orthogonal weights, so that a frozen one keeps apart what differs.
    """

    def __init__(self, outputs: int):
        super().__init__()
        depth = 8
        self.layers = nn.Sequential(
            nn.Conv2d(3, depth, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(depth, 2 * depth, 3, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(2 * depth * (SIDE // 4) ** 2, outputs),
        )  # fmt: skip
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, small: Tensor) -> Tensor:
        out: Tensor = self.layers(small.reshape(-1, *small.shape[-3:]))
        return out.float().reshape(*small.shape[:-3], -1)


class RandomFeatures(nn.Module):
    """A frozen random network: small frames (..., 3, 16, 16) in [0, 1] -> (..., outputs).

    What it says of a frame never drifts.
    """

    def __init__(self, outputs: int = 64):
        super().__init__()
        self.net = SmallEncoder(outputs).requires_grad_(False)

    @torch.no_grad()
    def forward(self, small: Tensor) -> Tensor:
        out: Tensor = self.net(small - 0.5)
        return out
