"""check_env finds each planted breach of the contract, and says which it is."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dreamer_lpm.envs import check_env
from dreamer_lpm.noisy_tv import TVSpec, add_tv
from dreamer_lpm.types import UserError
from tests.probes.counter_env import CounterEnv

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class FloatPictures(CounterEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0.0, 1.0, (64, 64, 3), np.float32)


class WideActions(CounterEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)


class SmallPicture(CounterEnv):
    def render(self) -> np.ndarray:  # type: ignore[override]
        return super().render()[::2]


class NanReward(CounterEnv):
    def step(self, action: Any) -> Step:
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest  # type: ignore[return-value]


class NumpyFlags(CounterEnv):
    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, np.bool_(terminated), truncated, info  # type: ignore[return-value]


class NoCount(CounterEnv):
    def step(self, action: Any) -> Step:
        *rest, _ = super().step(action)
        return *rest, {}  # type: ignore[return-value]


class TvOnlySometimes(CounterEnv):
    def step(self, action: Any) -> Step:
        *rest, info = super().step(action)
        return *rest, {**info, "tv_on": True}  # type: ignore[return-value]


class OwnDice(CounterEnv):
    """Draws from a generator that reset(seed) does not reach."""

    dice = np.random.default_rng(0)

    def step(self, action: Any) -> Step:
        obs, _, *rest = super().step(action)
        return obs, float(self.dice.normal()), *rest  # type: ignore[return-value]


class Leaky(CounterEnv):
    """Carries something over from one episode to the next."""

    resets = 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.resets += 1
        obs, info = super().reset(**kwargs)
        return obs + np.uint8(self.resets), info


class Frozen(CounterEnv):
    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("cls", "breach"),
    [
        (FloatPictures, "observation space of FloatPictures is Box"),
        (WideActions, "actions of WideActions are Box"),
        (SmallPicture, r"returned the observation uint8 \(32, 64, 3\)"),
        (NanReward, "returned the reward nan"),
        (NumpyFlags, "terminated and truncated as bool"),
        (NoCount, r'info\["env_steps"\] of NoCount is None, it must be at least 1'),
        (TvOnlySometimes, r'info\["tv_on"\] of TvOnlySometimes must be a bool'),
        (OwnDice, "OwnDice is not determined by its seed: step 1 "),
        (Leaky, "Leaky is not determined by its seed: step 0 "),
        (Frozen, "picture of Frozen did not change in 64 steps"),
    ],
)
def test_a_planted_breach_is_found(cls: type[CounterEnv], breach: str) -> None:
    with pytest.raises(UserError, match=breach) as error:
        check_env(cls())
    assert "\n" not in str(error.value)


def test_a_frozen_picture_is_found_behind_a_tv_too() -> None:
    spec = TVSpec(source="static", trigger="passive", probability=0.5)
    check_env(add_tv(CounterEnv(), spec))
    with pytest.raises(UserError, match="did not change in 64 steps"):
        check_env(add_tv(Frozen(), spec))


def test_an_env_that_make_env_did_not_build_is_told_to() -> None:
    with pytest.raises(UserError, match="build the env with make_env"):
        check_env(gym.make("CartPole-v1", render_mode="rgb_array"))
