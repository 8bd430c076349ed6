"""Puts the Noisy TV between an env that shows pictures and whoever looks at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamer_lpm.noisy_tv.images import ImageSource, Pool, load_images
from dreamer_lpm.noisy_tv.spec import REMOTE_FIRES_ABOVE, NoisyTVError, TVSpec, unsupported

Frame = NDArray[np.uint8]  # (H, W, 3)

# Key of the TV's own branch of the seed tree: an env seeded alike draws other numbers, and so do its spawned children,
# whose keys count up from 0.
_TV_BRANCH = 0x7E1E
_SHARE_OF_SIDE = {"full": 1, "quadrant": 2, "patch": 4}


class NoisyTV(gym.Wrapper[Frame, Any, Frame, Any], gym.utils.RecordConstructorArgs, ABC):
    """What both TVs share: when triggered, a picture covers a region of the frame. Everything else passes through.

    Observations of ``env`` are uint8 pictures (H, W, 3). ``images`` draws the pictures; None loads ``spec.source``,
    which for "auto" and "cifar10" may download. Every ``info`` gets ``tv_on`` (bool: a picture of the TV is in this
    frame) and ``tv_triggered`` (bool: this step switched it on, or would have done so were it no sham).

    The TV has a generator of its own, derived from each ``reset(seed=...)``, so equal seeds and actions show equal
    pictures and the env's random numbers stay as they were; a reset without seed goes on with it. ``render()`` is the
    env's own. Raises NoisyTVError where the env or its actions do not fit.
    """

    def __init__(self, env: gym.Env[Frame, Any], spec: TVSpec | None = None, images: ImageSource | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, _disable_deepcopy=True, spec=spec, images=images)
        super().__init__(env)
        self.tv = spec = spec or TVSpec()
        height, width = _frame_size(env.observation_space)
        share = _SHARE_OF_SIDE[spec.region]
        self._window = (slice(0, max(1, height // share)), slice(width - max(1, width // share), width))
        self._images: ImageSource | None = None
        if spec.control is None:
            drawn = load_images(spec.source)[0] if images is None else images
            self._images = drawn if spec.pool is None else Pool(drawn, spec.pool)
        self._rng = np.random.default_rng()
        self._picture: Frame | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        frame, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TV_BRANCH,)))
        self._picture = None
        return self._screen(frame, info, triggered=self.tv.trigger == "always")

    def step(self, action: Any) -> tuple[Frame, SupportsFloat, bool, bool, dict[str, Any]]:
        env_action, chosen = self._read(action)
        frame, reward, terminated, truncated, info = self.env.step(env_action)
        frame, info = self._screen(frame, info, triggered=chosen or self._unchosen())
        return frame, reward, terminated, truncated, info

    @abstractmethod
    def _read(self, action: Any) -> tuple[Any, bool]:
        """The action for the env, and whether this action switches the TV on."""

    def _unchosen(self) -> bool:
        if self.tv.trigger == "passive":
            return bool(self._rng.random() < self.tv.probability)
        return self.tv.trigger == "always"

    def _screen(self, frame: Frame, info: dict[str, Any], triggered: bool) -> tuple[Frame, dict[str, Any]]:
        triggered = triggered and self.tv.control != "off"
        if self.tv.persistence == "new":
            self._picture = None
        if triggered and self._images is not None:
            self._picture = self._draw(self._images, frame[self._window].shape)
        if self._picture is not None:
            frame = frame.copy()  # the env may own this array
            frame[self._window] = self._picture
        return frame, {**info, "tv_on": self._picture is not None, "tv_triggered": triggered}

    def _draw(self, images: ImageSource, shape: tuple[int, ...]) -> Frame:
        height, width, channels = shape
        picture = images(self._rng, (height, width, channels))
        if picture.shape != shape or picture.dtype != np.uint8:
            raise NoisyTVError(
                f"the image source drew {picture.dtype} {picture.shape}: it must draw uint8 pictures of the shape "
                f"it is given, here {shape}"
            )
        return picture


class NoisyTVWrapperContinuous(NoisyTV):
    """The TV for Box actions.

    Trigger "action": any component with ``|2 (a - low) / (high - low) - 1|`` above ``spec.threshold``; the default of
    0.75 is a torque above 1.5 on Pendulum. Trigger "remote": one more dimension in [-1, 1] that fires above 0.5 and
    never reaches the env.

    >>> pixels = gym.wrappers.AddRenderObservation(gym.make("Pendulum-v1", render_mode="rgb_array"))
    >>> env = NoisyTVWrapperContinuous(pixels, TVSpec(source="static"))
    >>> frame, info = env.reset(seed=0)
    >>> [env.step(np.float32([torque]))[4]["tv_on"] for torque in (0, 1.5, 1.6, -2)]
    [False, False, True, True]
    """

    def __init__(self, env: gym.Env[Frame, Any], spec: TVSpec | None = None, images: ImageSource | None = None) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise NoisyTVError(f"NoisyTVWrapperContinuous needs float Box actions, not {space}: use add_tv")
        super().__init__(env, spec, images)
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._remote = self.tv.trigger == "remote" and self.tv.control != "off"
        if self._remote:
            self.action_space = _with_button(space)
        elif self.tv.trigger == "action" and not np.all(np.isfinite(self._high - self._low) & (self._low < self._high)):
            raise NoisyTVError(
                f'the TV trigger "action" needs finite action bounds with low < high, not {space}: '
                'bound the actions with gymnasium.wrappers.ClipAction or RescaleAction, or use the trigger "remote"'
            )

    def _read(self, action: Any) -> tuple[Any, bool]:
        if self._remote:
            return action[:-1], bool(action[-1] > REMOTE_FIRES_ABOVE)
        if self.tv.trigger != "action":
            return action, False
        effort = np.abs(2 * (np.asarray(action, np.float64) - self._low) / (self._high - self._low) - 1)
        return action, bool(np.any(effort > self.tv.threshold))


class NoisyTVWrapperDiscrete(NoisyTV):
    """The TV for Discrete actions.

    Trigger "action": the action ``spec.tv_action`` (default: the last) switches the TV on, still does its usual job,
    and no other action ever does. Trigger "remote": one more action, numbered after the last, for which the env gets
    ``spec.noop``.

    >>> pixels = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
    >>> env = NoisyTVWrapperDiscrete(pixels, TVSpec(source="static"))
    >>> frame, info = env.reset(seed=0)
    >>> [env.step(action)[4]["tv_on"] for action in (0, 1, 0)]
    [False, True, False]
    """

    def __init__(self, env: gym.Env[Frame, Any], spec: TVSpec | None = None, images: ImageSource | None = None) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise NoisyTVError(f"NoisyTVWrapperDiscrete needs Discrete actions, not {space}: use add_tv")
        super().__init__(env, spec, images)
        first, beyond = int(space.start), int(space.start + space.n)
        self._remote = self.tv.trigger == "remote" and self.tv.control != "off"
        self._switch: int | None = None
        if self._remote:
            _require_action("noop", self.tv.noop, first, beyond)
            self.action_space = gym.spaces.Discrete(beyond - first + 1, start=first)
            self._switch = beyond
        elif self.tv.trigger == "action":
            self._switch = beyond - 1 if self.tv.tv_action is None else self.tv.tv_action
            _require_action("tv_action", self._switch, first, beyond)

    def _read(self, action: Any) -> tuple[Any, bool]:
        chosen = bool(action == self._switch)
        return (self.tv.noop if self._remote and chosen else action), chosen


def add_tv(env: gym.Env[Frame, Any], spec: TVSpec | None = None, images: ImageSource | None = None) -> NoisyTV:
    """The TV that fits the actions of ``env``. Raises NoisyTVError for actions that are neither Box nor Discrete."""
    if isinstance(env.action_space, gym.spaces.Box):
        return NoisyTVWrapperContinuous(env, spec, images)
    if isinstance(env.action_space, gym.spaces.Discrete):
        return NoisyTVWrapperDiscrete(env, spec, images)
    raise unsupported(env.action_space)


def _frame_size(space: gym.Space[Any]) -> tuple[int, int]:
    match space:
        case gym.spaces.Box(shape=(height, width, 3), dtype=np.uint8):
            return height, width
    raise NoisyTVError(
        f"the TV needs uint8 pictures (H, W, 3), not {space}: wrap the env in "
        "gymnasium.wrappers.AddRenderObservation, and stack or convert frames outside the TV"
    )


def _with_button(space: gym.spaces.Box) -> gym.spaces.Box:
    if len(space.shape) != 1:
        raise NoisyTVError(f"a remote needs a vector of actions, not shape {space.shape}: flatten the actions first")
    kind = space.low.dtype.type
    return gym.spaces.Box(np.append(space.low, kind(-1)), np.append(space.high, kind(1)), dtype=kind)


def _require_action(name: str, action: int, first: int, beyond: int) -> None:
    if not first <= action < beyond:
        raise NoisyTVError(f"TV {name} {action} is no action of this env: use one of {first} to {beyond - 1}")
