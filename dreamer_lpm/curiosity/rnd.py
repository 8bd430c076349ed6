"""Random Network Distillation (Burda et al. 2018, arXiv 1810.12894): novelty as error of imitating a random network.

    x   = clip( (o' - mean) / std, -5, 5 )             per pixel, over all frames seen so far
    r   = |f(x) - f*(x)|^2 / dim                       f* frozen and random, f learns to imitate it

f* is a function of the frame alone, so nothing about r is aleatoric: it falls wherever frames like this one were seen.
Promise before a TV: pictures that come back grow dull, like all else. Known weakness: a TV that always has another
picture is always novel, and RND watches until its network generalises to pictures as such. And it pays for the state
reached, whatever can still be learned there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.base import IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.pictures import SIDE, SmallEncoder
from dreamer_lpm.nets import masked_mean

_FEATURES = 64


class RND(IntrinsicReward):
    """Imitation error on normalised small frames. The statistics run over all replayed steps and never forget."""

    needs_target = True
    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, hidden: int = 256):
        super().__init__()
        self.target = SmallEncoder(_FEATURES).requires_grad_(False)
        # Deeper than what it imitates, so that capacity is not what keeps it from succeeding.
        self.predictor = nn.Sequential(SmallEncoder(hidden), nn.SiLU(), nn.Linear(hidden, _FEATURES))
        self.register_buffer("mean", torch.zeros(3, SIDE, SIDE))
        self.register_buffer("square", torch.ones(3, SIDE, SIDE))
        self.register_buffer("count", torch.zeros(()))

    def _error(self, small: Tensor) -> Tensor:
        std = (self.square - self.mean.square()).clamp(min=1e-4).sqrt()  # at least one hundredth of the range
        x = ((small - self.mean) / std).clamp(-5, 5)
        with torch.no_grad():
            wanted = self.target(x)
        error: Tensor = (self.predictor(x).float() - wanted).square().mean(-1)
        return error

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self._error(t.small_target)

    def loss(self, t: Transition) -> Losses:
        self._take_in(t.small_target.flatten(0, -4), t.mask.flatten())
        return {"rnd": masked_mean(self._error(t.small_target), t.mask)}

    @torch.no_grad()
    def _take_in(self, small: Tensor, mask: Tensor) -> None:
        """Move the statistics by frames (n, 3, 16, 16), those of ``mask`` (n,)."""
        weight = mask.to(small.dtype)
        self.count += weight.sum()
        share = (weight / self.count.clamp(min=1))[:, None, None, None]
        self.mean += (share * (small - self.mean)).sum(0)
        self.square += (share * (small.square() - self.square)).sum(0)
