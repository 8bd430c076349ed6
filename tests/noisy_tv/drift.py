"""A small env whose picture tells its state, and mistakes to plant in the TV before it."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from dreamer_lpm.noisy_tv import NoisyTV, NoisyTVWrapperDiscrete, TVSpec, add_tv
from dreamer_lpm.noisy_tv.images import static

HEIGHT, WIDTH = 24, 20
UNEQUAL = gym.spaces.Box(np.float32([-1, 0, -10]), np.float32([1, 4, 30]))
PUSHES = gym.spaces.Discrete(3, start=5)
SWITCHES = gym.spaces.MultiDiscrete([2, 4, 5], start=[0, -1, 0])


class Drift(gym.Env[np.ndarray, Any]):
    """A point that actions and the env's own noise push about; its picture, always the same array, tells its state."""

    def __init__(self, action_space: gym.Space[Any]) -> None:
        self.action_space = action_space
        self.observation_space = gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.state = np.zeros(2)  # position, steps
        self.actions: list[Any] = []
        self._buffer = np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def _frame(self) -> np.ndarray:
        ramp = np.arange(self._buffer.size).reshape(self._buffer.shape)
        self._buffer[:] = (ramp * 7 + np.abs(self.state * [1000, 1]).astype(int).sum()) % 256
        return self._buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([self.np_random.normal(), 0.0])
        return self._frame(), {"options": options}

    def step(self, action):
        self.actions.append(action)
        self.state += [float(np.sum(action)) * 0.01 + self.np_random.normal() * 0.1, 1]
        position, steps = self.state
        return self._frame(), float(position), bool(abs(position) > 1.5), bool(steps >= 12), {"steps": steps}


def tv(
    spec: TVSpec, space: gym.Space[Any] = PUSHES, cls: Any = None, images: Any = static, when: Any = None
) -> NoisyTV:
    return (cls or add_tv)(Drift(space), spec, images, when)


def sampled_actions(env: gym.Env, seed: int, steps: int) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def play(env: NoisyTV, seed: int, actions: list[Any]) -> list[tuple[np.ndarray, bool]]:
    """(frame, tv_on) of a reset and of every step."""
    frame, info = env.reset(seed=seed)
    seen = [(frame.copy(), info["tv_on"])]
    for action in actions:
        frame, *_, info = env.step(action)
        seen.append((frame.copy(), info["tv_on"]))
    return seen


class RewardFree(NoisyTVWrapperDiscrete):
    """Planted mistake: no reward while the TV is on."""

    def step(self, action):
        frame, reward, terminated, truncated, info = super().step(action)
        return frame, 0.0 if info["tv_on"] else reward, terminated, truncated, info


class DrawsFromTheEnv(NoisyTVWrapperDiscrete):
    """Planted mistake: the env's generator draws the pictures."""

    def reset(self, *, seed=None, options=None):
        answer = super().reset(seed=seed, options=options)
        self._rng = self.unwrapped.np_random
        return answer


class ClaimsToBeOn(NoisyTVWrapperDiscrete):
    """Planted mistake: tells of a TV that is not there."""

    def step(self, action):
        frame, reward, terminated, truncated, info = super().step(action)
        return frame, reward, terminated, truncated, {**info, "tv_on": True}


class FiresByChance(NoisyTVWrapperDiscrete):
    """Planted mistake: a coin, not the action, switches a discrete TV on."""

    def _read(self, action):
        return action, bool(self._rng.random() < 1 / 3)


class DrawsFromTheWorld(NoisyTVWrapperDiscrete):
    """Planted mistake: numpy's global generator has a say in the pictures."""

    def step(self, action):
        answer = super().step(action)
        if answer[4]["tv_on"]:
            np.random.random()  # noqa: NPY002
        return answer


class HasItsOwnDice(NoisyTVWrapperDiscrete):
    """Planted mistake: a reset does not seed the TV."""

    def reset(self, *, seed=None, options=None):
        answer = super().reset(seed=seed, options=options)
        self._rng = np.random.default_rng()
        return answer


class EndsEarly(NoisyTVWrapperDiscrete):
    """Planted mistake: watching ends the episode."""

    def step(self, action):
        frame, reward, terminated, truncated, info = super().step(action)
        return frame, reward, terminated or info["tv_on"], truncated, info


class SwallowsTheAction(NoisyTVWrapperDiscrete):
    """Planted mistake: the action that switches the TV on no longer reaches the env."""

    def _read(self, action):
        env_action, chosen = super()._read(action)
        return 5 if chosen else env_action, chosen


class HidesWhileOn(NoisyTVWrapperDiscrete):
    """Planted mistake: says that the TV is off."""

    def step(self, action):
        *answer, info = super().step(action)
        return *answer, {**info, "tv_on": False, "tv_mask": None, "tv_new": False}


class Leaks(NoisyTVWrapperDiscrete):
    """Planted mistake: one pixel beside the region changes too."""

    def step(self, action):
        frame, *answer, info = super().step(action)
        if info["tv_on"]:
            frame[-1, 0] ^= 255
        return frame, *answer, info


class MasksAnotherPlace(NoisyTVWrapperDiscrete):
    """Planted mistake: the mask is the other way round."""

    def step(self, action):
        *answer, info = super().step(action)
        return *answer, info | {"tv_mask": ~self.mask if info["tv_on"] else None}


class AlwaysNew(NoisyTVWrapperDiscrete):
    """Planted mistake: every picture is said to be new."""

    def step(self, action):
        *answer, info = super().step(action)
        return *answer, info | {"tv_new": info["tv_on"]}


class NumpyFlags(NoisyTVWrapperDiscrete):
    """Planted mistake: tv_on is a number."""

    def step(self, action):
        *answer, info = super().step(action)
        return *answer, info | {"tv_on": float(info["tv_on"])}


class ExtraButton(NoisyTVWrapperDiscrete):
    """Planted mistake: a button that the sham does not have."""

    def __init__(self, *args):
        super().__init__(*args)
        self.action_space = gym.spaces.Discrete(self.action_space.n + 1, start=self.action_space.start)


class Greyish(NoisyTVWrapperDiscrete):
    """Planted mistake: the observations become floats."""

    def __init__(self, *args):
        super().__init__(*args)
        self.observation_space = gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.float32)


class FloatFrames(NoisyTVWrapperDiscrete):
    """Planted mistake: frames of another kind than the space says."""

    def step(self, action):
        frame, *answer = super().step(action)
        return frame.astype(np.float32), *answer


class ForgetsThePool(NoisyTVWrapperDiscrete):
    """Planted mistake: pictures without end, whatever the spec's pool."""

    def __init__(self, env, spec, images):
        super().__init__(env, dataclasses.replace(spec, pool=2), images)
        self._images = images
