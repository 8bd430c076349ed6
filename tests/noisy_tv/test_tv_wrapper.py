"""The TV in front of an env: it is seen exactly when it says so, and the env never notices it."""

import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer_lpm.noisy_tv import (
    NoisyTV,
    NoisyTVError,
    NoisyTVWrapperContinuous,
    NoisyTVWrapperDiscrete,
    NoisyTVWrapperMultiDiscrete,
    TVSpec,
    add_tv,
)
from dreamer_lpm.noisy_tv.images import Collection, Pool, static
from tests.noisy_tv.drift import (
    HEIGHT,
    PUSHES,
    SWITCHES,
    UNEQUAL,
    WIDTH,
    ClaimsToBeOn,
    DrawsFromTheEnv,
    Drift,
    FiresByChance,
    RewardFree,
    play,
    sampled_actions,
    tv,
)

SPACES = [UNEQUAL, PUSHES, SWITCHES]


def assert_env_never_notices(env: NoisyTV, seed: int = 0, steps: int = 8) -> None:
    """Plays a twin without TV alongside, with the actions that reach the env; compares all there is."""
    noisy = env.unwrapped
    clean = Drift(noisy.action_space)
    frame, info = env.reset(seed=seed, options={"a": 1})
    clean_frame, clean_info = clean.reset(seed=seed, options={"a": 1})
    assert info["options"] == clean_info["options"]
    assert_tv_on_is_the_truth(env.tv, frame, clean_frame, info["tv_on"])
    for action in sampled_actions(env, seed, steps):
        frame, *outcome, info = env.step(action)
        clean_frame, *clean_outcome, _ = clean.step(noisy.actions[-1])
        assert outcome == clean_outcome
        np.testing.assert_array_equal(noisy.state, clean.state)
        assert noisy.np_random.bit_generator.state == clean.np_random.bit_generator.state
        assert_tv_on_is_the_truth(env.tv, frame, clean_frame, info["tv_on"])


def assert_tv_on_is_the_truth(spec: TVSpec, frame: np.ndarray, clean: np.ndarray, tv_on: bool) -> None:
    differs = (frame != clean).any(axis=-1)
    assert tv_on is bool(differs.any())
    share = {"full": 1, "quadrant": 2, "patch": 4}[spec.region]
    differs[: HEIGHT // share, WIDTH - WIDTH // share :] = False
    assert not differs.any(), "the TV left its region"


specs = st.builds(
    TVSpec,
    source=st.just("static"),
    trigger=st.sampled_from(["action", "remote", "passive", "always", "state"]),
    when=st.none(),
    threshold=st.floats(0, 0.99),
    region=st.sampled_from(["full", "quadrant", "patch"]),
    persistence=st.sampled_from(["new", "sticky"]),
    pool=st.sampled_from([None, 1, 3]),
    control=st.sampled_from([None, "off", "sham"]),
    noop=st.just(6),
)


@given(spec=specs, space=st.sampled_from(SPACES), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_the_env_never_notices_any_tv(spec, space, seed):
    when = (lambda env, info: env.state[1] % 2) if spec.trigger == "state" else None
    assert_env_never_notices(tv(spec, space, when=when), seed)


@pytest.mark.parametrize("mistake", [RewardFree, DrawsFromTheEnv, ClaimsToBeOn])
def test_planted_interference_is_caught(mistake):
    spec = TVSpec(source="static")
    assert_env_never_notices(tv(spec, cls=NoisyTVWrapperDiscrete))
    with pytest.raises(AssertionError):
        assert_env_never_notices(tv(spec, cls=mistake))


def test_the_env_keeps_its_own_array():
    env = tv(TVSpec(source="static", trigger="always", region="patch"))
    frame, _ = env.reset(seed=0)
    assert not np.shares_memory(frame, env.unwrapped._buffer)


def assert_the_designated_action_alone_switches(cls: Any) -> None:
    for designated in (None, 5, 6):
        env = tv(TVSpec(source="static", tv_action=designated), cls=cls)
        actions = sampled_actions(env, 3, 60)
        shown = [tv_on for _, tv_on in play(env, 0, actions)[1:]]
        assert shown == [action == (designated or 7) for action in actions]
        assert env.unwrapped.actions == actions, "the action must still do its usual job"


def test_a_discrete_tv_is_switched_by_its_action_and_never_by_chance():
    assert_the_designated_action_alone_switches(NoisyTVWrapperDiscrete)
    with pytest.raises(AssertionError):
        assert_the_designated_action_alone_switches(FiresByChance)


@pytest.mark.parametrize(
    ("torque", "shown"),
    [(0, False), (1.5, False), (-1.5, False), (1.5001, True), (-1.5001, True), (2, True), (9, True)],
)
def test_threshold_on_the_torque_of_pendulum(torque, shown):
    env = tv(TVSpec(source="static"), gym.spaces.Box(-2, 2, (1,)))
    assert play(env, 0, [np.float32([torque])])[1][1] is shown
    assert env.unwrapped.actions == [np.float32(torque)]


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        ([0, 2, 10], False),  # the middle of each range
        ([0.75, 3.5, 25], False),  # exactly at 0.75 of each half range
        ([-0.75, 0.5, -5], False),
        ([0, 0, 10], True),  # zero is an extreme of the second component
        ([0, 2, 25.1], True),
        ([0, 2, -5.1], True),
        ([0.76, 2, 10], True),
    ],
)
def test_threshold_with_unequal_bounds(action, shown):
    assert play(tv(TVSpec(source="static"), UNEQUAL), 0, [np.float32(action)])[1][1] is shown


@given(
    threshold=st.floats(0, 0.99),
    low=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2),
    ranges=st.lists(st.floats(0.5, 100, width=32), min_size=2, max_size=2),
    fractions=st.lists(st.floats(-1, 1), min_size=2, max_size=2),
)
@settings(deadline=None)
def test_the_threshold_is_a_fraction_of_the_half_range(threshold, low, ranges, fractions):
    low, high = np.float64(low), np.float64(low) + np.float64(ranges)
    env = tv(TVSpec(source="static", threshold=threshold), gym.spaces.Box(low, high, dtype=np.float64))
    extremes = np.abs(fractions)
    if np.all(np.abs(extremes - threshold) > 1e-9):
        action = (low + high) / 2 + np.float64(fractions) * (high - low) / 2
        assert play(env, 0, [action])[1][1] is bool((extremes > threshold).any())


def test_remote_on_a_box_is_one_more_dimension_that_the_env_never_sees():
    env = tv(TVSpec(source="static", trigger="remote"), UNEQUAL)
    assert env.action_space == gym.spaces.Box(np.float32([-1, 0, -10, -1]), np.float32([1, 4, 30, 1]))
    presses = [-1, 0.5, 0.51, 1, 0]
    wild = [1, 4, 30]  # never matters to a remote
    shown = [tv_on for _, tv_on in play(env, 0, [np.float32([*wild, press]) for press in presses])[1:]]
    assert shown == [False, False, True, True, False]
    assert all(np.array_equal(action, np.float32(wild)) for action in env.unwrapped.actions)


def test_remote_on_discrete_actions_is_one_more_action_that_does_nothing_else():
    env = tv(TVSpec(source="static", trigger="remote", noop=6))
    assert env.action_space == gym.spaces.Discrete(4, start=5)
    shown = [tv_on for _, tv_on in play(env, 0, [5, 6, 7, 8, np.int64(8), 6])[1:]]
    assert shown == [False, False, False, True, True, False]
    assert env.unwrapped.actions == [5, 6, 7, 6, 6, 6]


@pytest.mark.parametrize(
    ("component", "choice", "shown"),
    [
        (None, None, [False, True, False, True, False]),  # the last choice of the last component
        (None, 0, [True, False, False, False, True]),
        (0, None, [False, False, False, True, True]),
        (1, None, [False, True, False, False, True]),
        (1, -1, [True, False, False, True, False]),
    ],
)
def test_one_choice_of_one_component_switches_and_still_does_its_job(component, choice, shown):
    env = tv(TVSpec(source="static", tv_component=component, tv_action=choice), SWITCHES)
    rows = [np.array(row) for row in ([0, -1, 0], [0, 2, 4], [0, 0, 2], [1, -1, 4], [1, 2, 0])]
    assert [tv_on for _, tv_on in play(env, 0, rows)[1:]] == shown
    np.testing.assert_array_equal(env.unwrapped.actions, rows)
    assert env.action_space == SWITCHES


def test_remote_on_a_row_of_choices_is_one_more_choice_of_two_that_the_env_never_sees():
    env = tv(TVSpec(source="static", trigger="remote"), SWITCHES)
    assert env.action_space == gym.spaces.MultiDiscrete([2, 4, 5, 2], start=[0, -1, 0, 0])
    rows = [np.array(row) for row in ([0, -1, 0, 0], [1, 2, 4, 0], [1, 2, 4, 1], [0, -1, 0, 1])]
    assert [tv_on for _, tv_on in play(env, 0, rows)[1:]] == [False, False, True, True]
    np.testing.assert_array_equal(env.unwrapped.actions, [row[:3] for row in rows])
    assert all(SWITCHES.contains(action) for action in env.unwrapped.actions)


def late(env, info):
    return env.state[1] >= 3


@pytest.mark.parametrize("given", [{"when": "state[1] >= 3"}, late])
@pytest.mark.parametrize("space", SPACES)
def test_a_state_switches_the_frame_that_shows_it(space, given):
    text, function = (given["when"], None) if isinstance(given, dict) else (None, given)
    actions = sampled_actions(Drift(space), 0, 5)
    arms = {}
    for control in (None, "sham", "off"):
        env = tv(TVSpec(source="static", trigger="state", when=text, control=control), space, when=function)
        assert env.action_space == space
        env.reset(seed=0)
        infos = [env.step(action)[4] for action in actions]
        arms[control] = ([info["tv_on"] for info in infos], [info["tv_triggered"] for info in infos])
    truth = [False, False, True, True, True]
    assert arms == {None: (truth, truth), "sham": ([False] * 5, truth), "off": ([False] * 5, [False] * 5)}


def test_a_state_holds_at_a_reset_too_and_what_a_reset_does_not_tell_counts_as_no():
    assert tv(TVSpec(source="static", trigger="state", when="state[1] == 0")).reset(seed=0)[1]["tv_on"]
    for spec, function in (({"when": "info.steps >= 0"}, None), ({}, lambda env, info: info["steps"] >= 0)):
        env = tv(TVSpec(source="static", trigger="state", **spec), when=function)
        assert env.reset(seed=0)[1]["tv_on"] is False
        assert env.step(5)[4]["tv_on"] is True
        assert env.reset()[1]["tv_on"] is False


def test_a_condition_on_what_info_never_tells_is_an_error_at_the_first_step():
    env = tv(TVSpec(source="static", trigger="state", when="info.speed > 0"))
    env.reset(seed=0)
    with pytest.raises(NoisyTVError, match=r"reads 'speed', which info has not: name what it has \(steps\)"):
        env.step(5)


def test_a_condition_that_nobody_would_read_is_refused():
    with pytest.raises(NoisyTVError, match="reads no condition"):
        tv(TVSpec(source="static"), when=late)


def test_info_tells_where_the_picture_is_and_whether_it_is_another():
    env = tv(TVSpec(source="static", persistence="sticky", region="quadrant"))
    env.reset(seed=0)
    infos = [env.step(action)[4] for action in (5, 7, 5, 7, 6)]
    assert [info["tv_new"] for info in infos] == [False, True, False, True, False]
    assert infos[0]["tv_mask"] is None
    masks = [info["tv_mask"] for info in infos[1:]]
    assert all(mask is env.mask for mask in masks)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:12, 10:] = True
    np.testing.assert_array_equal(env.mask, expected)
    with pytest.raises(ValueError, match="read-only"):
        env.mask[0, 0] = True


def test_one_picture_is_new_only_when_it_comes_on():
    env = tv(TVSpec(source="static", pool=1))
    env.reset(seed=0)
    assert [env.step(action)[4]["tv_new"] for action in (7, 7, 7, 5, 7)] == [True, False, False, False, True]
    env.reset(seed=0)
    assert env.step(7)[4]["tv_new"] is True


@pytest.mark.parametrize("first", [5, 7])
def test_vector_envs_of_gymnasium_carry_the_info(first):
    envs = gym.vector.SyncVectorEnv([lambda: tv(TVSpec(source="static"))] * 2)
    envs.reset(seed=0)
    infos = envs.step(np.array([first, 12 - first]))[4]
    assert infos["tv_on"].tolist() == [first == 7, first == 5]
    watching = int(first == 5)
    assert infos["tv_mask"][watching].all()
    assert not np.any(infos["tv_mask"][1 - watching])


def test_pictures_come_from_a_branch_of_the_seed_and_from_nothing_else():
    """What earlier releases showed for a seed is what this one shows."""
    rng = np.random.default_rng(np.random.SeedSequence(9, spawn_key=(0x7E1E,)))
    expected = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(3)]
    for spec in (TVSpec(source="static"), TVSpec(source="static", trigger="remote", noop=6)):
        env = tv(spec)
        press = env.action_space.start + env.action_space.n - 1
        seen = [frame for frame, tv_on in play(env, 9, [press, 5, press, press]) if tv_on]
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("trigger", ["action", "remote", "passive"])
@pytest.mark.parametrize("space", SPACES)
def test_a_sham_has_the_same_button_and_nothing_happens(space, trigger):
    spec = {"source": "static", "trigger": trigger, "noop": 6}
    real, sham = tv(TVSpec(**spec), space), tv(TVSpec(**spec, control="sham"), space)
    assert sham.action_space == real.action_space
    actions = sampled_actions(real, 1, 40)
    pressed = []
    sham.reset(seed=0)
    for action in actions:
        *_, info = sham.step(action)
        assert info["tv_on"] is False
        pressed.append(info["tv_triggered"])
    assert pressed == [tv_on for _, tv_on in play(real, 0, actions)[1:]]
    assert {True, False} == set(pressed)


@pytest.mark.parametrize("space", SPACES)
def test_off_has_no_button(space):
    env = tv(TVSpec(source="static", trigger="remote", control="off"), space)
    assert env.action_space == space
    assert not any(tv_on for _, tv_on in play(env, 0, sampled_actions(env, 1, 40)))


def test_controls_load_no_pictures():
    for control in ("off", "sham"):
        add_tv(Drift(PUSHES), TVSpec(source="folder:/nowhere", control=control))
    with pytest.raises(NoisyTVError, match="no folder"):
        add_tv(Drift(PUSHES), TVSpec(source="folder:/nowhere"))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("trigger", ["action", "remote", "passive", "always"])
@pytest.mark.parametrize("persistence", ["new", "sticky"])
def test_chance_level_is_what_random_play_measures(space, trigger, persistence):
    spec = TVSpec(source="static", trigger=trigger, persistence=persistence, threshold=0.9, noop=6, region="patch")
    env = tv(spec, space)
    episodes = [play(env, seed, sampled_actions(env, seed, 20))[1:] for seed in range(100)]
    share = np.mean([tv_on for episode in episodes for _, tv_on in episode])
    assert share == pytest.approx(spec.chance_level(space, steps=20), abs=0.04)


def test_reset_shows_the_tv_only_when_it_is_always_on():
    for trigger in ("action", "remote", "passive", "always"):
        env = tv(TVSpec(source="static", trigger=trigger, probability=1.0, noop=6))
        for seed in (0, None):
            _, info = env.reset(seed=seed)
            assert info["tv_on"] is (trigger == "always")


def same(one: list[tuple[np.ndarray, bool]], two: list[tuple[np.ndarray, bool]]) -> bool:
    return all(np.array_equal(a, b) and x == y for (a, x), (b, y) in zip(one, two, strict=True))


@pytest.mark.parametrize("trigger", ["action", "passive", "always"])
def test_an_episode_is_replayed_from_its_seed_and_actions(trigger):
    spec = TVSpec(source="static", trigger=trigger)
    env = tv(spec)
    actions = sampled_actions(env, 2, 30)
    first = play(env, 11, actions)
    assert not same(first, play(env, 12, actions))
    assert same(first, play(env, 11, actions)), "whatever was played in between"
    assert same(first, play(tv(spec), 11, actions)), "in a fresh env too"


def test_a_reset_without_seed_goes_on_with_the_same_generator():
    env = tv(TVSpec(source="static", trigger="always"))
    frames = [env.reset(seed=4)[0], env.reset()[0], env.reset()[0]]
    again = [env.reset(seed=4)[0], env.reset()[0], env.reset()[0]]
    assert len({frame.tobytes() for frame in frames}) == 3
    np.testing.assert_array_equal(frames, again)


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    play(tv(TVSpec(source="static", trigger="passive")), 0, [5] * 20)
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


def test_new_brings_another_picture_each_step_and_then_the_env_is_back():
    seen = play(tv(TVSpec(source="static")), 0, [7, 7, 5])
    assert [tv_on for _, tv_on in seen] == [False, True, True, False]
    assert not np.array_equal(seen[1][0], seen[2][0])


def test_sticky_keeps_a_picture_until_the_next_trigger_or_the_end():
    env = tv(TVSpec(source="static", persistence="sticky", region="patch"))
    seen = play(env, 0, [5, 7, 5, 6, 7, 5])
    assert [tv_on for _, tv_on in seen] == [False, False, True, True, True, True, True]
    patches = [frame[: HEIGHT // 4, -(WIDTH // 4) :].tobytes() for frame, _ in seen]
    assert patches[2] == patches[3] == patches[4] != patches[5] == patches[6]
    assert env.reset()[1]["tv_on"] is False


@pytest.mark.parametrize("size", [1, 4])
def test_a_pool_is_the_same_few_pictures_everywhere(size):
    pools = []
    for seed, space in ((0, PUSHES), (99, UNEQUAL)):
        env = tv(TVSpec(source="static", trigger="always", pool=size), space)
        pools.append({frame.tobytes() for frame, _ in play(env, seed, sampled_actions(env, seed, 60))})
    assert pools[0] == pools[1]
    assert len(pools[0]) == size


def test_a_pool_larger_than_the_source_is_refused():
    def two_pictures(rng, shape):
        return np.full(shape, rng.integers(2), np.uint8)

    play(tv(TVSpec(trigger="always", pool=2), images=two_pictures), 0, [])
    with pytest.raises(NoisyTVError, match="2 distinct pictures, the pool asks for 3: use a smaller pool"):
        play(tv(TVSpec(trigger="always", pool=3), images=two_pictures), 0, [])


def test_a_source_that_says_how_much_it_has_is_refused_at_once():
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(NoisyTVError, match="4 distinct pictures, the pool asks for 5"):
        tv(TVSpec(trigger="always", pool=5), images=Collection(pictures))
    pictures[2:] = 9  # and where some of them are equal, once it is known
    with pytest.raises(NoisyTVError, match="2 distinct pictures, the pool asks for 4"):
        play(tv(TVSpec(trigger="always", pool=4), images=Collection(pictures)), 0, [])


def test_a_pool_of_all_there_are_takes_each_once_and_draws_none_twice(monkeypatch):
    drawn = []
    fit = Collection.fit
    monkeypatch.setattr(Collection, "fit", lambda self, index, shape: drawn.append(index) or fit(self, index, shape))
    pictures = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    pool = Pool(Collection(pictures), 50)
    seen = {int(pool(np.random.default_rng(seed), (4, 4, 3))[0, 0, 0]) for seed in range(500)}
    assert seen == set(range(50))
    assert sorted(drawn[:50]) == list(range(50)), "to choose them; the rest is shown"


def test_a_source_may_draw_into_one_array_again_and_again():
    board = np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def drawn(rng, shape):
        board[:] = rng.integers(256)
        return board

    pool = Pool(drawn, 5)
    assert len({int(pool(np.random.default_rng(seed), board.shape)[0, 0, 0]) for seed in range(200)}) == 5
    env = tv(TVSpec(trigger="always"), images=drawn)
    env.reset(seed=0)
    told = [env.step(action)[4]["tv_new"] for action in sampled_actions(env, 0, 20)]
    assert sum(told) >= 19


def test_the_fixes_for_unbounded_actions_work():
    far = gym.wrappers.ClipAction(Drift(gym.spaces.Box(-2, 2, (1,), np.float32)))
    with pytest.raises(NoisyTVError, match=r"TransformAction \(a ClipAction, which unbounds them, belongs outside"):
        add_tv(far, TVSpec(source="static"))
    gym.wrappers.ClipAction(add_tv(far.env, TVSpec(source="static")))
    unit = gym.spaces.Box(-1, 1, (1,), np.float32)
    add_tv(gym.wrappers.TransformAction(far, lambda action: 2 * action, unit), TVSpec(source="static"))


def test_an_image_source_that_ignores_the_shape_is_refused():
    def dot(rng, shape):
        return np.zeros((1, 1, 3), np.uint8)

    with pytest.raises(NoisyTVError, match=r"must draw uint8 pictures of the shape it is given, here \(24, 20, 3\)"):
        tv(TVSpec(trigger="always"), images=dot).reset()


class Blind(Drift):
    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(PUSHES)
        self.observation_space = gym.spaces.Box(0, 1, shape, dtype)


@pytest.mark.parametrize(("shape", "dtype"), [((3,), np.float32), ((8, 8, 3), np.float32), ((8, 8, 1), np.uint8)])
def test_an_env_without_pictures_is_told_how_to_get_them(shape, dtype):
    with pytest.raises(NoisyTVError, match=r"wrap the env in gymnasium\.wrappers\.AddRenderObservation"):
        add_tv(Blind(shape, dtype), TVSpec(source="static"))


@pytest.mark.parametrize(
    ("space", "spec", "fix"),
    [
        (gym.spaces.MultiBinary(2), {}, "flatten the actions"),
        (gym.spaces.Box(-np.inf, np.inf, (2,)), {}, 'use the trigger "remote"'),
        (gym.spaces.Box(np.float32([0, 1]), np.float32([1, 1])), {}, "low < high"),
        (gym.spaces.Box(0, 9, (2,), np.int64), {}, r"turn them into floats with gymnasium\.wrappers\.TransformAction"),
        (gym.spaces.Box(-1, 1, (2, 2)), {"trigger": "remote"}, "flatten the actions"),
        (gym.spaces.Box(-1, 1, (2,)), {"tv_action": 0}, "this env's are a Box: leave them out, and set threshold"),
        (gym.spaces.Box(-1, 1, (2,)), {"tv_component": 1}, "this env's are a Box"),
        (PUSHES, {"tv_component": 0}, "tv_component needs MultiDiscrete actions"),
        (PUSHES, {"tv_action": 8}, "TV tv_action 8 is no action of this env: use one of 5 to 7"),
        (PUSHES, {"trigger": "remote"}, "TV noop 0 is no action of this env: use one of 5 to 7"),
        (SWITCHES, {"tv_component": 3}, "TV tv_component 3 is no component of this env's actions: use 0 to 2"),
        (SWITCHES, {"tv_component": -1}, "use 0 to 2"),
        (SWITCHES, {"tv_component": 1, "tv_action": 3}, "TV tv_action 3 is no action of this env: use one of -1 to 2"),
        (gym.spaces.MultiDiscrete([[2, 2]]), {}, "flatten the actions"),
        (gym.spaces.MultiDiscrete([[2, 2]]), {"trigger": "remote"}, "flatten the actions"),
        (PUSHES, {"trigger": "state"}, 'the TV trigger "state" needs a condition: give `when`'),
    ],
)
def test_actions_that_do_not_fit_name_the_fix(space, spec, fix):
    with pytest.raises(NoisyTVError, match=fix):
        tv(TVSpec(source="static", **spec), space)


def test_each_sister_refuses_the_actions_of_the_other():
    with pytest.raises(NoisyTVError, match="use add_tv"):
        tv(TVSpec(), PUSHES, NoisyTVWrapperContinuous)
    with pytest.raises(NoisyTVError, match="use add_tv"):
        tv(TVSpec(), UNEQUAL, NoisyTVWrapperDiscrete)
    with pytest.raises(NoisyTVError, match="use add_tv"):
        tv(TVSpec(), PUSHES, NoisyTVWrapperMultiDiscrete)


def test_unbounded_actions_can_have_a_remote():
    env = tv(TVSpec(source="static", trigger="remote"), gym.spaces.Box(-np.inf, np.inf, (2,)))
    assert [tv_on for _, tv_on in play(env, 0, [np.float32([50, 0, 1]), np.float32([50, 0, 0])])] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("trigger", ["action", "remote"])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # the checker's advice on the env beneath
def test_gymnasiums_own_checker_is_content_and_the_env_can_be_made_again_from_its_spec(name, trigger):
    env = gym.wrappers.AddRenderObservation(gym.make(name, render_mode="rgb_array"))
    env = add_tv(env, TVSpec(source="static", trigger=trigger))
    check_env(env, skip_render_check=True)
    again = env.spec.make()
    assert isinstance(again, NoisyTV)
    assert again.tv == env.tv
    again.close()
    env.close()


class Thumbnail(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Every eighth pixel."""

    def __init__(self, env: gym.Env[np.ndarray, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (63, 63, 3), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::8, ::8]


def test_pendulum_swings_the_same_with_and_without_the_tv():
    def pendulum() -> Thumbnail:
        env = gym.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=20)
        return Thumbnail(gym.wrappers.AddRenderObservation(env))

    clean, noisy = pendulum(), add_tv(pendulum(), TVSpec(source="photos"))
    frame, clean_frame = noisy.reset(seed=5)[0], clean.reset(seed=5)[0]
    np.testing.assert_array_equal(frame, clean_frame)
    shown = []
    for action in sampled_actions(clean, 5, 20):
        frame, *outcome, info = noisy.step(action)
        clean_frame, *clean_outcome, _ = clean.step(action)
        assert outcome == clean_outcome
        np.testing.assert_array_equal(noisy.unwrapped.state, clean.unwrapped.state)
        assert info["tv_on"] is not np.array_equal(frame, clean_frame)
        assert info["tv_on"] is bool(abs(action[0]) > 1.5)
        shown.append(info["tv_on"])
    assert {True, False} == set(shown)
    assert clean_outcome[2] is True  # truncated, both
    clean.close()
    noisy.close()


def test_wrappers_that_belong_elsewhere_are_refused():
    with pytest.raises(NoisyTVError, match="there is a TV in this env already"):
        add_tv(gym.wrappers.TimeLimit(tv(TVSpec(source="static")), 9), TVSpec(source="static"))
    with pytest.raises(NoisyTVError, match="would not notice the resets of an Autoreset beneath it"):
        add_tv(gym.wrappers.Autoreset(Drift(PUSHES)), TVSpec(source="static"))


def test_it_tells_what_its_pictures_are():
    env = add_tv(Drift(PUSHES), TVSpec(source="static"))
    assert (env.shown.requested, env.shown.used) == ("static", "static")
    assert tv(TVSpec(source="static", control="sham")).shown is None
    assert add_tv(Drift(PUSHES), TVSpec(), static).shown is None, "whoever gave them knows"


def test_a_condition_may_be_given_as_text():
    text = "state[1] >= 4"
    spec = TVSpec(source="static", trigger="state")
    actions = [6] * 8
    given, stated = (
        play(env, 0, actions) for env in (tv(spec, when=text), tv(TVSpec(source="static", trigger="state", when=text)))
    )
    assert [on for _, on in given] == [on for _, on in stated] == [False] * 4 + [True] * 5
    with pytest.raises(NoisyTVError, match="compare numbers, as in"):
        tv(spec, when="state[0]")


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3), np.uint8), [np.zeros((8, 8, 3), np.uint8)]])
def test_pictures_that_nobody_draws_are_refused(images):
    with pytest.raises(NoisyTVError, match="of an array or a list of them make a Collection"):
        tv(TVSpec(), images=images)


def test_an_env_that_went_through_json_can_be_made_again():
    gym.register("DreamerLPMTest/Drift-v0", entry_point="tests.noisy_tv.drift:Drift", kwargs={"action_space": PUSHES})
    spec = TVSpec(source="static", trigger="remote", noop=6)
    env = add_tv(gym.make("DreamerLPMTest/Drift-v0", disable_env_checker=True), spec)
    assert env.spec is not None
    env.spec.kwargs = {}  # spaces do not go through JSON
    again = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again.kwargs = {"action_space": PUSHES}
    made = again.make(disable_env_checker=True)
    assert isinstance(made, NoisyTV)
    assert made.tv == spec
    with pytest.raises(NoisyTVError, match="unknown TV trigger"):
        add_tv(Drift(PUSHES), {"trigger": "magic"})  # type: ignore[arg-type]


def test_a_pool_of_a_collection_takes_no_memory_of_its_own():
    rng = np.random.default_rng(0)
    pool = Pool(Collection(rng.integers(0, 256, (40, 8, 8, 3), np.uint8)), 30)
    tracemalloc.start()
    shown = {pool(rng, (200, 200, 3)).tobytes()[:3000] for _ in range(300)}
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shown) == 30
    assert kept < 10 * 200 * 200 * 3, "30 pictures would be 3.6 MB"
