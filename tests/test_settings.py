"""Settings from files: what is written is what is meant, mistakes are answered by name, and no file runs code."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest
import tyro

from dreamer_lpm.config import RunConfig
from dreamer_lpm.presets import PRESETS
from dreamer_lpm.settings import from_plain, read_file, read_seeds, to_plain
from dreamer_lpm.types import UserError


@dataclass(frozen=True)
class Inner:
    depth: int = 3
    stages: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclass(frozen=True)
class Shared:
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.5
    shared_only: int = 1


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    on: bool = False
    mode: Literal["x", "y"] | None = None
    limit: int | None = None
    old_style: Optional[float] = None  # noqa: UP045  both ways to write a union
    either: Union[int, str] = 1  # noqa: UP007
    folder: Path | None = None
    group: Inner = field(default_factory=Inner)
    shared: Annotated[Shared, tyro.conf.arg(name="")] = field(default_factory=Shared)


FULL = Outer("b", True, "y", 3, 0.25, "text", Path("some/where"), Inner(5, ((3, 4), (5, 6))), Shared(Inner(9), 2.0, 7))


@pytest.mark.parametrize("cfg", [Outer(), FULL])
def test_plain_and_back(cfg: Outer) -> None:
    plain = to_plain(cfg)
    assert from_plain(Outer, json.loads(json.dumps(plain))) == cfg


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_json(name: str) -> None:
    """This is how a run finds its settings again when it is resumed, and how an agent file carries them."""
    assert from_plain(RunConfig, json.loads(json.dumps(to_plain(PRESETS[name])))) == PRESETS[name]


def test_what_is_not_named_keeps_the_base() -> None:
    changed = from_plain(Outer, {"limit": None, "group": {"depth": 1}}, FULL)
    assert changed.limit is None
    assert changed.group == Inner(1, FULL.group.stages)
    assert (changed.name, changed.shared) == (FULL.name, FULL.shared)


def test_the_fields_of_a_transparent_group_are_written_at_the_top_or_in_it() -> None:
    assert from_plain(Outer, {"rate": 1, "inner": {"depth": 2}}).shared == Shared(Inner(2), 1.0)
    assert from_plain(Outer, {"shared": {"rate": 1}, "inner": {"depth": 2}}).shared == Shared(Inner(2), 1.0)


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    rate = from_plain(Outer, {"rate": 2}).shared.rate
    assert (rate, type(rate)) == (2.0, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nmae": "b"}, "Unknown setting 'nmae'; did you mean 'name'?"),
        ({"shared_onyl": 1}, "Unknown setting 'shared_onyl'; did you mean 'shared_only'?"),
        ({"group": {"dpeth": 1}}, "Unknown setting 'group.dpeth'; did you mean 'group.depth'?"),
        ({"inner": {"dpeth": 1}}, "Unknown setting 'inner.dpeth'; did you mean 'inner.depth'?"),
        ({"qqq": 1}, "Unknown setting 'qqq'; known are: name, on, mode"),
        ({3: 1}, "Unknown setting '3'; known are"),
        ({"name": 1}, "'name' must be text, not 1."),
        ({"name": None}, "'name' must be text, not None."),
        ({"on": 1}, "'on' must be true or false, not 1."),
        ({"on": "yes"}, "'on' must be true or false, not 'yes'."),
        ({"limit": 1.5}, "'limit' must be a whole number or null, not 1.5."),
        ({"limit": True}, "'limit' must be a whole number or null, not True."),
        ({"mode": "z"}, "'mode' must be one of x, y or null, not 'z'."),
        ({"mode": ["x"]}, "'mode' must be one of x, y or null, not ['x']."),
        ({"rate": "1.0"}, "'rate' must be a finite number, not '1.0'."),
        ({"rate": True}, "'rate' must be a finite number, not True."),
        ({"rate": float("nan")}, "'rate' must be a finite number, not nan."),
        ({"rate": float("-inf")}, "'rate' must be a finite number, not -inf."),
        ({"rate": 10**400}, "'rate' must be a finite number"),
        ({"old_style": "fast"}, "'old_style' must be a finite number or null, not 'fast'."),
        ({"folder": 3}, "'folder' must be"),
        ({"group": 3}, "'group' is a group of settings, not 3."),
        ({"group": {"stages": [[1]]}}, "'group.stages' must be"),
        ({"group": {"stages": [[1, 2.5]]}}, "'group.stages' must be"),
        ({"group": {"stages": 1}}, "'group.stages' must be"),
    ],
)
def test_mistakes_are_answered_by_name(data: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        from_plain(Outer, data)


# --- files ------------------------------------------------------------------------------------------------------------

TOML = """
name = "b"
rate = 2
mode = "y"
[group]
depth = 5
stages = [[3, 4], [5, 6]]
"""
YAML = """
name: b
rate: 2e+0
mode: y
group:
  depth: 5
  stages: [[3, 4], [5, 6]]
"""
WRITTEN = Outer(name="b", mode="y", group=Inner(5, ((3, 4), (5, 6))), shared=Shared(rate=2.0))


@pytest.mark.parametrize(("suffix", "text"), [("toml", TOML), ("TOML", TOML), ("yaml", YAML), ("yml", YAML)])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_toml_and_yaml_say_the_same(tmp_path: Path, suffix: str, text: str, mark: str, end: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    path.write_bytes((mark + text).replace("\n", end).encode())
    assert from_plain(Outer, read_file(path)) == WRITTEN


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(to_plain(FULL)))
    assert from_plain(Outer, read_file(path)) == FULL
    path.write_text(json.dumps({"name": "\N{GRINNING FACE}"}, indent="\t"))  # neither tabs nor pairs are YAML's
    assert read_file(path) == {"name": "\N{GRINNING FACE}"}


def test_yaml_means_what_people_write(tmp_path: Path) -> None:
    """``off`` is a word, as the TV's control needs it, and 1e-4 is a number."""
    path = tmp_path / "mine.yaml"
    path.write_text("a: off\nb: no\nc: 1e-4\nd: -1.5E+3\ne: 0.25\nf: 10\ng: true\nh: False\ni: null\nj: .5\nk: 1e4x\n")
    want = {"a": "off", "b": "no", "c": 1e-4, "d": -1500.0, "e": 0.25, "f": 10, "g": True, "h": False, "i": None}
    assert read_file(path) == {**want, "j": 0.5, "k": "1e4x"}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{later}: &{later} [{', '.join([f'*{earlier}'] * 9)}]\n"
    for earlier, later in zip("abcdefgh", "bcdefghi", strict=True)
)
# Twenty merges of nine references each: a mapping of 9**20 entries, should anybody merge them.
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{later}: &{later} {{<<: [{', '.join([f'*{earlier}'] * 9)}]}}\n"
    for earlier, later in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.yaml", b"\xff\xfe\x00", "mine.yaml cannot be read as .yaml: 'utf-8' codec"),
        ("mine.toml", b"name = \xff", "mine.toml cannot be read as .toml: 'utf-8' codec"),
        ("mine.toml", b"name = ", "mine.toml cannot be read as .toml: Invalid value"),
        ("mine.toml", b"name: b", "mine.toml cannot be read as .toml"),
        ("mine.yaml", b"name: [b", "mine.yaml cannot be read as .yaml"),
        ("mine.yaml", b"", "mine.yaml must hold settings as 'key: value' lines."),
        ("mine.yaml", b"- a\n- b\n", "mine.yaml must hold settings as 'key: value' lines."),
        ("mine.yaml", b"name: b\n" + b"#" * 100_000, "mine.yaml is larger than a config can be (100,000 bytes)."),
        ("mine.yaml", b"name: b\nname: c", "mine.yaml cannot be read as .yaml: 'name' is there twice"),
        ("mine.json", b'{"name": "b", "name": "c"}', "mine.json cannot be read as .json: 'name' is there twice"),
        ("mine.yaml", b"<<: {name: b}", "mine.yaml cannot be read as .yaml: merging with '<<' is not supported"),
        ("mine.yaml", MERGE_BOMB.encode(), "mine.yaml cannot be read as .yaml: merging with '<<' is not supported"),
        ("mine.yaml", b"[" * 90_000, "mine.yaml cannot be read as .yaml"),
        ("mine.toml", b"a = " + b"[" * 90_000, "mine.toml cannot be read as .toml"),
        ("mine.toml", b"a = " + b"9" * 5_000, "mine.toml cannot be read as .toml"),
        ("mine", b"{", "mine cannot be read as YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The config file .*none\.toml does not exist\."):
        read_file(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_file(tmp_path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system"])
def test_yaml_runs_no_code(tmp_path: Path, tag: str) -> None:
    trap, path = tmp_path / "trap", tmp_path / "mine.yaml"
    path.write_text(f"name: {tag} ['touch {trap}']\n")
    with pytest.raises(UserError, match="could not determine a constructor for the tag"):
        read_file(path)
    assert not trap.exists()


def test_a_yaml_bomb_is_answered_in_one_short_line(tmp_path: Path) -> None:
    """Nine levels of nine references each: 400 million values, should anybody write them out."""
    path = tmp_path / "mine.yaml"
    path.write_text(BOMB + "group: *i\n")
    bomb = read_file(path)["group"]
    for data in ({"group": bomb}, {"name": bomb}, {"group": {"stages": bomb}}):
        with pytest.raises(UserError) as caught:
            from_plain(Outer, data)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eval_episodes": 10**9}, "eval_episodes must be 10,000 or less"),
        ({"threads": 10**9}, "threads must be 1,024 or less"),
        ({"bonus": {"hidden": 10**30}}, "bonus.hidden must be 1,000,000 or less"),
        ({"behavior": {"horizon": 10**9}}, "behavior.horizon must be 1,000,000 or less"),
        ({"lpm_eta": 1e308}, "lpm_eta must be 1,000,000,000 or less"),
    ],
)
def test_a_slip_of_the_finger_is_told_by_the_name_of_its_setting(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        from_plain(RunConfig, changes)


@pytest.mark.parametrize("text", ["0..1000", "0..99999999999", f"0..{10**30}"])
def test_seeds_without_end_are_refused_at_once(text: str) -> None:
    with pytest.raises(UserError, match=r"more than 1,000 runs; name fewer"):
        read_seeds(text)
    assert len(read_seeds("1..1000")) == 1000
