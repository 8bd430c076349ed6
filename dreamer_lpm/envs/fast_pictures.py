"""The pictures of some envs from tables: almost equal to the env's own, and many times faster.

Every entry of a table is a picture that the env itself drew, made when it is first asked for: nothing to wait for at
the start, and no drawing here that a new version of the env could leave behind. All envs of a process share a table. A
picture depends on the env's state alone, never on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from dreamer_lpm.envs.wrappers import Picture, env_name
from dreamer_lpm.types import UserError

# Less than a pixel of the env's own large picture lies between two poses: those pictures move by whole pixels too.
POSES = 1024


class Pictures(Protocol):
    """A table."""

    def draw(self, env: Any) -> np.ndarray:
        """What ``env``, unwrapped, looks like now: (size, size, 3) uint8, an array of its own. Raises UserError."""


class PendulumPictures:
    """The rod by its angle, and over it what the torque's arrow leaves of the light, by its size and direction.

    The arrow is black and its size a whole number of the large picture's pixels, 0 to 113, so its part of the table is
    complete.
    """

    def __init__(self, size: int) -> None:
        self._env = PendulumEnv(render_mode="rgb_array")
        self._painter = Picture(self._env, size)
        self._rods: dict[int, np.ndarray] = {}
        self._arrows: dict[int, _Shade] = {}
        self._arrow_scale = self._env.screen_dim / 4.4 / self._env.max_torque  # pixels per unit of torque

    def draw(self, env: Any) -> np.ndarray:
        picture = self._rod(round(float(env.state[0]) / (2 * np.pi) * POSES) % POSES).copy()
        if env.last_u is not None:
            # Toward zero, as the env cuts it.
            shade = self._arrow(int(float(env.last_u) * self._arrow_scale))
            part = picture[shade.rows, shade.columns]
            part[:] = part * shade.left + np.float32(0.5)
        return picture

    def _rod(self, pose: int) -> np.ndarray:
        if pose not in self._rods:
            self._rods[pose] = self._paint(pose / POSES * 2 * np.pi, None)
        return self._rods[pose]

    def _arrow(self, size: int) -> _Shade:
        """``size`` in pixels, below 0 for a torque below 0."""
        if size not in self._arrows:
            # Half a pixel more, lest rounding makes it the arrow one size below.
            torque = (size + np.copysign(0.5, size)) / self._arrow_scale
            bright, dark = self._rod(0)[..., 0], self._paint(0.0, torque)[..., 0]  # red is nowhere 0 but at the axle
            left = np.divide(dark, bright, out=np.ones(dark.shape, np.float32), where=bright > 0)
            self._arrows[size] = _Shade.of(left)
        return self._arrows[size]

    def _paint(self, angle: float, torque: float | None) -> np.ndarray:
        self._env.state, self._env.last_u = np.array([angle, 0.0]), torque
        return self._painter.draw()


class _Shade(NamedTuple):
    """The share of the light, in [0, 1], that is left in a window of the picture: (h, w, 1) float32."""

    rows: slice
    columns: slice
    left: np.ndarray

    @classmethod
    def of(cls, left: np.ndarray) -> _Shade:
        """(size, size) of the whole picture; the window is what is not left as it was."""
        rows, columns = (
            slice(int(changed[0]), int(changed[-1]) + 1) if changed.size else slice(0, 0)
            for changed in (np.flatnonzero((left < 1).any(axis)) for axis in (1, 0))
        )
        return cls(rows, columns, left[rows, columns, None])


class MountainCarPictures:
    """The car by its position: nothing else moves, and the engine does not show.

    Args:
        env: of the two, which differ in where the flag stands.
        size: height and width.
    """

    def __init__(self, env: type[MountainCarEnv | Continuous_MountainCarEnv], size: int) -> None:
        self._env = env(render_mode="rgb_array")
        self._painter = Picture(self._env, size)
        self._cars: dict[int, np.ndarray] = {}

    def draw(self, env: Any) -> np.ndarray:
        low, high = self._env.min_position, self._env.max_position
        pose = round((float(env.state[0]) - low) / (high - low) * POSES)
        if pose not in self._cars:
            self._env.state = np.array([low + pose / POSES * (high - low), 0.0])
            self._cars[pose] = self._painter.draw()
        return self._cars[pose].copy()


# Registered id -> makes its table, for pictures of (size, size). A further env takes one entry.
FAST: dict[str, Callable[[int], Pictures]] = {
    "Pendulum-v1": cache(PendulumPictures),
    "MountainCar-v0": cache(partial(MountainCarPictures, MountainCarEnv)),
    "MountainCarContinuous-v0": cache(partial(MountainCarPictures, Continuous_MountainCarEnv)),
}


class FastPicture(Picture):
    """As ``Picture``, with the pictures from a table in place of the env's own.

    Mean absolute difference to those at 64x64, of 255: about 0.02. A table takes up to 13 MB.

    Raises:
        UserError: if there is no table for ``env``.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int) -> None:
        super().__init__(env, size)
        name = env_name(env)
        if name not in FAST:
            raise UserError(f"{name} has no fast picture, only {', '.join(FAST)} have one; leave --fast-render out.")
        self._table = FAST[name](size)
        self._drawn: Any = env.unwrapped

    def draw(self) -> np.ndarray:
        return self._table.draw(self._drawn)
