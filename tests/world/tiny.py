"""The smallest world model that still has every part, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamer_lpm.nets import gumbel
from dreamer_lpm.types import ActionSpec, Batch
from dreamer_lpm.world import RSSM, Latent, Lesson, Losses, RSSMConfig, WorldConfig, WorldModel

RSSM_CONFIG = RSSMConfig(deter=16, hidden=16, stoch=4, classes=4)
WORLD_CONFIG = WorldConfig(rssm=RSSM_CONFIG, depth=2)
SPEC = ActionSpec("continuous", 2)


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that no test depends on another."""
    return torch.Generator().manual_seed(seed)


def codes(rssm: RSSM, lead: Sequence[int], source: torch.Generator) -> Tensor:
    """Gumbel noise for the latents of ``lead`` states."""
    return gumbel(torch.rand(*lead, rssm.cfg.stoch, rssm.cfg.classes, generator=source))


def learned(world: WorldModel, batch: Batch, seed: int = 0) -> tuple[Lesson, Losses]:
    """What the world makes of the batch, with the noise of that seed, and its losses, the gate's among them."""
    lesson = world.watch(batch, codes(world.rssm, batch.reward.shape, generator(seed)))
    return lesson, {**world.losses(batch, lesson), **world.foresee(batch, lesson)[1]}


def imagined(rssm: RSSM, prev: Latent, action: Tensor, noise: Tensor | None) -> Latent:
    """One step of a dream, sampled from the prior (its mode without noise). prev (...), action (..., A)."""
    deter = rssm.core(prev, rssm.in_action(action))
    return Latent(deter, rssm.sample(rssm.prior(deter), noise))


def tiny_world(spec: ActionSpec = SPEC, seed: int = 0, cfg: WorldConfig = WORLD_CONFIG) -> WorldModel:
    """A world model whose initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldModel(cfg, spec)


def random_batch(spec: ActionSpec = SPEC, lead: tuple[int, int] = (2, 6), seed: int = 0) -> Batch:
    """Noise in every field; ``is_first`` in the middle of sequence 0, a termination in the last."""
    g = generator(seed)
    is_first, is_terminal = torch.zeros(lead, dtype=torch.bool), torch.zeros(lead, dtype=torch.bool)
    is_first[0, 3] = True
    is_terminal[-1, -1] = True
    action = torch.rand(*lead, spec.size, generator=g) * 2 - 1
    return Batch(
        obs=torch.randint(0, 256, (*lead, 64, 64, 3), generator=g, dtype=torch.uint8),
        action=one_hot(action) if spec.is_discrete else action,
        reward=torch.randn(lead, generator=g),
        is_first=is_first,
        is_terminal=is_terminal,
        tv_on=torch.rand(lead, generator=g) < 0.5,
        deter=torch.randn(lead[0], RSSM_CONFIG.deter, generator=g),
        stoch=torch.randint(0, RSSM_CONFIG.classes, (lead[0], RSSM_CONFIG.stoch), generator=g).to(torch.uint8),
    )  # fmt: skip


def one_hot(scores: Tensor) -> Tensor:
    """(..., A) -> the highest of each row as one-hot floats."""
    return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()
