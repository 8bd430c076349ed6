"""The declaration of the TV: what it refuses, what it says, and what chance alone would do."""

import doctest
import importlib
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer_lpm.noisy_tv import NoisyTVError, TVSpec


@pytest.mark.parametrize("module", ["", ".spec", ".wrapper", ".images", ".cifar10"])
def test_examples_in_the_docstrings_run(module):
    assert doctest.testmod(importlib.import_module("dreamer_lpm.noisy_tv" + module)).failed == 0


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"source": "imagenet"}, "use one of auto, cifar10, photos, static, digits or folder:PATH"),
        ({"source": "folder:"}, "use folder:PATH"),
        ({"trigger": "state"}, "use one of action, remote, passive, always"),
        ({"region": "half"}, "use one of full, quadrant, patch"),
        ({"persistence": "old"}, "use one of new, sticky"),
        ({"control": "on"}, "use one of None, off, sham"),
        ({"threshold": 1.0}, r"use a fraction in \[0, 1\)"),
        ({"threshold": -0.1}, r"use a fraction in \[0, 1\)"),
        ({"threshold": float("nan")}, r"use a fraction in \[0, 1\)"),
        ({"probability": 1.5}, r"use a number in \[0, 1\]"),
        ({"pool": 0}, "use 1 or more, or None"),
    ],
)
def test_a_wrong_field_names_the_fix(wrong, fix):
    with pytest.raises(NoisyTVError, match=fix):
        TVSpec(**wrong)


def test_the_error_is_a_value_error_of_one_line():
    with pytest.raises(ValueError, match="unknown TV source") as caught:
        TVSpec(source="imagenet")
    assert "\n" not in str(caught.value)


def test_a_spec_survives_a_config_file():
    spec = TVSpec(source="folder:pictures", trigger="remote", pool=4, control="sham")
    assert TVSpec(**asdict(spec)) == spec


@pytest.mark.parametrize("trigger", ["action", "remote", "passive", "always"])
@pytest.mark.parametrize("persistence", ["new", "sticky"])
@pytest.mark.parametrize("control", [None, "off", "sham"])
def test_the_description_is_one_sentence(trigger, persistence, control):
    text = TVSpec(trigger=trigger, persistence=persistence, control=control).describe()
    assert text.endswith(".")
    assert "\n" not in text


def test_descriptions_tell_specs_apart():
    specs = [
        TVSpec(trigger=t, persistence=p) for t in ("action", "remote", "passive", "always") for p in ("new", "sticky")
    ]
    assert len({spec.describe() for spec in specs}) == len(specs)


BOX = gym.spaces.Box(-2, 2, (3,), np.float32)
CHOICES = gym.spaces.Discrete(4)


@pytest.mark.parametrize(
    ("spec", "space", "share"),
    [
        (TVSpec(), gym.spaces.Box(-2, 2, (1,)), 0.25),
        (TVSpec(threshold=0.5), BOX, 0.875),
        (TVSpec(threshold=0), BOX, 1.0),
        (TVSpec(), CHOICES, 0.25),
        (TVSpec(trigger="remote"), BOX, 0.25),
        (TVSpec(trigger="remote"), CHOICES, 0.2),
        (TVSpec(trigger="passive", probability=0.1), BOX, 0.1),
        (TVSpec(trigger="always"), CHOICES, 1.0),
        (TVSpec(control="off"), BOX, 0.0),
        (TVSpec(trigger="remote", control="sham"), CHOICES, 0.0),
        (TVSpec(persistence="sticky"), CHOICES, 1.0),
        (TVSpec(trigger="passive", probability=0, persistence="sticky"), CHOICES, 0.0),
    ],
)
def test_chance_levels_in_closed_form(spec, space, share):
    assert spec.chance_level(space) == pytest.approx(share)


@given(steps=st.integers(1, 50), probability=st.floats(0.01, 1))
@settings(deadline=None)
def test_sticky_chance_is_the_mean_over_the_steps_of_having_fired(steps, probability):
    spec = TVSpec(trigger="passive", probability=probability, persistence="sticky")
    having_fired = [1 - (1 - probability) ** t for t in range(1, steps + 1)]
    assert spec.chance_level(CHOICES, steps) == pytest.approx(np.mean(having_fired))


def test_spaces_the_tv_cannot_read_have_no_chance_level():
    with pytest.raises(NoisyTVError, match="flatten the actions"):
        TVSpec().chance_level(gym.spaces.MultiBinary(3))
