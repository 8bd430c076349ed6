"""A world with known answers for curiosity: a TV, something that gets learned, and something long known.

Its three places, one-hot in the features, show 4x4 pictures and lead to a next state. What the world model expects of
them follows a script::

    noise      a new random picture of random contrast, and a random next state, each time: the error never falls
    learnable  error constant, then falling (steps START to END), then as small as it gets
    mastered   error small and constant

So log errors are known in expectation, and every bonus can be asked what it pays where and when. A bonus with models of
its own learns at its own pace whatever it is shown, so for those the learnable place is one that nobody has seen before
START (``discovered``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.curiosity import CuriosityConfig, Dims, IntrinsicReward, Transition

NOISE, LEARNABLE, MASTERED = range(3)
START, END, STEPS = 450, 600, 1500
CONVERGED = 1000
"""Updates after which whatever has been learned lies behind."""
DIMS = Dims(feat=3, action=2)
CONFIG = CuriosityConfig(hidden=32, queue=768, rate=0.03)
HARD, EASY = 0.5, 0.02
"""Root mean squared error of the learnable place before and after."""


def offset(step: int) -> float:
    """Root mean squared error of the learnable place at that step; its log falls linearly from START to END."""
    share = min(max((step - START) / (END - START), 0.0), 1.0)
    return HARD ** (1 - share) * EASY**share


def stream(seed: int = 0, shape: tuple[int, int] = (4, 12), *, discovered: bool = False) -> Iterator[Transition]:
    """STEPS batches of replayed transitions of (B, T-1) = ``shape``; CONVERGED, if a place is to be discovered."""
    rng, more = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    pattern = torch.rand(3, 4, 4, 3, generator=rng)
    leads_to = torch.randn(3, 3, generator=more)
    for step in range(CONVERGED if discovered else STEPS):
        place = torch.randint(3, shape, generator=rng)
        if discovered and step < START:
            place = torch.where(place == LEARNABLE, MASTERED, place)
        feat = torch.nn.functional.one_hot(place, 3).float()
        frames = torch.rand(*shape, 4, 4, 3, generator=rng) - 0.5
        contrast = 0.1 ** torch.rand(*shape, 1, 1, 1, generator=rng)
        noise = (place == NOISE)[..., None, None, None]
        age = step % round(1 / CONFIG.rate)
        error, earlier = (
            torch.tensor([0.0, offset(at), EASY])[place][..., None, None, None] for at in (step, step - age)
        )
        target = torch.where(noise, 0.5 + contrast * frames, pattern[place] + 0.02 * frames)
        predicted, before = (torch.where(noise, 0.5, pattern[place] + wrong) for wrong in (error, earlier))
        yield Transition(
            feat=feat,
            action=torch.rand(*shape, 2, generator=rng) * 2 - 1,
            next_feat=torch.where(noise[..., 0, 0], torch.randn(*shape, 3, generator=more), leads_to[place]),
            mask=torch.rand(shape, generator=rng) > 0.1,
            target=target,
            predicted=predicted,
            frame=pattern[place].roll(1, 1),
            kl=torch.where(noise, 3 * torch.rand(noise.shape, generator=more), 10 * error).flatten(-4),
            error_before=(target - before).square().mean((-3, -2, -1)),
            lag=torch.full(shape, age * CONFIG.rate),
        )


def ask(bonus: IntrinsicReward) -> Tensor:
    """What it would pay in a dream, (3,): one value a place, over a few actions."""
    action = torch.tensor([[-0.6, -0.6], [-0.6, 0.6], [0.6, -0.6], [0.6, 0.6]])[:, None].expand(4, 3, 2)
    feat = torch.eye(3).expand(4, 3, 3)
    dream = Transition(feat, action, feat, torch.ones(4, 3, dtype=torch.bool))
    return bonus.reward(dream).mean(0)


def history(
    bonus: IntrinsicReward, learning_rate: float = AgentConfig().curiosity_lr, *, discovered: bool = False
) -> Tensor:
    """Let ``bonus`` learn from the stream as in the agent; what dreams were paid in each update, (steps, 3)."""
    moved = [p for p in bonus.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(moved, lr=learning_rate, eps=1e-5) if moved else None
    paid = []
    for batch in stream(discovered=discovered):
        losses = bonus.loss(batch)
        paid.append(ask(bonus))  # dreams come after the loss and before the step
        if optimizer is not None:
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
    return torch.stack(paid)


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 99 % confidence interval."""

    mean: float
    half: float

    def __contains__(self, value: float) -> bool:
        return abs(value - self.mean) <= self.half


def interval(samples: Tensor, blocks: int = 10) -> Interval:
    """Of a correlated series (n,): by Student's t over the means of ``blocks`` consecutive blocks."""
    assert blocks == 10, "the quantile below is that of 9 degrees of freedom"
    means = samples.reshape(blocks, -1).mean(1)
    return Interval(float(means.mean()), 3.250 * float(means.std()) / math.sqrt(blocks))
