"""The little language of the trigger "state": what it says, what it refuses, and that it runs nothing."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer_lpm.noisy_tv import NoisyTVError
from dreamer_lpm.noisy_tv.condition import parse

ENV = SimpleNamespace(
    state=np.array([0.5, -2.0]),
    lander=SimpleNamespace(position=SimpleNamespace(x=3.0)),
    data=SimpleNamespace(qpos=[1, 2, 3]),
    has_key=True,
    nothing=None,
)
INFO = {"lives": 3, "x position": np.float32(1.5), "speed": {"forward": 2.0}}


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("state[0] > 0.4", True),
        ("state[0] > 0.5", False),
        ("state[0] >= 0.5", True),
        ("state[-1] == -2", True),
        ("-1 < state[0] < 1", True),
        ("-1 < state[1] < 1", False),
        ("abs(state[1]) != 2", False),
        ("cos(state[1]) < 0 and sin(0.5) > 0.4", True),
        ("state[0] > 1 or not state[1] > 0", True),
        ("not (state[0] < 1 and state[1] < 0)", False),
        ("2 * state[0] - 1 + 0.5 == 0.5", True),
        ("lander.position.x <= 3 and data.qpos[2] == 3", True),
        ("has_key == 1", True),
        ("info.lives < 3", False),
        ('info["x position"] > 1 and info.speed["forward"] == 2', True),
        (" state[0] > 0 ", True),
    ],
)
def test_it_says_what_python_would(text, truth):
    assert parse(text)(ENV, INFO) is truth


@given(a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_comparisons_of_any_numbers(a, b):
    env = SimpleNamespace(a=a, b=np.array(b))
    for sign, truth in (("<", a < b), ("<=", a <= b), (">", a > b), (">=", a >= b), ("==", a == b), ("!=", a != b)):
        assert parse(f"a {sign} b")(env, {}) is truth


@pytest.mark.parametrize(
    "text",
    [
        "",
        "state[0]",
        "state[0] >",
        "state[0] = 1",
        "True",
        "state[0] in info",
        "state[i] > 0",
        "state[0:1] > 0",
        "state[0] / 2 > 0",
        "9 ** 9 > 0",
        "close() > 0",
        "abs(1, 2) > 0",
        "tan(1) > 0",
        "__class__ > 0",
        "state.__class__ > 0",
        "_np_random > 0",
        "(lambda: 1)() > 0",
        "[1][0] > 0",
        "'a' > 0",
        "1j > 0",
        "state[0] > 0; 1",
        "state[0] > 0 if 1 else 0",
        "a > \0",
    ],
)
def test_what_is_no_comparison_of_numbers_is_refused(text):
    with pytest.raises(NoisyTVError, match=r"cannot be read .*: compare numbers, as in") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_long_texts_are_refused_before_they_are_read():
    with pytest.raises(NoisyTVError, match="of 4005 characters is too long: use 200 at most"):
        parse("(" * 2000 + "a > 0" + ")" * 2000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("speed > 0", "has no attribute 'speed'"),
        ("state > 0", r"state has shape \(2,\), take one component as in state\[0\]"),
        ("state[2] > 0", "index 2 is out of bounds"),
        ("nothing > 0", "NoneType"),
        ("nothing[0] > 0", "NoneType"),
        ("lander > 0", "SimpleNamespace"),
        ("info > 0", "dict"),
    ],
)
def test_what_the_env_has_not_is_named(text, reason):
    with pytest.raises(NoisyTVError, match=rf"{re.escape(repr(text))} does not fit SimpleNamespace \(.*{reason}"):
        parse(text)(ENV, INFO)


def test_what_info_has_not_is_a_key_error_for_the_tv_to_judge():
    with pytest.raises(KeyError, match="flies"):
        parse("info.flies > 0")(ENV, INFO)
