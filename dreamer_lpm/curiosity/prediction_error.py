"""Prediction error as a bonus: the classic curiosity, and the classic victim of the TV.

Schmidhuber 1991; Pathak et al. 2017.

    r = |o' - decode(prior)|^2 / dim                   (or the error in another error space)

Promise before a TV: none. Noise is never predicted, so it pays for ever. It is here to be captured.
"""

from __future__ import annotations

from torch import Tensor

from dreamer_lpm.curiosity.base import IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.error_space import ErrorSpaceName, error_space


class PredictionError(IntrinsicReward):
    """Error of the one-step prediction; has nothing of its own to learn."""

    needs_target = True
    reads_pictures = False

    def __init__(self, space: ErrorSpaceName = "frame"):
        super().__init__()
        self.space = error_space(space)

    def reward(self, t: Transition) -> Tensor:
        return self.space.error(t)

    def loss(self, t: Transition) -> Losses:
        return {}
