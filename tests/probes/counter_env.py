"""An env whose picture says which episode, which step and which action it belongs to.

Whatever moves rows about (auto-reset, replay, resume) can be tested by reading them back::

    row = envs.step(actions)
    count = read(row["obs"][0])
    assert count.step == row["reward"][0]
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import gymnasium as gym
import numpy as np

SIZE = 64
BLOCK = 16  # a byte is a 16x16 block of grey, so it survives shrinking to 32x32 or 16x16
LEVELS = 127  # a continuous action a in [-1, 1] is painted as the byte round(a * 127) + 128


class Count(NamedTuple):
    """What a picture says. ``action`` is the env's action before it: (A,) float or (1,) index; None after a reset."""

    episode: int
    step: int
    action: np.ndarray | None


class CounterEnv(gym.Env[np.ndarray, Any]):
    """Reward = step number, 1, 2, ... ``length``; then the episode ends.

    ``reset(seed=s)`` starts episode ``s % 65536``, ``reset()`` the one after the current: so the number depends on the
    seed alone, as exact resume demands. Painted bytes, row by row: episode (2), step (2), has action, action (up to 8).

    Args:
        length: steps per episode.
        ends: how an episode ends.
        actions: "continuous" Box(-1, 1, (action_size,)) or "discrete" Discrete(action_size); action_size 1 to 8.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self,
        length: int = 5,
        ends: Literal["terminated", "truncated"] = "terminated",
        actions: Literal["continuous", "discrete"] = "continuous",
        action_size: int = 2,
        render_mode: str | None = "rgb_array",
    ) -> None:
        assert action_size <= 8
        assert length < 65536
        self.length = length
        self.ends = ends
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = (
            gym.spaces.Discrete(action_size)
            if actions == "discrete"
            else gym.spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        )
        self.episode = -1
        self.count = 0
        self.last_action: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = (self.episode + 1 if seed is None else seed) % 65536
        self.count = 0
        self.last_action = None
        return self.render(), {"env_steps": 0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.count < self.length, "step() after the end of an episode"
        assert self.action_space.contains(action), action
        self.count += 1
        self.last_action = action
        ended = self.count == self.length
        terminated, truncated = ended and self.ends == "terminated", ended and self.ends == "truncated"
        return self.render(), float(self.count), terminated, truncated, {"env_steps": 1}

    def render(self) -> np.ndarray:  # type: ignore[override]
        grid = np.zeros(16, np.uint8)
        grid[:4] = [self.episode >> 8, self.episode & 255, self.count >> 8, self.count & 255]
        if self.last_action is not None:
            painted = self._painted(self.last_action)
            grid[4] = len(painted) * 16 + isinstance(self.action_space, gym.spaces.Discrete)
            grid[5 : 5 + len(painted)] = painted
        picture = grid.reshape(4, 4).repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
        return np.repeat(picture[..., None], 3, axis=-1)

    def _painted(self, action: Any) -> list[int]:
        if isinstance(self.action_space, gym.spaces.Discrete):
            return [int(action)]
        return [round(float(a) * LEVELS) + 128 for a in action]


def read(obs: np.ndarray) -> Count:
    """Reads a (h, w, 3) picture of a CounterEnv, h = w = 16, 32 or 64."""
    block = obs.shape[0] // 4
    grid = [int(byte) for byte in obs[block // 2 :: block, block // 2 :: block, 0].reshape(-1)]
    size, is_discrete = divmod(grid[4], 16)
    painted = np.array(grid[5 : 5 + size], np.float64)
    action = (painted if is_discrete else (painted - 128) / LEVELS) if size else None
    return Count(grid[0] * 256 + grid[1], grid[2] * 256 + grid[3], action)
