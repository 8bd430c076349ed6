"""The state grid: the right state in the right cell, whatever is wrapped around the env."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest

from dreamer_lpm.envs import GRIDS, Axis, EnvConfig, Envs, grid_of, make_env
from dreamer_lpm.noisy_tv import TVSpec, load_images
from tests.probes.counter_env import CounterEnv

IDS = ("Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "CartPole-v1", "Acrobot-v1")
STATIC = load_images("static")[0]


def test_an_axis_is_cut_into_equal_bins_and_its_ends_are_open() -> None:
    axis = Axis("speed", -8, 8, 16)
    assert [axis.bin(v) for v in (-100, -8, -7.01, -6.99, 0, 6.99, 7.01, 8, 100)] == [0, 0, 0, 1, 8, 14, 15, 15, 15]


def test_each_grid_belongs_to_an_env_and_has_a_few_hundred_cells() -> None:
    assert {i.rpartition("-v")[0] for i in IDS} == GRIDS.keys()
    for grid in GRIDS.values():
        assert 100 <= grid.cells <= 1000


def test_the_grid_in_words() -> None:
    assert GRIDS["Pendulum"].describe() == ("angle x angular speed, 24 x 16 cells over [-3.14, 3.14] x [-8, 8]")


@pytest.mark.parametrize(
    ("state", "cell"),
    [
        ((0.0, 0.0), 12 * 16 + 8),
        ((2 * math.pi, 0.0), 12 * 16 + 8),  # the same place after a whole turn
        ((-math.pi, -8.0), 0),
        ((math.pi - 1e-6, 8.0), 24 * 16 - 1),
        ((math.pi + 0.01, 8.0), 15),
    ],
)
def test_cells_of_the_pendulum(state: tuple[float, float], cell: int) -> None:
    env = make_env(EnvConfig("Pendulum-v1", tv=TVSpec(source="static", trigger="remote")), images=STATIC)
    env.reset(seed=0)
    env.unwrapped.state = np.array(state)  # type: ignore[attr-defined]
    grid = grid_of(env)
    assert grid is not None
    assert grid.cell(env) == cell


def test_the_pole_and_not_its_speed() -> None:
    env = make_env(EnvConfig("CartPole-v1"))
    env.reset(seed=0)
    grid = grid_of(env)
    assert grid is not None
    env.unwrapped.state = np.array([1.3, 99.0, -0.2, 99.0])  # type: ignore[attr-defined]
    assert grid.cell(env) == 18 * 16 + 0


@pytest.mark.parametrize("env_id", IDS)
def test_random_play_walks_from_cell_to_cell(env_id: str) -> None:
    envs = Envs(lambda: make_env(EnvConfig(env_id)), 2, seed=0)
    envs.reset_row()
    assert envs.grid is not None
    rng = np.random.default_rng(0)
    visited = set()
    for _ in range(40):
        envs.step(rng.uniform(-1, 1, (2, envs.action_spec.size)))
        cells = envs.cells()
        assert cells == [envs.grid.cell(lane.env) for lane in envs._lanes]
        visited |= set(cells)
    envs.close()
    assert 2 <= len(visited) <= 80
    assert all(0 <= cell < envs.grid.cells for cell in visited)


def test_reading_the_state_changes_nothing() -> None:
    rows = []
    for look in (True, False):
        envs = Envs(lambda: make_env(EnvConfig("Pendulum-v1")), 1, seed=3)
        envs.reset_row()
        for _ in range(5):
            row = envs.step(np.array([[0.3]]))
            if look:
                envs.cells()
        rows.append(row)
        envs.close()
    assert all(np.array_equal(rows[0][key], rows[1][key]) for key in rows[0])


def test_another_env_of_a_known_name_has_no_grid() -> None:
    gym.register("CartPole-v77", entry_point=CounterEnv)
    env = gym.make("CartPole-v77", disable_env_checker=True)
    assert grid_of(env) is None
    del gym.registry["CartPole-v77"]


def test_an_env_without_a_grid_has_no_cells() -> None:
    envs = Envs(lambda: CounterEnv(length=5), 1, seed=0)
    envs.reset_row()
    assert envs.grid is None
    assert envs.cells() == []


@pytest.mark.parametrize(
    ("env_id", "state", "cell"),
    [
        ("MountainCarContinuous-v0", (-1.2, -0.07), 0),
        ("MountainCarContinuous-v0", (0.59, 0.069), 24 * 16 - 1),
        ("MountainCar-v0", (-0.3, 0.03), 12 * 16 + 11),
        ("Acrobot-v1", (0.1, -3.1, 9.0, 9.0), 12 * 24),
    ],
)
def test_the_cell_of_a_known_state(env_id: str, state: tuple[float, ...], cell: int) -> None:
    env = make_env(EnvConfig(env_id))
    env.reset(seed=0)
    env.unwrapped.state = np.array(state)  # type: ignore[attr-defined]
    grid = grid_of(env)
    assert grid is not None
    assert grid.cell(env) == cell
    env.close()
