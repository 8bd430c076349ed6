"""Envs: rows are aligned, episodes end and begin where they should, seeds rule, and a resumed run goes on equally."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dreamer_lpm.envs import EnvConfig, Envs, Row, episode_seed, make_env
from dreamer_lpm.noisy_tv import TVSpec
from dreamer_lpm.types import UserError
from tests.envs import third_party
from tests.probes.counter_env import LEVELS, CounterEnv, read

third_party.register()


def random_actions(envs: Envs, rng: np.random.Generator) -> np.ndarray:
    """Continuous ones on the grid that CounterEnv can paint, discrete ones as scores."""
    shape = (len(envs), envs.action_spec.size)
    if envs.action_spec.is_discrete:
        return rng.normal(size=shape).astype(np.float32)
    return (rng.integers(-LEVELS, LEVELS + 1, shape) / LEVELS).astype(np.float32)


def play(envs: Envs, steps: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [envs.step(random_actions(envs, rng)) for _ in range(steps)]


def assert_equal_rows(a: Row, b: Row) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_rows_have_the_shapes_and_dtypes_they_promise() -> None:
    envs = Envs(partial(CounterEnv, action_size=2), num_envs=3, seed=0)
    for row in (envs.reset_row(), envs.step(np.zeros((3, 2), np.float32))):
        assert {key: (value.dtype.name, value.shape) for key, value in row.items()} == {
            "obs": ("uint8", (3, 64, 64, 3)),
            "action": ("float32", (3, 2)),
            "reward": ("float32", (3,)),
            "is_first": ("bool", (3,)),
            "is_last": ("bool", (3,)),
            "is_terminal": ("bool", (3,)),
            "tv_on": ("bool", (3,)),
        }


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_rows_are_aligned(ends: str, kind: str) -> None:
    """In every row the picture's own episode, step and action are those of the row's columns; nothing is lost."""
    length, seed, num_envs = 4, 11, 2
    envs = Envs(partial(CounterEnv, length=length, ends=ends, actions=kind, action_size=3), num_envs, seed)  # type: ignore[arg-type]
    rows = [envs.reset_row(), *play(envs, 14)]
    for t, row in enumerate(rows):
        # Four steps and a reset: a cycle of five rows, in every env.
        episode, step = divmod(t, length + 1)
        for i in range(num_envs):
            count = read(row["obs"][i])
            assert (count.episode, count.step) == (episode_seed(seed, i, episode) % 65536, step)
            assert row["reward"][i] == step
            assert row["is_first"][i] == (step == 0)
            assert row["is_last"][i] == (step == length)
            assert row["is_terminal"][i] == (step == length and ends == "terminated")
            if step == 0:
                assert count.action is None
                np.testing.assert_array_equal(row["action"][i], 0)
            elif kind == "discrete":
                assert count.action is not None
                np.testing.assert_array_equal(row["action"][i], np.eye(3)[int(count.action[0])])
            else:
                np.testing.assert_allclose(row["action"][i], count.action, rtol=1e-6)
    assert envs.env_steps == num_envs * sum(not row["is_first"][0] for row in rows)


def test_the_action_is_the_one_just_sent() -> None:
    envs = Envs(CounterEnv, num_envs=1, seed=0)
    envs.reset_row()
    for sent in (3 / LEVELS, -9 / LEVELS):
        row = envs.step(np.full((1, 2), sent, np.float32))
        np.testing.assert_allclose(read(row["obs"][0]).action, sent, rtol=1e-6)


def test_the_row_has_the_action_as_it_was_taken() -> None:
    envs = Envs(CounterEnv, num_envs=1, seed=0)
    envs.reset_row()
    np.testing.assert_array_equal(envs.step(np.array([[7.0, -2.0]], np.float32))["action"], [[1, -1]])
    envs = Envs(partial(CounterEnv, actions="discrete", action_size=3), num_envs=1, seed=0)
    envs.reset_row()
    np.testing.assert_array_equal(envs.step(np.array([[0.2, 5.0, -1.0]], np.float32))["action"], [[0, 1, 0]])


def test_an_env_may_scribble_on_what_it_is_given_and_reuse_what_it_returns() -> None:
    class Careless(CounterEnv):
        buffer = np.zeros((64, 64, 3), np.uint8)

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            obs, *rest = super().step(action)
            self.buffer[:] = obs
            action[:] = 0
            return self.buffer, *rest  # type: ignore[return-value]

    envs = Envs(Careless, num_envs=1, seed=0)
    envs.reset_row()
    one, two = (envs.step(np.ones((1, 2), np.float32)) for _ in range(2))
    assert (read(one["obs"][0]).step, read(two["obs"][0]).step) == (1, 2)
    np.testing.assert_array_equal(one["action"], 1)


def test_action_repeat_counts_as_env_steps() -> None:
    cfg = EnvConfig(id=third_party.ENV_ID, action_repeat=3, time_limit=8)
    envs = Envs(lambda: make_env(cfg), num_envs=2, seed=0)
    envs.reset_row()
    counts = []
    for _ in range(5):
        envs.step(np.zeros((2, 3), np.float32))
        counts.append(envs.env_steps)
    assert counts == [6, 12, 16, 16, 22]  # 3, 3, 2 steps each, a reset, 3 steps


MAKERS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "counter": partial(CounterEnv, length=6),
    "pendulum": lambda: make_env(EnvConfig(time_limit=12)),
    "pendulum-fast": lambda: make_env(EnvConfig(time_limit=12, fast_render=True)),
    "cartpole": lambda: make_env(EnvConfig(id="CartPole-v1")),
    "pendulum-tv": lambda: make_env(EnvConfig(time_limit=12, tv=TVSpec(source="static", threshold=0.5))),
    "cartpole-remote": lambda: make_env(EnvConfig(id="CartPole-v1", tv=TVSpec(source="static", trigger="remote"))),
    "dots-passive": lambda: make_env(
        EnvConfig(
            id=third_party.ENV_ID, tv=TVSpec(source="static", trigger="passive", probability=0.5, persistence="sticky")
        )
    ),
    "dots-sticky-pool": lambda: make_env(
        EnvConfig(
            id=third_party.ENV_ID,
            tv=TVSpec(source="static", trigger="remote", persistence="sticky", pool=3, region="patch"),
        )
    ),
    "dots-state": lambda: make_env(
        EnvConfig(id=third_party.ENV_ID, tv=TVSpec(source="static", trigger="state", when="place[0] > 0.5"))
    ),
    "switches": lambda: make_env(EnvConfig(id=third_party.SWITCHES_ID, tv=TVSpec(source="static", trigger="remote"))),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_seeds_give_equal_rows(make: Callable[[], gym.Env[Any, Any]]) -> None:
    a, b = (Envs(make, num_envs=2, seed=5) for _ in range(2))
    assert_equal_rows(a.reset_row(), b.reset_row())
    rows_a, rows_b = play(a, 30), play(b, 30)
    for row_a, row_b in zip(rows_a, rows_b, strict=True):
        assert_equal_rows(row_a, row_b)
    a.close()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_other_envs_seeds_and_episodes_begin_differently(make: Callable[[], gym.Env[Any, Any]]) -> None:
    envs, other = Envs(make, num_envs=2, seed=5), Envs(make, num_envs=2, seed=6)
    first, second, third = envs.reset_row()["obs"], envs.reset_row()["obs"], other.reset_row()["obs"]
    pictures = [*first, *second, *third]
    different = {picture.tobytes() for picture in pictures}
    assert len(different) == len(pictures)


def test_tv_pictures_differ_between_envs_and_episodes() -> None:
    make = partial(make_env, EnvConfig(tv=TVSpec(source="static", trigger="always")))
    envs = Envs(make, num_envs=2, seed=5)
    envs.reset_row()
    rows = play(envs, 2)
    envs.reset_row()
    rows += play(envs, 2)
    assert all(row["tv_on"].all() for row in rows)
    assert len({picture.tobytes() for row in rows for picture in row["obs"]}) == 8


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("persistence", ["new", "sticky"])
def test_a_pool_is_the_same_pictures_in_every_env_episode_and_seed(size: int, persistence: Any) -> None:
    """A TV of one picture can be learned only if it never is another."""
    tv = TVSpec(source="static", trigger="remote", persistence=persistence, pool=size)
    shown = []
    for seed in (5, 6):
        envs = Envs(partial(make_env, EnvConfig(id=third_party.ENV_ID, time_limit=6, tv=tv)), num_envs=2, seed=seed)
        rows = [envs.reset_row(), *play(envs, 60)]
        shown.append({row["obs"][i].tobytes() for row in rows for i in range(2) if row["tv_on"][i]})
    assert shown[0] == shown[1]
    assert len(shown[0]) == size


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("played", [0, 3, 6, 7, 20])
def test_a_restored_run_goes_on_with_equal_rows(make: Callable[[], gym.Env[Any, Any]], played: int) -> None:
    """6 and 7 are the last row of an episode of the counter and of the Pendulum, and the first of the next."""
    envs = Envs(make, num_envs=2, seed=5)
    rows = [envs.reset_row(), *play(envs, played)]
    state = json.loads(json.dumps(envs.state_dict()))
    steps = envs.env_steps
    restored = Envs(make, num_envs=2, seed=5)
    assert_equal_rows(restored.load_state_dict(state), rows[-1])
    assert restored.env_steps == steps
    for a, b in zip(play(envs, 25, seed=1), play(restored, 25, seed=1), strict=True):
        assert_equal_rows(a, b)
    assert restored.env_steps == envs.env_steps
    assert restored.state_dict() == envs.state_dict()


@pytest.mark.parametrize("name", ["pendulum-tv", "dots-passive", "dots-sticky-pool", "dots-state", "switches"])
def test_the_restored_tv_was_really_on(name: str) -> None:
    envs = Envs(MAKERS[name], num_envs=2, seed=5)
    envs.reset_row()
    tv_on = np.stack([row["tv_on"] for row in play(envs, 20)])
    assert 0 < tv_on.mean() < 1


def test_the_saved_state_does_not_move_on() -> None:
    envs = Envs(CounterEnv, num_envs=1, seed=0)
    envs.reset_row()
    play(envs, 2)
    state = envs.state_dict()
    before = json.dumps(state)
    play(envs, 1)
    assert json.dumps(state) == before


@pytest.mark.parametrize(("num_envs", "seed"), [(2, 1), (1, 0)])
def test_a_state_of_other_envs_is_refused(num_envs: int, seed: int) -> None:
    envs = Envs(CounterEnv, num_envs=1, seed=1)
    envs.reset_row()
    with pytest.raises(UserError, match="resume with the settings of the saved run"):
        Envs(CounterEnv, num_envs, seed).load_state_dict(envs.state_dict())


def test_an_env_that_cannot_be_restored_is_called_out() -> None:
    class Wild(CounterEnv):
        draws = np.random.default_rng(0)

        def render(self) -> np.ndarray:  # type: ignore[override]
            return self.draws.integers(0, 256, (64, 64, 3), np.uint8)

    envs = Envs(Wild, num_envs=1, seed=0)
    envs.reset_row()
    play(envs, 2)
    with pytest.warns(RuntimeWarning, match=r"Wild \(env 0, episode 0, step 2\) did not come back"):
        Envs(Wild, num_envs=1, seed=0).load_state_dict(envs.state_dict())


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -1e39])
def test_a_reward_that_is_not_finite_is_caught_in_its_own_step(reward: float) -> None:
    class Bad(CounterEnv):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            obs, _, *rest = super().step(action)
            return obs, reward if self.count == 3 else 0.0, *rest  # type: ignore[return-value]

    envs = Envs(Bad, num_envs=2, seed=0)
    envs.reset_row()
    play(envs, 2)
    with pytest.raises(UserError, match=r"Bad \(env 0, episode 0, step 3\) returned the reward"):
        play(envs, 1)


def broken_from_the_start() -> CounterEnv:
    raise ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_oserror_of_an_env_that_is_made_is_told_as_the_envs(workers: int) -> None:
    with pytest.raises(
        UserError, match=r"An env could not be made: ConnectionRefusedError\(111, .*\); look at the env"
    ):
        Envs(broken_from_the_start, num_envs=2, seed=0, workers=workers)


@pytest.mark.parametrize("call", ["reset", "step"])
def test_an_envs_own_oserror_is_told_as_the_envs(call: str) -> None:
    """The run's are about what it writes: there the user is told to make room."""

    def broken(*args: Any, **more: Any) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")

    env = CounterEnv()
    setattr(env, call, broken)
    envs = Envs(lambda: env, num_envs=1, seed=0)
    with pytest.raises(UserError, match=r"Counter.* raised ConnectionResetError\(104, .*\); look at the env"):  # noqa: PT012
        envs.reset_row()
        play(envs, 1)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros((32, 64, 3), np.uint8), r"uint8 \(32, 64, 3\)"),
        (np.zeros((64, 64, 3), np.float32), r"float32 \(64, 64, 3\)"),
        ([1, 2], "list"),
    ],
)
def test_an_observation_of_the_wrong_kind(wrong: Any, got: str) -> None:
    class Bad(CounterEnv):
        def render(self) -> np.ndarray:  # type: ignore[override]
            return wrong if self.count == 1 else super().render()  # type: ignore[no-any-return]

    envs = Envs(Bad, num_envs=1, seed=0)
    envs.reset_row()
    with pytest.raises(UserError, match=rf"Bad \(env 0, episode 0, step 1\) returned the observation {got} where"):
        play(envs, 1)


def test_actions_of_the_wrong_shape_or_not_finite() -> None:
    envs = Envs(CounterEnv, num_envs=2, seed=0)
    envs.reset_row()
    with pytest.raises(ValueError, match=r"shape \(2, 2\), not \(2, 1\)"):
        envs.step(np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        envs.step(np.full((2, 2), np.nan, np.float32))


def test_reset_comes_first() -> None:
    envs = Envs(CounterEnv, num_envs=1, seed=0)
    with pytest.raises(RuntimeError, match="reset_row"):
        envs.step(np.zeros((1, 2), np.float32))
    with pytest.raises(RuntimeError, match="reset_row"):
        envs.state_dict()


def test_no_envs_at_all() -> None:
    with pytest.raises(UserError, match="at least 1"):
        Envs(CounterEnv, num_envs=0, seed=0)


def test_episode_seeds_are_all_different_and_fit_every_env() -> None:
    seeds = [episode_seed(s, i, k) for s in range(10) for i in range(10) for k in range(10)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_closing_one_env_leaves_the_others_alone(env_id: str) -> None:
    """The evaluation closes its envs while training goes on; both share one pygame."""
    alone, beside = (Envs(lambda: make_env(EnvConfig(id=env_id)), num_envs=1, seed=0) for _ in range(2))
    expected = [alone.reset_row(), *play(alone, 4)]
    rows = [beside.reset_row(), *play(beside, 2)]
    alone.close()
    rng = np.random.default_rng(0)
    for _ in range(2):
        random_actions(beside, rng)
    rows += [beside.step(random_actions(beside, rng)) for _ in range(2)]
    for a, b in zip(expected, rows, strict=True):
        assert_equal_rows(a, b)


def test_an_env_that_fails_at_its_end_costs_nothing() -> None:
    class Stubborn(CounterEnv):
        def close(self) -> None:
            raise ValueError("no")

    envs = Envs(Stubborn, 2, 0)
    envs.reset_row()
    envs.close()
