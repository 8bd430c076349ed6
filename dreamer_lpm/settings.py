"""Frozen config dataclasses from plain data: TOML, YAML, JSON, or what an agent file carries.

Strict, and it never runs code.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import reprlib
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dreamer_lpm.types import UserError

T = TypeVar("T")
_LARGEST_FILE = 100_000  # bytes; a config is a page of text, and the parser takes seconds for a book
_FLOAT = r"[-+]?(\d+\.\d*(e[-+]?\d+)?|\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+|\.inf)$|\.nan$"
_SHORT = reprlib.Repr()  # a page of YAML can refer to itself until its repr fills the memory
_SHORT.maxlevel, _SHORT.maxstring = 2, 80


MOST_SEEDS = 1000  # of one command


def read_seeds(text: str) -> list[int]:
    """``0..15``, or ``0,3,7``. Raises UserError."""
    first, dots, last = text.partition("..")
    try:
        found = [int(part) for part in ((first, last) if dots else text.split(","))]
    except ValueError:
        found = []
    if dots and found:
        if found[1] - found[0] >= MOST_SEEDS:
            raise UserError(f"--seeds {text} would be more than {MOST_SEEDS:,} runs; name fewer.")
        found = list(range(found[0], found[1] + 1))
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise UserError(f"--seeds takes a range such as 0..15 or a list such as 0,3,7, not '{text}'.")
    return found


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
        if key in flat and isinstance(value, Mapping):
            inner.setdefault(key, {}).update(value)
        elif key in fields:
            changes[key] = _value(_plain_type(fields[key]), value, getattr(base, key), f"{where}{key}")
        elif owner is not None:
            inner.setdefault(owner, {})[key] = value
        else:
            known = [*fields, *(f.name for t in flat.values() for f in dataclasses.fields(t))]
            near = difflib.get_close_matches(str(key), known, 1)
            raise UserError(
                f"Unknown setting {_SHORT.repr(f'{where}{key}')}"
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
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
        if len(raw) > _LARGEST_FILE:
            raise UserError(f"{path} is larger than a config can be ({_LARGEST_FILE:,} bytes).")
        text = raw.decode("utf-8-sig")  # some editors begin a file with a mark
        readers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": _json}
        data = readers.get(path.suffix.lower(), _yaml)(text)
    except FileNotFoundError:
        raise UserError(f"The config file {path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as {path.suffix or 'YAML'}: {str(error).splitlines()[0]}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold settings as 'key: value' lines.")
    return data


def _json(text: str) -> Any:
    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"'{next(key for key in keys if keys.count(key) > 1)}' is there twice")
        return data

    return json.loads(text, object_pairs_hook=each_once)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's booleans and floats: in PyYAML's 1.1 ``control: off`` is False, and ``1e-4`` is text."""

        yaml_implicit_resolvers = {  # noqa: RUF012  the name is PyYAML's
            first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """In place of merging ``<<``, by which 20 lines can grow to more than any memory holds: no key twice."""
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for number, key in enumerate(keys):
                if key == "<<" or key in keys[:number]:
                    reason = "merging with '<<' is not supported" if key == "<<" else f"'{key}' is there twice"
                    raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT, re.IGNORECASE), "-+.0123456789")
    try:
        return yaml.load(text, Loader)
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
            raise UserError(f"'{key}' is a group of settings, not {_SHORT.repr(value)}.")
        return from_plain(typing.cast(type[Any], hint), value, base, f"{key}.")
    for option in _options(hint):
        fits, converted = _fit(option, value)
        if fits:
            return converted
    raise UserError(f"'{key}' must be {_say(hint)}, not {_SHORT.repr(value)}.")


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a union, of which Python before 3.14 has two kinds; any other type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _fit(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether ``value`` is of the type, and it as that type (a list as a tuple, a whole number as a float)."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint), value
    if origin in (tuple, list):
        return _fit_all(origin, typing.get_args(hint), value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
            return False, None
        return math.isfinite(value), float(value)
    if hint is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else None
    if hint in (types.NoneType, None):
        return value is None, None
    return type(value) is hint, value


def _fit_all(kind: Callable[[Iterable[Any]], Any], inner: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    """As :func:`_fit`, for ``tuple[inner]`` and ``list[inner]``."""
    repeats = kind is list or inner[-1] is ...
    if not isinstance(value, list | tuple) or (not repeats and len(inner) != len(value)):
        return False, None
    parts = [_fit(inner[0] if repeats else inner[i], v) for i, v in enumerate(value)]
    return all(ok for ok, _ in parts), kind(v for _, v in parts)


def _say(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if len(_options(hint)) > 1:
        return " or ".join(_say(h) for h in _options(hint))
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    return names.get(hint, str(hint))
