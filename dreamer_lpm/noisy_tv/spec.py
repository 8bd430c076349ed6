"""What the Noisy TV shows, when, where and for how long: one declarative dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np

Trigger = Literal["action", "remote", "passive", "always"]
Region = Literal["full", "quadrant", "patch"]
Persistence = Literal["new", "sticky"]
Control = Literal["off", "sham"]

SOURCES = ("auto", "cifar10", "photos", "static", "digits")
FOLDER = "folder:"
REMOTE_FIRES_ABOVE = 0.5  # on the extra dimension in [-1, 1]: a quarter of uniformly random presses


class NoisyTVError(ValueError):
    """A mistake of the user, or something missing on this machine. The message names the fix."""


@dataclass(frozen=True)
class TVSpec:
    """Source x trigger x region x persistence x pool, and the controls.

    source       where the pictures come from: "cifar10", "photos" (crops of photographs, offline), "static" (uniform
                 noise), "digits", "folder:PATH" (its .png, .jpg, .jpeg and .bmp files), or "auto": CIFAR-10 if it can
                 be had within seconds, else the photographs.
    trigger      what switches the TV on for a step. "action": an action of the env itself, which also does its usual
                 job (Box: any component beyond ``threshold``; Discrete: ``tv_action``). "remote": one extra action
                 that does nothing else. "passive": chance. "always": every frame.
    threshold    for "action" on a Box: fraction in [0, 1) of the half range that a component must exceed.
    tv_action    for "action" on a Discrete space: the action that switches the TV on; None is the last one.
    noop         for "remote" on a Discrete space: the action the env gets when the button is pressed.
    probability  for "passive": chance in [0, 1] of a step. The default is the chance level of a Box remote.
    region       "full" frame; "quadrant", a quarter of its area; "patch", a sixteenth. Both smaller ones sit in the
                 upper right corner, so that the area alone is the dose.
    persistence  "new": a new picture on each step that triggers, and the env's own frame on all others. "sticky": a
                 picture stays until the next trigger puts another in its place, or the episode ends.
    pool         number of distinct pictures, the same ones in every env, episode and run; None is all of them.
                 One picture can be learned, infinitely many are noise.
    control      "off": no TV and no button. "sham": the button is there and nothing happens. None: the TV is real.

    Raises NoisyTVError for values outside these.
    """

    source: str = "auto"
    trigger: Trigger = "action"
    threshold: float = 0.75
    tv_action: int | None = None
    noop: int = 0
    probability: float = 0.25
    region: Region = "full"
    persistence: Persistence = "new"
    pool: int | None = None
    control: Control | None = None

    def __post_init__(self) -> None:
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

    def describe(self) -> str:
        """The whole TV in one sentence.

        >>> TVSpec(source="photos", tv_action=0).describe()
        'A TV shows photos over the full frame: a new picture on each step whose action is 0.'
        >>> TVSpec(source="static", trigger="remote", region="patch", persistence="sticky", pool=1).describe()
        'A TV shows static (a pool of 1) over a patch: one picture until the next step that presses an extra button.'
        >>> TVSpec(control="sham").describe()
        'No TV (control "sham": its trigger is there and nothing happens).'
        """
        if self.control == "off":
            return 'No TV (control "off").'
        if self.control == "sham":
            return 'No TV (control "sham": its trigger is there and nothing happens).'
        pictures = self.source if self.pool is None else f"{self.source} (a pool of {self.pool})"
        where = "the full frame" if self.region == "full" else f"a {self.region}"
        held = "a new picture on each step" if self.persistence == "new" else "one picture until the next step"
        return f"A TV shows {pictures} over {where}: {held}{self._event()}."

    def _event(self) -> str:
        if self.trigger == "always":
            return ""
        if self.trigger == "passive":
            return f" that chance picks (probability {self.probability:g})"
        if self.trigger == "remote":
            return " that presses an extra button"
        if self.tv_action is not None:
            return f" whose action is {self.tv_action}"
        return f" whose action goes beyond {100 * self.threshold:g} % of its range (discrete: is the last one)"

    def chance_level(self, action_space: gym.Space[Any], steps: int | None = None) -> float:
        """Share of TV steps, in [0, 1], under a uniformly random policy.

        ``action_space`` is that of the env beneath the TV (without the button). ``steps`` is the length of an
        episode; only "sticky" depends on it, and None then means an endless one. Raises NoisyTVError for spaces
        that are neither Box nor Discrete.
        """
        if self.control is not None:
            return 0.0
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
        if isinstance(action_space, gym.spaces.Box):
            if self.trigger == "remote":
                return (1 - REMOTE_FIRES_ABOVE) / 2
            return float(1 - self.threshold ** np.prod(action_space.shape, dtype=int))
        if isinstance(action_space, gym.spaces.Discrete):
            return float(1 / (action_space.n + (self.trigger == "remote")))
        raise unsupported(action_space)


def unsupported(action_space: gym.Space[Any]) -> NoisyTVError:
    """The error for action spaces the TV cannot read."""
    return NoisyTVError(
        f"the TV reads Box or Discrete actions, not {type(action_space).__name__}: "
        "flatten the actions first, for example with gymnasium.wrappers.TransformAction"
    )


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise NoisyTVError(f"unknown TV {name} {value!r}: use one of {', '.join(map(str, allowed))}")
