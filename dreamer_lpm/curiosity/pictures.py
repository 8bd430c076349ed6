"""Small views of frames, for bonuses that look at pictures with networks of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 16
"""Pixels a side. A bonus need not see more: at 64 these networks would cost as much as the world model's own."""


def shrink(frames: Tensor) -> Tensor:
    """Frames (..., 64, 64, 3), or of any other size, -> block means (..., 3, 16, 16)."""
    flat = frames.reshape(-1, *frames.shape[-3:]).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(flat, SIDE).reshape(*frames.shape[:-3], 3, SIDE, SIDE)


class SmallEncoder(nn.Module):
    """Two convolutions and a linear layer: small frames (..., 3, 16, 16) around 0 -> (..., outputs).

    Orthogonal weights, so that a frozen one keeps apart what differs.
    """

    def __init__(self, outputs: int, depth: int = 16):
        super().__init__()
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
    """A frozen random network: frames (..., 64, 64, 3) in [0, 1] -> (..., outputs).

    What it says of a frame never drifts.
    """

    def __init__(self, outputs: int = 64):
        super().__init__()
        self.net = SmallEncoder(outputs).requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        out: Tensor = self.net(shrink(frames) - 0.5)
        return out
