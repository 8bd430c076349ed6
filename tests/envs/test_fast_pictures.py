"""Pictures from tables: equal to the env's own within a hair, and nothing else about the env is different."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dreamer_lpm.config import RunConfig
from dreamer_lpm.envs import EnvConfig, check_env, make_env
from dreamer_lpm.envs.fast_pictures import FAST, POSES, FastPicture, PendulumPictures
from dreamer_lpm.envs.wrappers import Picture
from dreamer_lpm.noisy_tv import TVSpec, check_tv
from dreamer_lpm.train import train
from dreamer_lpm.types import UserError
from tests.tiny_run import WITH_TV, differences, everything

CARS = ("MountainCar-v0", "MountainCarContinuous-v0")


def both(env_id: str, size: int = 64) -> tuple[Any, Picture, Picture]:
    """The env itself, its own pictures, and those from the table."""
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    return env.unwrapped, Picture(env, size), FastPicture(env, size)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute, of 255."""
    return float(np.abs(a.astype(int) - b).mean())


def test_pendulum_equals_its_own_picture_arrow_included() -> None:
    env, own, fast = both("Pendulum-v1")
    rng = np.random.default_rng(0)
    found, without_arrow = [], []
    for i in range(500):
        env.state = np.array([rng.uniform(-9, 9), rng.uniform(-8, 8)])
        env.last_u = None if i % 10 == 0 else np.float32(rng.uniform(-2, 2))
        picture = own.draw()
        found.append(difference(fast.draw(), picture))
        env.last_u = None
        without_arrow.append(difference(fast.draw(), picture))
    assert max(found) < 0.2
    assert np.mean(found) < 0.03
    assert np.mean(without_arrow) > 0.3  # so this is no mean that forgives a missing arrow


@pytest.mark.parametrize("torque", [None, 0.0, 0.001, -0.001, 0.1, -0.1, 2.0, -2.0])
@pytest.mark.parametrize("size", [32, 64])
def test_the_ends_of_the_torque_and_another_size(torque: float | None, size: int) -> None:
    env, own, fast = both("Pendulum-v1", size)
    env.state, env.last_u = np.array([7 / POSES * 2 * np.pi, 0.0]), torque
    drawn = fast.draw()
    assert (drawn.shape, drawn.dtype) == ((size, size, 3), np.uint8)
    assert difference(drawn, own.draw()) < 0.02


def test_the_arrow_shows_which_way_and_how_much() -> None:
    env, _, fast = both("Pendulum-v1")
    env.state = np.array([2.0, 0.0])
    drawn = []
    for env.last_u in (None, -2.0, -1.0, 1.0, 2.0):
        drawn.append(fast.draw())
    assert all(difference(a, b) > 0.1 for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("env_id", CARS)
def test_mountain_car_equals_its_own_picture(env_id: str) -> None:
    env, own, fast = both(env_id)
    found = []
    for position in [-1.2, 0.45, 0.5, 0.6, *np.random.default_rng(0).uniform(-1.2, 0.6, 60)]:
        env.state = np.array([position, 0.0])
        found.append(difference(fast.draw(), own.draw()))
    assert max(found) < 0.2
    assert np.mean(found) < 0.04


@pytest.mark.parametrize("env_id", FAST)
def test_what_was_drawn_before_never_matters(env_id: str) -> None:
    """A resumed run begins with an empty table, and must see what the run it continues saw."""
    env, _, _ = both(env_id)
    make = FAST[env_id].__wrapped__  # type: ignore[attr-defined]  # a table of its own, not the one that all share
    rng = np.random.default_rng(0)
    states = [(rng.uniform(-1.2, 0.6), rng.uniform(-2, 2)) for _ in range(40)]

    def drawn(order: Any) -> dict[int, bytes]:
        table, pictures = make(64), {}
        for i in order:
            env.state, env.last_u = np.array([states[i][0], 0.0]), states[i][1]
            picture = table.draw(env)
            pictures[int(i)] = picture.tobytes()
            picture[:] = 0  # whoever gets a picture may do with it as he likes
        return pictures

    first = drawn(range(40))
    assert drawn(rng.permutation(40)) == first
    assert len(set(first.values())) > 30


def test_a_table_outlives_the_envs_that_close_the_renderer_behind_them() -> None:
    table = PendulumPictures(64)
    env, own, _ = both("Pendulum-v1")
    env.state, env.last_u = np.array([1.0, 0.0]), 1.5
    own.draw()
    env.close()
    drawn = table.draw(env)
    _, own, _ = both("Pendulum-v1")
    own.unwrapped.state, own.unwrapped.last_u = env.state, env.last_u  # type: ignore[attr-defined]
    assert difference(drawn, own.draw()) < 0.2


@pytest.mark.parametrize("tv", [None, TVSpec(source="static", trigger="remote")], ids=["plain", "tv"])
@pytest.mark.parametrize("env_id", FAST)
def test_nothing_but_the_picture_differs(env_id: str, tv: TVSpec | None) -> None:
    cfg = EnvConfig(env_id, action_repeat=3, time_limit=20, tv=tv, fast_render=True)
    fast, own = make_env(cfg), make_env(dataclasses.replace(cfg, fast_render=False))
    assert (fast.action_space, fast.observation_space) == (own.action_space, own.observation_space)
    fast.action_space.seed(0)
    (obs, info), (own_obs, own_info) = fast.reset(seed=4), own.reset(seed=4)
    assert differences(info, own_info) == []
    assert difference(obs, own_obs) < 0.2
    ended = False
    while not ended:
        action = fast.action_space.sample()
        (obs, *rest), (own_obs, *own_rest) = fast.step(action), own.step(action)
        assert differences(rest, own_rest) == []
        assert difference(obs, own_obs) < 0.2
        ended = rest[1] or rest[2]
    check_env(fast, steps=10)
    if tv is not None:
        check_tv(fast, steps=10)


def test_an_env_without_a_table_is_refused_by_name() -> None:
    message = "CartPole-v1 has no fast picture, only Pendulum-v1, MountainCar-v0, MountainCarContinuous-v0 have one; "
    with pytest.raises(UserError) as error:
        make_env(EnvConfig("CartPole-v1", fast_render=True))
    assert str(error.value) == message + "leave --fast-render out."


def test_the_envs_own_picture_is_the_default() -> None:
    assert not RunConfig().env().fast_render
    assert RunConfig(fast_render=True).env() == EnvConfig(fast_render=True)


def test_a_run_stopped_and_gone_on_with_equals_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = dataclasses.replace(WITH_TV, fast_render=True, steps=60)
    train(cfg, tmp_path / "whole")
    # The second run starts as a new process would, with nothing in the table.
    monkeypatch.setitem(FAST, "Pendulum-v1", cache(PendulumPictures))
    train(dataclasses.replace(cfg, steps=30), tmp_path / "parts")
    report = train(cfg, tmp_path / "parts", resume=True)
    assert differences(everything(tmp_path / "parts"), everything(tmp_path / "whole")) == []
    assert report.video.stat().st_size > 0
