"""How much of its world an agent has seen: a grid over two numbers of the env's own state.

The state is read beneath all wrappers, for measuring alone: no agent ever sees it. A further env takes one entry in
``GRIDS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from dreamer_lpm.envs.wrappers import env_name


@dataclass(frozen=True)
class Axis:
    """``bins`` equal bins from ``low`` to ``high``; what lies beyond counts to the outermost bin."""

    name: str
    low: float
    high: float
    bins: int

    def bin(self, value: float) -> int:
        """0 to ``bins`` - 1."""
        return min(max(math.floor((value - self.low) / (self.high - self.low) * self.bins), 0), self.bins - 1)


@dataclass(frozen=True)
class Grid:
    """The cells of a plane, of which not every one need be within reach: coverage compares agents, 1 is no promise.

    Attributes:
        x, y: the two axes.
        read: the two numbers, from an unwrapped env that has been reset.
    """

    x: Axis
    y: Axis
    read: Callable[[Any], Sequence[float]]

    @property
    def cells(self) -> int:
        return self.x.bins * self.y.bins

    def cell(self, env: gym.Env[Any, Any]) -> int:
        """Where ``env`` is now, 0 to ``cells`` - 1."""
        x, y = self.read(env.unwrapped)
        return self.x.bin(float(x)) * self.y.bins + self.y.bin(float(y))

    def describe(self) -> str:
        """In words: ``angle x angular speed, 24 x 16 cells over [-3.14, 3.14] x [-8, 8]``."""
        (x, y) = (self.x, self.y)
        return (
            f"{x.name} x {y.name}, {x.bins} x {y.bins} cells over "
            f"[{x.low:.3g}, {x.high:.3g}] x [{y.low:.3g}, {y.high:.3g}]"
        )


def _turn(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


_CAR = Grid(
    Axis("position", -1.2, 0.6, 24), Axis("velocity", -0.07, 0.07, 16), lambda env: (env.state[0], env.state[1])
)
# Registered name without its version -> grid. Ranges are the envs' own limits.
GRIDS = {
    "Pendulum": Grid(
        Axis("angle", -math.pi, math.pi, 24),
        Axis("angular speed", -8, 8, 16),
        lambda env: (_turn(env.state[0]), env.state[1]),
    ),
    "MountainCar": _CAR,
    "MountainCarContinuous": _CAR,
    "CartPole": Grid(
        Axis("cart position", -2.4, 2.4, 24),
        Axis("pole angle", -math.pi / 15, math.pi / 15, 16),
        lambda env: (env.state[0], env.state[2]),
    ),
    "Acrobot": Grid(
        Axis("first angle", -math.pi, math.pi, 24),
        Axis("second angle", -math.pi, math.pi, 24),
        lambda env: (env.state[0], env.state[1]),
    ),
}


def grid_of(env: gym.Env[Any, Any]) -> Grid | None:
    """The grid of ``env``, wrapped or not; None where nobody has drawn one, also for another env of the same name."""
    spec = gym.registry.get(env_name(env))
    known = spec is not None and str(spec.entry_point).startswith("gymnasium.envs.classic_control")
    return GRIDS.get(env_name(env).rpartition("-v")[0]) if known else None
