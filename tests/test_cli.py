"""The command line as users meet it: precedence, mistakes answered in one line, and the guide's command end to end."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docstring_parser
import imageio_ffmpeg
import numpy as np
import pytest
import torch

import dreamer_lpm.train as train_module
from dreamer_lpm import cli, commands
from dreamer_lpm.config import RunConfig, settled
from dreamer_lpm.envs import make_env
from dreamer_lpm.evaluate import load, save_agent
from dreamer_lpm.noisy_tv import NoisyTVError
from dreamer_lpm.noisy_tv.images import Pool
from dreamer_lpm.presets import PRESETS
from dreamer_lpm.report.strict_json import sealed
from dreamer_lpm.settings import to_plain
from dreamer_lpm.train import Job, Report, Stopped
from dreamer_lpm.types import UserError
from tests.test_evaluate import CONTINUOUS, DISCRETE, make_agent
from tests.tiny_run import TINY, WITH_TV, write_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Trained(list[tuple[RunConfig, Path, bool]]):
    """Calls of ``train``, which does nothing here."""

    def __call__(self, cfg: RunConfig, run_dir: Path, *, resume: bool = False, team: None = None) -> Report:
        self.append((cfg, run_dir, resume))
        summary: dict[str, Any] = {"eval_return_mean": 1.0, "eval_returns": [1.0], "tv_images": None}
        summary |= {"wall_seconds": 1.0, "updates": 1, "peak_memory_bytes": 1}
        return Report(summary, run_dir / "agent_lpm.pth", run_dir / "video.mp4", run_dir / "curves.png")

    @property
    def cfg(self) -> RunConfig:
        [(cfg, _, _)] = self
        return cfg


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    calls = Trained()
    monkeypatch.setattr(commands, "train", calls)
    return calls


def run(*args: str) -> int:
    """``dreamer-lpm train ...`` in this process; argparse and tyro leave by SystemExit."""
    try:
        return cli.main(["train", *args])
    except SystemExit as left:
        return int(str(left.code))


# --- several at once --------------------------------------------------------------------------------------------------


Result = Report | Exception


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What ``train_together`` was asked for; it does nothing here but end as ``endings`` says, else well."""
    asked: list[Job] = []
    summary = {"eval_return_mean": 1.0, "tv_images": None}

    def ended(jobs: list[Job], screen: object) -> list[Result]:
        asked.extend(jobs)
        return [ENDINGS.get(job.cfg.seed, Report(summary, Path("a"), None, None)) for job in jobs]

    monkeypatch.setattr(commands, "train_together", ended)
    return asked


ENDINGS: dict[int, Exception] = {7: UserError("no such env"), 8: OSError("no room"), 9: Stopped(signal.SIGTERM)}


@pytest.mark.parametrize(("text", "seeds"), [("0..3", [0, 1, 2, 3]), ("4", [4]), ("5,0", [5, 0])])
def test_seeds_are_runs_of_one_name_that_differ_in_nothing_else(
    together: list[Job], text: str, seeds: list[int]
) -> None:
    assert run("--seeds", text, "--run-name", "x", "--steps", "123") == 0
    assert [job.run_dir for job in together] == [Path(f"runs/x-{seed}") for seed in seeds]
    here = settled(replace(PRESETS["tiny"], steps=123))
    assert [job.cfg for job in together] == [replace(here, seed=seed) for seed in seeds]
    assert not any(job.resume for job in together)


@pytest.mark.parametrize("text", ["", "a", "3..1", "0,0", "-1", "0...2", "1.5"])
def test_seeds_that_are_none(text: str, capsys: pytest.CaptureFixture[str], together: list[Job]) -> None:
    assert run(f"--seeds={text}") == 2
    assert f"--seeds takes a range such as 0..15 or a list such as 0,3,7, not '{text}'." in one_line(capsys)
    assert together == []


def test_seeds_go_on_by_name_and_those_begin_that_had_not(
    together: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run(Path("runs/x-0"), replace(TINY, seed=0))
    assert run("--resume", "--seeds", "0,1") == 2
    assert "needs the name that those runs have in common: --run-name NAME" in one_line(capsys)
    assert run("--resume", "--seeds", "0,1", "--run-name", "x") == 0
    assert [(job.run_dir.name, job.resume, job.cfg.seed) for job in together] == [("x-0", True, 0), ("x-1", False, 1)]


def test_a_seed_that_had_not_begun_takes_the_settings_of_one_that_had(together: list[Job]) -> None:
    begun = replace(WITH_TV, steps=77, seed=1, agent=replace(TINY.agent, curiosity="ama"))
    saved_run(Path("runs/x-1"), begun)
    assert run("--resume", "--seeds", "0..2", "--run-name", "x", "--log-every", "7") == 0
    assert [(job.run_dir.name, job.resume) for job in together] == [("x-0", False), ("x-1", True), ("x-2", False)]
    assert [job.cfg for job in together] == [replace(begun, seed=seed, log_every=7) for seed in range(3)]


def test_seeds_that_are_finished_without_a_checkpoint_are_done_with(
    together: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that a stop prints names all, also those that had ended."""
    again = ["--resume", "--seeds", "0..2", "--run-name", "x"]
    for seed in (0, 1):
        saved_run(Path(f"runs/x-{seed}"), replace(TINY, seed=seed))
    (Path("runs/x-0") / "summary.json").write_text("{}")
    assert run(*again) == 0
    assert [job.run_dir.name for job in together] == ["x-1", "x-2"]
    assert "runs/x-0: finished already" in capsys.readouterr().out
    together.clear()
    assert run(*again[1:], "--curiosity", "icm", "--steps", str(TINY.steps)) == 0
    assert [job.run_dir.name for job in together] == ["x-0", "x-1", "x-2"], "a new run asks for each, and is refused"
    together.clear()
    assert run(*again, "--steps", "999") == 0
    assert [job.run_dir.name for job in together] == ["x-0", "x-1", "x-2"], (
        "to go further needs a checkpoint: it is told"
    )
    together.clear()
    (Path("runs/x-0") / "checkpoints" / "step_000000160").mkdir(parents=True)
    assert run(*again) == 0
    assert [job.run_dir.name for job in together] == ["x-0", "x-1", "x-2"]


def test_a_seed_beside_seeds_is_refused(together: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--seed", "7", "--seeds", "0..1") == 2
    assert "--seed and --seeds say two things; leave --seed out." in one_line(capsys)
    assert together == []


def test_seeds_of_which_none_had_begun_cannot_go_on(together: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    saved_run(Path("runs/x-5"))
    assert run("--resume", "--seeds", "0,1", "--run-name", "x") == 2
    assert "runs/x-0 holds no run to resume" in one_line(capsys)
    assert together == []


def test_the_name_that_seeds_have_in_common_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    saved_run(Path("runs/x-0"))
    saved_run(Path("runs/x-1"))
    assert run("--resume", "--run-name", "x") == 2
    assert "(no config.json); name one of x-0, x-1, or all by --seeds." in one_line(capsys)


def test_what_is_left_to_the_machine_is_decided_once_for_all_seeds_that_begin(
    together: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def load_images(source: str, data_dir: Path) -> Any:
        found.append((source, SimpleNamespace(used="photos")))
        return found[-1]

    numbers = iter(range(1, 9))
    monkeypatch.setattr(train_module, "load_images", load_images)
    monkeypatch.setattr(commands, "settled", lambda cfg: replace(cfg, precision="bf16", threads=next(numbers)))
    saved_run(Path("runs/x-0"), replace(WITH_TV, seed=0, precision="auto", threads=0))
    assert run("--resume", "--seeds", "0..2", "--run-name", "x") == 0
    assert [(job.cfg.precision, job.cfg.threads) for job in together] == [("auto", 0), ("bf16", 1), ("bf16", 1)]
    assert [job.cfg.seed for job in together] == [0, 1, 2]
    [pictures] = found
    assert pictures[0] == "static"
    assert [job.cfg.tv_images for job in together[1:]] == ["photos", "photos"]
    assert [job.pictures for job in together] == [None, pictures, pictures]


@pytest.mark.parametrize(("seeds", "status"), [("0,7", 2), ("7,8", 1), ("0,9", 128 + signal.SIGTERM), ("0..2", 0)])
def test_how_several_ended(seeds: str, status: int, capsys: pytest.CaptureFixture[str], together: list[Job]) -> None:
    assert run("--seeds", seeds, "--run-name", "x") == status
    said = capsys.readouterr().out
    assert ("runs/x-7: error: no such env" in said) == ("7" in seeds)
    again = f"dreamer-lpm train --resume --run-name x --seeds {seeds}"
    assert (f"runs/x-9: stopped and saved; go on with: {again}" in said) == ("9" in seeds)


def test_several_for_real_and_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(folder, steps=90)
    tv = ("--noisy-tv", "--tv-images", "photos")
    assert run("--config", "tiny.toml", "--seeds", "0..1", "--run-name", "x", *tv) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs" in said
    assert said.count("A TV shows photos over the full frame") == 1, "once for all"
    assert re.search(r"runs/x-1: return \d+\.\d, TV share \d+% \(chance 50%\)", said)
    for seed in (0, 1):
        summary = json.loads((folder / f"runs/x-{seed}/summary.json").read_text())
        assert (summary["seed"], summary["env_steps"], summary["runs_in_process"]) == (seed, 90, 2)
        assert "90/90 steps (100%)" in (folder / f"runs/x-{seed}/log.txt").read_text()
    assert run("--resume", "--run-name", "x", "--seeds", "0..1", "--steps", "120") == 0
    assert [json.loads((folder / f"runs/x-{seed}/summary.json").read_text())["env_steps"] for seed in (0, 1)] == [
        120
    ] * 2


def test_a_damaged_cell_leaves_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        Path(f"{name}.json").write_text(json.dumps(to_plain(replace(TINY, steps=90))))
    Path("cells/a").mkdir(parents=True)
    Path("cells/a/config.json").write_text("{")
    assert run("--runs", "cells", "--cells", "a.json", "b.json") == 2
    said = capsys.readouterr().out
    assert "cells/a: error: cells/a/config.json is damaged" in said
    assert "cells/b: return" in said
    assert json.loads(Path("cells/b/summary.json").read_text())["runs_in_process"] == 1


# --- precedence -------------------------------------------------------------------------------------------------------


def test_nothing_said_is_the_tiny_preset(trained: Trained) -> None:
    assert run() == 0
    assert trained.cfg == PRESETS["tiny"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_by_name(trained: Trained, name: str) -> None:
    assert run("--preset", name) == 0
    assert trained.cfg == PRESETS[name]


FILES = {
    "mine.toml": 'steps = 11\nlpm_eta = 0.5\nnoisy_tv = true\n[tv]\ncontrol = "off"\n[world.rssm]\ndeter = 64\n',
    "mine.yaml": "steps: 11\nlpm_eta: 5e-1\nnoisy_tv: true\ntv:\n  control: off\nworld: {rssm: {deter: 64}}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_flag_wins_over_the_file_and_the_file_over_the_preset(trained: Trained, folder: Path, name: str) -> None:
    (folder / name).write_text(FILES[name])
    base = PRESETS["small"]
    assert run("--preset", "small", "--config", name, "--steps", "12", "--world.rssm.hidden", "32") == 0
    rssm = replace(base.agent.world.rssm, deter=64, hidden=32)
    agent = replace(base.agent, lpm_eta=0.5, world=replace(base.agent.world, rssm=rssm))
    assert trained.cfg == replace(base, steps=12, noisy_tv=True, tv=replace(base.tv, control="off"), agent=agent)


def test_the_guides_command(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_leave_where_started", lambda report: report)
    assert cli.train_lpm(["--steps", "10000", "--noisy-tv"]) == 0
    assert trained.cfg == replace(PRESETS["tiny"], steps=10000, noisy_tv=True)


def test_a_folder_that_takes_no_copies_is_told_after_the_result(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(report: Report) -> Report:
        raise OSError(30, "Read-only file system", "agent_lpm.pth")

    monkeypatch.setattr(commands, "_leave_where_started", read_only)
    assert cli.train_lpm(["--steps", "10000", "--run-name", "mine"]) == 2
    said = capsys.readouterr()
    assert "return     1.0" in said.out
    assert "Read-only file system" in said.err
    assert "they are in runs/mine" in said.err


def test_all_that_the_guide_names_can_be_said(trained: Trained) -> None:
    words = (
        "--env-name CartPole-v1 --noisy-tv --tv-images photos --curiosity lpm_guide --lpm-eta 0.5 --seed 3 "
        "--batch-size 8 --wandb --wandb-project p --wandb-entity e --wandb-run-name n --run-name mine --runs elsewhere"
    )
    assert run(*words.split()) == 0
    [(cfg, run_dir, resume)] = trained
    agent = replace(RunConfig().agent, curiosity="lpm_guide", lpm_eta=0.5)
    assert cfg == RunConfig(
        env_name="CartPole-v1", noisy_tv=True, tv_images="photos", seed=3, batch_size=8, agent=agent,
        wandb=True, wandb_project="p", wandb_entity="e", wandb_run_name="n",
    )  # fmt: skip
    assert (run_dir, resume) == (Path("elsewhere/mine"), False)


def test_a_run_without_a_name_is_called_after_the_time(trained: Trained) -> None:
    run()
    [(_, run_dir, _)] = trained
    assert re.fullmatch(r"runs/\d{8}-\d{6}", str(run_dir))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, which must be one line."""
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


MISTAKES = [
    ("--preset huge", "Unknown preset 'huge'; choose one of: tiny, small"),
    ("--config none.toml", "The config file none.toml does not exist."),
    (
        "--config tiny.toml --env-name Pendulumm-v1",
        "There is no environment called Pendulumm-v1; did you mean",
    ),
    ("--config tiny.toml --curiosity lmp", "Unknown curiosity 'lmp'; choose one of: none, prediction_error, icm"),
    ("--config tiny.toml --curiosity disagreement --bonus.members 1", "needs bonus.members of 2 or more, not 1"),
    ("--config tiny.toml --noisy-tv --tv-images tele", "unknown TV source 'tele': use one of auto, cifar10, photos"),
    ("--config tiny.toml --noisy-tv --tv-images folder:none", "there is no folder none"),
    ("--config tiny.toml --time-limit 0", "time limit must be at least 1"),
    ("--config tiny.toml --steps 999999999999999 --replay-capacity 999999999999999", "lower replay_capacity"),
    ("--config tiny.toml --batch-size 999999999999999 --curiosity none", "Out of memory; lower batch_size"),
    ("--config tiny.toml --runs tiny.toml", "Not a directory"),
    ("--lpm-eta nan", "'lpm_eta' must be a finite number, not nan."),
    ("--update-every inf", "'update_every' must be a finite number, not inf."),
    ("--run-name ../x", "--run-name may hold letters, digits"),
    ("--run-name ''", "--run-name may hold letters, digits"),
    ("--run-name a/b", "--run-name may hold letters, digits"),
    ("--run-name -", "--run-name may hold letters, digits"),
    ("--run-name .hidden", "--run-name may hold letters, digits"),
    ("--resume", "There is no run in runs to resume; start one without --resume"),
    ("--resume --runs none", "There is no run in none to resume"),
    ("--resume --run-name none", "runs/none holds no run to resume"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(folder, steps=60)
    assert run(*shlex.split(words)) == 2
    assert message in one_line(capsys)
    if "batch-size" not in words:  # memory runs out while learning
        assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_a_fault_of_the_machines_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """compare tries a cell again that ended so, and leaves one with a mistake."""

    def fails(number: int, *, told: bool) -> int:
        error = OSError(number, os.strerror(number))
        if told:
            raise UserError("It could not be written.") from error
        raise error

    for number, status in ((errno.EIO, 1), (errno.ENOSPC, 1), (errno.EACCES, 2), (errno.ENOENT, 2)):
        for told in (False, True):
            assert cli._guard(lambda _, n=number, told=told: fails(n, told=told), []) == status  # type: ignore[misc]
            one_line(capsys)


def test_a_cpu_without_memory_is_a_mistake_and_any_other_error_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(args: list[str]) -> int:
        raise RuntimeError(*args)

    assert cli._guard(fails, ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."]) == 2
    assert "Out of memory; lower batch_size" in one_line(capsys)
    with pytest.raises(RuntimeError, match="something else"):
        cli._guard(fails, ["something else"])


FILE_MISTAKES = {
    "typo.toml": ("stesp = 3", "Unknown setting 'stesp'; did you mean 'steps'?"),
    "typo.yaml": ("tv: {trigerr: remote}", "Unknown setting 'tv.trigerr'; did you mean 'tv.trigger'?"),
    "deep.toml": ("world.rssm.detre = 3", "Unknown setting 'world.rssm.detre'; did you mean 'world.rssm.deter'?"),
    "type.toml": ('steps = "many"', "'steps' must be a whole number, not 'many'."),
    "bool.yaml": ("steps: true", "'steps' must be a whole number, not True."),
    "nan.toml": ("lpm_eta = nan", "'lpm_eta' must be a finite number, not nan."),
    "nan.yaml": ("lpm_eta: .nan", "'lpm_eta' must be a finite number, not nan."),
    "range.toml": ("steps = 0", "steps must be above 0, not 0."),
    "blocks.toml": ("world.rssm.blocks = 3", "world.rssm.deter 256 must divide into 3 blocks; change either."),
    "size.toml": ("world.depth = 0", "world.depth must be 1 or more, not 0."),
    "tv.toml": ("tv.threshold = 2", "TV threshold 2.0 can never be passed"),
    "trigger.toml": ('tv.trigger = "magic"', "'tv.trigger' must be one of action, remote, passive, always"),
    "code.yaml": ("steps: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
    "named.toml": ('preset = "small"', "'preset' is no key of a file of settings; give it as --preset."),
    "lines.yaml": ('"two\\nlines": 3', "Unknown setting 'two\\nlines'"),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_a_mistake_in_a_file_is_one_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], trained: Trained
) -> None:
    text, message = FILE_MISTAKES[name]
    (folder / name).write_text(text)
    assert run("--config", name) == 2
    assert message in one_line(capsys)
    assert trained == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--stepz 3", "--steps"),
        ("--steps abc", "abc"),
        ("--steps 0", "steps must be above 0, not 0"),
        ("--device tpu", "cpu"),
        ("3", "3"),
        ("--config", "--config"),
    ],
)
def test_a_flag_that_cannot_be_is_answered_with_help(
    words: str, message: str, capsys: pytest.CaptureFixture[str], trained: Trained
) -> None:
    assert run(*words.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "dreamer-lpm train" in captured.err
    assert "Traceback" not in captured.err
    assert (captured.out, trained) == ("", [])


def test_help_that_nobody_reads_to_its_end_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: list[str]) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(commands, "train_command", broken)
    assert (cli.main(["train", "--help"]), capsys.readouterr().err) == (0, "")


def test_an_env_of_ones_own_is_found_where_one_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained
) -> None:
    """By train_lpm.py of another folder as well."""
    monkeypatch.setattr(commands, "_leave_where_started", lambda report: report)
    for name, command in (("mine", cli.train_lpm), ("yours", lambda words: cli.main(["train", *words]))):
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as a script of another folder has it
        (folder / f"{name}_env.py").touch()
        assert command(["--run-name", name]) == 0
        importlib.import_module(f"{name}_env")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert (cli.main(["--version"]), capsys.readouterr().out) == (0, "0.1.0\n")


@pytest.mark.parametrize("args", [[], ["nonsense"], ["--nonsense"]])
def test_no_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert "usage: dreamer-lpm {train,eval,export,compare,report,bench,doctor}" in captured.err
    assert captured.err.startswith("error: unknown command 'nonsense'\n" if args == ["nonsense"] else "usage")
    assert captured.out == ""


def test_an_agent_is_exported_and_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_agent(tmp_path / "agent_lpm.pth", make_agent(DISCRETE), {})
    assert cli.main(["export", str(tmp_path / "agent_lpm.pth"), "--out", str(tmp_path / "out")]) == 0
    assert "dreamer-lpm eval " in capsys.readouterr().out
    assert load(tmp_path / "out").act(np.zeros((64, 64, 3), np.uint8)) in (0, 1)


def test_an_agent_that_brings_a_module_is_not_played_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody expects that playing with a file from elsewhere runs what lies beside it; asked, it is found there."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as a console script has it
    (tmp_path / "brought.py").write_text("open('trap', 'w').close()")
    monkeypatch.chdir(tmp_path)
    about = {"run": to_plain(replace(TINY, env_name="brought:CartPole-v1"))}
    save_agent(Path("agent_lpm.pth"), make_agent(DISCRETE), about)
    play = ["eval", "agent_lpm.pth", "--episodes", "1"]
    assert cli.main(play) == 2
    assert "wants to run the Python module 'brought'" in capsys.readouterr().err
    assert not Path("trap").exists()
    monkeypatch.setattr(commands, "episode_video", lambda path, trace: path)
    assert cli.main([*play, "--trust"]) == 0
    assert Path("trap").exists()


def test_ctrl_c_before_there_is_anything_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train", interrupted)
    assert run() == 130


# --- stop and resume --------------------------------------------------------------------------------------------------


def saved_run(run_dir: Path, cfg: RunConfig = TINY) -> Path:
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(sealed({"config": to_plain(cfg)})))
    return run_dir


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("entry", ["train_lpm", "main"])
@pytest.mark.parametrize("runs", [None, "my runs"])
def test_the_way_to_go_on_is_a_command_that_works(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: signal.Signals,
    entry: str,
    runs: str | None,
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> Report:
        raise Stopped(signum)

    monkeypatch.setattr(commands, "train", stopped)
    where = [] if runs is None else ["--runs", runs]
    entries = {"train_lpm": (cli.train_lpm, []), "main": (cli.main, ["train"])}
    command, first = entries[entry]
    assert command([*first, "--run-name", "mine", "--seed", "3", *where]) == 128 + signum
    said = capsys.readouterr().out
    assert f"Stopped and saved ({signum.name})." in said
    again = shlex.split(said.split("Go on with: ")[1])
    script = ["python3", "train_lpm.py"] if entry == "train_lpm" else ["dreamer-lpm", "train"]
    assert again[:2] == script

    saved_run(Path(runs or "runs") / "mine", replace(TINY, seed=3))
    calls = Trained()
    monkeypatch.setattr(commands, "train", calls)
    monkeypatch.setattr(commands, "_leave_where_started", lambda report: report)
    assert command([*first, *again[2:]]) == 0
    assert calls == [(replace(TINY, seed=3), Path(runs or "runs") / "mine", True)]


def test_resume_passes_over_a_run_that_came_to_nothing(trained: Trained) -> None:
    (saved_run(Path("runs/mine")) / "metrics.jsonl").touch()
    os.utime("runs/mine/config.json", (1, 1))
    saved_run(Path("runs/without-login"))
    assert run("--resume") == 0
    assert trained[0][1] == Path("runs/mine")


def test_a_run_of_another_device_says_where_it_goes_on(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    saved_run(Path("runs/mine"), replace(TINY, device="mps"))
    assert run("--resume", "--run-name", "mine") == 2
    assert "runs/mine was begun on 'mps', and goes on only where there is one." in one_line(capsys)


def test_resume_takes_the_newest_run(trained: Trained) -> None:
    for age, name in enumerate(("old", "new", "older")):
        os.utime(saved_run(Path("runs") / name, replace(TINY, seed=age)) / "config.json", (0, [1000, 2000, 500][age]))
    assert run("--resume") == 0
    assert trained == [(replace(TINY, seed=1), Path("runs/new"), True)]


def test_a_finished_run_may_go_further_and_log_elsewhere(trained: Trained) -> None:
    saved_run(Path("runs/mine"))
    more = ["--steps", "999", "--wandb", "--log-every", "7", "--threads", "2"]
    assert run("--resume", "--run-name", "mine", *more) == 0
    assert trained.cfg == replace(TINY, steps=999, wandb=True, log_every=7, threads=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seed 3", "A resumed run keeps its settings, and 'seed' differs; leave that option out"),
        ("--lpm-eta 3", "A resumed run keeps its settings, and 'agent.lpm_eta' differs"),
        ("--world.rssm.deter 8", "'agent.world.rssm.deter' differs"),
        ("--noisy-tv", "'noisy_tv' differs"),
        ("--preset small", "--resume goes on with the run's own settings; leave --preset out."),
        ("--config tiny.toml", "--resume goes on with the run's own settings; leave --config out."),
    ],
)
def test_a_resumed_run_keeps_its_settings(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str], trained: Trained
) -> None:
    write_config(folder)
    saved_run(Path("runs/mine"))
    assert run("--resume", "--run-name", "mine", *words.split()) == 2
    assert message in one_line(capsys)
    assert trained == []


STRANGE = [json.dumps(sealed({"config": config})) for config in (3, {"stepz": 3})]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", *STRANGE])
def test_a_run_whose_config_is_damaged(content: str, capsys: pytest.CaptureFixture[str], trained: Trained) -> None:
    (saved_run(Path("runs/mine")) / "config.json").write_text(content)
    assert run("--resume", "--run-name", "mine") == 2
    one_line(capsys)
    assert trained == []


# --- help -------------------------------------------------------------------------------------------------------------


def help_of(capsys: pytest.CaptureFixture[str], command: Any, args: Sequence[str]) -> str:
    with pytest.raises(SystemExit) as left:
        command(args)
    assert left.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return str(captured.out)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_guides_options(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, cli.train_lpm, [flag])
    assert text.startswith("usage: train_lpm.py [OPTIONS]")
    options = "steps noisy-tv env-name curiosity lpm-eta seed batch-size device wandb wandb-project wandb-entity"
    options += " wandb-run-name config preset run-name resume runs tv-images data-dir eval-every"
    missing = [name for name in options.split() if not re.search(rf"--{name}\b", text)]
    assert missing == []


def test_help_shows_the_defaults_of_the_preset_and_needs_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, cli.main, ["train", "--resume", "--preset", "12m", "--help"])
    assert "dreamer-lpm train [OPTIONS]" in text
    assert f"(default: {PRESETS['12m'].agent.world.rssm.deter})" in text


def test_every_option_has_words_and_its_default_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def groups(cfg: Any) -> Iterator[Any]:
        yield cfg
        for inner in (getattr(cfg, f.name) for f in fields(cfg) if is_dataclass(getattr(cfg, f.name))):
            yield from groups(inner)

    for cfg in groups(RunConfig()):
        words = {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(type(cfg)).params}
        assert [f.name for f in fields(cfg) if not is_dataclass(getattr(cfg, f.name)) and not words.get(f.name)] == []
        assert [name for name, text in words.items() if "(default" in text] == []  # it follows by itself
        # tyro keeps a docstring's line breaks: in the middle of a sentence they would leave ragged lines.
        ragged = [name for name, text in words.items() if re.search(r"[^.;,]\n", text)]
        assert ragged == []
    assert re.findall(r"^  --\S+(?: [A-Z_]+)?$", help_of(capsys, cli.main, ["eval", "--help"]), re.MULTILINE) == []


def test_help_of_eval_and_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--episodes" in help_of(capsys, cli.main, ["eval", "--help"])
    assert cli.main(["--help"]) == 0
    assert set(cli.COMMANDS) <= set(capsys.readouterr().out.split())


# --- eval -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def agent_file(folder: Path) -> Path:
    path = folder / "agent_lpm.pth"
    save_agent(path, make_agent(CONTINUOUS), {"run": to_plain(replace(WITH_TV, time_limit=8))})
    return path


def frames(video: Path) -> int:
    """How many pictures a decoder finds."""
    return int(imageio_ffmpeg.count_frames_and_secs(str(video))[0])


def test_eval_prints_a_table_and_saves_a_video(
    agent_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", "agent_lpm.pth", "--episodes", "3", "--video", "films/mine.mp4"]) == 0
    out = capsys.readouterr().out
    assert "agent_lpm.pth in Pendulum-v1" in out
    rows = [re.findall(r"-?\d+(?:\.\d+)?%?|mean", line) for line in out.splitlines() if re.search(r"\d%", line)]
    assert [row[0] for row in rows] == ["0", "1", "2", "mean"]
    returns = [float(row[1]) for row in rows]
    assert all(-8 * 16.3 < value < 0 for value in returns)
    assert returns[3] == pytest.approx(sum(returns[:3]) / 3, abs=0.1)
    assert all(row[2] == "8" for row in rows)
    assert "video: films/mine.mp4" in out
    assert frames(folder / "films" / "mine.mp4") >= 9


def test_eval_draws_the_tvs_pool_once_for_all_envs(
    agent_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def noting(env: Any, images: Any) -> Any:
        given.append(images)
        return make_env(env, images=images)

    data = torch.load(agent_file, weights_only=True)
    data["about"]["run"]["tv"].update(pool=3, trigger="always")
    torch.save(data, agent_file)
    monkeypatch.setattr(commands, "make_env", noting)
    assert cli.main(["eval", "agent_lpm.pth", "--episodes", "2"]) == 0
    assert "100%" in capsys.readouterr().out
    assert len(given) > 2
    assert isinstance(given[0], Pool)
    assert all(images is given[0] for images in given)


@pytest.mark.parametrize("named", ["pictures", "~/pictures"])
@pytest.mark.parametrize(("more", "folder_asked"), [([], None), (["--data-dir", "mine"], Path("mine"))])
def test_eval_looks_for_pictures_where_the_trainer_had_them_if_that_is_here(
    more: list[str], folder_asked: Path | None, named: str, agent_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path | None] = []

    def load_images(source: str, data_dir: Path | None) -> Any:
        asked.append(data_dir)
        raise NoisyTVError("asked")

    data = torch.load(agent_file, weights_only=True)
    data["about"]["run"]["data_dir"] = named
    torch.save(data, agent_file)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setattr(train_module, "load_images", load_images)
    assert cli.main(["eval", "agent_lpm.pth", *more]) == 2
    Path("pictures").mkdir()
    assert cli.main(["eval", "agent_lpm.pth", *more]) == 2
    assert asked == [folder_asked, folder_asked or Path(named)]


def test_eval_without_the_tv_needs_no_pictures(
    agent_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*args: Any) -> Any:
        raise AssertionError("no pictures are shown")

    monkeypatch.setattr(train_module, "load_images", none)
    Path("[bold]agent.pth").write_bytes(agent_file.read_bytes())
    assert cli.main(["eval", "[bold]agent.pth", "--episodes", "1", "--tv", "off"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"mean.*\b0%", said)
    assert "[bold]agent.pth in " in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none.pth"], "none.pth does not exist; train one first"),
        (["text.pth"], "text.pth is not an agent file of Dreamer-LPM, or it is damaged"),
        (["agent_lpm.pth", "--video", "films/out.gif"], "The video is an MP4: name it films/out.mp4."),
        (["."], ". is the folder of a run; its agent is agent_lpm.pth."),
        (
            ["shared/weights.safetensors"],
            "shared/weights.safetensors is one of the files of an exported agent; name its folder, shared.",
        ),
        (["agent_lpm.pth", "--episodes", "0"], "--episodes must be 1 to 10,000, not 0."),
        (["agent_lpm.pth", "--seed", "-1"], "--seed must be 0 to 2**64 - 1, not -1."),
        (["agent_lpm.pth", "--seed", str(2**64)], f"--seed must be 0 to 2**64 - 1, not {2**64}."),
        (["agent_lpm.pth", "--video", "."], ". is a folder; name a file, such as FILE."),
        (["agent_lpm.pth", "--device", "tpu"], "Device 'tpu' is not available here"),
        (["strange.pth"], "strange.pth does not say which run it is from"),
    ],
)
def test_a_mistake_in_eval_is_one_line(
    args: list[str], message: str, agent_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.pth").write_text("an agent")
    assert cli.main(["export", "agent_lpm.pth", "--out", "shared"]) == 0
    torch.save({**torch.load(agent_file, weights_only=True), "about": {}}, folder / "strange.pth")
    assert cli.main(["eval", *args]) == 2
    assert message in one_line(capsys)


# --- the whole path, as processes -------------------------------------------------------------------------------------


def process(folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A test that used W&B in this process left the address of its service here, which then would write for the child.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "SDL_VIDEODRIVER": "dummy", **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_guides_path(folder: Path) -> None:
    """train_lpm.py, then eval: the files lie where the guide says, and nothing is said on stderr."""
    write_config(folder, env_name="Pendulum-v1", steps=100)
    done = process(folder, str(ROOT / "train_lpm.py"), "--config", "tiny.toml", "--noisy-tv", "--run-name", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    run_dir = folder / "runs" / "mine"
    [events] = (run_dir / "tensorboard").iterdir()
    [piece] = (run_dir / "replay").glob("rows_*.npz")
    checkpoint_files = ("manifest.json", "state.pt", "state.json", "config.json")
    assert left == {
        "tiny.toml", "agent_lpm.pth", "videos/eval_iter_100_ep_0.mp4", f"runs/mine/tensorboard/{events.name}",
        *(f"runs/mine/{name}" for name in (
            "config.json", "metrics.jsonl", "summary.json", "curves.png", "agent_lpm.pth",
            "videos/eval_iter_100_ep_0.mp4", f"replay/{piece.name}",
            *(f"checkpoints/step_000000100/{name}" for name in checkpoint_files),
        )),
    }  # fmt: skip
    for name in ("agent_lpm.pth", "videos/eval_iter_100_ep_0.mp4"):
        assert (folder / name).read_bytes() == (run_dir / name).read_bytes()
    assert frames(folder / "videos" / "eval_iter_100_ep_0.mp4") >= 11
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    said = done.stdout
    for line in (
        rf"return +{summary['eval_return_mean']:.1f} \(mean of 2 evaluation episodes",
        rf"TV share +{summary['tv_share']:.0%} of the training steps \(chance 25%; pictures: static\)",
        r"model +agent_lpm\.pth",
        r"video +videos/eval_iter_100_ep_0\.mp4",
        r"curves +runs/mine/curves\.png",
        r"A TV shows static over the full frame",
    ):
        assert re.search(line, said), (line, said)

    evaluated = process(folder, "-m", "dreamer_lpm", "eval", "agent_lpm.pth", "--episodes", "2")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert frames(folder / "videos" / "eval.mp4") >= 11

    again = process(folder, "-m", "dreamer_lpm", "train", "--config", "tiny.toml", "--run-name", "mine")
    assert again.returncode == 2
    assert again.stderr == (
        "error: runs/mine already holds a run: go on with --resume (in Python: resume=True), or choose another.\n"
    )


def test_weights_and_biases_offline(folder: Path) -> None:
    pytest.importorskip("wandb")
    write_config(folder, steps=60)
    words = ["train", "--config", "tiny.toml", "--run-name", "mine", "--wandb", "--wandb-project", "p"]
    done = process(folder, "-m", "dreamer_lpm", *words, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    [log] = (folder / "runs" / "mine").glob("wandb/offline-run-*/*.wandb")
    assert log.stat().st_size > 0
    assert not (folder / "wandb").exists()


# --- files and names of others ----------------------------------------------------------------------------------------


def test_a_name_in_a_file_does_not_steer_the_terminal(agent_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = torch.load(agent_file, weights_only=True)
    data["about"]["run"]["env_name"] = "\x1b]0;mine\x07Nowhere-v0"
    torch.save(data, agent_file)
    assert cli.main(["eval", "agent_lpm.pth"]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "\\x1b]0;mine\\x07Nowhere-v0" in told


def test_a_name_for_which_there_are_no_letters_is_spelt(agent_file: Path) -> None:
    agent_file.rename("é.pth")
    args = [sys.executable, "-m", "dreamer_lpm", "export", "é.pth", "--out", "ü"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(args, capture_output=True, text=True, env=ascii_only, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\xfc: play it with:")


def test_an_agent_of_other_actions_is_told_so(agent_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = torch.load(agent_file, weights_only=True)
    data["about"]["run"]["env_name"] = "CartPole-v1"
    torch.save(data, agent_file)
    assert cli.main(["eval", "agent_lpm.pth", "--tv", "off"]) == 2
    assert "this env takes 2 discrete actions" in capsys.readouterr().err


def test_where_no_film_can_be_made_nothing_is_played(
    agent_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        raise RuntimeError("none")

    monkeypatch.setattr(commands, "evaluate", None)  # nobody gets there
    assert cli.main(["eval", "agent_lpm.pth", "--video", "/dev/null/x.mp4"]) != 0
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    assert cli.main(["eval", "agent_lpm.pth"]) == 2
    assert "install ffmpeg" in capsys.readouterr().err
