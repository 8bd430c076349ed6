"""Latent Bayesian Surprise (Mazzaglia et al. 2022, arXiv 2104.07495): how far a frame changed the model's mind.

    r = KL( q(z' | h', o') || p(z' | h') )             nats, posterior against prior

Promise before a TV: a frame that tells nothing about the latent state pays nothing, however many pixels differ. Known
weakness: a world model that encodes what it sees encodes the TV's pictures too, and then each of them is a surprise for
ever. It is spared only where the model declines to look at what it cannot predict (``world.rssm.noise_gate``): that is
the gate's merit, not the bonus's.
"""

from __future__ import annotations

from torch import Tensor

from dreamer_lpm.curiosity.base import IntrinsicReward, Losses, Transition, seen


class LBS(IntrinsicReward):
    """The KL that the world model computes anyway; has nothing of its own to learn."""

    needs_target = True
    reads_pictures = False

    def reward(self, t: Transition) -> Tensor:
        return seen(t.kl)

    def loss(self, t: Transition) -> Losses:
        return {}
