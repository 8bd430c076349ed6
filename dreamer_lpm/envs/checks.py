"""The env contract, executable: ``check_env(make_env(EnvConfig(id="MyEnv-v0")))``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np

from dreamer_lpm.envs.wrappers import action_spec, env_name
from dreamer_lpm.types import UserError


class _Step(NamedTuple):
    obs: np.ndarray
    reward: float
    ended: bool
    tv_on: bool


def check_env(env: gym.Env[Any, Any], *, steps: int = 64, seed: int = 0) -> None:
    """Plays ``steps`` random actions twice from the same seed and holds ``env`` to what the agent relies on.

    - spaces: observations Box(0, 255, (h, w, 3), uint8); actions Box(-1, 1, (A,), float32) or Discrete(n) from 0;
    - every observation is of that shape and dtype, every reward finite, both end flags are bools;
    - ``info["env_steps"]`` is 0 at a reset and at least 1 at a step; ``info["tv_on"]`` is a bool, or never there;
    - ``reset(seed=s)`` and the same actions give the same pictures and rewards, whatever was played before;
    - the picture changes.

    The env is left in the middle of an episode: reset it before use.

    Raises:
        UserError: at the first breach, with what to change.
    """
    name = env_name(env)
    _check_spaces(env, name)
    first, again = (_play(env, name, steps, seed) for _ in range(2))
    for t, (a, b) in enumerate(zip(first, again, strict=True)):
        if a.ended != b.ended or a.reward != b.reward or not np.array_equal(a.obs, b.obs):
            raise UserError(
                f"{name} is not determined by its seed: step {t} of the same actions after reset(seed={seed}) differs; "
                "draw all randomness from self.np_random and reset everything in reset()."
            )
    own = [step.obs for step in first if not step.tv_on]  # a TV changes the picture of any env
    if len(own) > 1 and all(np.array_equal(own[0], obs) for obs in own):
        raise UserError(f"The picture of {name} did not change in {steps} steps; render() must draw the current state.")


def _check_spaces(env: gym.Env[Any, Any], name: str) -> None:
    space = env.observation_space
    if not (
        isinstance(space, gym.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] == 3
        and (space.low == 0).all()
        and (space.high == 255).all()
    ):
        raise UserError(
            f"The observation space of {name} is {type(space).__name__} {space.shape}, "
            "not Box(0, 255, (h, w, 3), uint8); build the env with make_env."
        )
    spec = action_spec(env)
    expected = (
        gym.spaces.Discrete(spec.size) if spec.is_discrete else gym.spaces.Box(-1.0, 1.0, (spec.size,), np.float32)
    )
    if env.action_space != expected:
        raise UserError(f"The actions of {name} are {env.action_space}, not {expected}; build the env with make_env.")


def _play(env: gym.Env[Any, Any], name: str, steps: int, seed: int) -> list[_Step]:
    env.action_space.seed(seed)
    obs, info = env.reset(seed=seed)
    has_tv = "tv_on" in info
    _check_info(name, info, has_tv, is_reset=True)
    track = [_Step(_checked_obs(env, name, obs), 0.0, False, info.get("tv_on", False))]
    for _ in range(steps):
        if track[-1].ended:
            obs, info = env.reset(seed=seed + len(track))
            reward, ended = 0.0, False
            _check_info(name, info, has_tv, is_reset=True)
        else:
            obs, raw, terminated, truncated, info = env.step(env.action_space.sample())
            reward, ended = _checked_reward(name, raw), _checked_flags(name, terminated, truncated)
            _check_info(name, info, has_tv, is_reset=False)
        track.append(_Step(_checked_obs(env, name, obs), reward, ended, info.get("tv_on", False)))
    return track


def _checked_obs(env: gym.Env[Any, Any], name: str, obs: Any) -> np.ndarray:
    shape = env.observation_space.shape
    if not (isinstance(obs, np.ndarray) and obs.shape == shape and obs.dtype == np.uint8):
        got = f"{obs.dtype} {obs.shape}" if isinstance(obs, np.ndarray) else type(obs).__name__
        raise UserError(f"{name} returned the observation {got}; it must be a uint8 array of shape {shape}.")
    return obs.copy()


def _checked_reward(name: str, reward: SupportsFloat) -> float:
    if not math.isfinite(float(reward)):
        raise UserError(f"{name} returned the reward {reward}; rewards must be finite.")
    return float(reward)


def _checked_flags(name: str, terminated: Any, truncated: Any) -> bool:
    if not (isinstance(terminated, bool) and isinstance(truncated, bool)):
        kinds = f"{type(terminated).__name__} and {type(truncated).__name__}"
        raise UserError(f"step() of {name} returned terminated and truncated as {kinds}; both must be bool.")
    return terminated or truncated


def _check_info(name: str, info: dict[str, Any], has_tv: bool, *, is_reset: bool) -> None:
    taken = info.get("env_steps")
    if not isinstance(taken, int) or (taken != 0 if is_reset else taken < 1):
        wanted = "0 from reset()" if is_reset else "at least 1 from step()"
        raise UserError(f'info["env_steps"] of {name} is {taken!r}, it must be {wanted}; build the env with make_env.')
    if ("tv_on" in info) != has_tv or not isinstance(info.get("tv_on", False), bool):
        raise UserError(f'info["tv_on"] of {name} must be a bool in every info, or in none.')
