"""``dreamer-lpm compare`` itself: tiny grids as real processes, what going on means, and what a dry run says."""

from __future__ import annotations

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamer_lpm import cli
from dreamer_lpm.commands import _cell
from dreamer_lpm.compare import cost
from dreamer_lpm.compare.cost import Cost
from dreamer_lpm.compare.folder import _python, cell_job
from dreamer_lpm.compare.plan import ARMS, Key, Machine, Plan
from dreamer_lpm.forecast import Forecast
from dreamer_lpm.report.grid import read_grid
from dreamer_lpm.report.html import grid_page
from dreamer_lpm.settings import to_plain
from dreamer_lpm.state import State
from dreamer_lpm.train import read_config, train
from dreamer_lpm.types import UserError
from tests.report.fake_grid import write_run
from tests.tiny_run import TINY, as_toml


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are started, with a file of tiny settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the cells, which are processes
    write_settings(tmp_path)
    return tmp_path


def write_settings(folder: Path, steps: int = 100) -> None:
    (folder / "tiny.toml").write_text(as_toml(to_plain(replace(TINY, steps=steps)), "common"))


def compare(words: str) -> int:
    """``dreamer-lpm compare``, settings from the file; argparse and tyro leave by SystemExit."""
    try:
        return cli.main(["compare", "--grid", "tiny.toml", *shlex.split(words)])
    except SystemExit as left:
        return int(str(left.code))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def finish_all(out: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a grid whose cells do nothing but be finished; returns the cells that were started."""
    from dreamer_lpm.compare import command

    started = []

    class Done:
        caught = None

        def __init__(self, *, tidy: object, **_: Any) -> None:
            assert tidy is (command.slim if "--slim" in words else None)

        def run(self, jobs: Any) -> list[str]:
            for job in jobs:
                if not job.finished():
                    started.append(job.name)
                    share = 0.2 if "-remote-" in job.name else None
                    write_run(job.folder, seed=int(job.name[-1]), result=-200.0, share=share)
            return []

    monkeypatch.setattr(command, "Pool", Done)
    assert compare(f"{words} --out {out}") == 0
    return started


# --- real runs --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_a_tiny_grid_runs_is_reported_and_never_runs_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--methods none lpm --arms remote --seeds 1 --out g --jobs 1"
    assert compare(words) == 0
    rows = list(csv.DictReader((folder / "g" / "results.csv").read_text().splitlines()))
    assert [(r["method"], r["arm"], r["seed"], r["curiosity"]) for r in rows] == [
        ("none", "remote", "0", "none"),
        ("lpm", "remote", "0", "lpm"),
    ]
    assert {r["threads"] for r in rows} == {"1"}
    said = json.loads((folder / "g" / "summary.json").read_text())
    assert said["cells"] == {"finished": 2, "planned": 2}
    assert said["tv"]["remote"]["lpm"]["verdict"] == "few seeds"
    assert "data:video/mp4" in (folder / "g" / "report.html").read_text()
    assert (folder / "g" / "logs" / "lpm-remote-0.log").stat().st_size > 0
    before = {p: p.stat().st_mtime_ns for p in (folder / "g" / "cells").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert compare(words) == 0
    assert "2 cells, 2 of them finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (folder / "g" / "cells").rglob("*") if p.is_file()} == before


@pytest.mark.timeout(900)  # two processes one after the other, each of which starts others
def test_a_killed_cell_goes_on_from_its_checkpoint(folder: Path) -> None:
    """The whole path: the grid is stopped, says how to go on, and that command does."""
    write_settings(folder, steps=300)
    words = ["compare", "--grid", "tiny.toml", "--methods", "none", "--arms", "off", "--seeds", "1", "--out", "g",
             "--checkpoint-every", "40"]  # fmt: skip
    command = [sys.executable, "-m", "dreamer_lpm", *words]
    grid = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    cell = folder / "g" / "cells" / "none-off-0"
    deadline = time.monotonic() + 200
    while not list(cell.glob("checkpoints/step_*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    grid.send_signal(signal.SIGTERM)
    said = grid.communicate(timeout=200)[0]
    assert grid.returncode == 128 + signal.SIGTERM
    assert not (cell / "summary.json").exists()
    again = shlex.split(said.split("Go on with: ")[1])
    assert again == ["dreamer-lpm", *words]
    done = subprocess.run([sys.executable, "-m", "dreamer_lpm", *again[1:]], cwd=folder, check=False,
                          capture_output=True, text=True, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (folder / "g" / "logs" / "none-off-0.log").read_text()
    resumed = re.search(r"Resumed at ([\d,]+) steps", log)
    assert resumed is not None
    assert int(resumed[1].replace(",", "")) >= 40
    assert json.loads((cell / "summary.json").read_text())["env_steps"] == 300


# --- how a cell is started --------------------------------------------------------------------------------------------


def test_a_cell_starts_from_its_settings_goes_on_from_its_folder(folder: Path) -> None:
    job = cell_job(folder / "g", Key("lpm", "off", 0), TINY)
    start = job.command()
    assert start[-2:] == ["--config", str(folder / "g" / "settings" / "lpm-off-0.json")]
    assert start[len(_python()) - 1 :][:6] == [
        "dreamer_lpm",
        "train",
        "--runs",
        str(folder / "g" / "cells"),
        "--run-name",
        "lpm-off-0",
    ]
    assert json.loads(Path(start[-1]).read_text())["steps"] == TINY.steps
    job.folder.mkdir(parents=True)
    (job.folder / "metrics.jsonl").write_text("half a li")  # killed before config.json was written
    assert job.command() == start
    assert not job.folder.exists()
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").touch()
    assert job.command()[: len(start) - 1] == [*start[:-2], "--resume"]
    assert not job.finished()
    (job.folder / "summary.json").touch()
    assert job.finished()


def test_a_cell_that_lost_its_settings_keeps_its_checkpoints(folder: Path) -> None:
    job = cell_job(folder / "g", Key("lpm", "off", 0), TINY)
    kept = job.folder / "checkpoints" / "step_000000060"
    kept.mkdir(parents=True)
    (kept / "config.json").touch()
    assert "--resume" in job.command()
    assert kept.is_dir()
    with pytest.raises(UserError, match=r"lpm-off-0/config.json is gone; put back its copy: cp .*step_000000060"):
        read_config(job.folder)


def test_a_cell_goes_on_with_what_the_grid_now_says_of_places(folder: Path) -> None:
    """In a process of its own by flags, in one with others by its file of settings."""
    run_dir = folder / "g" / "cells" / "lpm-off-0"
    train(TINY, run_dir)
    moved = replace(TINY, data_dir=Path("moved"), wandb_entity="team")
    command = cell_job(folder / "g", Key("lpm", "off", 0), moved).command()
    flags = shlex.join(command[command.index("--resume") + 1 :])
    assert flags == "--data-dir moved --no-wandb --wandb-project dreamer-lpm --wandb-entity team"
    job = _cell(run_dir.parent, folder / "g" / "settings" / "lpm-off-0.json")
    assert (job.resume, job.cfg.data_dir, job.cfg.steps) == (True, Path("moved"), TINY.steps)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_grid_grows_and_only_what_is_new_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "g"
    assert finish_all(out, "--methods none --arms sham --seeds 1", monkeypatch) == ["none-sham-0"]
    grown = finish_all(out, "--methods none lpm --arms sham remote --seeds 2", monkeypatch)
    assert len(grown) == 7
    assert "none-sham-0" not in grown
    about = json.loads((out / "grid.json").read_text())
    assert (list(about["methods"]), list(about["arms"]), about["seeds"]) == (
        ["none", "lpm"],
        ["sham", "remote"],
        [0, 1],
    )
    assert about["arms"]["remote"]["sham"] == "sham"
    assert len(about["cells"]) == 8
    assert len(about["commands"]) == 2
    smaller = finish_all(out, "--methods none --arms sham --seeds 1", monkeypatch)
    assert smaller == []
    assert json.loads((out / "summary.json").read_text())["cells"] == {"finished": 8, "planned": 8}
    assert json.loads((out / "grid.json").read_text())["arms"]["remote"]["sham"] == "sham"


@pytest.mark.parametrize("first", ["sham", "remote"])
def test_an_arm_and_its_sham_find_each_other_whichever_came_first(
    first: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {"sham": "remote", "remote": "sham"}[first]
    for arm in (first, second):
        finish_all(folder / "g", f"--methods none --arms {arm} --seeds 1", monkeypatch)
    arms = json.loads((folder / "g" / "grid.json").read_text())["arms"]
    assert {arm: about["sham"] for arm, about in arms.items()} == {"sham": None, "remote": "sham"}
    assert list(arms) == [first, second]


def test_a_method_may_come_that_cannot_be_with_an_earlier_arm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for the two together."""
    with (folder / "tiny.toml").open("a") as file:
        file.write("[methods.a]\n[methods.long]\nseq_length = 16\ncuriosity = 'none'\n[arms.many]\nnum_envs = 100\n")
    finish_all(folder / "g", "--methods a --arms many --seeds 1", monkeypatch)
    assert finish_all(folder / "g", "--methods long --arms off --seeds 1", monkeypatch) == ["long-off-0"]


def test_an_arm_that_can_be_only_with_its_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it came first, or after one that it cannot be with."""
    with (folder / "tiny.toml").open("a") as file:
        file.write("[methods.short]\nseq_length = 2\n[arms.many]\nnum_envs = 300\n")
    for out, order in (("g", ("short-many", "none-off")), ("h", ("none-off", "short-many"))):
        for method, arm in (name.split("-") for name in order):
            asked = f"--methods {method} --arms {arm} --seeds 1"
            assert finish_all(folder / out, asked, monkeypatch) == [f"{method}-{arm}-0"]
        assert sorted(json.loads((folder / out / "grid.json").read_text())["arms"]) == ["many", "off"]


def test_a_cell_in_the_folder_of_an_earlier_commands_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(folder)
    with (folder / "tiny.toml").open("a") as file:
        file.write("[methods.a]\n[methods.a-b]\n[arms.b-c]\n[arms.c]\n")
    finish_all(folder / "g", "--methods a --arms b-c --seeds 1", monkeypatch)
    before = (folder / "g" / "grid.json").read_text()
    assert compare("--methods a-b --arms c --seeds 1 --out g") == 2
    assert "The folder a-b-c-0 is another cell's of the grid in g; rename a method or an arm." in one_line(capsys)
    assert (folder / "g" / "grid.json").read_text() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--steps 101", "was made with steps = 100, not 101"),
        ("--batch-size 3", "was made with batch_size = 2, not 3"),
        ("--lpm-eta 2", "was made with agent.lpm_eta = 1.0, not 2.0"),
        ("--bonus.hidden 17", "was made with agent.bonus.hidden = 16, not 17"),
    ],
)
def test_other_settings_are_refused_by_name(
    more: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--methods none --arms sham --seeds 1"
    finish_all(folder / "g", words, monkeypatch)
    before = (folder / "g" / "grid.json").read_text()
    assert compare(f"{words} {more} --out g") == 2
    assert message in one_line(capsys)
    assert (folder / "g" / "grid.json").read_text() == before


def test_another_meaning_of_a_name_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (folder / "tiny.toml").read_text()
    mine = "[methods.mine]\ncuriosity = 'lpm'\nlpm_eta = {eta}\n"
    (folder / "tiny.toml").write_text(settings + mine.format(eta=3))
    finish_all(folder / "g", "--methods mine --arms sham --seeds 1", monkeypatch)
    (folder / "tiny.toml").write_text(settings + mine.format(eta=4))
    assert compare("--methods mine --arms sham --seeds 1 --out g") == 2
    assert "was made with methods.mine.lpm_eta = 3, not 4" in one_line(capsys)


def test_where_things_are_kept_may_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--methods none --arms sham --seeds 1"
    finish_all(folder / "g", words, monkeypatch)
    assert finish_all(folder / "g", f"{words} --data-dir elsewhere --jobs 3 --retries 9", monkeypatch) == []


def test_slim_leaves_what_a_report_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--methods none --arms sham --seeds 1"
    finish_all(folder / "g", words, monkeypatch)
    cell = folder / "g" / "cells" / "none-sham-0"
    for name in ("checkpoints", "replay"):
        (cell / name).mkdir()
        (cell / name / "file").touch()
    finish_all(folder / "g", words, monkeypatch)
    assert (cell / "replay" / "file").exists()
    finish_all(folder / "g", f"{words} --slim", monkeypatch)
    assert sorted(p.name for p in cell.iterdir()) == ["config.json", "metrics.jsonl", "summary.json"]


@pytest.mark.parametrize("words", ["", "--dry-run"])
def test_a_grid_of_a_device_that_is_not_here_is_refused_as_a_whole(
    words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "--methods none --arms sham --seeds"
    finish_all(folder / "g", f"{grid} 1", monkeypatch)
    path = folder / "g" / "grid.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "machine": {**about["machine"], "device": "cuda"}}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capsys.readouterr()
    assert compare(f"{grid} 2 --out g {words}") == 2
    assert "The cells of g compute on cuda, which is not here: go on where it is" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "seeds"), [("2", [0, 1]), ("7..7", [7]), ("3 1", [3, 1]), ("4..5 9", [4, 5, 9]), ("2,8", [2, 8])]
)
def test_seeds_are_counted_or_named(
    words: str, seeds: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finish_all(folder / "g", f"--methods none --arms sham --seeds {words}", monkeypatch)
    assert sorted(done) == sorted(f"none-sham-{seed}" for seed in seeds)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods none --arms sham", "Where to? Name the grid's folder"),
        ("--arms sham --out g", "Which methods?"),
        ("--methods lmp --arms sham --out g", "Unknown method 'lmp'; choose from: none, prediction_error"),
        ("--methods none --arms shamm --out g", "Unknown arm 'shamm'; choose from: off, sham, remote"),
        ("--methods none --arms sham --seeds 1 two --out g", "--seeds takes a range such as 0..15"),
        ("--methods none --arms sham --seeds 1..3 2 --out g", "each only once"),
        ("--methods none --arms sham --seeds 0 --out g", "for the one seed 0 write 0..0"),
        (
            "--methods none --arms sham --seeds 1001 --dry-run --out g",
            "1,001 seeds; for the one of that number write 1",
        ),
        ("--methods none --arms sham --seed 3 --out g", "The seeds of a grid come from --seeds"),
        ("--methods none --arms sham --seed 0 --out g", "The seeds of a grid come from --seeds"),
        ("--methods none --arms remote --no-noisy-tv --out g", "has its own noisy-tv, True: leave --noisy-tv out"),
        ("--methods none --arms sham --curiosity lpm --out g", "'none' before 'sham' has its own curiosity, none"),
        ("--methods none --arms remote --tv.trigger=action --out g", "has its own tv.trigger, remote"),
        ("--methods none --arms sham --jobs -1 --out g", "--jobs must be 0 or more, not -1."),
        ("--methods none --arms sham --env-name Nope-v0 --out g", "Nope"),
        ("--methods none --arms sham --out .", "holds no grid; choose another --out"),
        ("--methods none --arms sham --out tiny.toml", "holds no grid; choose another --out"),
        ("--methods none --arms sham --preset huge --out g", "Unknown preset 'huge'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(words) == 2
    assert message in one_line(capsys)
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_help_names_the_grids_options_and_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--help") == 0
    text = capsys.readouterr().out
    for word in ("--methods", "--arms", "--seeds", "--dry-run", "--slim", "remote_k1", "lpm_dual", "--extrinsic"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config mine.toml", "A grid's settings stand in the file of --grid, under [common]; leave --config out."),
        ("--config=mine.toml", "A grid's settings stand in the file of --grid, under [common]; leave --config out."),
        ("--resume", "The same command goes on with a grid; leave --resume out."),
        ("--run-name mine", "A grid names its runs itself; leave --run-name out."),
        ("--runs there", "A grid's runs are in its --out folder; leave --runs out."),
    ],
)
def test_what_is_of_a_run_alone_is_no_option_of_a_grid(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(f"--methods none --arms sham --out g {words}") == 2
    assert message in one_line(capsys)


def test_a_flag_may_say_what_a_method_has_anyway(folder: Path) -> None:
    assert compare("--methods lpm --arms off --curiosity lpm --no-noisy-tv --seeds 1 --out g --dry-run") == 0


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_dry_run_times_and_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--methods none lpm --arms sham remote --seeds 3 --out g --dry-run --jobs 2") == 0
    text = capsys.readouterr().out
    assert re.search(r"none\W+6\W+600\W+[\d.]+\W+a short timing", text)
    assert "12 cells to run and 0 finished. About" in text
    assert "GB of disk at most" in text
    assert "A TV shows static over the full frame" in text
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_a_dry_run_knows_what_finished_cells_took(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_all(folder / "g", "--methods none --arms sham --seeds 2", monkeypatch)
    monkeypatch.setattr(cost, "timed", lambda cfg: Cost(600.0, 1e9, 2e9))
    monkeypatch.setattr(Forecast, "disk", lambda self, keep: 3e9)  # of cells that were made slim, and say no more
    monkeypatch.setattr(cost, "cores", lambda: 2)
    capsys.readouterr()
    assert compare("--methods none lpm --arms sham --seeds 4 --out g --dry-run --jobs 2") == 0
    text = capsys.readouterr().out
    assert re.search(r"none\W+2\W+200\W+1\.0\W+finished cells", text)
    assert re.search(r"lpm\W+4\W+400\W+10\.0\W+a short timing", text)
    assert "6 cells to run and 2 finished. About 21 minutes with 2 side by side, 10.0 GB of disk" in text
    assert "4.0 GB of memory" in text


def test_runs_of_one_process_share_its_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish_all(folder / "g", "--methods none --arms sham --seeds 2", monkeypatch)
    for path in folder.glob("g/cells/*/summary.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "runs_in_process": 8}))
    grid = read_grid(folder / "g")
    found = cost.from_finished(grid.finished)
    assert found is not None
    assert found.seconds == 60 / 8, "of a run before it said so itself"
    assert "0 minutes of computing in all" in grid_page(grid, folder)


def test_cells_find_modules_where_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m`` looks where one stands first, and the command itself does not: a random.py there hides Python's."""
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path])
    assert _python()[1:] == ["-P", "-m", "dreamer_lpm"]
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    assert _python()[1:] == ["-m", "dreamer_lpm"]


def test_the_timing_grows_with_the_steps() -> None:
    short, long = (cost.timed(replace(TINY, steps=steps, prefill=0)) for steps in (10_000, 1_000_000))
    assert long.seconds > 20 * short.seconds > 0
    assert long.disk >= short.disk > 0


def test_what_is_timed_is_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the default one a GPU records no graph."""
    inside: list[bool] = []
    observe, learn = State.observe, State.learn

    @contextmanager
    def own_stream(device: Any) -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    def asserted(method: Any) -> Any:
        def called(self: State, *args: Any) -> Any:
            assert inside
            return method(self, *args)

        return called

    monkeypatch.setattr(cost, "own_stream", own_stream)
    monkeypatch.setattr(State, "observe", asserted(observe))
    monkeypatch.setattr(State, "learn", asserted(learn))
    cost.timed(TINY)


@pytest.mark.parametrize(("steps", "num_envs"), [(2, 1), (16, 8)])
def test_the_timing_of_what_is_shorter_than_a_sequence_ends(
    steps: int, num_envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, seen = State.observe, []

    def counted(self: State, policy: Any) -> None:
        seen.append(policy)
        assert len(seen) < 100, "it never ends"
        observe(self, policy)

    monkeypatch.setattr(State, "observe", counted)
    assert 0 < cost.timed(replace(TINY, steps=steps, num_envs=num_envs)).seconds < 60


@pytest.mark.parametrize(
    ("device", "threads", "gigabytes", "jobs"),
    [("cpu", 1, 64, 8), ("cpu", 3, 64, 2), ("cpu", 16, 64, 1), ("cpu", 1, 5, 3), ("cpu", 1, 0.5, 1),
     ("cpu", 1, None, 8), ("cuda", 1, 64, 1)],
)  # fmt: skip
def test_as_many_side_by_side_as_cores_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int, gigabytes: float | None, jobs: int
) -> None:
    monkeypatch.setattr(cost, "cores", lambda: 8)
    monkeypatch.setattr(cost, "free_memory", lambda device: gigabytes and gigabytes * 1e9)
    monkeypatch.setattr(cost, "_memory_of_a_run", lambda plan, machine: 1.5e9)
    assert cost.jobs_for(a_plan(), Machine(device, "fp32", threads)) == jobs


def a_plan(**more: Any) -> Plan:
    """Of methods none, and lpm with another replay; ``more``: settings of all."""
    methods = {"none": {"curiosity": "none"}, "lpm": {"replay_capacity": 30_000}}
    return Plan(replace(TINY, **more), methods, {"sham": ARMS["sham"]}, (0, 1))


def test_the_memory_of_a_run_is_that_of_its_replay_and_its_weights() -> None:
    row = 64 * 64 * 3
    machine = Machine("cpu", "fp32", 1)
    found = [cost._memory_of_a_run(a_plan(steps=steps), machine) for steps in (100, 10_000, 100_000)]
    assert cost.BASE_MEMORY < found[0] < 1.1 * cost.BASE_MEMORY
    assert 1.0 < (found[1] - found[0]) / (9_900 * row) < 1.1
    assert 1.0 < (found[2] - found[0]) / (29_900 * row) < 1.1, "of the method that takes most"


def test_more_places_than_cells_save_no_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "timed", lambda cfg: Cost(600.0, 1e9, 2e9))
    monkeypatch.setattr(cost, "cores", lambda: 2)
    assert compare("--methods none lpm --arms sham --seeds 1 --out g --dry-run --jobs 8") == 0
    assert "About 10 minutes with 2 side by side" in capsys.readouterr().out
    assert compare("--methods none lpm lbs --arms sham --seeds 1 --out g --dry-run --jobs 2") == 0
    assert "About 15 minutes with 2 side by side" in capsys.readouterr().out
    assert compare("--methods none lpm --arms sham --seeds 4 --out g --dry-run --jobs 8") == 0
    assert "About 40 minutes with 8 side by side" in capsys.readouterr().out, "two cores do the work of two"
    slow = {"lbs": 3000.0}
    monkeypatch.setattr(cost, "timed", lambda cfg: Cost(slow.get(cfg.agent.curiosity, 60.0), 1e9, 2e9))
    assert compare("--methods none lpm lbs --arms sham --seeds 1 --out g --dry-run --jobs 2") == 0
    assert "About 50 minutes with 2 side by side" in capsys.readouterr().out, "no less than its longest cell"
    assert compare("--methods none --arms sham --seeds 1 --out g --dry-run") == 0
    assert "About 1 minute with 1 side by side" in capsys.readouterr().out


def test_cells_that_share_a_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a GPU, where it is the default: one process for all of a method, each with a folder of its own."""
    write_settings(folder, steps=60)
    assert compare("--methods none lpm --arms off sham --seeds 1 --out g --jobs 1 --together 4") == 0
    assert 'sham: No TV (control "sham": its trigger is there and nothing happens).\n' in capsys.readouterr().out
    rows = list(csv.DictReader((folder / "g" / "results.csv").read_text().splitlines()))
    assert sorted((row["method"], row["arm"]) for row in rows) == [
        ("lpm", "off"), ("lpm", "sham"), ("none", "off"), ("none", "sham"),
    ]  # fmt: skip
    logs = sorted(path.name for path in (folder / "g" / "logs").iterdir())
    assert logs == ["lpm-off-0.log"], "of the process, by the first of its cells"
    assert all((folder / "g" / "cells" / f"{r['method']}-{r['arm']}-0" / "log.txt").is_file() for r in rows)
