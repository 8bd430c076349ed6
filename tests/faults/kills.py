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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import dreamer_lpm.train as train_module
from dreamer_lpm import checkpoint
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.report.strict_json import write_atomically
from dreamer_lpm.report.summary import versions
from dreamer_lpm.train import RunConfig, train
from tests.tiny_run import TINY, WITH_TV, differences, everything

CFG = replace(
    WITH_TV, steps=300, eval_every=90, checkpoint_every=30, replay_capacity=120,
    agent=replace(TINY.agent, curiosity="lpm"),
)  # fmt: skip


@dataclass
class Outcome:
    """What became of the runs that were killed."""

    runs: int
    equal: int  # of these, runs that ended with the same bits
    kills: int  # processes that died of SIGKILL
    before_first_checkpoint: int  # of these
    inside_a_save: int  # of these: a scratch folder or file was left
    wrong: list[str]  # what was not as it should be
    seconds: float


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
        train_module.episode_video = lambda path, trace: path
        train(cfg, run_dir, resume=(run_dir / "config.json").is_file())
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        os._exit(status)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_at_random(cfg: RunConfig, run_dir: Path, log: Path, within: float, rng: random.Random) -> bool:
    """Let the run go on and kill it after up to ``within`` seconds; whether it was still running then."""
    process = fork(cfg, run_dir, log)
    time.sleep(rng.uniform(0, within))
    os.kill(process, signal.SIGKILL)
    return wait(process) == -signal.SIGKILL


def one_run(cfg: RunConfig, folder: Path, kills: int, within: float, rng: random.Random, out: Outcome) -> None:
    """A run that is killed ``kills`` times, or until it ends, and then left in peace."""
    run_dir, log = folder / "run", folder / "log"
    for _ in range(kills):
        if not kill_at_random(cfg, run_dir, log, within, rng):
            break
        out.kills += 1
        out.before_first_checkpoint += not checkpoint.checkpoints(run_dir)
        out.inside_a_save += any(run_dir.rglob(".step_*")) or any(run_dir.rglob("*.tmp"))
    ended = wait(fork(cfg, run_dir, log))
    if ended != 0:
        out.wrong.append(f"it ended with {ended}: {log.read_text()[-500:]}")
    if "Traceback" in log.read_text():
        out.wrong.append(f"a traceback: {log.read_text()[-500:]}")


def experiment(runs: int, kills: int, seed: int) -> Outcome:
    """``runs`` runs, ``kills`` kills in each, all against one that nobody disturbed."""
    rng, begin = random.Random(seed), time.monotonic()
    cfg = replace(CFG, steps=CFG.steps * max(1, kills // 5))  # long enough for all of them to find it running
    out = Outcome(runs, 0, 0, 0, 0, [], 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = time.monotonic()
        assert wait(fork(cfg, folder / "run", folder / "log")) == 0, (folder / "log").read_text()
        took = time.monotonic() - undisturbed
        want = everything(folder / "run")
        for number in range(runs):
            one = folder / str(number)
            one.mkdir()
            one_run(cfg, one, kills, took if kills == 1 else 2 * took / kills, rng, out)
            out.equal += _is_equal(one / "run", want, out)
            shutil.rmtree(one)
            print(f"{number + 1} of {runs}: {out.kills} kills, {out.equal} equal", file=sys.stderr, flush=True)
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
    text = json.dumps(
        {**asdict(out), "kills_per_run": options.kills, "seed": options.seed, "versions": versions()}, indent=1
    )
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, text + "\n")
    sys.exit(out.equal != out.runs or bool(out.wrong))


if __name__ == "__main__":
    main()
