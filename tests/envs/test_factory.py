"""make_env: the frame, the actions, repeat and limit, and one clear line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from dreamer_lpm.envs import SUITES, EnvConfig, action_spec, check_env, factory, make_env, tv_chance
from dreamer_lpm.envs import wrappers as wrappers_module
from dreamer_lpm.envs.suites import gymnasium as suite_module
from dreamer_lpm.noisy_tv import TVSpec, check_tv
from dreamer_lpm.types import ActionSpec, UserError
from tests.envs import third_party
from tests.probes.counter_env import CounterEnv

third_party.register()

SPECS = {
    "Pendulum-v1": ActionSpec("continuous", 1),
    "CartPole-v1": ActionSpec("discrete", 2),
    "Acrobot-v1": ActionSpec("discrete", 3),
    "MountainCarContinuous-v0": ActionSpec("continuous", 1),
    third_party.ENV_ID: ActionSpec("continuous", 3),
    third_party.SWITCHES_ID: ActionSpec("discrete", 24),
}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def register(env_id: str, entry_point: Any, **kwargs: Any) -> EnvConfig:
    if env_id not in gym.registry:
        gym.register(env_id, entry_point=entry_point, **kwargs)
    return EnvConfig(id=env_id)


@pytest.mark.parametrize("env_id", SPECS)
def test_every_env_keeps_the_contract(env_id: str) -> None:
    env = make_env(EnvConfig(id=env_id))
    assert action_spec(env) == SPECS[env_id]
    assert env.observation_space == gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    check_env(env, steps=25)
    env.close()


@pytest.mark.parametrize("trigger", ["action", "remote"])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", third_party.ENV_ID])
def test_every_env_keeps_the_contract_behind_a_tv(env_id: str, trigger: Any) -> None:
    env = make_env(EnvConfig(id=env_id, tv=TVSpec(source="static", trigger=trigger)))
    assert action_spec(env).size == SPECS[env_id].size + (trigger == "remote")
    check_env(env, steps=25)
    check_tv(env, steps=25)
    env.close()


@pytest.mark.parametrize(("trigger", "size"), [("action", 24), ("remote", 48), ("passive", 24)])
def test_a_row_of_choices_behind_a_tv_is_one_choice(trigger: Any, size: int) -> None:
    env = make_env(EnvConfig(id=third_party.SWITCHES_ID, tv=TVSpec(source="static", trigger=trigger)))
    assert env.action_space == gym.spaces.Discrete(size)
    check_env(env, steps=40)
    check_tv(env, steps=40)


def test_every_combination_of_choices_is_played_once() -> None:
    env = make_env(EnvConfig(id=third_party.SWITCHES_ID))
    env.reset(seed=0)
    for action in range(24):
        env.step(action)
    dots: Any = env.unwrapped
    assert [row.tolist() for row in dots.received] == [[a, b, c] for a in (0, 1) for b in (-1, 0, 1) for c in range(4)]
    assert dots.received[0].dtype == np.int64


def test_a_button_is_one_part_of_the_choice() -> None:
    env = make_env(EnvConfig(id=third_party.SWITCHES_ID, tv=TVSpec(source="static", trigger="remote")))
    env.reset(seed=0)
    assert [env.step(action)[4]["tv_on"] for action in (0, 1, 46, 47)] == [False, True, False, True]
    dots: Any = env.unwrapped
    assert [row.tolist() for row in dots.received] == [[0, -1, 0]] * 2 + [[1, 1, 3]] * 2


def test_a_button_can_be_one_choice_too_many() -> None:
    class Many(third_party.Switches):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(render_mode)
            self.action_space = gym.spaces.MultiDiscrete([2, 8, 16])

    cfg = register("DreamerLPMTest/Many-v0", Many)
    assert make_env(cfg).action_space == gym.spaces.Discrete(256)
    with pytest.raises(UserError, match="it has more than 256 combinations") as error:
        make_env(EnvConfig(id=cfg.id, tv=TVSpec(source="static", trigger="remote")))
    one_line(error)


@pytest.mark.parametrize(
    ("env_id", "tv", "chance"),
    [
        ("CartPole-v1", None, None),
        ("Pendulum-v1", TVSpec(), 0.25),
        ("CartPole-v1", TVSpec(trigger="remote"), 1 / 3),
        (third_party.SWITCHES_ID, TVSpec(), 1 / 4),
        (third_party.SWITCHES_ID, TVSpec(trigger="remote"), 1 / 2),
        (third_party.ENV_ID, TVSpec(trigger="state", when="place[0] < 0.25"), 0.25),
        (third_party.ENV_ID, TVSpec(trigger="state", when="place[0] < 0.25", control="sham"), 0.0),
        ("CartPole-v1", TVSpec(trigger="remote", persistence="sticky"), 0.87),  # episodes of some 22 steps
        ("CartPole-v1", TVSpec(trigger="passive", probability=0.0, persistence="sticky"), 0.0),
    ],
)
def test_the_chance_level_is_that_of_the_envs_own_actions(env_id: str, tv: TVSpec | None, chance: float | None) -> None:
    assert tv_chance(EnvConfig(id=env_id, tv=tv)) == (None if chance is None else pytest.approx(chance, abs=0.03))


def test_random_play_finds_a_chance_level_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = EnvConfig("CartPole-v1", tv=TVSpec(trigger="remote", persistence="sticky"))
    found = tv_chance(cfg)
    monkeypatch.setattr(factory, "measure_chance", None)
    assert tv_chance(EnvConfig("CartPole-v1", tv=TVSpec(trigger="remote", persistence="sticky"))) == found


def test_an_env_without_a_limit_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "LAST_STEP", 5)
    env_id = "DreamerLPMTest/Endless-v0"
    gym.register(env_id, entry_point=third_party.Dots)
    for limit, length in ((None, 5), (7, 7)):
        env = make_env(EnvConfig(id=env_id, time_limit=limit))
        env.reset(seed=0)
        ends = [env.step(np.zeros(3, np.float32))[3] for _ in range(length)]
        assert ends == [False] * (length - 1) + [True]


def test_an_env_that_counts_its_own_frames_keeps_its_limit() -> None:
    """As Atari's do, whose registered limit is none."""
    for frames, limit, wrapped in ((108_000, None, False), (108_000, 7, True), (0, None, True)):
        env_id = f"DreamerLPMTest/Counts{frames}Frames-v0"
        gym.registry.pop(env_id, None)
        gym.register(env_id, lambda **kwargs: third_party.Dots(), kwargs={"max_num_frames_per_episode": frames})
        env = suite_module.SUITE.make(env_id, limit)
        assert isinstance(env, gym.wrappers.TimeLimit) is wrapped


def test_the_pendulum_is_the_right_way_up_and_in_rgb() -> None:
    """The rod is (204, 77, 77) on white; straight up it fills the upper half of the middle column."""
    env = make_env(EnvConfig())
    env.reset(seed=0)
    pendulum: Any = env.unwrapped
    pendulum.state = np.array([0.0, 0.0])
    obs, *_ = env.step(np.zeros(1, np.float32))
    np.testing.assert_array_equal(obs[[0, 0, 63, 63], [0, 63, 0, 63]], 255)
    assert (obs[20, 31] == [204, 77, 77]).all()
    assert (obs[44, 31] == 255).all()
    env.close()


def test_the_frame_is_the_envs_own_picture_shrunk_by_area() -> None:
    env = make_env(EnvConfig(id=third_party.ENV_ID))
    obs, _ = env.reset(seed=3)
    frame: Any = env.render()
    assert frame.shape == (80, 96, 3)
    np.testing.assert_array_equal(obs, cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA))
    assert abs(obs.mean() - frame.mean()) < 0.5  # area interpolation keeps the mean; picking pixels does not


def test_other_sizes() -> None:
    env = make_env(EnvConfig(id="CartPole-v1", size=32))
    assert env.reset(seed=0)[0].shape == (32, 32, 3)
    env.close()


def test_drawn_once_per_agent_step_and_never_before_the_first_reset() -> None:
    env = make_env(EnvConfig(id=third_party.ENV_ID, action_repeat=4))
    dots: Any = env.unwrapped
    assert dots.drawn == 0
    env.reset(seed=0)
    env.step(np.zeros(3, np.float32))
    env.step(np.zeros(3, np.float32))
    assert (dots.drawn, len(dots.received)) == (3, 8)


@pytest.mark.parametrize(
    ("sent", "torque"), [(1.0, 2.0), (-1.0, -2.0), (3.0, 2.0), (-9.0, -2.0), (0.0, 0.0), (0.5, 1.0)]
)
def test_unit_actions_span_the_pendulums_torque(sent: float, torque: float) -> None:
    env = make_env(EnvConfig())
    env.reset(seed=0)
    env.step(np.array([sent], np.float32))
    pendulum: Any = env.unwrapped
    assert pendulum.last_u == torque
    env.close()


def test_unit_actions_reach_unequal_bounds_exactly() -> None:
    env = make_env(EnvConfig(id=third_party.ENV_ID, action_repeat=1))
    env.reset(seed=0)
    for sent in (-1.0, 1.0, 0.0, -5.0, 5.0):
        env.step(np.full(3, sent, np.float32))
    dots: Any = env.unwrapped
    low, high, middle, clipped_low, clipped_high = dots.received
    np.testing.assert_array_equal([low, clipped_low], [third_party.LOW] * 2)
    np.testing.assert_array_equal([high, clipped_high], [third_party.HIGH] * 2)
    np.testing.assert_allclose(middle, (third_party.LOW + third_party.HIGH) / 2)


def test_discrete_actions_count_from_zero() -> None:
    class FromFive(CounterEnv):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(actions="discrete", action_size=3, render_mode=render_mode)
            self.action_space = gym.spaces.Discrete(3, start=5)

    env = make_env(register("DreamerLPMTest/FromFive-v0", FromFive))
    assert env.action_space == gym.spaces.Discrete(3)
    env.reset(seed=0)
    env.step(2)
    counter: Any = env.unwrapped
    assert counter.last_action == 7


def test_repeated_steps_add_their_rewards_and_stop_at_the_end() -> None:
    cfg = register("DreamerLPMTest/Counter5-v0", CounterEnv, kwargs={"length": 5})
    env = make_env(EnvConfig(id=cfg.id, action_repeat=3))
    assert env.reset(seed=0)[1]["env_steps"] == 0
    still = np.zeros(2, np.float32)
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["env_steps"]) == (1 + 2 + 3, False, False, 3)
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["env_steps"]) == (4 + 5, True, False, 2)


def test_time_limit_counts_env_steps_and_truncates() -> None:
    cfg = register("DreamerLPMTest/Counter99-v0", CounterEnv, kwargs={"length": 99}, max_episode_steps=50)
    env = make_env(EnvConfig(id=cfg.id, action_repeat=3, time_limit=7))
    env.reset(seed=0)
    steps = [env.step(np.zeros(2, np.float32)) for _ in range(3)]
    assert [(s[2], s[3], s[4]["env_steps"]) for s in steps] == [(False, False, 3), (False, False, 3), (False, True, 1)]


@pytest.mark.parametrize(
    ("env_id", "repeat"),
    [("Pendulum-v1", 2), ("CartPole-v1", 1), (third_party.ENV_ID, 1), ("gymnasium:Pendulum-v1", 2)],
)
def test_default_action_repeat(env_id: str, repeat: int) -> None:
    env = make_env(EnvConfig(id=env_id))
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["env_steps"] == repeat
    env.close()


def test_the_registered_time_limit_is_the_default() -> None:
    env = make_env(EnvConfig())
    env.reset(seed=0)
    length = 1
    while not env.step(np.zeros(1, np.float32))[3]:
        length += 1
    assert length == 200 / 2
    env.close()


def test_a_suite_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "counter/", "tests.envs.counter_suite")
    assert isinstance(make_env(EnvConfig(id="counter/9")).unwrapped, CounterEnv)


def test_no_window_is_opened() -> None:
    """In a process of its own, because pygame keeps the driver it found first."""
    code = (
        "import os; os.environ.pop('SDL_VIDEODRIVER', None); os.environ.pop('DISPLAY', None)\n"
        "import sys; from dreamer_lpm.envs import EnvConfig, make_env\n"
        "make_env(EnvConfig(id='CartPole-v1')).reset(seed=0)\n"
        "assert os.environ['SDL_VIDEODRIVER'] == 'dummy', os.environ['SDL_VIDEODRIVER']\n"
        "assert 'pygame' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# One clear line for each mistake.


@pytest.mark.parametrize(
    ("wrong", "near"), [("Pendulum-v9", "Pendulum-v1"), ("pendulum", "Pendulum-v1"), ("CartPol-v1", "CartPole-v1")]
)
def test_an_unknown_id_names_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        make_env(EnvConfig(id=wrong))
    assert f"no environment called {wrong}" in one_line(error)
    assert near in str(error.value)
    assert "needs the module that registers it: my_module:MyEnv-v0" in str(error.value)


def test_an_id_like_no_other_points_to_the_list() -> None:
    with pytest.raises(UserError, match="pprint_registry") as error:
        make_env(EnvConfig(id="0000000000"))
    one_line(error)


@pytest.mark.parametrize("wrong", [":Pendulum-v1", "./mine.py:Mine-v0", "envs/mine:Mine-v0"])
def test_what_stands_before_the_colon_is_a_module(wrong: str) -> None:
    with pytest.raises(UserError, match="a Python module's name stands before the colon") as error:
        make_env(EnvConfig(id=wrong))
    one_line(error)


class Asks(CounterEnv):
    def __init__(self, field: int, render_mode: str | None = None) -> None:
        super().__init__()


def test_an_env_that_cannot_be_made_without_arguments() -> None:
    cfg = register("DreamerLPMTest/Asks-v0", Asks)
    with pytest.raises(UserError, match=r"Asks-v0 cannot be made .*: 'field'.*register it with kwargs") as error:
        make_env(cfg)
    one_line(error)


class OldStep(third_party.Dots):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class OldReset(third_party.Dots):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class NoSeed(third_party.Dots):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class ManyRewards(third_party.Dots):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return (obs, np.array([reward, reward]), *rest)


class NoInfo(third_party.Dots):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], None)


@pytest.mark.parametrize("cls", [OldStep, OldReset, NoSeed, ManyRewards, NoInfo])
def test_answers_that_the_api_does_not_know(cls: type) -> None:
    cfg = register(f"DreamerLPMTest/{cls.__name__}-v0", cls, max_episode_steps=20)
    with pytest.raises(UserError, match=f"{cls.__name__}-v0 does not speak Gymnasium's API") as error:
        check_env(make_env(cfg))
    one_line(error)


class Broken(third_party.Dots):
    def step(self, action: Any) -> Any:
        raise ValueError("the env's own words")


def test_what_goes_wrong_within_an_env_is_told_as_it_is() -> None:
    with pytest.raises(ValueError, match="the env's own words"):
        check_env(make_env(register("DreamerLPMTest/Broken-v0", Broken)))


def test_a_missing_module_is_named() -> None:
    with pytest.raises(UserError, match="MyEnv-v0 needs the Python module no_such_module: install it") as error:
        make_env(EnvConfig(id="no_such_module:MyEnv-v0"))
    one_line(error)


def test_a_package_that_registers_ids_is_imported_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite_module.REGISTERED_BY, "ALE/", ("no_such_ale_py", "ale-py"))
    with pytest.raises(UserError, match=r"ALE/Pong-v5 needs .*run `pip install ale-py`") as error:
        make_env(EnvConfig(id="ALE/Pong-v5"))
    one_line(error)


@pytest.mark.parametrize(
    ("env_id", "module", "extra"), [("LunarLander-v3", "Box2D", "box2d"), ("Ant-v5", "mujoco", "mujoco")]
)
def test_a_missing_extra_is_named(env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"gymnasium.envs.{extra}"
    for loaded in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed, also where it is
    with pytest.raises(UserError) as error:
        make_env(EnvConfig(id=env_id))
    assert f'pip install "gymnasium[{extra}]"' in one_line(error)


class NoPicture(CounterEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"]}


class NoRenderMode(CounterEnv):
    def __init__(self) -> None:
        super().__init__()


@pytest.mark.parametrize("cls", [NoPicture, NoRenderMode])
def test_an_env_without_pictures(cls: type) -> None:
    cfg = register(f"DreamerLPMTest/{cls.__name__}-v0", cls)
    with pytest.raises(UserError, match=f"{cls.__name__}-v0 has no picture to learn from: it must offer") as error:
        make_env(cfg)
    one_line(error)


@pytest.mark.parametrize(
    ("frame", "described"),
    [
        (None, "None"),
        ("text", "a str"),
        (np.zeros((8, 8), np.uint8), r"a uint8 array of shape \(8, 8\)"),
        (np.zeros((8, 8, 3)), r"a float64 array of shape \(8, 8, 3\)"),
    ],
)
def test_a_picture_that_is_none(frame: Any, described: str) -> None:
    cfg = register("DreamerLPMTest/OddPicture-v0", CounterEnv)
    env = make_env(cfg)
    env.unwrapped.render = lambda: frame  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"OddPicture-v0 returned {described}; with render_mode") as error:
        env.reset(seed=0)
    one_line(error)


@pytest.mark.parametrize(
    ("failure", "fix"),
    [
        (RuntimeError("no display\nat all"), r"\(RuntimeError: no display at all\).*MUJOCO_GL=egl"),
        (DependencyNotInstalled("run `pip install pygame-ce`"), "picture: run `pip install pygame-ce`$"),
    ],
)
def test_a_renderer_that_fails(failure: Exception, fix: str) -> None:
    class Blind(CounterEnv):
        def render(self) -> np.ndarray:  # type: ignore[override]
            raise failure

        def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
            return np.zeros(1), {}

    cfg = register(f"DreamerLPMTest/Blind{type(failure).__name__}-v0", Blind)
    env = make_env(cfg)
    with pytest.raises(UserError, match=fix) as error:
        env.reset(seed=0)
    one_line(error)


@pytest.mark.parametrize(
    ("space", "fix"),
    [
        (gym.spaces.MultiBinary(3), "wrap it so that"),
        (gym.spaces.MultiDiscrete([2] * 9), "it has more than 256 combinations: fix or coarsen"),
        (gym.spaces.MultiDiscrete([9] * 99), "it has more than 256"),
        (gym.spaces.Dict({"a": gym.spaces.Discrete(2), "b": gym.spaces.Box(-1, 1, (300,))}), "wrap it so that"),
        (gym.spaces.Box(-1, 1, (2, 3)), r"its shape is \(2, 3\): flatten it"),
        (gym.spaces.Box(-1, 1, ()), r"its shape is \(\): flatten it"),
        (gym.spaces.Box(-np.inf, np.inf, (2,)), "finite bounds"),
        (gym.spaces.Box(np.float32([0, 1]), np.float32([1, 1])), "low < high"),
        (gym.spaces.Box(0, 9, (2,), np.int64), "its numbers are int64"),
    ],
    ids=str,
)
def test_an_action_space_that_is_not_supported(space: gym.Space[Any], fix: str) -> None:
    class Odd(CounterEnv):
        def __init__(self, space: gym.Space[Any], render_mode: str | None = None) -> None:
            super().__init__(render_mode=render_mode)
            self.action_space = space

    register("DreamerLPMTest/OddActions-v0", Odd)
    gym.registry["DreamerLPMTest/OddActions-v0"].kwargs["space"] = space
    with pytest.raises(UserError, match=f"of DreamerLPMTest/OddActions-v0 is not supported; .*{fix}") as error:
        make_env(EnvConfig(id="DreamerLPMTest/OddActions-v0"))
    one_line(error)


@pytest.mark.parametrize("field", ["size", "action_repeat", "time_limit"])
def test_numbers_below_one(field: str) -> None:
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        EnvConfig(**{field: 0})


@pytest.mark.parametrize(("repeat", "agent_steps"), [(1, 40), (4, 10)])
def test_the_chance_of_a_tv_that_stays_on_is_that_of_the_agents_steps(repeat: int, agent_steps: int) -> None:
    tv = TVSpec(trigger="passive", probability=0.1, persistence="sticky")
    cfg = EnvConfig("Pendulum-v1", action_repeat=repeat, time_limit=40, tv=tv)
    assert tv_chance(cfg) == pytest.approx(tv.chance_level(gym.spaces.Discrete(2), agent_steps), abs=0.03)


def test_a_number_that_is_none_is_found_anywhere_in_an_observation() -> None:
    bad, good = np.array([np.nan]), np.zeros(2)
    for nested in (
        lambda x: x, lambda x: {"a": good, "b": x}, lambda x: (good, x), lambda x: {"a": (good, {"b": x})}
    ):  # fmt: skip
        assert wrappers_module._is_finite(nested(good))
        assert not wrappers_module._is_finite(nested(bad))
