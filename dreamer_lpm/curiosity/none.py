"""No curiosity: the baseline that every bonus is compared with.

Not a special case; it pays zero through the same interface.
"""

from __future__ import annotations

from torch import Tensor

from dreamer_lpm.curiosity.base import IntrinsicReward, Losses, Transition


class NoBonus(IntrinsicReward):
    """r = 0."""

    reads_pictures = False

    def reward(self, t: Transition) -> Tensor:
        return t.feat.new_zeros(t.feat.shape[:-1])

    def loss(self, t: Transition) -> Losses:
        return {}
