"""The one interface of every curiosity: what it sees, what it pays, how it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.pictures import shrink
from dreamer_lpm.nets import approach

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Transition:
    """One step from ``feat`` by ``action`` to ``next_feat``, for any leading shape (...).

    It is replayed (B, T-1) or imagined (H, B), and a bonus need not know which. ``mask`` (...) is false where an
    episode ended in between: that is no transition, and its error means nothing.

    The rest is what was really seen, so all of it is None in dreams. ``target`` is the frame that came and
    ``predicted`` what the world model had expected to see (the decoded prior, before the frame); ``frame`` is the one
    that the action was taken in front of: all (..., 64, 64, 3) in [0, 1], and shown only to a bonus that
    ``reads_pictures``. ``error`` (...) >= 0 is the mean squared error between ``target`` and ``predicted``, over pixels
    and channels. ``kl`` (...) >= 0 is KL(posterior || prior) of ``next_feat`` in nats. ``target_embed`` and
    ``predicted_embed`` (..., E) are the encoder's views of the two frames, and are computed only for a bonus that reads
    them.
    ``error_before`` (...) is the same error of the world model as it was some updates ago, and ``lag`` (...) in [0, 1]
    says how many, as a share of the most that it can be; they are made only for a bonus that ``needs_earlier``.
    All tensors are detached: curiosity never trains the world model.
    """

    feat: Tensor
    action: Tensor
    next_feat: Tensor
    mask: Tensor
    target: Tensor | None = None
    predicted: Tensor | None = None
    frame: Tensor | None = None
    kl: Tensor | None = None
    target_embed: Tensor | None = None
    predicted_embed: Tensor | None = None
    error: Tensor | None = None
    error_before: Tensor | None = None
    lag: Tensor | None = None

    def unseen(self) -> Transition:
        """The same step with nothing seen, as if it had been dreamed."""
        return Transition(self.feat, self.action, self.next_feat, self.mask)

    # The three pictures as block means, (..., 3, 16, 16) in [0, 1]; computed once, however often a bonus looks.

    @cached_property
    def small_target(self) -> Tensor:
        return shrink(seen(self.target))

    @cached_property
    def small_predicted(self) -> Tensor:
        return shrink(seen(self.predicted))

    @cached_property
    def small_frame(self) -> Tensor:
        return shrink(seen(self.frame))


def seen(x: Tensor | None) -> Tensor:
    """That part of a replayed transition. In a dream it is not there, which is the bonus's mistake."""
    assert x is not None, "this bonus needs what was really seen; wrap it in Distilled"
    return x


@dataclass(frozen=True)
class Dims:
    """Sizes that the world model and the environment teach: F and A of the shape legend."""

    feat: int
    action: int


class IntrinsicReward(nn.Module, ABC):
    """A bonus. Asking is not learning: only :meth:`loss` may change state."""

    needs_target: bool = False
    """True: pays for what was really seen, so ``build_curiosity`` wraps it in ``Distilled`` to work in dreams."""
    needs_earlier: bool = False
    """True: reads ``Transition.error_before``, for which a copy of the world model is kept and asked."""
    reads_pictures: bool = True
    """False: does without ``Transition.target``, ``predicted`` and ``frame``, whose making takes time."""

    @abstractmethod
    def reward(self, t: Transition) -> Tensor:
        """Bonus of each transition, (...). Pure: asked twice it gives the same and changes nothing."""

    @abstractmethod
    def loss(self, t: Transition) -> Losses:
        """Scalar losses on replayed transitions; the one place that may move state.

        Empty when there is nothing to learn.
        """


class Regressed(IntrinsicReward):
    """A bonus that is the answer of its ``head`` to (feat, action), in replay as in dreams. ``loss`` fits it."""

    head: nn.Module  # (..., F + A) -> (..., 1)
    reads_pictures = False

    def expected(self, t: Transition) -> Tensor:
        """As ``reward``, with its gradient."""
        out: Tensor = self.head(torch.cat([t.feat, t.action], -1))
        return out.squeeze(-1).float()

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self.expected(t)


def log_mse(t: Transition) -> Tensor:
    """eps = log( |target - predicted|^2 / dim ), the error of the prediction made *before* the frame was seen.

    LPM paper, eq. 2. (...) in nats; floored at log(1e-8), far below one grey level of 255 (log 1.5e-5).
    """
    return torch.log(mse(t) + 1e-8)


def mse(t: Transition) -> Tensor:
    """Mean squared error of the one-step prediction over pixels and channels, (...) >= 0."""
    if t.error is not None:
        return t.error
    return (seen(t.target) - seen(t.predicted)).square().mean((-3, -2, -1))


class FitGate(nn.Module):
    """Opens, once and for good, when a regression has stopped improving.

    That is when its loss no longer falls from one moving average to a slower one. An unfitted error predictor is wrong
    by whole nats and differently so on and off the TV, which pays for anything at random; so the paper's readiness gate
    (queue full) must also wait for the fit.
    """

    fast: Tensor
    slow: Tensor
    count: Tensor
    opened: Tensor

    def __init__(self, patience: int = 50, ratio: float = 0.9):
        super().__init__()
        self.patience, self.ratio = patience, ratio
        for name in ("fast", "slow", "count", "opened"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, loss: Tensor, ready: Tensor) -> None:
        """Take in one loss (); it counts only while ``ready`` (), and where there was something to be wrong about."""
        self.count += ready
        for mean, rate in ((self.fast, 5 / self.patience), (self.slow, 1 / self.patience)):
            debiased = torch.where(
                self.count > 0, rate / (1 - (1 - rate) ** self.count.clamp(min=1)), torch.zeros_like(loss)
            )
            approach(mean, loss.detach(), debiased * ready)
        fitted = (self.count >= 2 * self.patience) & (self.fast >= self.ratio * self.slow)
        self.opened.copy_(torch.maximum(self.opened, fitted.to(self.opened.dtype)))
