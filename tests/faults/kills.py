"""Runs that are killed with SIGKILL at random moments, and must end as if they had not been.

    python -m tests.faults.kills --runs 100 --out benchmarks/results/faults/kills.json        one kill in each run
    python -m tests.faults.kills --runs 1 --kills 20 --out benchmarks/results/faults/chain.json     all in one

Each process of a run is a fork of this one, which has imported everything and computed nothing. The run is small but
whole: a TV, two envs, evaluations, checkpoints; only its curves and videos, which are made after the training, are left
out. Equal means every bit of weights, optimizer, generators, replay in its order, metrics without times, and agents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import dreamer_lpm.train as train_module
from dreamer_lpm import checkpoint
from dreamer_lpm.config import RunConfig
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.report.strict_json import write_atomically
from dreamer_lpm.report.summary import versions
from dreamer_lpm.train import train
from tests.tiny_run import TINY, WITH_TV, differences, everything

CFG = replace(
    WITH_TV, steps=300, eval_every=90, checkpoint_every=30, replay_capacity=120,
    agent=replace(TINY.agent, curiosity="lpm"),
)  # fmt: skip


@dataclass
class Outcome:
    """What became of the runs that were killed."""

    runs: int = 0  # that were killed as often as asked for
    equal: int = 0  # of these, runs that ended with the same bits
    kills: int = 0  # processes that died of SIGKILL
    before_first_checkpoint: int = 0  # of these
    inside_a_save: int = 0  # of these: a scratch folder or file was left
    ended_first: int = 0  # runs that were at their end before they could be killed; others took their place
    undisturbed_seconds: float = 0.0  # that the run takes when nobody kills it
    moments: list[dict[str, Any]] = field(default_factory=list)  # of each kill
    wrong: list[str] = field(default_factory=list)  # what was not as it should be
    seconds: float = 0.0


def fork(cfg: RunConfig, run_dir: Path, log: Path) -> int:
    """Start the run in a process of its own, or go on with it; returns the process's number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        train_module.plot_run = lambda run_dir: run_dir / "curves.png"
        train_module.episode_video = lambda path, trace, **more: path
        train(cfg, run_dir, resume=(run_dir / "config.json").is_file())
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        os._exit(status)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_at_random(cfg: RunConfig, run_dir: Path, log: Path, within: float, rng: random.Random) -> float:
    """Let the run go on and kill it after up to ``within`` seconds. Returns after how many; 0 if it ended before."""
    process, seconds = fork(cfg, run_dir, log), rng.uniform(0, within)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return seconds if wait(process) == -signal.SIGKILL else 0.0


def one_run(cfg: RunConfig, folder: Path, kills: int, within: float, rng: random.Random, out: Outcome) -> bool:
    """A run that is killed ``kills`` times and then left in peace. False if it ended before all of them."""
    run_dir, log = folder / "run", folder / "log"
    moments = []
    for _ in range(kills):
        seconds = kill_at_random(cfg, run_dir, log, within, rng)
        if not seconds:
            return False
        whole = checkpoint.checkpoints(run_dir)
        torn = any(run_dir.rglob(".step_*")) or any(run_dir.rglob("*.tmp"))
        newest = whole[-1].name if whole else None
        moments.append({"run": out.runs, "seconds": round(seconds, 3), "newest": newest, "inside_a_save": torn})
    ended = wait(fork(cfg, run_dir, log))
    if ended != 0:
        out.wrong.append(f"it ended with {ended}: {log.read_text()[-500:]}")
    if "Traceback" in log.read_text():
        out.wrong.append(f"a traceback: {log.read_text()[-500:]}")
    out.runs += 1
    out.moments += moments
    out.kills += kills
    out.before_first_checkpoint += sum(moment["newest"] is None for moment in moments)
    out.inside_a_save += sum(moment["inside_a_save"] for moment in moments)
    return True


def experiment(runs: int, kills: int, seed: int) -> Outcome:
    """``runs`` runs, ``kills`` kills in each, all against one that nobody disturbed."""
    rng, begin = random.Random(seed), time.monotonic()
    cfg = replace(CFG, steps=CFG.steps * max(1, kills // 2))  # long enough for all of them to find it running
    out = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = time.monotonic()
        assert wait(fork(cfg, folder / "run", folder / "log")) == 0, (folder / "log").read_text()
        took = time.monotonic() - undisturbed
        out.undisturbed_seconds = round(took, 2)
        want = everything(folder / "run")
        for number in range(2 * runs):
            one = folder / str(number)
            one.mkdir()
            if one_run(cfg, one, kills, took if kills == 1 else 1.5 * took / kills, rng, out):
                out.equal += _is_equal(one / "run", want, out)
            else:
                out.ended_first += 1
            shutil.rmtree(one)
            print(f"{out.runs} of {runs}: {out.kills} kills, {out.equal} equal", file=sys.stderr, flush=True)
            if out.runs == runs:
                break
    out.seconds = round(time.monotonic() - begin, 1)
    return out


def _is_equal(run_dir: Path, want: dict[str, Any], out: Outcome) -> bool:
    different = differences(everything(run_dir), want)
    steps = [(row["step"], row["kind"], row.get("arm")) for row in read_metrics(run_dir) if row["kind"] != "episode"]
    if len(set(steps)) != len(steps):
        different.append("a line of metrics is there twice")
    if different:
        out.wrong.append("; ".join(different[:5]))
    return not different


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments and compare what becomes of them.")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = experiment(options.runs, options.kills, options.seed)
    command = " ".join(["python -m tests.faults.kills", *sys.argv[1:]])
    about = {"kills_per_run": options.kills, "seed": options.seed, "versions": versions()}
    text = json.dumps({"command": command, **asdict(out), **about}, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, text + "\n")
    sys.exit(not out.equal == out.runs == options.runs or bool(out.wrong))


if __name__ == "__main__":
    main()
