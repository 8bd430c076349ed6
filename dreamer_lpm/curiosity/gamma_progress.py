"""gamma-Progress (Kim et al. 2020, "Active World Model Learning with Progress Curiosity", arXiv 2007.07853).

    L(theta)    = |phi(o') - f_theta(s, a)|^2 / dim    phi: frozen random features of the frame
    theta_old  <- theta_old + rate * (theta - theta_old)
    r           = L(theta_old) - L(theta)              paid for what the new model predicts better than the old one

The old model is a moving average of the new, so one copy is enough. The models are this bonus's own: a second world
model would double the cost of an update, and features that drift would be progress without learning.
Promise before a TV: on noise both models predict the mean, so their losses are equal and r is zero. Known weakness: the
average of many models has less noise in its weights than the newest one, so what stays random pays slightly less than
nothing; a single sample has any sign; and learning the *mean* of the noise is progress too, paid at first.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.base import Dims, IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.pictures import RandomFeatures
from dreamer_lpm.nets import follow, masked_mean, mlp

_FEATURES = 64


class GammaProgress(IntrinsicReward):
    """Loss of the old model minus loss of the new. ``rate``: 1 - gamma, how fast the old one follows, per update."""

    needs_target = True

    def __init__(self, dims: Dims, hidden: int = 256, rate: float = 0.01):
        super().__init__()
        self.features = RandomFeatures(_FEATURES)
        self.new = mlp(dims.feat + dims.action, hidden, 2, _FEATURES)
        self.old = copy.deepcopy(self.new).requires_grad_(False)
        self.rate = rate

    def _loss(self, model: nn.Module, t: Transition) -> Tensor:
        expected = model(torch.cat([t.feat, t.action], -1)).float()
        loss: Tensor = (self.features(t.small_target) - expected).square().mean(-1)
        return loss

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self._loss(self.old, t) - self._loss(self.new, t)

    def loss(self, t: Transition) -> Losses:
        loss = masked_mean(self._loss(self.new, t), t.mask)
        follow(self.old, self.new, self.rate)
        return {"gamma_progress": loss}
