"""How long an update takes on this machine, and all around it; alone, or against a peer at equal sizes.

dreamer-lpm bench --preset tiny --threads 2
dreamer-lpm bench --preset 1m --against sheeprl --json result.json --csv result.csv
dreamer-lpm bench --solve --against sheeprl --minutes 30 --json result.json

Against a peer, every contestant is a process of its own that builds its agent once and then waits. Rounds go
A B C A B C ..., one update each, so that what else the machine does meets all of them alike; the first round warms up
and is not counted. Reported are medians over rounds of wall seconds and, as a second opinion on a busy machine, of CPU
seconds.

With ``--solve`` it is whole training runs, one after the other: wall seconds until pixel Pendulum is solved.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from dreamer_lpm.agent import Agent
from dreamer_lpm.config import RunConfig
from dreamer_lpm.envs import make_env, repeat_of
from dreamer_lpm.machine import (
    Precision,
    cores,
    keep_freed_memory,
    peak_memory,
    pick_device,
    pick_precision,
    pick_threads,
    use_arithmetic,
    wait_for,
)
from dreamer_lpm.presets import DEFAULT, PRESETS, preset
from dreamer_lpm.report.metrics import METRICS_FILE, read_metrics
from dreamer_lpm.report.strict_json import dumps, partial_of, plain, write_atomically, write_json
from dreamer_lpm.report.summary import git_revision, versions
from dreamer_lpm.solve import EPISODES, Attempt, failed, in_words, solve
from dreamer_lpm.train import train
from dreamer_lpm.types import ActionSpec, Batch, UserError

PEER_PRESET = "1m"  # the size that a comparison takes unless told otherwise
PEER_PYTHON = Path("build/peers/sheeprl/bin/python")
PEER_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "peers" / "sheeprl_update.py"
SOLVE_SCRIPT = PEER_SCRIPT.with_name("sheeprl_solve.py")
SOLVED = -250.0  # the mean return of Pendulum's episodes that counts as solved
# What `keep_freed_memory` does for ours, as environment variables: for the peer at its best.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**28)}
DIFFERENCES = (
    "Equal by construction: deter, hidden units, latents x classes, depth, layers of actor, critic and heads, B, T,"
    " horizon, a dream from every replayed state, 64x64x3 frames, one continuous action.",
    "Ours does more: the curiosity (default `lpm`: error predictor, distilled head, a second decoding of every prior, a"
    " bonus for every imagined step) and the training metrics. The peer's metrics are switched off.",
    "Encoder: ours has four k4 s2 convolutions; dreamer_v3_5 convolves k5 at stride 1 on the full grid and then pools;"
    " dreamer_v3 has four k4 s2 convolutions of 1, 2, 4, 8 times the depth. Decoder: ours unfolds channels to pixels"
    " after 1x1 convolutions, one k3 at the end; dreamer_v3_5 upsamples and convolves k5; dreamer_v3 has transposed"
    " convolutions. Encoder and decoder are most of the GFLOP of dreamer_v3_5.",
    "Core: ours and dreamer_v3_5 are block-diagonal (8); dreamer_v3 is dense, hence its larger count. The prior of"
    " dreamer_v3_5 has two hidden layers, ours and that of dreamer_v3 one.",
    "Behavior: ours and dreamer_v3_5 use REINFORCE without gradients through dreams; dreamer_v3 differentiates the"
    " dream for continuous actions. dreamer_v3_5 also trains its critic on replayed sequences, ours does not.",
    "Two-hot heads: ours have 41 bins, the peer's 255. Norms: ours layer norm, dreamer_v3_5 RMS norm. Optimizer: ours"
    " fused Adam, dreamer_v3_5 LaProp with adaptive clipping, dreamer_v3 three fused Adams.",
    "The preset `tiny` is another architecture (dense core of 256, 16x16 latents, k8 s4 stem) and dreams from 96"
    " states: its ratio is what a user feels, not one at equal sizes.",
)

SOLVE_DIFFERENCES = (
    "Equal: Pendulum-v1 with Gymnasium's own picture, shrunk to 64x64 by cv2's INTER_AREA; env steps per action and per"
    " episode; random env steps before the first update; B, T and updates per env step, except where the peer has its"
    " own batch and pace (16 x 64, one update per policy step); threads, arithmetic, allocator settings; the sizes of"
    " core, latents, hidden layers and of the first convolution; episodes are those of training, with the policy's"
    " noise, in the task's own reward; the clock starts with the process.",
    "Left out on both sides: evaluations, films, checkpoints. Ours writes its training metrics, the peer's are off.",
    "Each has its own learning rates, discount, losses and optimizers: those of `tiny` were chosen for short runs"
    " (world model 3e-4, actor and critic 1e-4), the peer's are DreamerV3's (1e-4 and 3e-5).",
    "Ours has the curiosity `lpm` and dreams from 96 replayed states; the peer has none and dreams from all B x T.",
    "The peer's encoder has four k4 s2 convolutions, ours a k8 s4 stem and two more; the peer has 255 bins, ours 41.",
)


@dataclass(frozen=True)
class Work:
    """What one update is: sizes by preset, B sequences of T steps, arithmetic, CPU threads, and where it is done."""

    preset: str
    batch: int
    length: int
    precision: Precision
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class Contestant:
    """A process that answers in JSON lines: first what it is, then to each line "N" the seconds of N updates."""

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def main(args: list[str]) -> int:
    """``dreamer-lpm bench``: parse, measure, print a table, write files. Raises UserError."""
    options = _parse(args)
    if options.worker:
        _serve(_work(options), sys.stdin, sys.stdout)
        return 0
    for path in filter(None, (options.json, options.csv)):
        partial_of(path)  # a folder is refused before anything is measured
    measure = _solve if options.solve else _against if options.against else _alone
    result = measure(options)
    result = {
        "command": shlex.join(["dreamer-lpm", "bench", *args]),
        "note": options.note,
        **result,
        "machine": _machine(),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    if options.solve:
        _show_solve(result)
    else:
        _show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, result)
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.csv, _csv(result))
    return 0


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dreamer-lpm bench",
        description="Seconds per update and per policy step on this machine; with --solve, until Pendulum is solved.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", help=f"sizes: {', '.join(PRESETS)} (default: {DEFAULT}; with --against {PEER_PRESET})")
    add("--batch", type=int, help="B, sequences per update (default: the preset's)")
    add("--length", type=int, help="T, steps per sequence (default: the preset's)")
    add("--threads", type=int, default=1, help="CPU threads; 0 leaves it to the program (default: 1)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto takes bf16 where it is faster")
    add("--device", default="cpu", help="where: cpu, cuda, mps or auto (default: cpu)")
    add("--loop", type=int, default=0, help="also train for so many env steps, and say how many a second")
    add("--repeat", type=int, default=10, help="updates timed, or rounds with --against (default: 10)")
    add("--against", choices=("sheeprl",), help="also time this peer at equal sizes, in turns with ours")
    add("--only", nargs="+", default=[""], metavar="WORDS", help="contestants whose name has one of these")
    add("--solve", action="store_true", help=f"train until the mean of {EPISODES} episodes of Pendulum is {SOLVED:g}")
    add("--minutes", type=float, default=30.0, help="with --solve: the bound for each program (default: 30)")
    add("--seed", type=int, default=0, help="with --solve: seed of the training (default: 0)")
    add("--peer-python", type=Path, default=PEER_PYTHON, help=f"the peer's own Python (default: {PEER_PYTHON})")
    add("--json", type=Path, help="write everything measured here")
    add("--csv", type=Path, help="write every single timing here")
    add("--note", default="", help="a remark to keep with the result, such as what else the machine was doing")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    for name in ("batch", "length", "repeat"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}.")
    if options.threads < 0:
        raise UserError(f"--threads must be 0 or more, not {options.threads}.")
    if options.loop and options.loop < RunConfig.log_every:  # no line of metrics to take the pace from
        raise UserError(f"--loop must be {RunConfig.log_every} or more, or 0 for none, not {options.loop}.")
    unused = () if options.solve else ("minutes", "seed") if options.against else ("minutes", "seed", "only")
    for name in unused:
        if getattr(options, name) != parser.get_default(name):
            raise UserError(f"--{name} says nothing of the timing of updates; add --solve, or leave it away.")
    _check_solve(options)
    if options.against and options.device != "cpu":
        raise UserError("--against compares on the CPU; leave --device away.")
    if options.loop and ":" in options.device:
        raise UserError(f"--loop takes the first device of its kind: say --device {options.device.split(':')[0]}.")
    return options


def _check_solve(options: argparse.Namespace) -> None:
    if not options.minutes > 0:
        raise UserError(f"--minutes must be above 0, not {options.minutes:g}.")
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {options.seed}.")
    if options.solve and (options.csv or options.loop or options.device != "cpu"):
        raise UserError("--solve trains on the CPU and has no timings of updates; leave --csv, --loop, --device away.")


def _work(options: argparse.Namespace) -> Work:
    name = options.preset or (PEER_PRESET if options.against and not options.solve else DEFAULT)
    run = preset(name)
    threads = pick_threads(options.threads)
    torch.set_num_threads(threads)
    device = pick_device(options.device)
    return Work(
        preset=name,
        batch=options.batch or run.batch_size,
        length=options.length or run.seq_length,
        precision=pick_precision(options.precision, device),
        threads=threads,
        device=str(device),
    )


class Bench:
    """An agent and a batch of noise pictures, ready to be timed."""

    def __init__(self, work: Work):
        self.work = work
        self.device = torch.device(work.device)
        torch.set_num_threads(work.threads)
        keep_freed_memory()  # as training does
        use_arithmetic(self.device.type, work.precision)
        cfg = preset(work.preset).agent
        self.agent = Agent(cfg, ActionSpec("continuous", 1), device=self.device, bf16=work.precision == "bf16")
        noise = _noise(work, cfg.world.rssm.deter, cfg.world.rssm.stoch)
        self.batch = Batch(*(x.to(self.device) for x in noise))
        self.carry = self.agent.begin(1)
        self.row = {
            "obs": noise.obs[0, :1].numpy(),
            "action": noise.action[0, :1].numpy(),
            "is_first": np.zeros(1, bool),
        }

    def update(self) -> None:
        """One update."""
        self.agent.update(self.batch)
        wait_for(self.device)

    def act(self) -> None:
        """One policy step of one environment."""
        self.carry = self.agent.act(self.carry, self.row)
        wait_for(self.device)

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(self.work.threads)

    def parts(self, repeat: int) -> dict[str, float]:
        """Median seconds of each part of an update, one after the other on one thread.

        A part begins where a method of that part is called, and ends where the next one's is. The gradients of the
        bonus come with those of actor and critic, in one pass. On CUDA the dreams come before the world model's losses.
        """
        agent = self.agent
        begins = (
            ("world model", agent.world, "watch"),
            ("world model", agent.world, "losses"),
            ("bonus", agent.world, "foresee"),
            ("imagination", agent.world.rssm, "imagine"),
            ("actor-critic", agent.behavior, "loss"),
            ("optimizer", agent.optimizer, "step"),
        )
        parts = ("noise", *dict.fromkeys(part for part, _, _ in begins))
        marks: list[tuple[str, float]] = []

        def marking(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def marked(*args: Any, **kwargs: Any) -> Any:
                wait_for(self.device)
                marks.append((part, time.perf_counter()))
                return method(*args, **kwargs)

            return marked

        rounds: list[dict[str, float]] = []
        with ExitStack() as stack:
            stack.enter_context(self._one_thread())
            for part, owner, name in begins:
                stack.enter_context(patch.object(owner, name, marking(part, getattr(owner, name))))
            for _ in range(repeat):
                marks[:] = [("noise", time.perf_counter())]
                self.update()
                ends = [*(moment for _, moment in marks[1:]), time.perf_counter()]
                spent = dict.fromkeys(parts, 0.0)
                for (part, begin), end in zip(marks, ends, strict=True):  # some come in several pieces
                    spent[part] += end - begin
                rounds.append(spent)
        return {part: statistics.median(spent[part] for spent in rounds) for part in parts}

    def about(self) -> dict[str, Any]:
        """What is timed: the work, its parameters by part, the GFLOP of its products and convolutions."""
        world, behavior = self.agent.world, self.agent.behavior
        parts = {
            "encoder": world.encoder,
            "rssm": world.rssm,
            "decoder": world.decoder,
            "reward": world.reward,
            "continue": world.cont,
            "actor": behavior.actor,
            "critic": behavior.critic.net,
            "curiosity": self.agent.curiosity,
        }
        with self._one_thread(), FlopCounterMode(display=False) as flops:  # it hears nothing of other threads
            self.update()
        return {
            **asdict(self.work),
            "parameters": {
                name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()
            },
            "gflop": flops.get_total_flops() / 1e9,
        }


def _noise(work: Work, deter: int, stoch: int) -> Batch:
    lead, generator = (work.batch, work.length), torch.Generator().manual_seed(0)
    off = torch.zeros(lead, dtype=torch.bool)
    return Batch(
        obs=torch.randint(0, 256, (*lead, 64, 64, 3), dtype=torch.uint8, generator=generator),
        action=torch.rand(*lead, 1, generator=generator) * 2 - 1,
        reward=torch.randn(lead, generator=generator),
        is_first=off,
        is_terminal=off,
        tv_on=off,
        deter=torch.zeros(work.batch, deter),
        stoch=torch.zeros(work.batch, stoch, dtype=torch.uint8),
    )


def timed(action: Callable[[], None], count: int) -> dict[str, list[float]]:
    """Do it ``count`` times; "wall" and "cpu" seconds of each (cpu: of all threads together)."""
    wall, cpu = [], []
    for _ in range(count):
        start, cpu_start = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return {"wall": wall, "cpu": cpu}


def product_peak(device: torch.device, kind: torch.dtype) -> float:
    """GFLOP/s of the largest matrix products, the best of some: as fast as this machine goes with these threads."""
    best, size = 0.0, 1024 if device.type == "cpu" else 8192
    x = torch.randn(size, size, device=device).to(kind)
    for _ in range(8):
        start = time.perf_counter()
        y = x @ x
        y[0, 0].item()  # waits for a device
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def env_step(run: RunConfig, steps: int = 2_000) -> float:
    """Median seconds of a step of the preset's env with its picture, through all of its wrappers; over the last 100.

    A table of pictures fills on the way there.
    """
    env = make_env(run.env())
    rng = np.random.default_rng(0)
    try:
        env.reset(seed=0)
        seconds: list[float] = []
        for _ in range(steps):
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            start = time.perf_counter()
            *_, terminated, truncated, _ = env.step(action)
            seconds.append(time.perf_counter() - start)
            if terminated or truncated:
                env.reset()
    finally:
        env.close()
    return statistics.median(seconds[-100:])


def loop_rate(work: Work, steps: int) -> float:
    """Env steps a second of a real training run of the preset, from its first update on, evaluations left out."""
    run = preset(work.preset)
    with tempfile.TemporaryDirectory() as folder:
        cfg = dataclasses.replace(
            run, steps=run.prefill + 200 + steps, batch_size=work.batch, seq_length=work.length, threads=work.threads,
            precision=work.precision, device=cast(Any, work.device), eval_every=0, eval_episodes=1, checkpoint_every=0,
        )  # fmt: skip
        train(cfg, Path(folder) / "run")
        rows = [row for row in read_metrics(Path(folder) / "run") if "wall_steps_per_s" in row]
    # The first line with updates in it has the wait for what is made at the first of them.
    return statistics.median(float(row["wall_steps_per_s"]) for row in rows if row["step"] > run.prefill + 200)


def _serve(work: Work, questions: TextIO, answers: TextIO) -> None:
    """Be a contestant."""
    bench = Bench(work)
    print(dumps(bench.about()), file=answers, flush=True)
    for line in questions:
        times = timed(bench.update, int(line))
        print(dumps({**times, "peak_memory_bytes": peak_memory()}), file=answers, flush=True)


def _alone(options: argparse.Namespace) -> dict[str, Any]:
    """Our own update and policy step."""
    bench = Bench(_work(options))
    about = bench.about()
    timed(bench.update, 2)
    timed(bench.act, 10)
    times = timed(bench.update, options.repeat)
    acts = timed(bench.act, 10 * options.repeat)
    row = _summed(about, times, peak_memory())
    row["act_wall"] = statistics.median(acts["wall"])
    row["parts"] = bench.parts(options.repeat)
    run = preset(bench.work.preset)
    row["env_step"] = {
        "own picture": env_step(run, 100),
        "--fast-render": env_step(dataclasses.replace(run, fast_render=True)),
    }
    row["product_peak_gflop_s"] = {
        name: product_peak(bench.device, kind) for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    row["share_of_peak"] = row["gflop"] / row["wall"] / row["product_peak_gflop_s"][bench.work.precision]
    if bench.device.type == "cuda":
        row["device_peak_memory_bytes"] = torch.cuda.max_memory_allocated(bench.device)
    if options.loop:
        row["loop_env_steps_per_s"] = loop_rate(bench.work, options.loop)
    return {"contestants": {"ours": row}}


def _against(options: argparse.Namespace) -> dict[str, Any]:
    """Ours and the peer in turns."""
    work = _work(options)
    every = [*_ours(work), *_sheeprl(work, options.peer_python)]
    contestants = [c for c in every if any(words in c.name for words in options.only)]
    if not contestants:
        raise UserError(f"--only leaves nobody; the contestants are: {', '.join(c.name for c in every)}.")
    rows = duel(contestants, options.repeat)
    return {"contestants": rows, "ratios": _ratios(rows), "differences": list(DIFFERENCES)}


def _solve(options: argparse.Namespace) -> dict[str, Any]:
    """Whole training runs, one after the other: ours, and the peer's."""
    work = _work(options)
    if options.against:
        _check_peer(options.peer_python)
    with tempfile.TemporaryDirectory() as folder:
        every = _attempts(work, options, Path(folder))
        attempts = [a for a in every if any(words in a.name for words in options.only)]
        if not attempts:
            raise UserError(f"--only leaves nobody; there are: {', '.join(a.name for a in every)}.")
        found = {}
        for attempt in attempts:
            found[attempt.name] = solve(attempt, SOLVED, 60 * options.minutes)
            print(in_words(attempt.name, found[attempt.name], SOLVED), flush=True)
    about = {"env": RunConfig.env_name, "threshold": SOLVED, "bound_minutes": options.minutes, "seed": options.seed}
    return {"solve": {**about, **asdict(work)}, "attempts": found, "differences": list(SOLVE_DIFFERENCES)}


def _attempts(work: Work, options: argparse.Namespace, folder: Path) -> list[Attempt]:
    """Ours; the peer with our batch and pace; the peer with its own."""
    threads = {"OMP_NUM_THREADS": str(work.threads)}
    ours = f"ours {work.preset}"
    flags = {
        "preset": work.preset, "batch-size": work.batch, "seq-length": work.length, "threads": work.threads,
        "precision": work.precision, "device": work.device, "seed": options.seed, "eval-every": 0,
        "checkpoint-every": 0, "runs": folder, "run-name": "ours",
    }  # fmt: skip
    train_ours = (sys.executable, "-m", "dreamer_lpm", "train", "--no-pictures", *_flags(flags))
    attempts = [Attempt(ours, train_ours, folder / "ours" / METRICS_FILE, threads)]
    if not options.against:
        return attempts
    run = preset(work.preset)
    repeat = repeat_of(run.env())
    pace = {"batch": work.batch, "length": work.length, "replay-ratio": repeat / run.update_every}
    common = {
        **_sizes(work), "layers": run.agent.behavior.layers, "algo": "dreamer_v3", "seed": options.seed,
        "precision": "bf16-mixed" if work.precision == "bf16" else "32-true", "action-repeat": repeat,
        "prefill": run.prefill // repeat, "capacity": run.replay_capacity,
    }  # fmt: skip
    for whose, own in (("our", pace), ("its own", {})):
        log = folder / f"peer{len(attempts)}" / METRICS_FILE
        log.parent.mkdir()
        command = (str(options.peer_python), str(SOLVE_SCRIPT), *_flags({**common, **own, "log": log}))
        name = f"sheeprl dreamer_v3, {whose} batch and pace"
        attempts.append(Attempt(name, command, log, {**threads, **KEEP_FREED_MEMORY}))
    return attempts


def _flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in (f"--{name}", str(value)))


def _sizes(work: Work) -> dict[str, int]:
    """The sizes of our preset as the peer's scripts take them."""
    agent = preset(work.preset).agent
    rssm = agent.world.rssm
    return {
        "horizon": agent.behavior.horizon, "threads": work.threads, "deter": rssm.deter, "hidden": rssm.hidden,
        "stoch": rssm.stoch, "classes": rssm.classes, "depth": agent.world.depth,
    }  # fmt: skip


def _ours(work: Work) -> list[Contestant]:
    """In fp32; where the machine prefers another arithmetic, also in that; and ``tiny`` on the same batch."""
    jobs = {f"ours {work.preset} fp32": (work.preset, "fp32")}
    jobs[f"ours {work.preset} {work.precision}"] = (work.preset, work.precision)
    jobs[f"ours {DEFAULT} {work.precision}"] = (DEFAULT, work.precision)
    sizes = ["--batch", str(work.batch), "--length", str(work.length), "--threads", str(work.threads)]
    return [
        Contestant(
            name,
            (sys.executable, "-m", "dreamer_lpm.bench", "--worker", "--preset", size, "--precision", precision, *sizes),
        )
        for name, (size, precision) in jobs.items()
    ]


def _sheeprl(work: Work, python: Path) -> list[Contestant]:
    """sheeprl's two DreamerV3s at the sizes of our preset: as they come, and with bf16 and the allocator settings."""
    run = preset(work.preset)
    rssm, behavior = run.agent.world.rssm, run.agent.behavior
    if rssm.blocks != 8 or behavior.starts < work.batch * work.length:
        fitting = [name for name, other in PRESETS.items() if other.agent.world.rssm.blocks == 8]
        raise UserError(
            f"--against compares equal sizes with a dream from every state, not --preset {work.preset} with this batch;"
            f" choose one of {', '.join(fitting)} with B x T of at most 1024."
        )
    _check_peer(python)
    flags = _flags({"batch": work.batch, "length": work.length, **_sizes(work)})
    command = (str(python), str(PEER_SCRIPT), *flags)
    return [
        contestant
        for algo in ("dreamer_v3_5", "dreamer_v3")
        for contestant in (
            Contestant(f"sheeprl {algo} fp32", (*command, "--algo", algo)),
            Contestant(
                f"sheeprl {algo} bf16+alloc",
                (*command, "--algo", algo, "--precision", "bf16-mixed"),
                tuple(KEEP_FREED_MEMORY.items()),
            ),
        )
    ]


def _check_peer(python: Path) -> None:
    if not PEER_SCRIPT.is_file():
        raise UserError(
            "--against needs a checkout of this project (benchmarks/peers/); install it with: pip install -e ."
        )
    if not python.is_file():
        raise UserError(
            f"The peer's Python {python} does not exist; make it with: python3.11 -m venv {PEER_PYTHON.parents[1]} &&"
            f" {PEER_PYTHON.parent}/pip install -r benchmarks/peers/sheeprl-requirements.txt"
        )


class _Child:
    """A contestant's process."""

    def __init__(self, contestant: Contestant, stack: ExitStack, errors: IO[str]):
        self.name, self.errors = contestant.name, errors
        self.process = stack.enter_context(
            subprocess.Popen(
                contestant.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **dict(contestant.environment)},
            )
        )
        stack.callback(self.process.kill)  # runs before the process is waited for
        self.about = self._read()

    def ask(self, updates: int) -> Any:
        """Have it do that many updates; its answer."""
        assert self.process.stdin is not None
        try:
            print(updates, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self._fail()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> NoReturn:
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):  # of a question that was never read
            cast(IO[str], self.process.stdin).close()
        failed(f"The contestant '{self.name}'", self.errors)


def duel(contestants: Sequence[Contestant], rounds: int) -> dict[str, dict[str, Any]]:
    """One update each in turns, ``rounds`` times after one round of warm-up. Name -> what it is and its timings.

    Raises UserError with a contestant's last words when it dies.
    """
    with ExitStack() as stack:
        children = []
        for contestant in contestants:
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            children.append(_Child(contestant, stack, errors))
        for child in children:
            child.ask(1)
        times: dict[str, dict[str, list[float]]] = {child.name: {"wall": [], "cpu": []} for child in children}
        peaks: dict[str, int] = {}
        for _ in range(rounds):
            for child in children:
                answer = child.ask(1)
                for clock, seconds in times[child.name].items():
                    seconds += answer[clock]
                peaks[child.name] = answer["peak_memory_bytes"]
        return {child.name: _summed(child.about, times[child.name], peaks[child.name]) for child in children}


def _summed(about: Mapping[str, Any], times: Mapping[str, list[float]], peak: int) -> dict[str, Any]:
    """One contestant's row: medians over its updates, and every single one."""
    parameters = about["parameters"]
    world = sum(parameters.get(part, 0) for part in ("encoder", "rssm", "decoder", "reward", "continue"))
    return {
        "wall": statistics.median(times["wall"]),
        "cpu": statistics.median(times["cpu"]),
        "peak_memory_bytes": peak,
        "world_parameters": world,
        "all_parameters": sum(parameters.values()),
        **about,
        "seconds": dict(times),
    }


def _ratios(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many times as long each of the peer's takes as each of ours: ratio of medians, and range over the rounds."""
    found = []
    for ours, fast in ((name, row) for name, row in rows.items() if name.startswith("ours")):
        for peer, slow in ((name, row) for name, row in rows.items() if not name.startswith("ours")):
            each = [p / o for p, o in zip(slow["seconds"]["wall"], fast["seconds"]["wall"], strict=True)]
            found.append(
                {
                    "ours": ours,
                    "peer": peer,
                    "wall": slow["wall"] / fast["wall"],
                    "wall_lowest": min(each),
                    "wall_highest": max(each),
                    "cpu": slow["cpu"] / fast["cpu"],
                }
            )
    return found


def _machine() -> dict[str, Any]:
    """The CPU by its name, the cores that this process may use, and how busy the machine was over the last minute."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        models = [
            x for x in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if x.startswith("model name")
        ]
        name = models[0].split(":", 1)[1].strip() if models else name
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {"cpu": name, "cores": cores(), "load_average_1_min": os.getloadavg()[0], "when": when}


def _csv(result: Mapping[str, Any]) -> str:
    """Every timing: contestant, round, wall and CPU seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["contestant", "round", "wall_seconds", "cpu_seconds"])
    for name, row in plain(result["contestants"]).items():
        for i, (wall, cpu) in enumerate(zip(row["seconds"]["wall"], row["seconds"]["cpu"], strict=True)):
            writer.writerow([name, i, f"{wall:.6f}", f"{cpu:.6f}"])
    return out.getvalue()


def _show(result: Mapping[str, Any]) -> None:
    console = Console()
    console = Console(width=max(console.width, 120), soft_wrap=True)  # figures cut in two cannot be read
    machine = result["machine"]
    table = Table(title=f"{machine['cpu']}, load average {machine['load_average_1_min']:.1f}", box=None)
    for column in ("", "s/update", "CPU s", "GFLOP", "GFLOP/s", "world model", "all weights", "memory"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in result["contestants"].items():
        table.add_row(
            name,
            f"{row['wall']:.3f}",
            f"{row['cpu']:.3f}",
            f"{row['gflop']:.1f}",
            f"{row['gflop'] / row['wall']:.0f}",
            f"{row['world_parameters']:,}",
            f"{row['all_parameters']:,}",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        )
    console.print(table)
    for row in result["contestants"].values():
        if "act_wall" in row:
            _tell(console, row)
    if "ratios" in result:
        console.print(_ratio_table(result["ratios"]))


def _show_solve(result: Mapping[str, Any]) -> None:
    machine = result["machine"]
    print(f"On {machine['cpu']}, {machine['cores']} cores, load average {machine['load_average_1_min']:.1f}.")


def _tell(console: Console, row: Mapping[str, Any]) -> None:
    """Our own row in words."""
    every = sum(row["parts"].values())
    parts = ", ".join(f"{name} {1000 * x:.1f} ms ({x / every:.0%})" for name, x in row["parts"].items())
    peaks = row["product_peak_gflop_s"]
    own, fast = row["env_step"].values()
    console.print(
        f"{row['preset']}, {row['batch']} x {row['length']}, {row['precision']}, {row['threads']} threads;"
        f" a policy step takes {1000 * row['act_wall']:.2f} ms.\n"
        f"The parts of an update, one after the other on one thread: {parts}.\n"
        f"Products here reach {peaks['fp32']:.0f} GFLOP/s in fp32 and {peaks['bf16']:.0f} in bf16; the whole update"
        f" reaches {row['share_of_peak']:.0%} of the peak in {row['precision']}.\n"
        f"A step of the env with its picture takes {1000 * own:.2f} ms, with --fast-render {1000 * fast:.2f} ms."
    )
    if "loop_env_steps_per_s" in row:
        console.print(f"Training makes {row['loop_env_steps_per_s']:.1f} env steps a second, all included.")


def _ratio_table(ratios: Sequence[Mapping[str, Any]]) -> Table:
    ours = list(dict.fromkeys(r["ours"] for r in ratios))
    table = Table(title="times as long as ours: wall (lowest to highest round; by CPU time)", box=None)
    for column in ("", *ours):
        table.add_column(column, justify="right" if column else "left")
    for peer in dict.fromkeys(r["peer"] for r in ratios):
        cells = (
            f"{r['wall']:.2f} ({r['wall_lowest']:.1f}-{r['wall_highest']:.1f}; {r['cpu']:.2f})"
            for r in ratios
            if r["peer"] == peer
        )
        table.add_row(peer, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
