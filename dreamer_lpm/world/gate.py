"""A posterior that may decline to look: the world model's own deafness to noise.

A bonus that ignores the TV is not enough. Noise frames take most of the reconstruction loss and of the latent's bits,
so the *world model* watches TV even when the actor is paid nothing for it. The remedy asks, before a frame is seen, how
wrong its prediction is expected to stay, and declines to look where that is another kind of wrong than elsewhere:

    e_t = E[ log( |o_t - decode(prior_t)|^2 / dim ) | h_t ]        an error predictor inside the world model
    w_t = sigmoid( (threshold - e_t) / softness )                  1 looks, 0 declines
    q'(z_t) = w_t q(z_t | h_t, o_t) + (1 - w_t) p(z_t | h_t)       the state goes on by memory where looking is useless
    loss_t  = w_t recon(o_t, z_t) + KL terms of q'

``threshold`` lies between the two groups into which the expected errors of a batch fall (Otsu 1979), if they fall into
two at all: where frames are more or less alike in difficulty, as in an env without noise, nothing is declined. Once it
has been found, it stays where no two groups are found any more.

Nothing tells it where the TV is: ``tv_on`` is never read in training. Frames that open an episode are always looked at,
because what comes after a reset is news by definition. The limit of the method: frames that are far harder to predict
than all others *and* matter would be declined too; ``--world.rssm.no-noise-gate`` turns it off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_lpm.nets import EPS, masked_mean, mlp

_SOFTNESS = 0.15  # nats; predictions of one kind of frame scatter by about that much


class Gate(NamedTuple):
    """The tensors of a :class:`NoiseGate`."""

    inner: Tensor  # (X, D)
    norm: Tensor  # (X,)
    shift: Tensor
    outer: Tensor  # (1, X)
    bias: Tensor  # (1,)
    threshold: Tensor  # ()
    active: Tensor  # ()

    def cast(self, kind: torch.dtype) -> Gate:
        """With the weights of products in the type in which those are taken."""
        return self._replace(inner=self.inner.to(kind), outer=self.outer.to(kind))


def look(deter: Tensor, gate: Gate, is_first: Tensor) -> Tensor:
    """:meth:`NoiseGate.look` by its tensors alone."""
    hidden = F.layer_norm(F.linear(deter, gate.inner), gate.norm.shape, gate.norm, gate.shift, EPS)
    expected = F.linear(F.silu(hidden), gate.outer, gate.bias).squeeze(-1).float()
    return _far(expected, gate.threshold, gate.active, is_first)


def _far(expected: Tensor, threshold: Tensor, active: Tensor, is_first: Tensor | None) -> Tensor:
    far = torch.where(active > 0, torch.sigmoid((threshold - expected) / _SOFTNESS), 1.0)
    return far if is_first is None else torch.where(is_first, 1.0, far)


class NoiseGate(nn.Module):
    """Expected log error of the frame about to be seen, and how far to look at it. Buffers survive a checkpoint."""

    threshold: Tensor
    active: Tensor
    gap = 1.0  # nats that the two kinds must lie apart, a factor of 2.7 in squared error
    contrast = 3.0  # times their own scatter; a single normal distribution cut in two has 1.3

    def __init__(self, deter: int, hidden: int):
        super().__init__()
        self.net = mlp(deter, hidden, 1, 1)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("active", torch.zeros(()))

    def expected(self, deter: Tensor) -> Tensor:
        """Expected log-MSE (nats) of the prior's prediction, from the memory alone. (..., D) -> (...)."""
        out: Tensor = self.net(deter.detach())
        return out.squeeze(-1).float()

    @torch.no_grad()
    def look(self, deter: Tensor, is_first: Tensor | None = None) -> Tensor:
        """How far to look at the coming frame, (..., D) -> (...) in [0, 1]; 1 until two kinds of frames were found.

        ``is_first`` (...): which open an episode, and are always looked at; None: none does, as in a dream.
        """
        return _far(self.expected(deter), self.threshold, self.active, is_first)

    def tensors(self) -> Gate:
        """What :func:`look` decides by."""
        net: Any = self.net
        return Gate(
            net[0].weight, net[1].weight, net[1].bias, net[3].weight, net[3].bias, self.threshold, self.active
        )  # fmt: skip

    def loss(self, deter: Tensor, log_error: Tensor, is_first: Tensor) -> Tensor:
        """Squared error of the expectation, (B, T); it also moves the threshold.

        deter (B, T, D), log_error (B, T), is_first (B, T).
        """
        expected = self.expected(deter)
        with torch.no_grad():
            # First frames are no evidence: they are always hard, and always looked at.
            usual = torch.where(is_first, masked_mean(expected, ~is_first), expected)
            low, high, scatter = two_groups(usual.flatten())
            found = (high - low > self.gap) & (high - low > self.contrast * (scatter + 0.1))
            middle = (low + high) / 2
            moved = torch.where(self.active > 0, self.threshold.lerp(middle, 0.1), middle)
            self.threshold.copy_(torch.where(found, moved, self.threshold))
            self.active.copy_(torch.maximum(self.active, found.to(self.active.dtype)))
        return (expected - log_error).square()


def two_groups(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split values (N,) where the groups' means differ most against their sizes (Otsu 1979).

    Returns the two means, low and high, and the sum of the two standard deviations, each ().
    """
    x = values.sort().values
    n = len(x)
    count = torch.arange(1, n, device=x.device, dtype=x.dtype)
    first, second = x.cumsum(0), x.square().cumsum(0)
    low, high = first[:-1] / count, (first[-1] - first[:-1]) / (n - count)
    spread_low = (second[:-1] / count - low.square()).clamp(min=0).sqrt()
    spread_high = ((second[-1] - second[:-1]) / (n - count) - high.square()).clamp(min=0).sqrt()
    best = (count * (n - count) * (high - low).square()).argmax()
    # Not low[best], which would look at the number, and wait for the device.
    low, high, spread = torch.stack([low, high, spread_low + spread_high]).index_select(1, best.unsqueeze(0)).unbind()
    return low.squeeze(0), high.squeeze(0), spread.squeeze(0)
