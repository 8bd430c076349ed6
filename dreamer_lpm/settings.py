"""Frozen config dataclasses from plain data: TOML, YAML, JSON, or what an agent file carries.

Strict, and it never runs code.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dreamer_lpm.types import UserError

T = TypeVar("T")
_LARGEST_FILE = 1_000_000  # bytes; a config is a page of text


def from_plain(cls: type[T], data: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """``cls(**data)``, nested; fields not in ``data`` keep the values of ``base`` (default: the class's own).

    A field annotated with ``name=""`` for the command line is transparent here too: its fields are written at the top.
    Raises UserError naming the key, and the nearest one that exists, when a key is unknown or a value has the wrong
    type.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    base = cls() if base is None else base
    flat = {name: _plain_type(hint) for name, hint in fields.items() if _is_transparent(hint)}
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in data.items():
        owner = next((n for n, t in flat.items() if key in {f.name for f in dataclasses.fields(t)}), None)
        if key in fields:
            changes[key] = _value(_plain_type(fields[key]), value, getattr(base, key), f"{where}{key}")
        elif owner is not None:
            inner.setdefault(owner, {})[key] = value
        else:
            known = [*fields, *(f.name for t in flat.values() for f in dataclasses.fields(t))]
            near = difflib.get_close_matches(str(key), known, 1)
            raise UserError(
                f"Unknown setting '{where}{key}'"
                + (f"; did you mean '{where}{near[0]}'?" if near else f"; known are: {', '.join(known)}.")
            )
    for name, part in inner.items():
        changes[name] = from_plain(flat[name], part, getattr(base, name), where)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def to_plain(cfg: Any) -> dict[str, Any]:
    """A config as JSON-able data that :func:`from_plain` reads back."""
    return {f.name: _to_plain(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def read_file(path: Path) -> dict[str, Any]:
    """A TOML, YAML or JSON file as plain data (a mapping). Raises UserError naming what is wrong with it."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path} is larger than a config can be ({_LARGEST_FILE:,} bytes).")
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except FileNotFoundError:
        raise UserError(f"The config file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as {path.suffix or 'YAML'}: {str(error).splitlines()[0]}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold settings as 'key: value' lines.")
    return data


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _plain_type(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _is_transparent(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated and any(
        getattr(m, "name", None) == "" for m in hint.__metadata__
    )


def _value(hint: Any, value: Any, base: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"'{key}' is a group of settings, not {value!r}.")
        return from_plain(typing.cast(type[Any], hint), value, base, f"{key}.")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        fits, converted = _fit(option, value)
        if fits:
            return converted
    raise UserError(f"'{key}' must be {_say(hint)}, not {value!r}.")


def _fit(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether ``value`` is of the type, and it as that type (a list as a tuple, a whole number as a float)."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint), value
    if origin is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, list | tuple) or (inner[-1] is not ... and len(inner) != len(value)):
            return False, None
        parts = [_fit(inner[0] if inner[-1] is ... else inner[i], v) for i, v in enumerate(value)]
        return all(ok for ok, _ in parts), tuple(v for _, v in parts)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number, float(value) if number else None
    if hint is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else None
    if hint in (types.NoneType, None):
        return value is None, None
    return type(value) is hint, value


def _say(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return " or ".join(_say(h) for h in typing.get_args(hint))
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    return names.get(hint, str(hint))
