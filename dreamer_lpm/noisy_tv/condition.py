"""What switches on the TV's trigger "state": comparisons of the env's own numbers, written as text.

``cos(state[0]) > 0.9 and abs(state[1]) < 1`` compares attributes of ``env.unwrapped``, of which components are taken
by number and attributes by a dot (``data.qpos[0]``). ``info.lives`` or ``info["lives"]`` is what the env told of this
step. There are ``+ - *``, ``abs``, ``sin`` and ``cos``, comparisons, ``and``, ``or`` and ``not``. The text is taken
apart, never run: it can call no method, and reach no name that begins with an underscore.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from dreamer_lpm.noisy_tv.errors import NoisyTVError

Condition = Callable[[gym.Env[Any, Any], Mapping[str, Any]], bool]
"""``condition(env, info)``: does the state call for the TV? ``env`` is the innermost one, after its step or reset.

``info`` came with it. A KeyError at a reset counts as no, since many envs tell less there than after a step.
"""

_Info = Mapping[str, Any]
_Read = Callable[[Any, _Info], Any]
_LONGEST = 200  # characters; a page of brackets could nest deeper than Python's stack
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_FUNCTIONS: dict[str, Callable[[float], float]] = {"abs": abs, "sin": math.sin, "cos": math.cos}


class _NotOurs(Exception):  # noqa: N818  never leaves this module
    """A piece of Python that the little language does not have."""


def parse(text: str) -> Condition:
    """The condition that ``text`` states.

    Raises NoisyTVError, and so does the condition where its names or numbers do not fit the env. What ``info`` lacks is
    a KeyError.

    >>> from types import SimpleNamespace
    >>> upright = parse("cos(state[0]) > 0.9 and info.lives == 3")
    >>> upright(SimpleNamespace(state=(0.1, 5.0)), {"lives": 3}), upright(SimpleNamespace(state=(3.1, 0)), {"lives": 3})
    (True, False)
    """
    if len(text) > _LONGEST:
        raise NoisyTVError(f"a TV condition of {len(text)} characters is too long: use {_LONGEST} at most")
    try:
        holds = _truth(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, _NotOurs) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise NoisyTVError(
            f"the TV condition {text!r} cannot be read ({reason}): compare numbers, as in 'cos(state[0]) > 0.9'"
        ) from None

    def condition(env: gym.Env[Any, Any], info: _Info) -> bool:
        try:
            return holds(env, info)
        except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise NoisyTVError(
                f"the TV condition {text!r} does not fit {type(env).__name__} ({' '.join(str(error).split())}): "
                "name single numbers that its unwrapped env or its info has"
            ) from error

    return condition


def _truth(node: ast.expr) -> Callable[[Any, _Info], bool]:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts, of_all = [_truth(value) for value in values], all if isinstance(op, ast.And) else any
            return lambda env, info: of_all(part(env, info) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            part = _truth(operand)
            return lambda env, info: not part(env, info)
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARISONS for op in ops):
            return _comparison([_number(side) for side in (left, *rest)], [_COMPARISONS[type(op)] for op in ops])
    raise _NotOurs(f"{ast.unparse(node)} is no comparison")


def _comparison(
    sides: list[Callable[[Any, _Info], float]], tests: list[Callable[[float, float], bool]]
) -> Callable[[Any, _Info], bool]:
    def compare(env: Any, info: _Info) -> bool:
        numbers = [side(env, info) for side in sides]
        return all(test(a, b) for test, a, b in zip(tests, numbers, numbers[1:], strict=False))

    return compare


def _number(node: ast.expr) -> Callable[[Any, _Info], float]:
    match node:
        case ast.Constant(value=int() | float() as value):
            number = float(value)
            return lambda env, info: number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return lambda env, info: -inner(env, info)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            one, two, combine = _number(left), _number(right), _ARITHMETIC[type(op)]
            return lambda env, info: combine(one(env, info), two(env, info))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            inner, function = _number(argument), _FUNCTIONS[name]
            return lambda env, info: function(inner(env, info))
    read, name = _path(node), ast.unparse(node)
    return lambda env, info: _single(read(env, info), name)


def _path(node: ast.expr) -> _Read:
    match node:
        case ast.Name(id="info"):
            return lambda env, info: info
        case ast.Name(id=name) if not name.startswith("_"):
            return lambda env, info: getattr(env, name)
        case ast.Attribute(value=ast.Name(id="info"), attr=name):
            return lambda env, info: info[name]
        case ast.Attribute(value=owner, attr=name) if not name.startswith("_"):
            of = _path(owner)
            return lambda env, info: getattr(of(env, info), name)
        case ast.Subscript(value=owner, slice=index):
            of, key = _path(owner), _key(index)
            return lambda env, info: of(env, info)[key]
    raise _NotOurs(f"{ast.unparse(node)} is no number of the env")


def _key(node: ast.expr) -> int | str:
    match node:
        case ast.Constant(value=int() | str() as key):
            return key
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as key)):
            return -key
    raise _NotOurs(f"[{ast.unparse(node)}] is neither a component's number nor a name")


def _single(value: Any, name: str) -> float:
    if np.ndim(value) != 0:
        raise TypeError(f"{name} has shape {np.shape(value)}, take one component as in {name}[0]")
    return float(value)
