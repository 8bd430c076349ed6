"""What one GPU does with this library: seconds an update, and how many agents learn side by side. Writes one JSON.

    python3 benchmarks/gpu.py --out benchmarks/results/gpu/update.json

Every figure is taken on a replay of noise that lies on the device: sampling, update, metrics, all of `State.learn`. The
median over rounds of several updates, each round waited for. The file is written anew after each figure, so that a run
that is cut off leaves what it measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreamer_lpm.capture import WARM_UP, new_stream
from dreamer_lpm.config import settled
from dreamer_lpm.flock import Flock
from dreamer_lpm.machine import let_streams_run_side_by_side, set_tf32
from dreamer_lpm.presets import PRESETS, preset
from dreamer_lpm.report.summary import git_revision, versions
from dreamer_lpm.state import State

ROWS = 2_000  # in the replay


class Learner:
    """A run's state with noise in its replay, on a stream of its own."""

    def __init__(self, name: str, *, graph: bool, seed: int = 0, **change: Any) -> None:
        cfg = settled(replace(preset(name), device="cuda", steps=ROWS, fast_render=True, seed=seed, **change))
        self.stream = new_stream(torch.device("cuda"))
        with torch.cuda.stream(self.stream):
            self.state = State(cfg, None)
            if not graph:
                self.state._update.records = False
            held = self.state.replay.data
            held["obs"].random_(0, 256)
            held["reward"].normal_()
            held["action"].uniform_(-1, 1)
            held["deter"].normal_()
            for key in ("is_first", "is_last", "is_terminal", "tv_on", "stoch"):
                held[key].zero_()
            self.state.replay.added = ROWS

    def learn(self) -> None:
        with torch.cuda.stream(self.stream):
            self.state.learn()

    def ready(self) -> None:
        """Warm up and record."""
        for _ in range(WARM_UP + 2):
            self.learn()
        torch.cuda.synchronize()


def seconds(learners: list[Learner], updates: int, rounds: int = 7) -> float:
    """Wall seconds of one update of every learner: median over rounds of ``updates`` each."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(updates):
            for learner in learners:
                learner.learn()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / updates)
    return statistics.median(times)


def kernels(learner: Learner) -> dict[str, float]:
    """Of one update: how many kernels, and their seconds one after the other."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        learner.learn()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(events), "kernel_seconds": sum(e.device_time for e in events) / 1e6}


class Log:
    """The JSON on disk, with what was measured so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        card = torch.cuda.get_device_properties(0)
        self.data: dict[str, Any] = {
            "card": card.name, "memory": card.total_memory, "versions": versions(), "git_revision": git_revision(),
        }  # fmt: skip

    def put(self, key: str, value: Any) -> None:
        self.data[key] = value
        print(key, json.dumps(value), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")


def one(log: Log, name: str, precision: str, *, graph: bool, compiled: bool = False) -> None:
    """The update of a preset."""
    set_tf32(precision != "fp32")
    begin = time.perf_counter()
    learner = Learner(name, graph=graph, precision=precision, compile=compiled)
    learner.ready()
    ready = time.perf_counter() - begin
    updates = 3 if name in ("100m", "200m") else 10
    row = {"update_seconds": seconds([learner], updates, 5), "ready_seconds": ready,
           "peak_memory": torch.cuda.max_memory_allocated()}  # fmt: skip
    if not graph:
        row |= kernels(learner)
    log.put(f"{name} {precision} {'graph' if graph else 'eager'}{' compiled' * compiled}", row)
    del learner
    _forget()


def together(log: Log, count: int, precision: str, *, flock: bool, compiled: bool = False) -> None:
    """Several agents at ``tiny``: as one (flock), or each with its graph on its own stream."""
    set_tf32(precision != "fp32")
    change = {"precision": precision, "compile": compiled}
    learners = [Learner("tiny", graph=not flock, seed=seed, **change) for seed in range(count)]
    for learner in learners:
        learner.learn() if flock else learner.ready()
    torch.cuda.synchronize()
    if flock:
        learners = [Together(learners)]
        learners[0].ready()
    each = seconds(learners, 10)
    start = time.perf_counter()
    for learner in learners:
        learner.learn()
    launched = time.perf_counter() - start
    torch.cuda.synchronize()
    row = {"round_seconds": each, "updates_per_second": count / each, "launch_seconds": launched}
    row |= {"peak_memory": torch.cuda.max_memory_allocated()}
    log.put(f"{'flock' if flock else 'streams'} {count} {precision}{' compiled' * compiled}", row)
    del learners, learner
    _forget()


def _forget() -> None:
    """Give back what the last learners had, so that the next are not charged for it: a State refers to itself."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


class Together(Learner):
    """Learners as one."""

    def __init__(self, learners: list[Learner]) -> None:
        self.stream = learners[0].stream
        with torch.cuda.stream(self.stream):
            self.state = Flock([learner.state for learner in learners])  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu/update.json"))
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "tf32", "bf16"), default=["bf16"])
    parser.add_argument("--eager", nargs="*", default=["tiny", "12m"], help="presets also measured without a graph")
    parser.add_argument("--streams", type=int, nargs="*", default=[4, 16], help="agents, each on a stream of its own")
    parser.add_argument("--flocks", type=int, nargs="*", default=[2, 4, 8, 16, 32], help="agents that learn as one")
    parser.add_argument("--compiled", nargs="*", default=["tiny", "12m"], help="presets also measured with --compile")
    parser.add_argument("--compiled-flocks", type=int, nargs="*", default=[16], help="flocks also measured with it")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    let_streams_run_side_by_side()
    log = Log(options.out)
    for precision in options.precisions:
        for name in options.presets:
            if name in options.eager:
                one(log, name, precision, graph=False)
            one(log, name, precision, graph=True)
            if name in options.compiled:
                one(log, name, precision, graph=True, compiled=True)
        for count in options.streams:
            together(log, count, precision, flock=False)
        for count in options.flocks:
            together(log, count, precision, flock=True)
        for count in options.compiled_flocks:
            together(log, count, precision, flock=True, compiled=True)


if __name__ == "__main__":
    main()
