"""The probe env itself: what it paints can be read back."""

from __future__ import annotations

import cv2
import gymnasium as gym
import numpy as np
import pytest

from dreamer_lpm.envs import check_env
from tests.probes.counter_env import CounterEnv, read


@pytest.mark.parametrize("size", [64, 32, 16])
@pytest.mark.parametrize("episode", [0, 7, 300, 65_535])
def test_picture_says_episode_step_and_action(episode: int, size: int) -> None:
    env = CounterEnv(length=400, action_size=3)
    obs, _ = env.reset(seed=episode)
    assert read(obs) == (episode, 0, None)
    action = np.array([-1.0, 5 / 127, 1.0], np.float32)
    for _ in range(300):
        obs, reward, *_ = env.step(action)
    count = read(cv2.resize(obs, (size, size), interpolation=cv2.INTER_AREA))
    assert (count.episode, count.step) == (episode, 300)
    assert reward == 300
    np.testing.assert_allclose(count.action, action, rtol=1e-6)


def test_discrete_action_is_read_back() -> None:
    env = CounterEnv(actions="discrete", action_size=4)
    env.reset(seed=1)
    for action in (3, 0):
        obs, *_ = env.step(action)
        np.testing.assert_array_equal(read(obs).action, [action])


def test_without_a_seed_episodes_are_counted_on() -> None:
    env = CounterEnv()
    env.reset(seed=41)
    obs, _ = env.reset()
    assert read(obs).episode == 42


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_keeps_the_env_contract(actions: str, ends: str) -> None:
    env: gym.Env = CounterEnv(actions=actions, ends=ends)  # type: ignore[arg-type]
    check_env(env)
