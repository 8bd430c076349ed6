"""LPM on one and the same frame (ours): what the world model predicts better than it did some updates ago.

The paper pays r = E[eps of an earlier model] - eps and has only the earlier model's *errors*, so a network must guess
what it would have made of this step. Where the guess is wrong, it is paid. Here the earlier model is kept, and is shown
the same replayed frames as the model of today, with the same chance:

    delta  = eps(theta_old) - eps(theta)               nats of log error; both of the same o', predicted before it came
    r(s, a) = argmin_r  E[ ( lag * r(s, a) - delta )^2 ]    lag: age of theta_old, 1 when it is replaced

One head learns r, and answers in dreams. Its target is progress itself: zero on noise, not a difference of two numbers
that are both large there and that two networks would have to agree upon.

**Why noise cancels.** Frame by frame, and not only on average: what cannot be predicted is as far from the one
expectation as from the other.

**What it costs.** The world model is run once more for each batch, without gradients, and held in memory twice.
**Known weakness.** Progress on frames that were learned from: a model that can learn single photos by heart makes
progress on them. What is mastered pays as little as noise. Kin of gamma-Progress (Kim et al. 2020, arXiv 2007.07853),
which compares two small models of its own in a space of features, and whose old model is an average.
"""

from __future__ import annotations

import torch

from dreamer_lpm.curiosity.base import Dims, Losses, Regressed, Transition, log_mse, seen
from dreamer_lpm.nets import masked_mean, mlp


class LPMPaired(Regressed):
    """r(s, a) in nats for each time between two copies of the world model (``rate``: 1 / that many updates)."""

    needs_earlier = True

    def __init__(self, dims: Dims, hidden: int = 256):
        super().__init__()
        self.head = mlp(dims.feat + dims.action, hidden, 1, 1, zero=True)

    def loss(self, t: Transition) -> Losses:
        delta = torch.log(seen(t.error_before) + 1e-8) - log_mse(t)
        return {"progress": masked_mean((seen(t.lag) * self.expected(t) - delta).square(), t.mask)}
