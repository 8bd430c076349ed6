"""LPM with optimism (ours): learning progress, and the benefit of the doubt where the error is not yet known.

LPM pays for error that has fallen. In a place never seen nothing has fallen yet, so LPM has no reason to go there, and
its signed reward nets to about zero everywhere else. Here K small error predictors stand where ``lpm_dual`` has one,
each with weights of its own, its own half of the transitions, and its own delayed copy:

    now_k(s, a)    ~ E[ eps | s, a ]                   fitted on a bootstrap sample of the replay, k = 1..K
    before_k       <- before_k + rate * (now_k - before_k)
    r(s, a)        = gate * ( mean_k( before_k - now_k ) + optimism * std_k( now_k ) )

**Why noise cancels.** Every term is a function of conditional *expectations* of the log error. The first is a
difference of two of them, which agree on whatever has stopped changing. In the second, all members estimate the same
number; they differ by what their samples differ, about sd(eps) / sqrt(n) after n visits, and not by the sd(eps) of a
single frame. So optimism is large where nothing has been seen, and shrinks with data on noise as on what is mastered:
it is uncertainty about how hard a place is, not the hardness.

**What it costs.** Noise takes longer to become boring than a clean place, as sd(eps) is larger there; and a learning
rate that never falls leaves a floor under the std, which ``optimism`` multiplies: on the test stream a twentieth of
what progress is paid, for noise about as for the mastered, so it draws to neither. Members are a quarter as wide as the
single predictor, so a query costs about as much. Kin of bootstrapped DQN (Osband et al. 2016, arXiv 1602.04621), which
keeps its masks in the replay; here a mask is a hash of what was seen and done, so it needs no memory and survives a
restart.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dreamer_lpm.curiosity.base import Dims, FitGate, IntrinsicReward, Losses, Transition, seen
from dreamer_lpm.curiosity.ensemble import Ensemble
from dreamer_lpm.curiosity.error_space import ErrorSpaceName, error_space
from dreamer_lpm.nets import follow, masked_mean

_ODD = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 64-bit constants of splitmix64's mixer


class LPMOptimistic(IntrinsicReward):
    """r = progress + optimism * uncertainty about the expected error. ``hidden``: width of each member."""

    def __init__(
        self,
        dims: Dims,
        hidden: int = 64,
        rate: float = 0.01,
        space: ErrorSpaceName = "frame",
        members: int = 5,
        optimism: float = 1.0,
    ):
        super().__init__()
        self.space = error_space(space)
        self.now = Ensemble(members, dims.feat + dims.action, hidden, 3, 1)
        self.before = copy.deepcopy(self.now).requires_grad_(False)
        self.gate = FitGate()
        self.rate, self.optimism = rate, optimism

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        x = torch.cat([t.feat, t.action], -1)
        before, now = self.before(x).squeeze(-1), self.now(x).squeeze(-1)
        progress = (before - now).mean(0)
        unsure = now.std(0, correction=0)
        bonus: Tensor = self.gate.opened * (progress + self.optimism * unsure)
        return bonus

    def loss(self, t: Transition) -> Losses:
        now = self.now(torch.cat([t.feat, t.action], -1)).squeeze(-1)
        wrong = (now - self.space.log_error(t)).square()
        mine = bootstrap(t, self.now.members) & t.mask
        loss = torch.stack([masked_mean(w, m) for w, m in zip(wrong, mine, strict=True)]).mean()
        with torch.no_grad():
            self.gate.update(loss, t.mask.any().to(loss.dtype))
            rate = torch.where(self.gate.opened > 0, self.rate, 1.0)
            follow(self.before, self.now, rate)
        return {"error_predictor": loss}


def bootstrap(t: Transition, members: int) -> Tensor:
    """Which members learn from a replayed transition: (members, ...) bool, each with probability 1/2.

    A hash of every eighth pixel and of the action, so that the same transition always goes to the same members,
    however often it is replayed, and nothing random is drawn.
    """
    pixels = (seen(t.target)[..., ::8, ::8, :] * 255).round().long().flatten(-3)
    action = (t.action * 2**20).round().long()
    words = torch.cat([pixels, action], -1)
    place = torch.arange(1, words.shape[-1] + 1, device=words.device)
    key = _mixed(words + place * _ODD[0]).sum(-1)
    member = torch.arange(1, members + 1, device=words.device).reshape(-1, *[1] * key.dim())
    return (_mixed(key + member * _ODD[0]) & 1).bool()


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, which wraps around: every bit of the input reaches every bit of the output."""
    for shift, odd in ((30, _ODD[1]), (27, _ODD[2])):
        x = (x ^ _shifted(x, shift)) * odd
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own drags the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
