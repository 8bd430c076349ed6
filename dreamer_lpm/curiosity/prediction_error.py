"""Prediction error as a bonus: the classic curiosity, and the classic victim of the TV.

Schmidhuber 1991; Pathak et al. 2017.

    r = |o' - decode(prior)|^2 / dim

Promise before a TV: none. Noise is never predicted, so it pays for ever. It is here to be captured.
"""

from __future__ import annotations

from torch import Tensor

from dreamer_lpm.curiosity.base import IntrinsicReward, Losses, Transition, mse


class PredictionError(IntrinsicReward):
    """Mean squared error of the one-step prediction; has nothing of its own to learn."""

    needs_target = True

    def reward(self, t: Transition) -> Tensor:
        return mse(t)

    def loss(self, t: Transition) -> Losses:
        return {}
