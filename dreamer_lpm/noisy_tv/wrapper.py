"""Puts the Noisy TV between an env that shows pictures and whoever looks at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamer_lpm.noisy_tv.condition import Condition, parse
from dreamer_lpm.noisy_tv.errors import NoisyTVError
from dreamer_lpm.noisy_tv.images import ImageSource, TVImages, load_images, pooled
from dreamer_lpm.noisy_tv.spec import REMOTE_FIRES_ABOVE, TVSpec, row_of, unsupported

Frame = NDArray[np.uint8]  # (H, W, 3)

# Key of the TV's own branch of the seed tree: an env seeded alike draws other numbers, and so do its spawned children,
# whose keys count up from 0.
_TV_BRANCH = 0x7E1E
_COIN = 1  # key of the branch's own branch for the passive trigger: a sham tosses the same coins, and draws no pictures
_SHARE_OF_SIDE = {"full": 1, "quadrant": 2, "patch": 4}


class NoisyTV(gym.Wrapper[Frame, Any, Frame, Any], gym.utils.RecordConstructorArgs, ABC):
    """What all TVs share: when triggered, a picture covers a region of the frame. Everything else passes through.

    Observations of ``env`` are uint8 pictures (H, W, 3). ``images`` draws the pictures in place of ``spec.source``, of
    which "auto" and "cifar10" may download; ``when``, a text or a function, decides for the trigger "state" in place of
    ``spec.when``. A mapping of a spec's fields does as well, for that is what is left of one in ``EnvSpec.to_json``.
    Every ``info`` gets

    - ``tv_on`` (bool): a picture of the TV is in this frame;
    - ``tv_mask``: where it is, bool (H, W), one read-only array for all frames; None while the TV is off;
    - ``tv_new`` (bool): it is another picture than in the frame before, or there was none;
    - ``tv_triggered`` (bool): this step switched it on, or would have done so were it no sham.

    The TV has generators of its own, derived from each ``reset(seed=...)``, so equal seeds and actions show equal
    pictures and the env's random numbers stay as they were; a reset without seed goes on with them. ``render()`` is the
    env's own. Raises NoisyTVError where the env, its actions or the condition do not fit.

    Attributes:
        tv: the spec.
        mask: bool (H, W), read-only: the region, whether or not something is shown there.
        shown: which pictures ``spec.source`` came to, and why; None for a control, or where ``images`` was given.
        when: the condition of the trigger "state"; None for the other triggers.
    """

    def __init__(
        self,
        env: gym.Env[Frame, Any],
        spec: TVSpec | Mapping[str, Any] | None = None,
        images: ImageSource | None = None,
        when: Condition | str | None = None,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, _disable_deepcopy=True, spec=spec, images=images, when=when)
        super().__init__(env)
        _check_beneath(env)
        self.tv = spec = TVSpec(**spec) if isinstance(spec, Mapping) else spec or TVSpec()
        self.when = _condition(spec, when)
        height, width = _frame_size(env.observation_space)
        share = _SHARE_OF_SIDE[spec.region]
        self._window = (slice(0, max(1, height // share)), slice(width - max(1, width // share), width))
        self.mask = np.zeros((height, width), bool)
        self.mask[self._window] = True
        self.mask.flags.writeable = False
        self._images: ImageSource | None = None
        self.shown: TVImages | None = None
        if spec.control is None:
            if images is None:
                images, self.shown = load_images(spec.source)
            if not callable(images):
                raise NoisyTVError("`images` draws pictures: of an array or a list of them make a Collection(...)")
            self._images = pooled(images, spec.pool)
        self._rng, self._coin = np.random.default_rng(), np.random.default_rng()
        self._picture: Frame | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        frame, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TV_BRANCH,)))
            self._coin = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TV_BRANCH, _COIN)))
        self._picture = None
        return self._screen(frame, info, triggered=self.tv.trigger == "always" or self._calls(info, at_reset=True))

    def step(self, action: Any) -> tuple[Frame, SupportsFloat, bool, bool, dict[str, Any]]:
        env_action, chosen = self._read(action)
        frame, reward, terminated, truncated, info = self.env.step(env_action)
        frame, info = self._screen(frame, info, triggered=chosen or self._unchosen(info))
        return frame, reward, terminated, truncated, info

    @abstractmethod
    def _read(self, action: Any) -> tuple[Any, bool]:
        """The action for the env, and whether this action switches the TV on."""

    def _unchosen(self, info: dict[str, Any]) -> bool:
        if self.tv.trigger == "passive":
            return bool(self._coin.random() < self.tv.probability)
        return self.tv.trigger == "always" or self._calls(info, at_reset=False)

    def _calls(self, info: dict[str, Any], *, at_reset: bool) -> bool:
        """Whether the state of the env calls for the TV."""
        if self.when is None or self.tv.control == "off":
            return False
        try:
            return bool(self.when(self.env.unwrapped, info))
        except KeyError as missing:
            if at_reset:
                return False
            known = ", ".join(map(str, info)) or "empty"
            raise NoisyTVError(
                f"the TV condition reads {missing}, which info has not: name what it has ({known})"
            ) from missing

    def _screen(self, frame: Frame, info: dict[str, Any], triggered: bool) -> tuple[Frame, dict[str, Any]]:
        triggered = triggered and self.tv.control != "off"
        before = self._picture
        if self.tv.persistence == "new":
            self._picture = None
        if triggered and self._images is not None:
            self._picture = self._draw(self._images, frame[self._window].shape)
        told: dict[str, Any] = {"tv_on": False, "tv_mask": None, "tv_new": False, "tv_triggered": triggered}
        if self._picture is not None:
            frame = frame.copy()  # the env may own this array
            frame[self._window] = self._picture
            is_new = before is None or not np.array_equal(before, self._picture)
            told |= {"tv_on": True, "tv_mask": self.mask, "tv_new": is_new}
        return frame, {**info, **told}

    def _draw(self, images: ImageSource, shape: tuple[int, ...]) -> Frame:
        height, width, channels = shape
        picture = images(self._rng, (height, width, channels))
        if picture.shape != shape or picture.dtype != np.uint8:
            raise NoisyTVError(
                f"the image source drew {picture.dtype} {picture.shape}: it must draw uint8 pictures of the shape "
                f"it is given, here {shape}"
            )
        return picture.copy()  # a source may draw into one array again and again


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

    def __init__(
        self,
        env: gym.Env[Frame, Any],
        spec: TVSpec | None = None,
        images: ImageSource | None = None,
        when: Condition | str | None = None,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Box):
            raise NoisyTVError(f"NoisyTVWrapperContinuous needs Box actions, not {space}: use add_tv")
        if not np.issubdtype(space.dtype, np.floating):
            raise NoisyTVError(
                f"the TV reads Box actions of floats, not {space}: turn them into floats with "
                "gymnasium.wrappers.TransformAction"
            )
        super().__init__(env, spec, images, when)
        if self.tv.trigger == "action" and (self.tv.tv_action, self.tv.tv_component) != (None, None):
            raise NoisyTVError(
                "the TV's tv_action and tv_component choose among discrete actions, and this env's are a Box: "
                "leave them out, and set threshold"
            )
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._remote = self.tv.trigger == "remote" and self.tv.control != "off"
        if self._remote:
            self.action_space = _with_button(space)
        elif self.tv.trigger == "action" and not np.all(np.isfinite(self._high - self._low) & (self._low < self._high)):
            raise NoisyTVError(
                f'the TV trigger "action" needs finite action bounds with low < high, not {space}: '
                "bound the actions with gymnasium.wrappers.TransformAction (a ClipAction, which unbounds them, belongs "
                'outside the TV), or use the trigger "remote"'
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

    def __init__(
        self,
        env: gym.Env[Frame, Any],
        spec: TVSpec | None = None,
        images: ImageSource | None = None,
        when: Condition | str | None = None,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise NoisyTVError(f"NoisyTVWrapperDiscrete needs Discrete actions, not {space}: use add_tv")
        super().__init__(env, spec, images, when)
        if self.tv.trigger == "action" and self.tv.tv_component is not None:
            raise NoisyTVError(
                "the TV's tv_component needs MultiDiscrete actions, and this env's are Discrete: leave it out"
            )
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


class NoisyTVWrapperMultiDiscrete(NoisyTV):
    """The TV for a row of choices, MultiDiscrete.

    Trigger "action": component ``spec.tv_component`` (default: the last) choosing ``spec.tv_action`` (default: its
    last) switches the TV on, and still does its usual job. Trigger "remote": one more component of two choices; the
    second switches the TV on and never reaches the env, which gets all other components as they are.

    >>> cart = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
    >>> pixels = gym.wrappers.TransformAction(cart, lambda row: row[0], gym.spaces.MultiDiscrete([2, 3]))
    >>> env = NoisyTVWrapperMultiDiscrete(pixels, TVSpec(source="static", tv_component=1, tv_action=0))
    >>> frame, info = env.reset(seed=0)
    >>> [env.step(np.array(row))[4]["tv_on"] for row in ((0, 1), (1, 0), (0, 2))]
    [False, True, False]
    """

    def __init__(
        self,
        env: gym.Env[Frame, Any],
        spec: TVSpec | None = None,
        images: ImageSource | None = None,
        when: Condition | str | None = None,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gym.spaces.MultiDiscrete):
            raise NoisyTVError(f"NoisyTVWrapperMultiDiscrete needs MultiDiscrete actions, not {space}: use add_tv")
        super().__init__(env, spec, images, when)
        self._remote = self.tv.trigger == "remote" and self.tv.control != "off"
        if self._remote:
            self._component, self._switch = row_of(space), 1
            nvec, start = np.append(space.nvec, 2), np.append(space.start, 0)
            self.action_space = gym.spaces.MultiDiscrete(nvec, space.dtype, start=start)
        elif self.tv.trigger == "action":
            self._component = self.tv.component_of(space)
            first = int(space.start[self._component])
            beyond = first + int(space.nvec[self._component])
            self._switch = beyond - 1 if self.tv.tv_action is None else self.tv.tv_action
            _require_action("tv_action", self._switch, first, beyond)

    def _read(self, action: Any) -> tuple[Any, bool]:
        if not self._remote and self.tv.trigger != "action":
            return action, False
        return (action[:-1] if self._remote else action), bool(action[self._component] == self._switch)


_WRAPPERS: dict[type[gym.Space[Any]], type[NoisyTV]] = {
    gym.spaces.Box: NoisyTVWrapperContinuous,
    gym.spaces.Discrete: NoisyTVWrapperDiscrete,
    gym.spaces.MultiDiscrete: NoisyTVWrapperMultiDiscrete,
}


def add_tv(
    env: gym.Env[Frame, Any],
    spec: TVSpec | None = None,
    images: ImageSource | None = None,
    when: Condition | str | None = None,
) -> NoisyTV:
    """The TV that fits the actions of ``env``: Box, Discrete or MultiDiscrete. The arguments are those of NoisyTV.

    Raises NoisyTVError for other actions, and whatever else does not fit.
    """
    for space, wrapper in _WRAPPERS.items():
        if isinstance(env.action_space, space):
            return wrapper(env, spec, images, when)
    raise unsupported(env.action_space)


def _check_beneath(env: gym.Env[Any, Any]) -> None:
    """Raises NoisyTVError for wrappers that belong outside of a TV, or once into an env."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, NoisyTV):
            raise NoisyTVError("there is a TV in this env already, and neither could tell the truth of the other's")
        if isinstance(env, gym.wrappers.Autoreset):
            raise NoisyTVError("the TV would not notice the resets of an Autoreset beneath it: put that one outside")
        env = env.env


def _condition(spec: TVSpec, when: Condition | str | None) -> Condition | None:
    if spec.trigger != "state":
        if when is not None:
            raise NoisyTVError(f'the TV trigger {spec.trigger!r} reads no condition: use trigger "state", or no `when`')
        return None
    when = spec.when if when is None else when
    if when is None:
        raise NoisyTVError('the TV trigger "state" needs a condition: give `when`, such as "cos(state[0]) > 0.9"')
    return parse(when) if isinstance(when, str) else when


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
