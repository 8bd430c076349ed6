"""The testbed on the mountain: the remote control, the agent's arithmetic, what it writes."""

import json
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamer_lpm.curiosity import mse


def test_only_the_remote_moves_the_number(mountain_car: ModuleType) -> None:
    env = mountain_car.NoisyMountainCar(noisy=True, seed=0)
    action = np.zeros((mountain_car.ENVS, 2), np.float32)
    action[:3, 1] = [1.0, 0.01, -1.0]
    numbers = []
    for _ in range(5):
        led_to, _ = env.step(action)
        numbers.append(led_to[:, 2].copy())
    watched, left = np.array(numbers)[:, :2], np.array(numbers)[:, 2:]
    assert len(np.unique(watched)) == watched.size
    assert np.abs(watched).max() <= 1
    assert not left.any()
    action[:, 1] = 0
    led_to, _ = env.step(action)
    assert np.array_equal(led_to[:, 2], numbers[-1])  # switched off again, the last number stays


def test_the_clean_remote_does_nothing_and_the_car_never_feels_it(mountain_car: ModuleType) -> None:
    clean, noisy = (mountain_car.NoisyMountainCar(arm, seed=4) for arm in (False, True))
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, (mountain_car.ENVS, 2)).astype(np.float32)
        a, b = clean.step(action)[0], noisy.step(action)[0]
        assert np.array_equal(a[:, :2], b[:, :2])
        assert not a[:, 2].any()
    assert b[:, 2].any()
    assert np.array_equal(clean.visited, noisy.visited)


def test_an_episode_that_ends_begins_again(mountain_car: ModuleType) -> None:
    env = mountain_car.NoisyMountainCar(noisy=True, seed=0)
    for car in env.cars[:1]:
        car.unwrapped.state = np.array([0.44, 0.07])
    led_to, ended = env.step(np.ones((mountain_car.ENVS, 2), np.float32))
    assert ended.tolist() == [True] + [False] * (mountain_car.ENVS - 1)
    assert led_to[0, 0] > 0.8  # at the flag, where the bonus is paid
    assert led_to[0, 2] != 0
    assert env.obs[0, 0] < 0.2  # and back in the valley
    assert env.obs[0, 2] == 0
    assert np.array_equal(env.obs[1:], led_to[1:])


def test_coverage_counts_cells(mountain_car: ModuleType) -> None:
    env = mountain_car.NoisyMountainCar(noisy=False, seed=0)
    env.visited[:] = False
    # The corners of the ranges, and two cells of one block of four.
    env._observe(np.array([[-1.2, -0.07], [0.6, 0.07], [-1.2, -0.069], [-1.2, -0.062]]), np.zeros(4))
    assert env.coverage() == pytest.approx(100 * 3 / 400)
    assert env.coverage(block=2) == pytest.approx(100 * 2 / 100)


def test_a_frame_measures_the_error_of_the_state(mountain_car: ModuleType) -> None:
    predictor = mountain_car.Predictor(4)
    obs, led_to, action = torch.rand(5, 3), torch.rand(5, 3), torch.rand(5, 2)
    t = mountain_car.transition(predictor, obs, action, led_to)
    assert t.target.shape == (5, 1, 1, 3)
    assert torch.allclose(mse(t), ((predictor(obs, action) - led_to) / 2).square().mean(1))


def test_advantages_against_the_definition(mountain_car: ModuleType) -> None:
    cfg = mountain_car.Setting(gamma=0.5, lam=0.5)
    reward, value = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [0.0], [2.0]])
    next_value = torch.tensor([[0.0], [6.0], [8.0]])
    ended = torch.tensor([[False], [True], [False]])
    found = mountain_car.advantages(reward, value, next_value, ended, cfg)
    last = 4 + 0.5 * 8 - 2
    cut = 2 + 0.5 * 6 - 0  # bootstrapped, but nothing flows back over the end
    first = 1 + 0.5 * 0 - 1 + 0.25 * cut
    assert found.flatten().tolist() == [first, cut, last]


def test_the_policy_learns_what_is_paid(mountain_car: ModuleType) -> None:
    """A bonus for the remote makes the agent press it: the agent is not what fails in the table."""
    torch.manual_seed(0)
    cfg = mountain_car.Setting(lr=3e-3, hidden=16)
    learner, env = mountain_car.Learner("none", cfg), mountain_car.NoisyMountainCar(noisy=False, seed=0)
    for _ in range(15):
        data = mountain_car.collect(env, learner.policy)
        learner._improve_policy(data, (data.action[..., 1] > 0).float())
    assert (data.action[..., 1] > 0).float().mean() > 0.8


@pytest.mark.parametrize("method", ["icm", "rnd", "disagreement", "ama", "lpm_dual", "lpm_paired", "lpm_optimistic"])
def test_every_bonus_reads_states(mountain_car: ModuleType, method: str) -> None:
    row = mountain_car.run(method, "noisy", 0, mountain_car.Setting(rollouts=4, hidden=8, model_updates=1, epochs=1))
    assert 0 < row["coverage_q1"] <= row["coverage"] <= 100
    assert 0 < row["remote_share"] < 1


def test_a_run_writes_all_and_goes_on_where_it_stopped(mountain_car: ModuleType, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    methods = ["--rollouts", "4", "--methods", "random", "lpm"]
    mountain_car.main(["--seeds", "2", *methods, "--out", str(whole)])
    rows = timeless(whole)
    assert len(rows) == 2 * 2 * 2
    assert {row.split(",")[3] for row in rows} == {str(4 * 8 * mountain_car.ENVS)}
    assert (whole / "coverage.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "table.md").read_text().splitlines()[2].startswith("| `random` | 2 |")
    assert json.loads((whole / "summary.json").read_text())["setting"]["rollouts"] == 4

    mountain_car.main(["--seeds", "1", *methods[:2], "--methods", "lpm", "--out", str(pieces)])
    mountain_car.main(["--seeds", "2", *methods, "--out", str(pieces)])
    assert timeless(pieces) == rows
    with pytest.raises(SystemExit):
        mountain_car.main(["--seeds", "1", "--rollouts", "5", "--out", str(pieces)])


def timeless(folder: Path) -> list[str]:
    """The rows without their last column, which is time."""
    return [line.rpartition(",")[0] for line in (folder / "results.csv").read_text().splitlines()[1:]]


def test_the_committed_table_follows_from_the_committed_rows(
    mountain_car: ModuleType, testbed: ModuleType, results: Path, page: str
) -> None:
    folder = results / "mountain_car"
    rows = testbed.read_rows(folder / "results.csv")
    assert {row["method"] for row in rows} == set(mountain_car.METHODS)
    for table in (mountain_car.table(rows), mountain_car.gains(rows)):
        assert table in (folder / "table.md").read_text(encoding="utf-8")
        assert table in page


def test_gains_are_paired_by_seed(mountain_car: ModuleType) -> None:
    covered = {"random": (50, 60, 70), "lpm": (52, 62, 72)}
    rows = [{"method": method, "arm": arm, "seed": str(seed), "coverage": str(x)} for arm in mountain_car.ARMS
            for method, each in covered.items() for seed, x in enumerate(each)]  # fmt: skip
    assert mountain_car.gains(rows).splitlines()[2:] == ["| `lpm` | +2.0 ± 0.0 | +2.0 ± 0.0 |"]
    assert not mountain_car.gains([row for row in rows if row["method"] == "lpm"])


def test_what_the_page_says_of_the_car_is_gymnasiums(page: str) -> None:
    spec = gym.spec("MountainCarContinuous-v0")
    assert spec.max_episode_steps == 999
    assert "999 steps" in page
