"""The declaration of the TV: what it refuses, what it says, and what chance alone would do."""

import doctest
import importlib
import json
from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer_lpm.noisy_tv import NoisyTVError, TVSpec
from dreamer_lpm.settings import from_plain, read_file, to_plain

NOISY_TV = ["", ".spec", ".wrapper", ".condition", ".check", ".images", ".cifar10"]
REPORT = [".curves", ".measures", ".statistics", ".svg"]


@pytest.mark.parametrize(
    "module", [*(f"dreamer_lpm.noisy_tv{name}" for name in NOISY_TV), *(f"dreamer_lpm.report{name}" for name in REPORT)]
)
def test_examples_in_the_docstrings_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"source": "imagenet"}, "use one of auto, cifar10, photos, static, digits or folder:PATH"),
        ({"source": "folder:"}, "use folder:PATH"),
        ({"trigger": "magic"}, "use one of action, remote, passive, always, state"),
        ({"when": "state[0] > 0"}, 'use trigger "state"'),
        ({"trigger": "state", "when": "state[0]"}, "compare numbers, as in"),
        ({"region": "half"}, "use one of full, quadrant, patch"),
        ({"persistence": "old"}, "use one of new, sticky"),
        ({"control": "on"}, "use one of None, off, sham"),
        ({"threshold": 1.0}, r"use a fraction in \[0, 1\)"),
        ({"threshold": -0.1}, r"use a fraction in \[0, 1\)"),
        ({"threshold": float("nan")}, r"use a fraction in \[0, 1\)"),
        ({"probability": 1.5}, r"use a number in \[0, 1\]"),
        ({"pool": 0}, "use 1 or more, or None"),
        ({"pool": 50_001}, "use 50,000 or fewer, or None"),
        ({"pool": 2.5}, "TV pool 2.5 is not a whole number"),
        ({"tv_action": 1.5}, "TV tv_action 1.5 is not a whole number"),
        ({"probability": None}, "TV probability None is not a number"),
        ({"noop": True}, "TV noop True is not a whole number"),
        ({"threshold": "0.5"}, "TV threshold '0.5' is not a number"),
        ({"source": None}, "TV source None is no text: use one of auto, "),
    ],
)
def test_a_wrong_field_names_the_fix(wrong, fix):
    with pytest.raises(NoisyTVError, match=fix):
        TVSpec(**wrong)


def test_the_error_is_a_value_error_of_one_line():
    with pytest.raises(ValueError, match="unknown TV source") as caught:
        TVSpec(source="imagenet")
    assert "\n" not in str(caught.value)


SPECS = [
    TVSpec(),
    TVSpec(source="folder:pictures", trigger="remote", noop=1, pool=4, control="sham"),
    TVSpec(source="digits", threshold=0.5, tv_action=2, tv_component=0, region="patch", persistence="sticky"),
    TVSpec(trigger="passive", probability=0.5, control="off"),
    TVSpec(trigger="state", when='cos(state[0]) > 0.9 and info["x"] < 1'),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_survives_a_toml_file(spec, tmp_path):
    path = tmp_path / "mine.toml"
    written = {name: value for name, value in asdict(spec).items() if value is not None}  # TOML has no null
    path.write_text("[tv]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in written.items()))
    assert from_plain(TVSpec, read_file(path)["tv"]) == spec


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_survives_its_record_and_the_command_line(spec):
    assert from_plain(TVSpec, json.loads(json.dumps(to_plain(spec)))) == spec
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in asdict(spec).items()]
    assert tyro.cli(TVSpec, args=[word for flag in flags for word in flag]) == spec


def test_every_flag_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(TVSpec, args=["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for said in ("photos: crops of photographs, offline", "what is true of the env", "the condition, over numbers of"):
        assert said.lower() in words.lower()


@pytest.mark.parametrize("trigger", ["action", "remote", "passive", "always", "state"])
@pytest.mark.parametrize("persistence", ["new", "sticky"])
@pytest.mark.parametrize("control", [None, "off", "sham"])
def test_the_description_is_one_sentence(trigger, persistence, control):
    text = TVSpec(trigger=trigger, persistence=persistence, control=control).describe()
    assert text == str(TVSpec(trigger=trigger, persistence=persistence, control=control))
    assert text.endswith(".")
    assert "\n" not in text


def test_descriptions_tell_specs_apart():
    specs = [
        TVSpec(trigger=t, persistence=p)
        for t in ("action", "remote", "passive", "always", "state")
        for p in ("new", "sticky")
    ]
    specs += [TVSpec(tv_action=1), TVSpec(tv_component=1), TVSpec(tv_action=1, tv_component=0)]
    specs += [TVSpec(trigger="state", when="a > 1"), TVSpec(trigger="state", when="a > 2")]
    assert len({spec.describe() for spec in specs}) == len(specs)


BOX = gym.spaces.Box(-2, 2, (3,), np.float32)
CHOICES = gym.spaces.Discrete(4)
ROW = gym.spaces.MultiDiscrete([2, 4, 5])


@pytest.mark.parametrize(
    ("spec", "space", "share"),
    [
        (TVSpec(), gym.spaces.Box(-2, 2, (1,)), 0.25),
        (TVSpec(threshold=0.5), BOX, 0.875),
        (TVSpec(threshold=0), BOX, 1.0),
        (TVSpec(), CHOICES, 0.25),
        (TVSpec(), ROW, 0.2),
        (TVSpec(tv_component=1, tv_action=0), ROW, 0.25),
        (TVSpec(trigger="remote"), ROW, 0.5),
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


@pytest.mark.parametrize("persistence", ["new", "sticky"])
def test_no_formula_knows_where_chance_leads_an_env(persistence):
    spec = TVSpec(trigger="state", when="state[0] > 0", persistence=persistence)
    assert np.isnan(spec.chance_level(BOX))
    assert replace(spec, control="sham").chance_level(BOX) == 0


def test_spaces_the_tv_cannot_read_have_no_chance_level():
    with pytest.raises(NoisyTVError, match="flatten the actions"):
        TVSpec().chance_level(gym.spaces.MultiBinary(3))
