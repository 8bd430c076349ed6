"""Presets: every one of them is a world model that can be built, of about the size that its name says."""

from __future__ import annotations

import pytest
import torch

from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.behavior import Behavior
from dreamer_lpm.presets import DEFAULT, PRESETS, preset
from dreamer_lpm.types import ActionSpec, UserError
from dreamer_lpm.world import WorldModel

# Lowest and highest count in millions. DreamerV3's smallest size, named 1M, has 0.69.
MILLIONS = {
    "tiny": (1.5, 3.0), "small": (5.0, 12.0), "1m": (0.6, 0.8), "12m": (10.0, 13.0), "25m": (22.0, 28.0),
    "50m": (42.0, 56.0), "100m": (88.0, 112.0), "200m": (170.0, 220.0),
}  # fmt: skip


def parameters(cfg: AgentConfig) -> int:
    """Of world model and behavior, built without memory."""
    with torch.device("meta"):
        world = WorldModel(cfg.world, ActionSpec("continuous", 6))
        behavior = Behavior(cfg.behavior, world.rssm.feat_size, ActionSpec("continuous", 6))
    return sum(p.numel() for part in (world, behavior) for p in part.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PRESETS)
def test_size(name: str) -> None:
    low, high = MILLIONS[name]
    assert low < parameters(PRESETS[name].agent) / 1e6 < high


def test_the_default_is_a_preset_and_an_unknown_name_is_answered_with_the_known() -> None:
    assert preset(DEFAULT) is PRESETS["tiny"]
    with pytest.raises(UserError, match="Unknown preset 'huge'; choose one of: tiny, small, 1m"):
        preset("huge")
