"""What the Noisy TV shows, when, where and for how long: one declarative dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import gymnasium as gym

from dreamer_lpm.noisy_tv.condition import parse
from dreamer_lpm.noisy_tv.errors import NoisyTVError

Trigger = Literal["action", "remote", "passive", "always", "state"]
Region = Literal["full", "quadrant", "patch"]
Persistence = Literal["new", "sticky"]
Control = Literal["off", "sham"]

SOURCES = ("auto", "cifar10", "photos", "static", "digits")
FOLDER = "folder:"
LARGEST_POOL = 50_000  # pictures, as many as CIFAR-10 has to train on; at 64x64 they take 0.6 GB
REMOTE_FIRES_ABOVE = 0.5  # on the extra dimension in [-1, 1]: a quarter of uniformly random presses

_READ_BY: dict[str, Trigger] = {
    "threshold": "action",
    "tv_action": "action",
    "tv_component": "action",
    "noop": "remote",
    "probability": "passive",
}


@dataclass(frozen=True)
class TVSpec:
    """Source x trigger x region x persistence x pool, and the controls. Raises NoisyTVError for values not listed."""

    source: str = "auto"
    """Where the pictures come from.
    cifar10; photos: crops of photographs, offline; static: uniform noise; digits;
    folder:PATH: its .png, .jpg, .jpeg and .bmp files;
    auto: CIFAR-10 if it is on disk or its server answers within 5 seconds, else the photographs."""
    trigger: Trigger = "action"
    """What switches the TV on for a frame.
    action: an action of the env itself, which also does its usual job;
    remote: one extra action that does nothing else;
    passive: chance; always: every frame; state: what is true of the env."""
    threshold: float = 0.75
    """For action on a Box: fraction in [0, 1) of the half range that any component must exceed."""
    tv_action: int | None = None
    """For action on Discrete or MultiDiscrete: the choice that switches the TV on; None: the last."""
    tv_component: int | None = None
    """For action on MultiDiscrete: the component that must make this choice, from 0; None: the last."""
    noop: int = 0
    """For remote on Discrete: the action the env gets when the button is pressed."""
    probability: float = 0.25
    """For passive: chance in [0, 1] of a step. The default is the chance level of a Box remote."""
    when: str | None = None
    """For state: the condition, over numbers of the unwrapped env and its info, such as "cos(state[0]) > 0.9"."""
    region: Region = "full"
    """Where in the frame: full; quadrant, a quarter of its area; patch, a sixteenth.
    Both smaller ones sit in the upper right corner, so that the area alone is the dose."""
    persistence: Persistence = "new"
    """How long a picture stays.
    new: a new one on each step that triggers, and the env's own frame on all others;
    sticky: until the next trigger puts another in its place, or the episode ends."""
    pool: int | None = None
    """K, number of distinct pictures, at most 50,000, the same ones in every env, episode and run.
    None: all there are. One picture can be learned, infinitely many are noise."""
    control: Control | None = None
    """off: no TV and no button. sham: the button is there and nothing happens. None: the TV is real."""

    def __post_init__(self) -> None:
        for name in ("tv_action", "tv_component", "noop", "pool"):
            _number(name, getattr(self, name), Integral, "a whole number")
        for name in ("threshold", "probability"):
            _number(name, getattr(self, name), Real, "a number")
        if not isinstance(self.source, str):
            raise NoisyTVError(f"TV source {self.source!r} is no text: use one of {', '.join(SOURCES)} or {FOLDER}PATH")
        if self.source not in SOURCES and not self.source.startswith(FOLDER):
            raise NoisyTVError(f"unknown TV source {self.source!r}: use one of {', '.join(SOURCES)} or {FOLDER}PATH")
        if self.source == FOLDER:
            raise NoisyTVError(f"TV source {FOLDER!r} names no folder: use {FOLDER}PATH")
        _one_of("trigger", self.trigger, get_args(Trigger))
        _one_of("region", self.region, get_args(Region))
        _one_of("persistence", self.persistence, get_args(Persistence))
        _one_of("control", self.control, (None, *get_args(Control)))
        if not 0 <= self.threshold < 1:
            raise NoisyTVError(f"TV threshold {self.threshold} can never be passed: use a fraction in [0, 1)")
        if not 0 <= self.probability <= 1:
            raise NoisyTVError(f"TV probability {self.probability} is no chance: use a number in [0, 1]")
        if self.pool is not None and self.pool < 1:
            raise NoisyTVError(f"a TV pool of {self.pool} pictures shows nothing: use 1 or more, or None for no limit")
        if self.pool is not None and self.pool > LARGEST_POOL:
            raise NoisyTVError(
                f"a TV pool of {self.pool:,} pictures would fill the memory: use {LARGEST_POOL:,} or fewer, or None for"
                " no limit"
            )
        self._check_condition()

    def _check_condition(self) -> None:
        if self.when is None:
            return
        if self.trigger != "state":
            raise NoisyTVError(f'the TV trigger {self.trigger!r} reads no condition: use trigger "state", or no `when`')
        parse(self.when)

    def unread(self) -> list[str]:
        """The fields that were set and that the trigger does not read.

        >>> TVSpec(probability=0.9).unread(), TVSpec(trigger="passive", probability=0.9).unread()
        (['probability'], [])
        """
        default = TVSpec()
        return [
            name
            for name, trigger in _READ_BY.items()
            if trigger != self.trigger and getattr(self, name) != getattr(default, name)
        ]

    def describe(self) -> str:
        """The whole TV in one sentence.

        >>> TVSpec(source="photos", tv_action=0).describe()
        'A TV shows photos over the full frame: a new picture on each step whose action is 0.'
        >>> TVSpec(source="photos", trigger="remote", region="patch", pool=1).describe()
        'A TV shows photos (a pool of 1) over a patch: the same picture on each step that presses an extra button.'
        >>> TVSpec(source="static", trigger="remote", region="patch", persistence="sticky", pool=1).describe()
        'A TV shows static (a pool of 1) over a patch: one picture until the next step that presses an extra button.'
        >>> TVSpec(source="digits", trigger="state", when="cos(state[0]) > 0.9").describe()
        'A TV shows digits over the full frame: a new picture on each step that ends where cos(state[0]) > 0.9.'
        >>> TVSpec(control="sham").describe()
        'No TV (control "sham": its trigger is there and nothing happens).'
        """
        if self.control == "off":
            return 'No TV (control "off").'
        if self.control == "sham":
            return 'No TV (control "sham": its trigger is there and nothing happens).'
        pictures = self.source if self.pool is None else f"{self.source} (a pool of {self.pool})"
        where = "the full frame" if self.region == "full" else f"a {self.region}"
        drawn = "the same picture" if self.pool == 1 else "a new picture"
        held = f"{drawn} on each step" if self.persistence == "new" else "one picture until the next step"
        return f"A TV shows {pictures} over {where}: {held}{self._event()}."

    __str__ = describe

    def _event(self) -> str:
        match self.trigger:
            case "always":
                return ""
            case "passive":
                return f" that chance picks (probability {self.probability:g})"
            case "remote":
                return " that presses an extra button"
            case "state":
                return f" that ends where {self.when or 'a given function says so'}"
            case "action":
                return self._designated()

    def _designated(self) -> str:
        choice = "the last one" if self.tv_action is None else str(self.tv_action)
        if self.tv_component is not None:
            return f" whose action has component {self.tv_component} at {choice}"
        if self.tv_action is not None:
            return f" whose action is {choice}"
        return f" whose action goes beyond {100 * self.threshold:g} % of its range (discrete: is {choice})"

    def component_of(self, space: gym.spaces.MultiDiscrete) -> int:
        """The component of ``space`` that switches the TV on. Raises NoisyTVError if there is no such component."""
        last = row_of(space) - 1
        component = last if self.tv_component is None else self.tv_component
        if not 0 <= component <= last:
            raise NoisyTVError(f"TV tv_component {component} is no component of this env's actions: use 0 to {last}")
        return component

    def chance_level(self, action_space: gym.Space[Any], steps: int | None = None) -> float:
        """Share of TV steps, in [0, 1], under a uniformly random policy.

        ``action_space`` is that of the env beneath the TV (without the button). ``steps`` is the length of an
        episode; only "sticky" depends on it, and None then means an endless one. NaN for the trigger "state", which
        depends on where chance leads: ``measure_chance`` plays to find out. Raises NoisyTVError for spaces the TV
        cannot read.
        """
        if self.control is not None:
            return 0.0
        if self.trigger == "state":
            return math.nan
        fires = self._fires_by_chance(action_space)
        if self.persistence == "new" or fires == 0:
            return fires
        if steps is None:
            return 1.0
        waits = 1 - fires
        return 1 - waits * (1 - waits**steps) / (fires * steps)  # mean over t = 1..steps of 1 - waits**t

    def _fires_by_chance(self, action_space: gym.Space[Any]) -> float:
        if self.trigger == "always":
            return 1.0
        if self.trigger == "passive":
            return self.probability
        is_remote = self.trigger == "remote"
        match action_space:
            case gym.spaces.Box(shape=shape):
                return (1 - REMOTE_FIRES_ABOVE) / 2 if is_remote else float(1 - self.threshold ** math.prod(shape))
            case gym.spaces.Discrete(n=n):
                return float(1 / (n + is_remote))
            case gym.spaces.MultiDiscrete(nvec=nvec):
                return 0.5 if is_remote else float(1 / nvec[self.component_of(action_space)])
        raise unsupported(action_space)


def row_of(space: gym.spaces.MultiDiscrete) -> int:
    """The number of components of a flat MultiDiscrete. Raises NoisyTVError for one of another shape."""
    if len(space.shape) != 1:
        raise NoisyTVError(f"the TV needs one row of choices, not shape {space.shape}: flatten the actions first")
    return int(space.shape[0])


def unsupported(action_space: gym.Space[Any]) -> NoisyTVError:
    """The error for action spaces the TV cannot read."""
    return NoisyTVError(
        f"the TV reads Box, Discrete or MultiDiscrete actions, not {type(action_space).__name__}: "
        "flatten the actions first, for example with gymnasium.wrappers.TransformAction"
    )


def _number(name: str, value: object, kind: type, words: str) -> None:
    if value is None and getattr(TVSpec, name) is None:  # as it is left out
        return
    if not isinstance(value, kind) or isinstance(value, bool):
        raise NoisyTVError(f"TV {name} {value!r} is not {words}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise NoisyTVError(f"unknown TV {name} {value!r}: use one of {', '.join(map(str, allowed))}")
