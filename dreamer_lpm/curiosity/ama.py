"""Aleatoric Mapping Agent (Mavor-Parker et al. 2022, "How to Stay Curious while Avoiding Noisy TVs", arXiv 2102.04399).

    e     = |o' - mu(s, a)|^2 / dim                    mu: the world model's prediction
    loss  = 1/2 ( e / var(s, a) + log var(s, a) )      likelihood of a normal with its own variance
    r     = e - var(s, a)                              paid for error beyond the noise to be expected here

Promise before a TV: where the error is noise, var becomes the expected error, and r is zero in expectation.
Known weakness: var is fitted to the error of today, whether that is noise or could still be learned. Hence r is paid
only until *var* is known; and while the world model improves, var lags behind and r is negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_lpm.curiosity.base import Dims, IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.error_space import ErrorSpaceName, error_space
from dreamer_lpm.nets import masked_mean, mlp
from dreamer_lpm.types import UserError


class AMA(IntrinsicReward):
    """Error minus expected variance. One variance a transition (isotropic), as only its sum is subtracted.

    Raises UserError for the error space ``kl``, which has no mean and variance.
    """

    needs_target = True
    reads_pictures = False
    start: Tensor

    def __init__(self, dims: Dims, hidden: int = 256, space: ErrorSpaceName = "frame"):
        super().__init__()
        if space == "kl":
            raise UserError("'ama' needs an error with a variance, which error_space kl is not; choose another.")
        self.space = error_space(space)
        self.log_variance = mlp(dims.feat + dims.action, hidden, 2, 1, zero=True)
        self.register_buffer("start", torch.zeros(()))  # mean error of the first batch, from which var departs

    def _variance(self, t: Transition) -> Tensor:
        """(...) > 0."""
        out: Tensor = self.log_variance(torch.cat([t.feat, t.action], -1))
        return out.squeeze(-1).float().exp() * self.start + self.space.floor

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self.space.error(t) - self._variance(t)

    def loss(self, t: Transition) -> Losses:
        error = self.space.error(t)
        self.start.copy_(torch.where(self.start > 0, self.start, masked_mean(error, t.mask)))
        variance = self._variance(t)
        return {"ama": masked_mean(0.5 * (error / variance + variance.log()), t.mask)}
