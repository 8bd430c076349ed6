"""From a Gymnasium env with an ``rgb_array`` picture to the agent's env: pixels in, actions in [-1, 1] out."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

import cv2
import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled

from dreamer_lpm.types import ActionSpec, NotFinite, UserError

# Combinations of a MultiDiscrete that become one choice each; more, and most of them would hardly ever be tried.
MOST_CHOICES = 256


def env_name(env: gym.Env[Any, Any]) -> str:
    """The registered id, or the class name of an env that was never registered."""
    spec = env.unwrapped.spec
    return spec.id if spec is not None else type(env.unwrapped).__name__


def action_spec(env: gym.Env[Any, Any]) -> ActionSpec:
    """What an actor must produce for ``env``.

    A Box must be one row of floats with finite bounds (they need not be equal); a Discrete may start anywhere. A
    MultiDiscrete is one choice among all its combinations, of which there may be MOST_CHOICES.

    Raises:
        UserError: for every other action space, naming it.
    """
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return ActionSpec("discrete", int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        choices = math.prod(space.nvec.ravel().tolist())
        if choices > MOST_CHOICES:
            fix = "fix or coarsen some of its parts with a gymnasium.ActionWrapper"
            raise _unsupported(env, f"it has more than {MOST_CHOICES} combinations: {fix}")
        return ActionSpec("discrete", choices)
    if not isinstance(space, gym.spaces.Box):
        raise _unsupported(
            env, "wrap it so that its action space is a Box of one row of floats, a Discrete or a MultiDiscrete"
        )
    if len(space.shape) != 1 or space.shape[0] == 0:
        raise _unsupported(env, f"its shape is {space.shape}: flatten it to one row with a gymnasium.ActionWrapper")
    if not np.issubdtype(space.dtype, np.floating):
        raise _unsupported(env, f"its numbers are {space.dtype}: turn it into floats with a gymnasium.ActionWrapper")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all() and (space.low < space.high).all()):
        raise _unsupported(env, "each dimension needs finite bounds with low < high: set them with a wrapper")
    return ActionSpec("continuous", int(space.shape[0]))


def _unsupported(env: gym.Env[Any, Any], fix: str) -> UserError:
    # A large space prints over many lines; the message must stay one.
    space = " ".join(str(env.action_space).split())
    return UserError(f"The action space {space} of {env_name(env)} is not supported; {fix}.")


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Takes each action ``times`` times, and stops early where the episode ends.

    The reward is the sum over the steps taken; observation and info are those of the last one.
    ``info["env_steps"]`` is the number of steps taken, 1 to ``times`` (0 from ``reset``, which is not a step).
    """

    def __init__(self, env: gym.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        self.times = times

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with _api(self):
            obs, info = self.env.reset(seed=seed, options=options)
            return obs, {**info, "env_steps": 0}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total, taken, ended = 0.0, 0, False
        with _api(self):
            while taken < self.times and not ended:
                obs, reward, terminated, truncated, info = self.env.step(action)
                total += float(reward)
                taken += 1
                ended = bool(terminated or truncated)
            return obs, total, bool(terminated), bool(truncated), {**info, "env_steps": taken}


@contextmanager
def _api(env: gym.Env[Any, Any]) -> Iterator[None]:
    """What goes wrong in here and not within the env itself is an answer that Gymnasium's API does not know."""
    try:
        yield
    except (TypeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames[-1].filename.startswith((__file__, str(Path(gym.__file__).parent))):
            raise
        raise UserError(
            f"{env_name(env)} does not speak Gymnasium's API ({error}): reset(seed=..., options=...) must give "
            "(observation, info), step(action) (observation, reward, terminated, truncated, info), a reward one number."
        ) from error


class Picture(gym.Wrapper[Any, Any, Any, Any]):
    """The observation is the env's own ``rgb_array`` picture, shrunk to (size, size, 3) uint8 by area interpolation.

    A picture that is not square is squeezed into a square. It is drawn once per ``step`` and once per ``reset``,
    so put this wrapper outside of the action repeat: drawing costs far more than the dynamics.

    Raises:
        UserError: from ``reset`` and ``step``, if the env cannot draw or draws something else than (H, W, 3) uint8.
        NotFinite: if its own observation, which is not passed on, is not finite: its picture means nothing either.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int) -> None:
        super().__init__(env)
        self.size = size
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._check(obs)
        return self.draw(), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._check(obs)
        return self.draw(), reward, terminated, truncated, info

    def _check(self, obs: Any) -> None:
        if not _is_finite(obs):
            raise NotFinite(f"The observation of {env_name(self)} is not finite: its simulation has come apart.")

    def draw(self) -> np.ndarray:
        """The env as it looks now: (size, size, 3) uint8, an array of its own."""
        try:
            frame: Any = self.env.render()
        except Exception as error:  # every renderer (pygame, OpenGL, Qt, ...) fails in its own way
            raise UserError(_cannot_draw(self, error)) from error
        if not (
            isinstance(frame, np.ndarray)
            and frame.dtype == np.uint8
            and frame.ndim == 3
            and frame.shape[2] == 3
            and frame.size
        ):
            raise UserError(
                f"render() of {env_name(self)} returned {_describe(frame)}; with render_mode='rgb_array' "
                "it must return a uint8 array of shape (height, width, 3)."
            )
        if frame.shape[:2] == (self.size, self.size):
            return frame.copy()
        return np.asarray(cv2.resize(frame, (self.size, self.size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _is_finite(obs: Any) -> bool:
    if isinstance(obs, dict):
        return all(_is_finite(part) for part in obs.values())
    if isinstance(obs, tuple):
        return all(_is_finite(part) for part in obs)
    return not (isinstance(obs, np.ndarray) and obs.dtype.kind == "f") or bool(np.isfinite(obs).all())


def _cannot_draw(env: gym.Env[Any, Any], error: Exception) -> str:
    reason = " ".join(str(error).split())
    if isinstance(error, DependencyNotInstalled):
        return f"{env_name(env)} cannot draw its picture: {reason}"
    return (
        f"{env_name(env)} cannot draw its picture ({type(error).__name__}: {reason}); on a machine without a display "
        "set SDL_VIDEODRIVER=dummy (pygame) or MUJOCO_GL=egl or osmesa (MuJoCo) before starting."
    )


def _describe(frame: Any) -> str:
    if isinstance(frame, np.ndarray):
        return f"a {frame.dtype} array of shape {frame.shape}"
    return "None" if frame is None else f"a {type(frame).__name__}"


class UnitActions(gym.ActionWrapper[Any, Any, Any]):
    """A Box action space becomes Box(-1, 1): -1 is exactly the env's low, +1 exactly its high, in each dimension.

    Actions outside of [-1, 1] are clipped.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        box = env.action_space
        assert isinstance(box, gym.spaces.Box), box
        self._box = box
        self.action_space = gym.spaces.Box(-1.0, 1.0, box.shape, np.float32)

    def action(self, action: Any) -> np.ndarray:
        """(A,) in [-1, 1] -> (A,) in the env's units and dtype."""
        low, high = self._box.low.astype(np.float64), self._box.high.astype(np.float64)
        share = (np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0) + 1.0) / 2.0
        # As a weighted mean both ends come out without rounding, which low + share * (high - low) cannot promise.
        return (low * (1.0 - share) + high * share).astype(self._box.dtype)


class ZeroBased(gym.ActionWrapper[Any, Any, Any]):
    """A Discrete action space whose first action is not 0 becomes Discrete(n), counted from 0."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        discrete = env.action_space
        assert isinstance(discrete, gym.spaces.Discrete), discrete
        self._start = int(discrete.start)
        self.action_space = gym.spaces.Discrete(int(discrete.n))

    def action(self, action: Any) -> int:
        """0 to n - 1 -> as the env counts them."""
        return int(action) + self._start


class OneChoice(gym.ActionWrapper[Any, Any, Any]):
    """A MultiDiscrete action space becomes Discrete(n): one choice among all combinations, the last part fastest."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gym.spaces.MultiDiscrete), space
        self._parts = space
        self.action_space = gym.spaces.Discrete(action_spec(env).size)

    def action(self, action: Any) -> np.ndarray:
        """0 to n - 1 -> one choice for each part, as the env counts them."""
        parts = np.asarray(np.unravel_index(int(action), self._parts.nvec.ravel())).reshape(self._parts.shape)
        return (parts + self._parts.start).astype(self._parts.dtype)
