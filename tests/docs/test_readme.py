"""Both READMEs say the same, and what they say is true of the code."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import student_code
from dreamer_lpm.cli import COMMANDS, main
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.noisy_tv import TVSpec
from dreamer_lpm.presets import DEFAULT, PRESETS
from dreamer_lpm.settings import from_plain, to_plain
from tests.docs.conftest import ROOT
from tests.docs.documents import blocks, headings, inline_code, links, prose, read, slug, tables, what_runs

ENGLISH, JAPANESE = read(ROOT / "README.md"), read(ROOT / "README.ja.md")
READMES = {"README.md": ENGLISH, "README.ja.md": JAPANESE}
GUIDES = [*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]
DOCUMENTS = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
OTHER_TOOLS = {
    "--nproc-per-node",
    "--extra-index-url",
    "--rm",
    "--build-arg",
    "--logdir",
    "--host",
}  # of pip, docker and TensorBoard
# What a run or the reader makes, so no file of the repository.
MADE = re.compile(r"(runs|videos|data)/|agent_lpm\.pth|(mine|grid)\.toml")
WORDS = {None: {"none", "automatic", "なし", "自動"}, False: {"off", "オフ"}}


@pytest.fixture(params=READMES)
def readme(request: pytest.FixtureRequest) -> str:
    return READMES[request.param]


def table_of(text: str, first: str) -> dict[str, list[str]]:
    """The table whose first column holds ``first``, as first cell without backticks -> other cells."""
    [found] = [t for t in tables(text) if any(row[0] == f"`{first}`" for row in t)]
    return {row[0].strip("`"): row[1:] for row in found[1:]}


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_same_sections_in_both_languages() -> None:
    english, japanese = headings(ENGLISH), headings(JAPANESE)
    assert [level for level, _ in english] == [level for level, _ in japanese]
    assert len(english) > 10


def test_same_code_in_both_languages() -> None:
    assert [(c.language, what_runs(c)) for c in blocks(ENGLISH)] == [
        (c.language, what_runs(c)) for c in blocks(JAPANESE)
    ]


def test_same_tables_and_links_in_both_languages() -> None:
    def shape(text: str) -> list[list[tuple[str, int]]]:
        return [[(row[0] if row[0].startswith("`") else "", len(row)) for row in table] for table in tables(text)]

    def abroad(text: str) -> list[str]:
        return [link for link in links(text) if link.startswith("http")]

    assert shape(ENGLISH) == shape(JAPANESE)
    assert abroad(ENGLISH) == abroad(JAPANESE)


def test_same_commands_and_names_in_the_prose_of_both_languages() -> None:
    assert set(inline_code(ENGLISH)) ^ set(inline_code(JAPANESE)) <= {"auto"}


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.name)
def test_every_flag_exists(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = "".join(help_of(capsys, command) for command in COMMANDS) + read(ROOT / "start.sh")
    known += "".join(read(path) for path in sorted((ROOT / "benchmarks").glob("*.py")))
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", read(path)))
    assert flags <= set(re.findall(r"--[a-z][\w.-]*\w", known)) | OTHER_TOOLS


def test_defaults_are_those_of_the_code(readme: str) -> None:
    plain = to_plain(RunConfig())
    plain |= plain.pop("agent")
    # The options of the command line itself.
    plain |= {"preset": DEFAULT, "run-name": None, "runs": "runs", "resume": False, "config": None}
    plain |= {"seeds": None, "no-pictures": not plain["pictures"]}
    options = table_of(readme, "--steps")
    assert len(options) > 20
    for flag, (default, _) in options.items():
        value: Any = plain
        for part in flag.removeprefix("--").split("."):
            value = value[part if part in value else part.replace("-", "_")]
        allowed = WORDS[value] if value is None or value is False else {f"`{value}`"}
        assert default in allowed, (flag, default, value)


def test_tv_table_is_the_dataclass() -> None:
    listed = {name: row[0].strip("`") for name, row in table_of(read(ROOT / "docs" / "noisy_tv.md"), "trigger").items()}
    assert listed == {name: "none" if value is None else str(value) for name, value in to_plain(TVSpec()).items()}


def test_every_choice_is_listed(readme: str) -> None:
    options = table_of(readme, "--steps")
    assert re.findall(r"`(\w+)`", options["--curiosity"][1]) == list(REGISTRY)
    assert re.findall(r"`(\w+)`", options["--preset"][1]) == list(PRESETS)


def test_every_bonus_is_beside_its_share_in_the_study(readme: str) -> None:
    """The last column, as the study's table of all of them has it, without the interval."""
    listed = {name: row[-1] for name, row in table_of(readme, "lpm_optimistic").items()}
    bank = table_of(read(ROOT / "docs" / "study.md"), "random")
    found = {name: row[0].split(" [")[0] for name, row in bank.items()}
    assert listed == {name: found[name] for name in REGISTRY}


def test_the_tables_before_the_tv_are_those_of_the_study(readme: str) -> None:
    """Reward-free: two TV shares and two coverages; with a task: what is kept and TV share, what in 10,000 steps, and
    the first two without the price of going blind; below them who is at one photo, and how much at most."""
    study = tables(read(ROOT / "docs" / "study.md"))
    bank, priced, one_photo, longer, unpriced = (
        {row[0]: row[1:] for row in table}
        for start in ("TV share, last quarter", "return under sham")
        for table in study
        if table[0][1] == start
    )
    alone, task = [t for t in tables(readme) if t[1][0] in {"`prediction_error`", "`none`"} and len(t[0]) in {5, 6}]
    assert len(alone) > 8
    assert len(task) > 5
    for name, *row in alone[1:]:
        assert row == [bank[name][i] or "-" for i in (0, 1, 3, 4)], name
    for name, *row in task[1:]:
        kept = longer[name][3] if name in longer else "-"
        before = unpriced[name][4:6] if name in unpriced else ["-", "-"]
        assert row == [*priced[name][3:5], kept, *before], name
    assert {row[0] for row in task[1:]} == priced.keys() - {"bonus"}
    [words] = [line for line in readme.splitlines() if "K = 1" in line and line.startswith("- ") and "IQM" in line]
    shares = {name: int(row[-1].split(" %")[0]) for name, row in one_photo.items() if name != "bonus"}
    assert set(re.findall(r"`\w+`", words)) == shares.keys()
    assert re.search(r"(\d+) %", words)[1] == str(max(shares.values()))  # type: ignore[index]


def test_preset_sizes_are_those_of_the_code(readme: str) -> None:
    listed = table_of(readme, "tiny")
    worlds = {name: cfg.agent.world for name, cfg in PRESETS.items()}
    assert listed == {
        name: [str(w.rssm.deter), str(w.rssm.hidden), f"{w.rssm.stoch} x {w.rssm.classes}", str(w.depth)]
        for name, w in worlds.items()
    }


def test_parts_are_where_the_table_says(readme: str) -> None:
    parts = table_of(readme, "Encoder")
    assert set(student_code.__all__) <= parts.keys()
    for name, (file, _) in parts.items():
        module = importlib.import_module(file.strip("`").removesuffix(".py").replace("/", "."))
        assert getattr(module, name).__module__ == module.__name__


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.name)
def test_every_file_named_exists(path: Path) -> None:
    unlinked = re.sub(r"\[`[^`]+`\]\(", "(", read(path))  # the target of a link is tested below
    file = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|sh|toml|yml|ipynb))")
    names = [name for name in inline_code(unlinked) if file.fullmatch(name) and not MADE.match(name)]
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_tables_name_the_whole_root(readme: str) -> None:
    listed = table_of(readme, "train_lpm.py")
    root = {p.name for p in ROOT.iterdir() if p.suffix in {".py", ".sh", ".toml", ".yml"}} | {"Dockerfile", "Makefile"}
    assert root <= listed.keys()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in links(read(path)):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.is_file(), target
            assert not anchor or anchor in {slug(title) for _, title in headings(read(there))}, target


def test_the_example_config_is_one(readme: str) -> None:
    [example] = [code.text for code in blocks(readme) if code.language == "toml"]
    cfg = from_plain(RunConfig, tomllib.loads(example))
    assert cfg != RunConfig()


def test_the_first_commands_are_in_the_makefile(readme: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", "\n".join(code.text for code in blocks(readme)) + prose(readme)))
    assert {"demo", "test"} <= named & targets
    assert set(re.findall(r"`make ([a-z]+)`", readme)) <= targets
