"""An env as a stranger would write one: three unequal bounds, a wide picture, float64 actions, its own id."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

ENV_ID = "DreamerLPMTest/Dots-v0"
SWITCHES_ID = "DreamerLPMTest/Switches-v0"
LOW = np.array([-0.3, 0.1, -7.0])
HIGH = np.array([0.7, 0.2, 1.0])


class Dots(gym.Env[np.ndarray, np.ndarray]):
    """Three coloured dots move sideways by the actions; the reward is minus their distance from the middle."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = gym.spaces.Box(LOW, HIGH, dtype=np.float64)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float64)
        self.place = np.zeros(3)
        self.received: list[np.ndarray] = []
        self.drawn = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(size=3)
        return self.place.copy(), {"colour": "red"}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.received.append(action.copy())
        self.place = (self.place + 0.1 * action + 0.01 * self.np_random.normal(size=3)) % 1.0
        return self.place.copy(), -float(np.abs(self.place - 0.5).sum()), False, False, {"colour": "red"}

    def render(self) -> np.ndarray:  # type: ignore[override]
        self.drawn += 1
        picture = np.zeros((80, 96, 3), np.uint8)
        for dot, x in enumerate(self.place):
            left = int(x * 86)
            picture[10 + 20 * dot : 20 + 20 * dot, left : left + 10, dot] = 255
        return picture


class Switches(Dots):
    """Dots that three switches push: of 2, 3 and 4 positions, the second counted from -1."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gym.spaces.MultiDiscrete([2, 3, 4], start=[0, -1, 0])  # type: ignore[assignment]


def register() -> None:
    """Makes both ids known to Gymnasium; may be called again."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point=Dots, max_episode_steps=20)
        gym.register(SWITCHES_ID, entry_point=Switches, max_episode_steps=20)
