"""``make_env``: from an id to the env that the agent sees."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from dreamer_lpm.envs.fast_pictures import FastPicture
from dreamer_lpm.envs.wrappers import ActionRepeat, OneChoice, Picture, UnitActions, ZeroBased, action_spec
from dreamer_lpm.noisy_tv import ImageSource, TVSpec, add_tv, measure_chance
from dreamer_lpm.types import UserError


@dataclass(frozen=True)
class EnvConfig:
    """Which env, and how the agent meets it.

    Attributes:
        id: a registered id; its start picks the suite (``SUITES``).
        size: height and width of the observation in pixels.
        action_repeat: env steps per action; None = the suite's known default (Pendulum 2, because it moves little in
            one step of 0.05 s and its picture is costly; every other env 1).
        time_limit: env steps until truncation; None = the env's own limit, or 10,000 where it has none.
        tv: the Noisy TV in front of the env; None = no TV.
        fast_render: take the picture from a table, where there is one (``fast_pictures.FAST``), in place of the env's
            own.

    Raises:
        UserError: if a number is below 1.
    """

    id: str = "Pendulum-v1"
    size: int = 64
    action_repeat: int | None = None
    time_limit: int | None = None
    tv: TVSpec | None = None
    fast_render: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name.replace('_', ' ')} must be at least 1, not {value}.")


class Suite(Protocol):
    """What a module in ``suites/`` offers as ``SUITE``."""

    def default_action_repeat(self, env_id: str) -> int: ...

    def make(self, env_id: str, time_limit: int | None) -> gym.Env[Any, Any]:
        """An env with its own spaces, an ``rgb_array`` picture and its time limit. Raises UserError."""


RANDOM_STEPS = 20_000  # of play, to find out a chance level: to about .01 where episodes are short

# Start of an id -> module with a SUITE; the longest start that fits wins. Imported only when asked for.
SUITES = {
    "": "dreamer_lpm.envs.suites.gymnasium",
}


def make_env(cfg: EnvConfig, *, images: ImageSource | None = None) -> gym.Env[Any, Any]:
    """The env that the agent sees.

    Observations are (size, size, 3) uint8. Actions are Box(-1, 1, (A,), float32), where -1 and +1 are the env's true
    low and high, or Discrete(n), where a MultiDiscrete is one choice among all its combinations. ``info["env_steps"]``
    counts the env steps behind each step, ``info["tv_on"]`` is there if a TV is. ``reset(seed=s)`` determines the whole
    episode, the TV's pictures included.

    Args:
        cfg: see there.
        images: where the TV takes its pictures; unused without a TV.

    Raises:
        UserError: unknown id, package not installed, no picture (or no fast one, if asked for), or an action space
            that is not supported.
    """
    suite = _suite(cfg.id)
    env = suite.make(cfg.id, cfg.time_limit)
    action_spec(env)  # complain about the env's own action space, before a wrapper changes it
    env = ActionRepeat(env, repeat_of(cfg))
    env = FastPicture(env, cfg.size) if cfg.fast_render else Picture(env, cfg.size)
    if cfg.tv is not None:
        env = add_tv(env, cfg.tv, images)
    if isinstance(env.action_space, gym.spaces.Box):
        return UnitActions(env)
    return OneChoice(env) if isinstance(env.action_space, gym.spaces.MultiDiscrete) else ZeroBased(env)


def repeat_of(cfg: EnvConfig) -> int:
    """Env steps per action: as asked, or the suite's default."""
    return cfg.action_repeat or _suite(cfg.id).default_action_repeat(cfg.id)


@functools.cache  # several seconds, and the same for every seed
def tv_chance(cfg: EnvConfig) -> float | None:
    """Share of TV steps, in [0, 1], of an agent that chooses uniformly at random; None without a TV.

    Where it hangs on where chance leads (the trigger "state") or on how long episodes are (a TV that stays on), random
    play finds it out, the same each time; else there is a formula, ``TVSpec.chance_level``, of the actions as the env
    has them. Raises what ``make_env`` raises.
    """
    if cfg.tv is None:
        return None
    suite = _suite(cfg.id)
    with closing(suite.make(cfg.id, cfg.time_limit)) as env:
        chance = cfg.tv.chance_level(env.action_space)
        if chance == 0 or (cfg.tv.persistence == "new" and not math.isnan(chance)):
            return chance
        env = ActionRepeat(env, repeat_of(cfg))
        blank = np.zeros((cfg.size, cfg.size, 3), np.uint8)  # nobody looks, and drawing would take most of the time
        unseen = gym.wrappers.TransformObservation(env, lambda _: blank, gym.spaces.Box(0, 255, blank.shape, np.uint8))
        tv = add_tv(unseen, dataclasses.replace(cfg.tv, source="static", pool=None))
        return measure_chance(tv, steps=RANDOM_STEPS)


def _suite(env_id: str) -> Suite:
    start = max((start for start in SUITES if env_id.startswith(start)), key=len)
    suite: Suite = importlib.import_module(SUITES[start]).SUITE
    return suite
