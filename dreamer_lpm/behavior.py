"""The actor-critic that learns inside dreams (DreamerV3, eq. 6 to 11).

It sees features and rewards, and never hears of curiosity.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamer_lpm.machine import at_once
from dreamer_lpm.nets import TwoHot, approach, gumbel, mlp, normal, one_hot_straight_through, unimix_log_probs
from dreamer_lpm.types import ActionSpec


@dataclass(frozen=True)
class BehaviorConfig:
    """Actor, critic and returns."""

    hidden: int = 256
    """Width of the hidden layers of actor and critic."""
    layers: int = 2
    """Hidden layers of each."""
    horizon: int = 15
    """H, imagined steps."""
    starts: int = 96
    """Replayed states from which a dream starts, per update (at most B*T)."""
    gamma: float = 0.99
    """Discount per agent step."""
    lam: float = 0.95
    """Mixing of n-step returns (lambda-return)."""
    entropy: float = 3e-4
    """Weight of the policy's entropy."""
    min_std: float = 0.1
    """Smallest standard deviation of the continuous policy; actions span [-1, 1]."""
    max_std: float = 1.0
    """Largest standard deviation of the continuous policy."""
    unimix: float = 0.01
    """Uniform share of the discrete policy."""
    slow_rate: float = 0.02
    """Rate at which the slow critic follows the critic."""
    return_rate: float = 0.02
    """Rate at which the return range follows each batch's percentiles."""


class Actor(nn.Module):
    """Policy: a normal around tanh(mean) on [-1, 1]^A, or a one-hot categorical among A choices.

    Continuous samples are clipped to the range before they are executed, which is where the environment's true ends
    lie.
    """

    def __init__(self, cfg: BehaviorConfig, feat_size: int, spec: ActionSpec):
        super().__init__()
        self.cfg, self.spec = cfg, spec
        self.net = mlp(feat_size, cfg.hidden, cfg.layers, spec.size if spec.is_discrete else 2 * spec.size)
        with torch.no_grad():  # begin near the middle of the range, for whatever state
            self.net[-1].weight.mul_(0.01)  # type: ignore[operator]

    def _normal(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(feat).float().chunk(2, -1)
        # Begins in the middle of the range of stds, 0.55. From 0.9, where DreamerV3 begins, every other action was
        # violent enough for the guide's TV, and the model saw too little of what actions do.
        span = self.cfg.max_std - self.cfg.min_std
        return torch.tanh(mean), self.cfg.min_std + span * torch.sigmoid(raw)

    def _categorical(self, feat: Tensor) -> Tensor:
        return unimix_log_probs(self.net(feat), self.cfg.unimix)

    def noise(self, uniform: Tensor) -> Tensor:
        """What ``sample`` needs, from numbers in [0, 1): normal, Gumbel for discrete choices. (..., A) -> (..., A)."""
        return gumbel(uniform) if self.spec.is_discrete else normal(uniform)

    def sample(self, feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """feat (..., F), noise (..., A) -> (executed, sampled), both (..., A).

        They differ only by the clipping to [-1, 1].
        """
        if self.spec.is_discrete:
            choice = one_hot_straight_through(self._categorical(feat).detach(), noise)
            return choice, choice
        mean, std = self._normal(feat)
        sampled = mean + std * noise
        return sampled.clamp(-1, 1), sampled

    def mode(self, feat: Tensor) -> Tensor:
        """The most likely action, (..., F) -> (..., A)."""
        if self.spec.is_discrete:
            return one_hot_straight_through(self._categorical(feat).detach(), None)
        return self._normal(feat)[0]

    def log_prob_and_entropy(self, feat: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of ``sampled`` and entropy in nats. feat (..., F), sampled (..., A) -> two (...)."""
        if self.spec.is_discrete:
            log_probs = self._categorical(feat)
            return (log_probs * sampled).sum(-1), -(log_probs.exp() * log_probs).sum(-1)
        mean, std = self._normal(feat)
        log_std = std.log()
        log_prob = -0.5 * ((sampled - mean) / std).square() - log_std - 0.5 * math.log(2 * math.pi)
        return log_prob.sum(-1), (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def entropy_range(self) -> tuple[float, float]:
        """The least and the most entropy that the policy can have, in nats."""
        if not self.spec.is_discrete:
            unit = 0.5 * math.log(2 * math.pi * math.e)
            low, high = math.log(self.cfg.min_std), math.log(self.cfg.max_std)
            return self.spec.size * (low + unit), self.spec.size * (high + unit)
        others = self.cfg.unimix / self.spec.size
        best = 1 - others * (self.spec.size - 1)
        least = -best * math.log(best) - (others * math.log(others) * (self.spec.size - 1) if others else 0.0)
        return least, math.log(self.spec.size)


class Critic(nn.Module):
    """Value of a state, as a symlog two-hot distribution, with a slowly following copy that steadies it."""

    def __init__(self, cfg: BehaviorConfig, feat_size: int):
        super().__init__()
        self.rate = cfg.slow_rate
        self.dist = TwoHot()
        self.net = mlp(feat_size, cfg.hidden, cfg.layers, self.dist.bins, zero=True)
        self.slow = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, feat: Tensor) -> Tensor:
        """Expected return (...), in the units of the reward."""
        return self.dist.mean(self.net(feat).float())

    def loss(self, feat: Tensor, returns: Tensor) -> Tensor:
        """Cross entropy to the returns, and to the slow copy's own answer. feat (..., F), returns (...) -> (...)."""
        return self.distance(self.net(feat), returns, self.steady(feat))

    def distance(self, logits: Tensor, returns: Tensor, steady: Tensor) -> Tensor:
        """:meth:`loss` from what both copies said."""
        return self.dist.loss(logits, returns) + self.dist.loss(logits, steady)

    @torch.no_grad()
    def steady(self, feat: Tensor) -> Tensor:
        """The slow copy's expected return (...)."""
        return self.dist.mean(self.slow(feat).float())

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copy towards the critic."""
        torch._foreach_lerp_(list(self.slow.parameters()), list(self.net.parameters()), self.rate)


def lambda_return(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """G_h = r_{h+1} + d_{h+1} ((1 - lam) v_{h+1} + lam G_{h+1}),  G_H = v_H  (DreamerV3, eq. 7).

    reward, discount (H, B): received on entering states 1..H. value (H+1, B). Returns (H, B), one for each state acted
    in.
    """
    assert reward.shape == discount.shape == value[1:].shape, (reward.shape, discount.shape, value.shape)
    after, out = value[-1], []
    for r, d, v in zip(reward.flip(0), discount.flip(0), value[1:].flip(0), strict=True):
        after = r + d * ((1 - lam) * v + lam * after)
        out.append(after)
    return torch.stack(out[::-1])


class ReturnRange(nn.Module):
    """Running range between the 5th and 95th percentile of the returns.

    At least 1, so small returns are not blown up.
    """

    low: Tensor
    high: Tensor
    count: Tensor

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        for name in ("low", "high", "count"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Take in one batch of returns, any shape."""
        ordered = returns.float().flatten().sort().values
        self.count += 1
        # Debiased moving average: the first batch counts fully.
        rate = self.rate / (1 - (1 - self.rate) ** self.count)
        for moved, share in ((self.low, 0.05), (self.high, 0.95)):
            place = share * (len(ordered) - 1)  # torch.quantile would look at its argument, and wait for the device
            below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
            approach(moved, torch.lerp(below, above, place % 1), rate)

    @property
    def scale(self) -> Tensor:
        """max(1, P95 - P5)."""
        return (self.high - self.low).clamp(min=1.0)


class Behavior(nn.Module):
    """Actor, critic and return range, and the loss that joins them.

    ``randomness`` is how random the policy was in the last dream, for whoever measures: 1 as it can be, 0 not at all.
    """

    randomness: Tensor

    def __init__(self, cfg: BehaviorConfig, feat_size: int, spec: ActionSpec):
        super().__init__()
        self.cfg = cfg
        self.actor = Actor(cfg, feat_size, spec)
        self.critic = Critic(cfg, feat_size)
        self.range = ReturnRange(cfg.return_rate)

    def loss(
        self, feat: Tensor, sampled: Tensor, reward: Tensor, cont: Tensor, alive: Tensor,
        *, steady: Tensor | None = None, lanes: int = 1,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Losses of one dream, each (H, B).

        feat (H+1, B, F); sampled (H, B, A); reward, cont (H, B) on entering states 1..H.
        The actor follows REINFORCE on normalised advantages. States behind an end of the episode, predicted or
        (``alive`` (B,) false) already seen, weigh less. ``steady`` (H, B): what the slow critic expects of the states
        acted in, if it was asked before. ``lanes``: see :func:`dreamer_lpm.machine.at_once`.
        """
        acted, critic = feat[:-1], self.critic
        logits, (log_prob, entropy) = at_once(
            lambda: critic.net(acted), lambda: self.actor.log_prob_and_entropy(acted, sampled), lanes
        )
        discount = self.cfg.gamma * cont
        with torch.no_grad():
            value = torch.cat([critic.dist.mean(logits.float()), critic(feat[-1:])])
            returns = lambda_return(reward, discount, value, self.cfg.lam)
            self.range.update(returns)
            advantage = (returns - value[:-1]) / self.range.scale
            weight = torch.cat([alive.to(cont.dtype).unsqueeze(0), cont[:-1]]).cumprod(0)
        least, most = self.actor.entropy_range()
        # A single choice, or a single standard deviation, has no range to be in.
        self.randomness = (entropy.detach().mean() - least) / (most - least) if most > least else cont.new_ones(())
        return {
            "actor": -weight * (log_prob * advantage + self.cfg.entropy * entropy),
            "critic": weight * critic.distance(logits, returns, critic.steady(acted) if steady is None else steady),
        }
