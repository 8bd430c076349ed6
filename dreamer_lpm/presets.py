"""Named complete configs.

``tiny`` learns on a laptop's CPU in minutes; the others follow DreamerV3's table of sizes (Hafner et al.).
"""

from __future__ import annotations

from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import CuriosityConfig
from dreamer_lpm.types import UserError
from dreamer_lpm.world import RSSMConfig, WorldConfig

DREAMER_V3_STAGES = ((4, 2, 2), (4, 2, 3), (4, 2, 4), (4, 2, 4))


def _dreamer_v3(deter: int, hidden: int, classes: int, depth: int) -> RunConfig:
    """DreamerV3's own sizes: 32 latents, a block-diagonal core, three-layer actor and critic, 64 steps a sequence."""
    world = WorldConfig(
        rssm=RSSMConfig(deter=deter, hidden=hidden, stoch=32, classes=classes, blocks=8),
        depth=depth,
        stages=DREAMER_V3_STAGES,
    )
    behavior = BehaviorConfig(hidden=hidden, layers=3, starts=1024, gamma=0.997)
    agent = AgentConfig(
        world=world,
        behavior=behavior,
        bonus=CuriosityConfig(hidden=hidden),
        world_lr=4e-5,
        actor_lr=4e-5,
        critic_lr=4e-5,
    )
    return RunConfig(agent=agent, seq_length=64)


_SMALL = AgentConfig(
    world=WorldConfig(rssm=RSSMConfig(deter=512, hidden=512, stoch=32, classes=16), depth=24),
    behavior=BehaviorConfig(hidden=512, starts=256),
    bonus=CuriosityConfig(hidden=512),
)

PRESETS: dict[str, RunConfig] = {
    "tiny": RunConfig(),
    "small": RunConfig(agent=_SMALL),
    "1m": _dreamer_v3(512, 64, 4, 4),
    "12m": _dreamer_v3(2048, 256, 16, 16),
    "25m": _dreamer_v3(3072, 384, 24, 24),
    "50m": _dreamer_v3(4096, 512, 32, 32),
    "100m": _dreamer_v3(6144, 768, 48, 48),
    "200m": _dreamer_v3(8192, 1024, 64, 64),
}
DEFAULT = "tiny"


def preset(name: str) -> RunConfig:
    """The config of that name. Raises UserError when there is none."""
    if name not in PRESETS:
        raise UserError(f"Unknown preset '{name}'; choose one of: {', '.join(PRESETS)}.")
    return PRESETS[name]
