"""The commands that need an agent: ``dreamer-lpm train``, ``eval`` and ``export``."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamer_lpm.checkpoint import checkpoints
from dreamer_lpm.config import ELSEWHERE, MOST_EPISODES, RunConfig, check_resumed, from_flags, settled
from dreamer_lpm.envs import make_env
from dreamer_lpm.evaluate import evaluate, export_agent, load, record
from dreamer_lpm.machine import let_streams_run_side_by_side, pick_device
from dreamer_lpm.noisy_tv import ImageSource, NoisyTVError, TVSpec
from dreamer_lpm.noisy_tv.cifar10 import at_home
from dreamer_lpm.presets import DEFAULT, PRESETS, preset
from dreamer_lpm.report.metrics import METRICS_FILE
from dreamer_lpm.report.screen import Screen
from dreamer_lpm.report.strict_json import partial_of
from dreamer_lpm.report.summary import CONFIG_FILE, SUMMARY_FILE
from dreamer_lpm.report.video import episode_video, find_ffmpeg
from dreamer_lpm.settings import from_plain, read_file, read_seeds
from dreamer_lpm.team import Team, joined
from dreamer_lpm.together import train_together
from dreamer_lpm.train import (
    EVAL_SEED,
    Job,
    Report,
    Stopped,
    is_begun,
    pictures_of,
    read_config,
    train,
    vain,
)
from dreamer_lpm.types import MISTAKE, UserError, is_the_machines, printable

RUNS = Path("runs")


def train_command(args: list[str], guide: bool = False) -> int:
    """Parse ``train``'s options, train, and say where everything is. Returns 0, or 128 + the signal that stopped it.

    ``guide``: as ``train_lpm.py``, which also leaves the agent and the video where it was started. Raises UserError.
    """
    with joined() as team:
        if team and team.rank:
            team.help()
            return 0
        return _train(args, guide, team)


def _train(args: list[str], guide: bool, team: Team | None) -> int:
    program = "train_lpm.py" if guide else "dreamer-lpm train"
    first = _first_options(program)
    known, rest = first.parse_known_args(args)
    if {"-h", "--help"} & set(rest):
        print(first.format_help())
        known.resume = False
    if known.cells:
        return _train_cells(known.runs, known.cells)
    run_dir = _run_dir(known)
    if known.seeds is not None:
        if team:
            raise UserError("torchrun's processes learn one agent; for --seeds start dreamer-lpm without it.")
        jobs = _seeded(known, rest, program, run_dir)
        return _train_many(jobs, _again(known, program, run_dir, "--seeds", known.seeds))
    job = _job(known, rest, program, run_dir)
    try:
        report = train(job.cfg, job.run_dir, resume=job.resume, team=team)
    except Stopped as stop:
        go_on = _again(known, program, run_dir)
        print(f"Stopped and saved ({signal.Signals(stop.signum).name}). Go on with: {go_on}")
        return 128 + stop.signum
    try:
        left = _leave_where_started(report) if guide else report
    except OSError as error:
        _say(report, report, run_dir)
        raise UserError(f"Agent and video cannot be copied to this folder ({error}); they are in {run_dir}.") from error
    _say(report, left, run_dir)
    return 0


def _again(known: argparse.Namespace, program: str, run_dir: Path, *more: str) -> str:
    """The command that goes on with what is in ``run_dir``."""
    python = ["python3"] if program.endswith(".py") else []
    elsewhere = [] if known.runs == RUNS else ["--runs", str(known.runs)]
    return shlex.join([*python, *program.split(), "--resume", "--run-name", run_dir.name, *more, *elsewhere])


def _seeded(known: argparse.Namespace, rest: list[str], program: str, run_dir: Path) -> list[Job]:
    """A run for each of --seeds.

    Those that begin share what is left to the machine, decided once: device, arithmetic, pictures. One that had not
    begun when all were stopped takes the settings of one that had.
    """
    runs = {seed: run_dir.with_name(f"{run_dir.name}-{seed}") for seed in read_seeds(known.seeds)}
    begun = [seed for seed, path in runs.items() if known.resume and is_begun(path)]
    jobs = {seed: _job(known, rest, program, runs[seed]) for seed in begun or list(runs)[:1]}
    if not begun and next(iter(jobs.values())).cfg.seed != _base(known, run_dir).seed:
        raise UserError("--seed and --seeds say two things; leave --seed out.")
    if len(begun) == len(runs):
        return _unended(list(jobs.values()))
    cfg = settled(next(iter(jobs.values())).cfg)
    pictures = pictures_of(cfg.env().tv, cfg.data_dir)
    if pictures:
        cfg = dataclasses.replace(cfg, tv_images=pictures[1].used)
    every = {seed: Job(dataclasses.replace(cfg, seed=seed), path, pictures=pictures) for seed, path in runs.items()}
    return _unended([*(every | {seed: jobs[seed] for seed in begun}).values()])


def _unended(jobs: list[Job]) -> list[Job]:
    """Those that can go on, or all where none can; one that finished without a checkpoint is done with."""
    left = [
        job for job in jobs
        if not job.resume or not (job.run_dir / SUMMARY_FILE).is_file() or checkpoints(job.run_dir)
        or read_config(job.run_dir)["config"]["steps"] != job.cfg.steps
    ]  # fmt: skip
    for job in jobs if left else []:
        if job not in left:
            print(f"{job.run_dir}: finished already")
    return left or jobs


def _job(known: argparse.Namespace, rest: list[str], program: str, run_dir: Path) -> Job:
    """The run that the options ask for."""
    base = _base(known, run_dir)
    cfg = from_flags(rest, base, program)
    if known.resume:
        check_resumed(base, cfg)
    return Job(cfg, run_dir, known.resume)


def _cell(runs: Path, settings: Path) -> Job:
    """The run of that name with those settings; one that was begun goes on."""
    run_dir, asked = runs / settings.stem, from_plain(RunConfig, read_file(settings))
    if not is_begun(run_dir):
        return Job(asked, run_dir)
    cfg = from_plain(RunConfig, read_config(run_dir)["config"])
    return Job(dataclasses.replace(cfg, **{name: getattr(asked, name) for name in ELSEWHERE}), run_dir, resume=True)


def _train_cells(runs: Path, files: list[Path]) -> int:
    """Train these cells of a grid side by side; one whose files are damaged leaves the others. As ``_train_many``."""
    jobs, wrong = [], False
    for path in files:
        try:
            jobs.append(_cell(runs, path))
        except (UserError, NoisyTVError) as error:
            wrong = True
            print(f"{runs / path.stem}: error: {error}")
    return (_train_many(jobs) if jobs else 0) or (MISTAKE if wrong else 0)


def _train_many(jobs: list[Job], again: str = "") -> int:
    """Train them side by side; ``again`` is the command that goes on with them.

    Returns 0, 2 if runs failed by mistake, 1 if otherwise, or 128 + the signal's number."""
    let_streams_run_side_by_side()
    steps = sum(job.cfg.steps for job in jobs)
    told = {tv.describe() for job in jobs if (tv := job.cfg.env().tv)}.union(*(vain(job.cfg) for job in jobs))
    with Screen(cells=len(jobs), finished=0, steps=steps, done=0, unit="runs") as screen:
        for line in sorted(told):
            screen.say(line, prose=True)
        results = train_together([dataclasses.replace(job, together=len(jobs)) for job in jobs], screen)
    stops = [result.signum for result in results if isinstance(result, Stopped)]
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Report):
            line = f"return {result.summary['eval_return_mean']:.1f}"
            if result.summary["tv_images"]:
                line += f", TV share {result.summary['tv_share']:.0%} (chance {result.summary['tv_chance']:.0%})"
        elif isinstance(result, Stopped):
            line = f"stopped and saved{again and f'; go on with: {again}'}"
        else:
            line = f"error: {result}"
        print(f"{job.run_dir}: {line}")
    if stops:
        return 128 + stops[0]
    errors = [result for result in results if isinstance(result, Exception)]
    mistakes = [e for e in errors if isinstance(e, UserError | NoisyTVError) and not is_the_machines(e)]
    return 0 if not errors else MISTAKE if len(mistakes) == len(errors) else 1


def _first_options(program: str) -> argparse.ArgumentParser:
    """The options that decide what the others' defaults are, so they are read first."""
    parser = argparse.ArgumentParser(program, f"{program} [OPTIONS]", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("run options (flag before config file before preset)")
    group.add_argument("--preset", help=f"sizes of the agent: {', '.join(PRESETS)} (default: {DEFAULT})")
    group.add_argument("--config", type=Path, help="settings in a TOML or YAML file; its keys are the flags' names")
    group.add_argument("--run-name", help="folder of the run under --runs (default: the time)")
    group.add_argument("--runs", type=Path, default=RUNS, help="folder of all runs (default: runs)")
    group.add_argument("--seeds", help="several runs at once, NAME-SEED each: 0..15 or 0,3,7; on a GPU side by side")
    group.add_argument("--cells", type=Path, nargs="+", help=argparse.SUPPRESS)  # of compare: a file of settings each
    group.add_argument("--resume", action="store_true", help="go on with --run-name, or with the newest run")
    return parser


def _run_dir(known: argparse.Namespace) -> Path:
    runs: Path = known.runs
    name: str | None = known.run_name
    if name is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise UserError(
                "--run-name may hold letters, digits, '.', '_' and '-' (100 at most), and begins with a letter or "
                "digit."
            )
        return runs / name
    if known.resume and known.seeds is not None:
        raise UserError("--resume with --seeds needs the name that those runs have in common: --run-name NAME.")
    if known.resume:
        found = [p.parent for p in runs.glob(f"*/{CONFIG_FILE}")]
        if not found:
            raise UserError(
                f"There is no run in {runs} to resume; start one without --resume, or name its folder with --runs."
            )
        # One that came to nothing, for want of a login or so, is no reason to pass over the one before.
        return max(found, key=lambda p: ((p / METRICS_FILE).is_file(), (p / CONFIG_FILE).stat().st_mtime))
    return runs / time.strftime("%Y%m%d-%H%M%S")


def _base(known: argparse.Namespace, run_dir: Path) -> RunConfig:
    """The defaults that flags then change: of the run to resume, or of preset and file."""
    if known.resume:
        for name in ("config", "preset"):
            if getattr(known, name) is not None:
                raise UserError(f"--resume goes on with the run's own settings; leave --{name} out.")
        cfg = from_plain(RunConfig, read_config(run_dir)["config"])
        try:
            pick_device(cfg.device)
        except UserError as error:
            raise UserError(f"{run_dir} was begun on '{cfg.device}', and goes on only where there is one.") from error
        return cfg
    cfg = preset(known.preset or DEFAULT)
    if known.config is None:
        return cfg
    settings = read_file(known.config)
    for name in ("preset", "run_name", "runs", "seeds", "resume"):
        if name in settings:
            raise UserError(f"'{name}' is no key of a file of settings; give it as --{name.replace('_', '-')}.")
    return from_plain(RunConfig, settings, cfg)


def _leave_where_started(report: Report) -> Report:
    """Copy agent and video into this folder, as the guide says."""
    agent = _copied(report.agent, Path(report.agent.name))
    video = report.video and _copied(report.video, Path("videos") / report.video.name)
    return dataclasses.replace(report, agent=agent, video=video)


def _copied(source: Path, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    scratch = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, scratch)
    return scratch.replace(target)


def _say(report: Report, left: Report, run_dir: Path) -> None:
    summary = report.summary
    returns = summary["eval_returns"]
    lines = {
        "return": f"{summary['eval_return_mean']:.1f} (mean of {len(returns)} evaluation episodes, "
        f"{min(returns):.1f} to {max(returns):.1f})"
    }
    if shown := summary["tv_images"]:
        lines["TV share"] = (
            f"{summary['tv_share']:.0%} of the training steps "
            f"(chance {summary['tv_chance']:.0%}; pictures: {shown['used']})"
        )
    lines |= {
        "model": str(left.agent),
        **({"video": str(left.video)} if left.video else {}),
        **({"curves": str(report.curves)} if report.curves else {}),
        "all of it": str(run_dir),
        "time": f"{summary['wall_seconds'] / 60:.1f} min, {summary['updates']:,} updates, "
        f"{summary['peak_memory_bytes'] / 1e9:.1f} GB of memory at most",
    }
    console = Console()
    for name, text in lines.items():
        # Not a table, which would cut long paths to the terminal's width. A path may hold [brackets]: no markup.
        console.print(f"{name:<10} {text}", markup=False, emoji=False, soft_wrap=True)


def eval_command(args: list[str]) -> int:
    """Play with a trained agent, print a table, save a video. Returns 0. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="dreamer-lpm eval", description="Play with a trained agent, print a table, save a video."
    )
    parser.add_argument("agent", type=Path, help="an agent file, such as agent_lpm.pth, or an exported folder")
    parser.add_argument("--episodes", type=int, default=10, help="how many to play (default: 10)")
    parser.add_argument(
        "--seed", type=int, default=EVAL_SEED, help=f"of the episodes (default: {EVAL_SEED}, as in training)"
    )
    parser.add_argument(
        "--tv", choices=("as-trained", "off"), default="as-trained", help="the Noisy TV as in training, or off"
    )
    parser.add_argument(
        "--video", type=Path, default=Path("videos/eval.mp4"), help="where the video goes (default: videos/eval.mp4)"
    )
    parser.add_argument("--device", default="cpu", help="where to play: cpu, cuda or mps (default: cpu)")
    parser.add_argument(
        "--data-dir", type=Path, help="where downloaded pictures are kept (default: as in training, if that is here)"
    )
    parser.add_argument("--trust", action="store_true", help="let the agent's env import a Python module of its own")
    options = parser.parse_args(args)
    if not 1 <= options.episodes <= MOST_EPISODES:
        raise UserError(f"--episodes must be 1 to {MOST_EPISODES:,}, not {options.episodes}.")
    if not 0 <= options.seed < 2**64:  # what torch's generators take
        raise UserError(f"--seed must be 0 to 2**64 - 1, not {options.seed}.")
    partial_of(options.video)  # a folder is refused before anything is played
    if options.video.suffix != ".mp4":
        raise UserError(f"The video is an MP4: name it {options.video.with_suffix('.mp4')}.")
    player = load(options.agent, options.device)
    if not isinstance(player.about.get("run"), dict):
        raise UserError(f"{options.agent} does not say which run it is from; play it with dreamer_lpm.load instead.")
    cfg = from_plain(RunConfig, player.about["run"])
    module, colon, _ = cfg.env_name.rpartition(":")
    if colon and not options.trust:
        raise UserError(
            f"{options.agent} wants to run the Python module '{module}' for its env; if you know it, add --trust."
        )
    env = cfg.env(tv_on=options.tv == "as-trained")
    images = _pictures_to_play(env.tv, options.data_dir, cfg.data_dir)

    def make() -> Any:
        return make_env(env, images=images)

    find_ffmpeg()  # and so is a film that could not be made, or not be put there
    options.video.parent.mkdir(parents=True, exist_ok=True)
    scores = evaluate(player.agent, make, episodes=options.episodes, seed=options.seed)
    table = Table(title=Text(printable(f"{options.agent} in {cfg.env_name}")))
    for column in ("episode", "return", "agent steps", "TV share"):
        table.add_column(column, justify="right")
    for i, (got, length, share) in enumerate(zip(scores.returns, scores.lengths, scores.tv_shares, strict=True)):
        table.add_row(str(i), f"{got:.1f}", str(length), f"{share:.0%}" if env.tv else "-")
    table.add_row(
        "mean",
        f"{np.mean(scores.returns):.1f}",
        f"{np.mean(scores.lengths):.0f}",
        f"{np.mean(scores.tv_shares):.0%}" if env.tv else "-",
    )
    Console().print(table)
    trace = record(player.agent, make, seed=options.seed, title=str(options.agent), has_tv=env.tv is not None)
    print(f"video: {episode_video(options.video, trace)}")
    return 0


def _pictures_to_play(tv: TVSpec | None, folder: Path | None, trained: Path | None) -> ImageSource | None:
    """What the TV shows, from ``folder``, or from where the trainer had it, if that is on this machine."""
    if folder is None and trained and at_home(trained).is_dir():
        folder = trained
    try:
        found = pictures_of(tv, folder)
    except NoisyTVError as error:
        raise UserError(f"{error}; or play without them: --tv off") from error
    return found[0] if found else None


def export_command(args: list[str]) -> int:
    """Write an agent as safetensors and JSON, for others. Returns 0. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="dreamer-lpm export", description="Write an agent as weights.safetensors and config.json, to share it."
    )
    parser.add_argument("agent", type=Path, help="an agent file, such as agent_lpm.pth")
    parser.add_argument("--out", type=Path, default=Path("agent"), help="folder to make (default: agent)")
    options = parser.parse_args(args)
    player = load(options.agent)
    export_agent(options.out, player.agent, player.about)
    print(f"{options.out}: play it with: dreamer-lpm eval {shlex.quote(str(options.out))}")
    return 0
