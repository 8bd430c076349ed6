"""How much TV is in the dreams: a linear probe that reads off a state of the world model whether it shows the TV.

Imagined states have no ground truth, so a classifier is fitted to replayed ones, where ``tv_on`` is known, and asked of
imagined ones: linear discriminant analysis, which needs nothing but the means of the two classes and their common
covariance,

    on(s)  <=>  (m_on - m_off)' C^-1 (s - (m_on + m_off) / 2) > 0

Both are running statistics that forget, for the world model's states drift while it learns. The threshold lies halfway
between the means, however rare the TV is. Nothing here is ever learned from, and nothing random is drawn.

How far to trust it: before an action-triggered TV the truth of a dream is known, for it is in the imagined actions.
There, on a trained agent, 95 % of the imagined states were read rightly, and shares of 0.43, 0.13 and 0.03 came out as
0.46, 0.14 and 0.03. A share below 0.02 is not told from 0.02.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST = 1024  # dimensions; larger features are projected down, so that the statistics stay megabytes
_KEEP = 0.98  # of the statistics, at each new batch: they reach some 50 batches back
_RIDGE = 1e-2  # of the mean variance, added to each variance: one-hot latents are linearly dependent
_NEEDED = 10.0  # frames of either class, before anything is said


class Detector(NamedTuple):
    """A fitted probe: states on one side of a hyperplane show the TV."""

    weight: Tensor  # (F,)
    bias: Tensor  # ()

    def on(self, feat: Tensor) -> Tensor:
        """(..., F) -> (...) bool."""
        shown: Tensor = feat @ self.weight + self.bias > 0
        return shown


PER_BATCH = ("replayed", "tv_on", "dreamed")  # parts of a probe's state whose first axis is a batch's size


class TVProbe:
    """Statistics of replayed features by ``tv_on``, and the newest batch, which is tested before it is learned."""

    _SAVED = ("count", "total", "second", *PER_BATCH)

    def __init__(self, feat_size: int, device: torch.device):
        size = min(feat_size, _LARGEST)
        self.project: Tensor | None = None
        if feat_size > size:
            fixed = torch.Generator().manual_seed(0)  # the same for every run, so that it needs no saving
            self.project = (torch.randn(feat_size, size, generator=fixed) / math.sqrt(feat_size)).to(device)
        self.count = torch.zeros(2, device=device)  # frames with the TV off, and on
        self.total = torch.zeros(2, size, device=device)  # sum of their features
        self.second = torch.zeros(size, size, device=device)  # sum of all outer products
        self.replayed = torch.zeros(0, size, device=device)  # the newest batch, not yet in the statistics
        self.tv_on = torch.zeros(0, dtype=torch.bool, device=device)
        self.dreamed = torch.zeros(0, size, device=device)  # the states of the newest dreams

    @torch.no_grad()
    def take(self, replayed: Tensor, tv_on: Tensor, dreamed: Tensor) -> None:
        """Learn the batch before, and keep this one: replayed (B, T, F), tv_on (B, T) bool, dreamed (H, B', F)."""
        member = torch.stack([~self.tv_on, self.tv_on]).float()
        self.count.mul_(_KEEP).add_(member.sum(1))
        self.total.mul_(_KEEP).add_(member @ self.replayed)
        self.second.mul_(_KEEP).add_(self.replayed.T @ self.replayed)
        for name, value in zip(PER_BATCH, (self._flat(replayed), tv_on.flatten(), self._flat(dreamed)), strict=True):
            if getattr(self, name).shape == value.shape:
                getattr(self, name).copy_(value)  # stays where it is, for a CUDA graph
            else:
                setattr(self, name, value.clone())

    def _flat(self, feat: Tensor) -> Tensor:
        feat = feat.flatten(0, -2)
        return feat if self.project is None else feat @ self.project

    @torch.no_grad()
    def fit(self) -> Detector | None:
        """The detector that the statistics give now; None where they hold too little of either class, or no numbers."""
        count, total, second = (x.cpu().double() for x in (self.count, self.total, self.second))
        if not bool((count > _NEEDED).all()):
            return None
        mean = total / count.unsqueeze(1)
        within = (second - total.T @ mean) / count.sum()
        within.diagonal().add_(_RIDGE * within.diagonal().mean() + 1e-12)
        if not bool(within.isfinite().all()):
            return None
        weight = torch.linalg.solve(within, mean[1] - mean[0])
        bias = -(weight @ mean.mean(0))
        return Detector(weight.to(self.second), bias.to(self.second))

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """``dream/tv_share``, of the newest dreams' states, and ``probe/accuracy``; NaN where nothing can be said.

        The accuracy is balanced, (right of the on + right of the off) / 2, so 0.5 is chance; it is that on the newest
        replayed batch, which the detector has not seen.
        """
        detector = self.fit()
        if detector is None:
            return {"dream/tv_share": math.nan, "probe/accuracy": math.nan}
        right = detector.on(self.replayed) == self.tv_on
        either = [right[self.tv_on == truth].float().mean() for truth in (False, True)]  # NaN where it is not there
        return {
            "dream/tv_share": float(detector.on(self.dreamed).float().mean()),
            "probe/accuracy": float(torch.stack(either).mean()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {name: getattr(self, name) for name in self._SAVED}

    def hold(self, state: dict[str, Tensor]) -> None:
        """Keep everything in these places from now on."""
        for name in self._SAVED:
            setattr(self, name, state[name])

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Become what was saved."""
        for name in self._SAVED:
            setattr(self, name, state[name].to(self.count.device))
