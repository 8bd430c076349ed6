"""check_tv passes every TV of ours, and finds each mistake planted in one."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer_lpm.noisy_tv import NoisyTVError, TVSpec, add_tv, check_tv, measure_chance
from dreamer_lpm.noisy_tv.images import static
from tests.noisy_tv import drift
from tests.noisy_tv.drift import PUSHES, SWITCHES, UNEQUAL, Drift, play, sampled_actions, tv

STATIC = TVSpec(source="static", region="patch", persistence="sticky")


@given(
    spec=st.builds(
        TVSpec,
        source=st.just("static"),
        trigger=st.sampled_from(["action", "remote", "passive", "always"]),
        threshold=st.floats(0, 0.9),
        probability=st.floats(0.1, 1),
        region=st.sampled_from(["full", "quadrant", "patch"]),
        persistence=st.sampled_from(["new", "sticky"]),
        pool=st.sampled_from([None, 1, 3]),
        control=st.sampled_from([None, "off", "sham"]),
        noop=st.just(6),
    ),
    space=st.sampled_from([UNEQUAL, PUSHES, SWITCHES]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=40)
def test_every_tv_of_ours_passes(spec, space, seed):
    check_tv(tv(spec, space), seed=seed)


@pytest.mark.parametrize("when", ["state[1] >= 4", "info.steps == 2 or info.steps > 6"])
@pytest.mark.parametrize("persistence", ["new", "sticky"])
def test_a_tv_that_the_state_switches_passes(when, persistence):
    check_tv(tv(TVSpec(source="static", trigger="state", when=when, persistence=persistence)))
    spec = TVSpec(source="static", trigger="state", persistence=persistence)
    check_tv(tv(spec, when=lambda env, info: env.state[0] > 0))


class DrawsItsOwn(Drift):
    """An env that its seed does not determine."""

    dice = np.random.default_rng(0)

    def step(self, action):
        self.state[0] += self.dice.normal()
        return super().step(action)


@pytest.mark.parametrize(
    ("mistake", "breach"),
    [
        (drift.RewardFree, "the TV changed the reward"),
        (drift.EndsEarly, "the TV changed the end of the episode"),
        (drift.SwallowsTheAction, "the TV changed the reward"),
        (drift.DrawsFromTheEnv, "the TV changed the (reward|env's random numbers)"),
        (drift.DrawsFromTheWorld, "the TV changed numpy's global generator"),
        (drift.HasItsOwnDice, "The TV is not determined by its seed"),
        (drift.FiresByChance, "tv_triggered is (True|False) where the trigger 'action' says"),
        (drift.ClaimsToBeOn, "tv_on is True where the spec makes it False"),
        (drift.HidesWhileOn, "tv_on is False where the spec makes it True"),
        (drift.Leaks, "the TV left its region"),
        (drift.MasksAnotherPlace, "tv_mask is not the region of the spec"),
        (drift.AlwaysNew, "tv_new is True where the picture says False"),
        (drift.NumpyFlags, r'info\["tv_on"\] is 0.0 in step 1: it must be a bool'),
        (drift.ExtraButton, r"actions are Discrete\(4, start=5\), those of its trigger Discrete\(3, start=5\)"),
        (drift.Greyish, "the TV changed the observation space"),
        (drift.FloatFrames, r"The TV gave a frame of float32 \(\d+, \d+, 3\) in step 1, not of Box"),
        (drift.ForgetsThePool, r"the TV showed \d+ pictures in 64 steps, and its pool holds 2"),
    ],
)
def test_a_planted_mistake_is_found(mistake, breach):
    with pytest.raises(NoisyTVError, match=breach) as caught:
        check_tv(mistake(Drift(PUSHES), STATIC, static))
    assert "\n" not in str(caught.value)


class DrawsOnDemand:
    """Planted mistake: pictures that no seed determines."""

    dice = np.random.default_rng(0)

    def __call__(self, rng, shape):
        return self.dice.integers(0, 256, shape, np.uint8)


def test_pictures_that_no_seed_determines_are_found():
    with pytest.raises(NoisyTVError, match="The TV is not determined by its seed"):
        check_tv(tv(STATIC, images=DrawsOnDemand()))


def test_the_env_is_told_from_the_tv():
    with pytest.raises(NoisyTVError, match="The env beneath is not determined by its seed: step 1 "):
        check_tv(add_tv(DrawsItsOwn(PUSHES), STATIC, static))


class WritesAndKnowsNoReward(Drift):
    """Writes into its action, and gives as a reward what is no number, in an array."""

    def step(self, action):
        frame, _, *rest = super().step(action)
        action *= 0.5
        return frame, np.array([np.nan]), *rest


@pytest.mark.parametrize("trigger", ["action", "remote"])
def test_an_env_that_writes_into_its_action_and_gives_nan_is_determined_by_its_seed(trigger):
    check_tv(add_tv(WritesAndKnowsNoReward(UNEQUAL), TVSpec(source="static", trigger=trigger)))


def test_frames_that_are_not_of_the_space_are_found():
    dark = Drift(PUSHES)
    dark.observation_space = gym.spaces.Box(0, 100, dark.observation_space.shape, np.uint8)
    with pytest.raises(NoisyTVError, match=r"gave a frame of uint8 \(24, 20, 3\) in step 0, not of Box\(0, 100"):
        check_tv(add_tv(dark, STATIC, static))


def test_a_tv_that_shows_what_the_env_shows_is_found():
    class White(Drift):
        def _frame(self):
            self._buffer[:] = 255
            return self._buffer

    with pytest.raises(NoisyTVError, match="the frame is the env's own"):
        check_tv(add_tv(White(PUSHES), STATIC, lambda rng, shape: np.full(shape, 255, np.uint8)))


def test_a_tv_that_never_comes_on_has_not_been_checked():
    with pytest.raises(NoisyTVError, match="the TV never came on in 20 random steps"):
        check_tv(tv(TVSpec(source="static", trigger="state", when="state[1] > 99")), steps=20)
    check_tv(tv(TVSpec(source="static", trigger="passive", probability=0)), steps=20)


@pytest.mark.parametrize("env", [Drift(PUSHES), "an env"])
def test_an_env_without_a_tv_is_told_how_to_get_one(env):
    for function in (check_tv, measure_chance):
        with pytest.raises(NoisyTVError, match="wrap a Gymnasium env with add_tv"):
            function(env)


def test_the_tv_may_be_wrapped_further_and_nobody_notices_the_check():
    env = gym.wrappers.TransformObservation(tv(STATIC), lambda frame: frame / 255.0, None)
    env.action_space.seed(3)
    expected = [env.action_space.sample() for _ in range(3)]
    env.action_space.seed(3)
    check_tv(env)
    assert [env.action_space.sample() for _ in range(3)] == expected
    actions = sampled_actions(env, 0, 10)
    for one, two in zip(play(env.env, 1, actions), play(tv(STATIC), 1, actions), strict=True):
        np.testing.assert_array_equal(one[0], two[0])


def test_the_measured_chance_is_that_of_the_formula_where_there_is_one():
    env = tv(TVSpec(source="static"), SWITCHES)
    assert measure_chance(env, steps=4000) == pytest.approx(env.tv.chance_level(SWITCHES), abs=0.02)


def test_the_measured_chance_is_that_of_the_env_as_it_is_wrapped():
    late = TVSpec(source="static", trigger="state", when="state[1] > 4")
    assert measure_chance(gym.wrappers.TimeLimit(tv(late), 4), steps=100) == 0 < measure_chance(tv(late), steps=100)


def test_without_a_step_there_is_no_chance():
    with pytest.raises(NoisyTVError, match="1 steps hold no step of random play"):
        measure_chance(tv(STATIC), steps=1)


def test_the_measured_chance_of_a_state_counts_steps_and_no_resets():
    env = tv(TVSpec(source="static", trigger="state", when="state[1] == 0"))
    assert env.reset(seed=0)[1]["tv_on"]
    assert measure_chance(env, steps=100) == 0
    assert measure_chance(tv(TVSpec(source="static", trigger="state", when="state[1] > 0")), steps=100) == 1
