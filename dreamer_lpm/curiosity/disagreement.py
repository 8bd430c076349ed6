"""Ensemble disagreement (Sekar et al. 2020, "Planning to Explore", arXiv 2005.05960, eq. 2).

    f_k(s, a) ~ E[P s']                                K one-step models of the next latent state, k = 1..K
    r(s, a)   = mean over dimensions of  1/(K-1) sum_k ( f_k - mean_k f_k )^2

P is a fixed random projection to 64 dimensions: it keeps distances, at an eighth of the price.
Each f_k converges to the same expectation, whatever is random around it: what remains is what the data have not yet
decided. It asks nothing of the next frame, so it runs natively in dreams.
Promise before a TV: with data enough, noise pays nothing. Known weakness: "enough" is long for noise, as f_k must
average it out while the world model bends the latents under it, and a learning rate that never falls leaves a rest,
larger where there is more noise: on the test stream a twentieth of what a new place was paid. Divided by a deviation
that forgets, that rest would be paid in full again; so the scale forgets slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_lpm.curiosity.base import Dims, IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.ensemble import Ensemble
from dreamer_lpm.nets import masked_mean

_PROJECTED = 64


class Disagreement(IntrinsicReward):
    """Variance among ``members`` predictions of the next feature. ``hidden``: width of each member."""

    reads_pictures = False

    project: Tensor

    def __init__(self, dims: Dims, hidden: int = 64, members: int = 5):
        super().__init__()
        self.register_buffer("project", torch.randn(dims.feat, _PROJECTED) * _PROJECTED**-0.5)
        self.models = Ensemble(members, dims.feat + dims.action, hidden, 2, _PROJECTED)

    def _expected(self, t: Transition) -> Tensor:
        """Projected next features as each member expects them, (members, ..., 64)."""
        out: Tensor = self.models(torch.cat([t.feat, t.action], -1))
        return out

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self._expected(t).var(0).mean(-1)

    def loss(self, t: Transition) -> Losses:
        wrong = (self._expected(t) - (t.next_feat @ self.project).float()).square()
        return {"disagreement": masked_mean(wrong.sum(-1).mean(0), t.mask)}
