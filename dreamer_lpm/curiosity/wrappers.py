"""Around a bonus: ``Distilled`` carries it into dreams, ``Normalized`` gives it a common scale, ``Sum`` mixes some."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.base import Dims, IntrinsicReward, Losses, Regressed, Transition
from dreamer_lpm.nets import approach, masked_mean, mlp


class Distilled(Regressed):
    """A head that regresses the inner bonus on (feat, action), and answers in its place, in replay as in dreams.

    A regression delivers the *expectation* of the bonus, which is what LPM's theory speaks of; a single sample of it
    may have any sign.
    """

    def __init__(self, inner: IntrinsicReward, dims: Dims, hidden: int = 256):
        super().__init__()
        self.inner = inner
        self.head = mlp(dims.feat + dims.action, hidden, 1, 1, zero=True)

    def loss(self, t: Transition) -> Losses:
        losses = self.inner.loss(t)  # first: what normalises the bonus must have seen one
        target = self.inner.reward(t).detach()  # the head learns of the bonus, not the bonus of its head
        return {**losses, "distilled": masked_mean((self.expected(t) - target).square(), t.mask)}


class Normalized(IntrinsicReward):
    """The inner bonus divided by its running standard deviation over *replayed steps* (at least 1e-4).

    Over all of them, batch and time alike. The mean stays: dividing must not turn "pays nothing" into "pays less than
    average". ``rate`` is the weight of a new batch: at 0.01 the last hundred updates set the scale. The deviation is
    from one mean over all of them, so a bonus that falls by decades, as errors do at first, is scaled by its fall until
    that is forgotten: about 1,000 updates. A bonus that is to fade away wants 1e-4, 10,000 updates, or what is left of
    it would be blown up to a deviation of 1 at once.
    """

    reads_pictures = False
    moment: Tensor
    mean: Tensor
    count: Tensor

    def __init__(self, inner: IntrinsicReward, rate: float = 0.01):
        super().__init__()
        self.inner, self.rate = inner, rate
        self.needs_target = inner.needs_target
        for name in ("moment", "mean", "count"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self.inner.reward(t) / (self.moment - self.mean.square()).clamp(min=1e-8).sqrt()

    def loss(self, t: Transition) -> Losses:
        losses = self.inner.loss(t)  # first: what it pays before it has seen anything says nothing of its scale
        with torch.no_grad():
            bonus = self.inner.reward(t)
            some = t.mask.any().to(bonus.dtype)  # a batch without a transition says nothing either
            self.count += some
            rate = some * self.rate / (1 - (1 - self.rate) ** self.count.clamp(min=1))
            approach(self.mean, masked_mean(bonus, t.mask), rate)
            approach(self.moment, masked_mean(bonus.square(), t.mask), rate)
        return losses


class Sum(IntrinsicReward):
    """Several bonuses at once: r = sum of weight * bonus. ``parts``: name -> (weight, bonus).

    Each part learns from its own losses, which bear its name.
    """

    reads_pictures = False

    def __init__(self, parts: Mapping[str, tuple[float, IntrinsicReward]]):
        super().__init__()
        self.weights = {name: weight for name, (weight, _) in parts.items()}
        self.parts = nn.ModuleDict({name: bonus for name, (_, bonus) in parts.items()})
        self.needs_target = any(bonus.needs_target for _, bonus in parts.values())

    def _bonus(self, name: str) -> IntrinsicReward:
        bonus = self.parts[name]
        assert isinstance(bonus, IntrinsicReward)
        return bonus

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return torch.stack([weight * self._bonus(name).reward(t) for name, weight in self.weights.items()]).sum(0)

    def loss(self, t: Transition) -> Losses:
        return {f"{name}/{k}": v for name in self.weights for k, v in self._bonus(name).loss(t).items()}
