"""The whole agent on a bandit seen in pictures: from replayed random play to the best action, through its dreams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamer_lpm.agent import Agent, AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.types import ActionSpec, Batch
from dreamer_lpm.world import RSSMConfig, WorldConfig

CONFIG = AgentConfig(
    curiosity="none",
    world=WorldConfig(rssm=RSSMConfig(deter=32, hidden=32, stoch=4, classes=4), depth=2),
    behavior=BehaviorConfig(hidden=32, layers=1, horizon=2, starts=32, slow_rate=0.1),
    world_lr=3e-3,
    actor_lr=3e-3,
    critic_lr=3e-3,
)
B, T = 8, 8
ARMS, TORQUE = ActionSpec("discrete", 3), ActionSpec("continuous", 1)


def pays(action: Tensor, best: float) -> Tensor:
    """Reward of an action, (..., A) -> (...): 2 for the best arm; up to 2 for the torque nearest to the best end."""
    return 2 * action[..., int(best)] if action.shape[-1] == ARMS.size else 2 * best * action[..., 0]


def played(spec: ActionSpec, best: float, generator: torch.Generator) -> Batch:
    """Random play of episodes of one step: a dark picture, an action, a picture as bright as its reward, the end."""
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, ::2] = True
    action = torch.rand(B, T, spec.size, generator=generator) * 2 - 1
    if spec.is_discrete:
        action = torch.nn.functional.one_hot(action.argmax(-1), spec.size).float()
    action = action * (~is_first).unsqueeze(-1)
    reward = pays(action, best)
    bright = torch.where(is_first, 0.0, 140 + 50 * reward).to(torch.uint8)
    return Batch(
        obs=bright[..., None, None, None].expand(B, T, 64, 64, 3),
        action=action,
        reward=reward,
        is_first=is_first,
        is_terminal=~is_first,
        tv_on=torch.zeros_like(is_first),
        deter=torch.zeros(B, 32),
        stoch=torch.zeros(B, 4, dtype=torch.uint8),
    )


def choice(spec: ActionSpec, best: float, updates: int = 120) -> np.ndarray:
    """What the agent does at the start of an episode after training, (A,)."""
    agent, generator = Agent(CONFIG, spec), torch.Generator().manual_seed(0)
    for _ in range(updates):
        agent.update(played(spec, best, generator))
    row = {
        "obs": np.zeros((1, 64, 64, 3), np.uint8),
        "action": np.zeros((1, spec.size), np.float32),
        "is_first": np.ones(1, bool),
    }
    return agent.act(agent.begin(1), row, "mode").action[0].numpy()


@pytest.mark.parametrize("best", [0, 2])
def test_finds_the_best_arm(best: int) -> None:
    np.testing.assert_array_equal(choice(ARMS, best), np.eye(3)[best])


@pytest.mark.parametrize("best", [-1.0, 1.0])
def test_finds_the_end_of_the_range_that_pays(best: float) -> None:
    assert choice(TORQUE, best)[0] * best > 0.8
