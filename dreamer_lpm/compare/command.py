"""The command line of ``dreamer-lpm compare``."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from dreamer_lpm.compare.cost import dry_run, jobs_for
from dreamer_lpm.compare.folder import cell_job, known_machine, slim, together, write_grid
from dreamer_lpm.compare.plan import ARMS, make_plan
from dreamer_lpm.compare.pool import Locked, Pool
from dreamer_lpm.config import RunConfig, from_flags
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.machine import pick_device
from dreamer_lpm.presets import PRESETS
from dreamer_lpm.report import terminal
from dreamer_lpm.report.command import write_report
from dreamer_lpm.report.grid import RESULTS_FILE, read_grid
from dreamer_lpm.report.screen import Screen
from dreamer_lpm.report.summary import SUMMARY_FILE
from dreamer_lpm.settings import read_seeds
from dreamer_lpm.types import UserError

PROGRAM = "dreamer-lpm compare"
_OF_A_RUN = {
    "config": "A grid's settings stand in the file of --grid, under [common]",
    "resume": "The same command goes on with a grid",
    "run_name": "A grid names its runs itself",
    "runs": "A grid's runs are in its --out folder",
}
TOGETHER = 64  # small agents on one GPU; those that are alike learn as one


def main(args: list[str]) -> int:
    """The command. Returns 0, 1 if cells failed, or 128 + the signal that stopped it. Raises UserError."""
    parser = _parser()
    options, rest = parser.parse_known_args(args)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
        print("Every setting of dreamer-lpm train may follow, but --seed, and holds for all cells:\n")
    plan = make_plan(
        file=options.grid,
        methods=options.methods,
        arms=options.arms,
        seeds=_seeds(options.seeds),
        preset_name=options.preset,
        flags=lambda base: _flags(rest, base),
        typed={_name(word) for word in rest},
    )
    _check(options)
    out: Path = options.out
    known = known_machine(out, plan)
    if known:
        _check_device(out, known.device)
    if options.dry_run:
        return dry_run(plan, out, known, options.jobs)
    out.mkdir(parents=True, exist_ok=True)
    with Locked(out) as lock:
        machine = plan.machine(known)
        write_grid(out, plan, machine, args)
        jobs = options.jobs or jobs_for(plan, machine)
        if options.together is None:
            options.together = TOGETHER if machine.device == "cuda" else 1
        keys = list(plan.cells())
        if options.together > 1:  # those of one method side by side: they learn as one
            keys.sort(key=lambda key: plan.config(key).agent.curiosity)
        cells = [cell_job(out, key, machine.settle(plan.config(key))) for key in keys]
        finished = [cell for cell in cells if cell.finished()]
        screen = Screen(
            cells=len(cells),
            finished=len(finished),
            steps=sum(c.steps for c in cells),
            done=sum(c.steps for c in finished),
        )
        with screen:
            screen.say(f"{len(cells)} cells, {len(finished)} of them finished; {jobs} side by side, in {out}.")
            for line in (*(f"{arm}: {plan.words(arm, machine)}" for arm in plan.arms), *plan.vain()):
                screen.say(line)
            pool = Pool(
                jobs=jobs, retries=options.retries, threads=machine.threads, lock=lock, screen=screen,
                together=(partial(together, out), options.together) if options.together > 1 else None,
                tidy=slim if options.slim else None,
            )  # fmt: skip
            failed = pool.run(cells)
        if options.slim:
            for cell in finished:  # by an earlier command
                slim(cell)
    return _end(out, args, failed, pool.caught)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        f"{PROGRAM} --methods M ... --arms A ... --out FOLDER [OPTIONS]",
        description="Run methods x arms x seeds, each cell once, and report. The same command goes on with a grid.",
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("grid options")
    group.add_argument("--methods", nargs="+", metavar="M", help=f"of: {', '.join(REGISTRY)}; or [methods.M] in --grid")
    group.add_argument("--arms", nargs="+", metavar="A", help=f"of: {', '.join(ARMS)}; or [arms.A] in --grid")
    group.add_argument("--seeds", nargs="+", metavar="N", help="how many (default: 5), or which: 0 3 7, or 5..9")
    group.add_argument("--grid", type=Path, metavar="FILE", help="a TOML file that says any of this, and own arms")
    group.add_argument("--out", type=Path, help="the grid's folder")
    group.add_argument("--preset", help=f"sizes of the agent: {', '.join(PRESETS)}")
    group.add_argument("--jobs", type=int, default=0, help="runs side by side (default: what the machine can bear)")
    group.add_argument("--together", type=int, help=f"runs in one process (default: {TOGETHER} on a GPU, else 1)")
    group.add_argument("--retries", type=int, default=2, help="times that a cell that fails goes on (default: 2)")
    group.add_argument("--slim", action="store_true", help="of finished cells, delete checkpoints and replay")
    group.add_argument("--dry-run", action="store_true", help="say what it will cost, and start nothing")
    return parser


def _flags(rest: list[str], base: RunConfig) -> RunConfig:
    for word in rest:
        if why := _OF_A_RUN.get(_name(word)):
            raise UserError(f"{why}; leave {word.partition('=')[0]} out.")
    return from_flags(rest, base, PROGRAM)


def _name(word: str) -> str:
    """Of an option as files write it: ``--tv.no-x-y=3`` is tv.x_y. Of another word, none that a setting has."""
    *groups, last = word.partition("=")[0].removeprefix("--").replace("-", "_").split(".")
    return ".".join([*groups, last.removeprefix("no_")]) if word.startswith("--") else ""


def _seeds(given: Sequence[str] | None) -> int | Sequence[int] | None:
    if given is None:
        return None
    if len(given) == 1 and given[0].isdecimal():
        return int(given[0])
    return [seed for text in given for seed in read_seeds(text)]


def _check(options: argparse.Namespace) -> None:
    if options.out is None:
        raise UserError("Where to? Name the grid's folder, for example --out runs/grid1.")
    for name in ("jobs", "retries", "together"):
        if (getattr(options, name) or 0) < 0:
            raise UserError(f"--{name} must be 0 or more, not {getattr(options, name)}.")


def _check_device(out: Path, device: str) -> None:
    """Raises UserError where a grid that was begun elsewhere cannot go on."""
    try:
        pick_device(device)
    except UserError:
        raise UserError(
            f"The cells of {out} compute on {device}, which is not here: go on where it is, or begin another --out."
        ) from None


def _end(out: Path, args: list[str], failed: list[str], caught: int | None) -> int:
    console = Console()

    def say(text: str) -> None:
        terminal.say(console, text)

    grid = read_grid(out)
    if caught is not None:  # first, for whoever asked for it may not wait for the report
        say(
            f"Stopped ({signal.Signals(caught).name}), {len(grid.finished)} of {len(grid.cells)} cells finished. Go on "
            f"with: {shlex.join([*PROGRAM.split(), *args])}"
        )
    if grid.finished:
        say(f"report     {write_report(out)}\nfigures    {out / RESULTS_FILE}, {out / SUMMARY_FILE}")
    if caught is not None:
        return 128 + caught
    if failed:
        say(f"Failed: {', '.join(failed)}. Their logs are in {out / 'logs'}; the same command tries them again.")
        return 1
    return 0
