"""Intrinsic Curiosity Module (Pathak et al. 2017, arXiv 1705.05363): error in features that the agent can influence.

    f          features of a frame, learned so that  a ~ inverse(f(o), f(o'))
    forward    f(o') ~ forward(f(o), a)
    r          = 1/2 |f(o') - forward(f(o), a)|^2 / dim                     dim: of the features
    loss       = 0.8 |a - inverse|^2 / A + 0.2 * 1/2 |f(o') - forward|^2 / dim

Promise before a TV: what the agent's action does not influence need not be in the features, so a TV that runs by itself
goes unnoticed. Known weakness: a TV that the agent's own action switches *is* influenced. The picture tells which
action was taken, so it enters the features, and its content is never predicted: ICM is captured by such a TV.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.base import Dims, IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.pictures import SmallEncoder
from dreamer_lpm.nets import masked_mean, mlp

_FEATURES = 64
_FORWARD_SHARE = 0.2  # beta of the paper, eq. 7


class ICM(IntrinsicReward):
    """Forward error in inverse-dynamics features. Actions are regressed, one-hot ones too (a Brier score).

    The features are normalised to unit variance over their dimensions: unlike the paper's they cannot lower the forward
    loss by shrinking.
    """

    needs_target = True

    def __init__(self, dims: Dims, hidden: int = 256):
        super().__init__()
        self.encoder = nn.Sequential(SmallEncoder(_FEATURES), nn.LayerNorm(_FEATURES, elementwise_affine=False))
        self.inverse = mlp(2 * _FEATURES, hidden, 1, dims.action)
        self.forward_model = mlp(_FEATURES + dims.action, hidden, 1, _FEATURES)

    def _features(self, t: Transition) -> tuple[Tensor, Tensor]:
        """Of the frame before and the frame after the action, (..., 64) each."""
        before, after = self.encoder(torch.stack([t.small_frame, t.small_target]) - 0.5).unbind(0)
        return before, after

    def _forward_error(self, before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        expected = self.forward_model(torch.cat([before, action], -1)).float()
        error: Tensor = 0.5 * (after - expected).square().mean(-1)
        return error

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        before, after = self._features(t)
        return self._forward_error(before, t.action, after)

    def loss(self, t: Transition) -> Losses:
        before, after = self._features(t)
        guess = self.inverse(torch.cat([before, after], -1)).float()
        inverse = masked_mean((guess - t.action).square().mean(-1), t.mask)
        forward = masked_mean(self._forward_error(before, t.action, after), t.mask)
        return {"icm_inverse": (1 - _FORWARD_SHARE) * inverse, "icm_forward": _FORWARD_SHARE * forward}
