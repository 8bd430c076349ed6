"""A CartPole that kills its process at the second step of an episode of one seed: the one in DEADLY_SEED."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

ENV_ID = "DreamerLPMTest/Deadly-v0"


class Deadly(CartPoleEnv):
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.left = 2 if str(seed) == os.environ.get("DEADLY_SEED") else 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        if self.left == 0:
            assert "torch" not in sys.modules, "this is the run's own process"
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register(ENV_ID, entry_point=Deadly, max_episode_steps=20)
