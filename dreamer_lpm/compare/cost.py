"""What a grid will cost: from its finished cells where there are some, else from a short timing of each method."""

from __future__ import annotations

import dataclasses
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from dreamer_lpm.capture import WARM_UP, own_stream
from dreamer_lpm.checkpoint import checkpoints
from dreamer_lpm.compare.plan import Key, Machine, Plan
from dreamer_lpm.config import RunConfig
from dreamer_lpm.forecast import free_memory
from dreamer_lpm.machine import cores, use_arithmetic, wait_for
from dreamer_lpm.report.grid import Cell, Grid, read_grid
from dreamer_lpm.report.terminal import say
from dreamer_lpm.state import State

BASE_MEMORY = 0.6e9  # Python, torch and the env
TIMED_UPDATES = 3


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds of wall time (its share, where several had one process), bytes on disk, bytes of memory.

    ``measured``: taken from finished cells, which after --slim no longer say what they took of the disk: 0.
    """

    seconds: float
    disk: float
    memory: float
    measured: bool = False


def from_finished(cells: list[Cell]) -> Cost | None:
    """What like cells took; None without a finished one."""
    known = [c for c in cells if c.summary is not None]
    if not known:
        return None
    return Cost(
        median(c.seconds for c in known),
        max((_size(c.folder) for c in known if checkpoints(c.folder)), default=0.0),
        max(float((c.summary or {}).get("peak_memory_bytes", BASE_MEMORY)) for c in known),
        measured=True,
    )


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def timed(cfg: RunConfig) -> Cost:
    """Time a few env steps and updates of ``cfg`` in this process. About: a machine that is busy is slower."""
    torch.set_num_threads(cfg.threads)
    use_arithmetic(cfg.device, cfg.precision)
    state = _begun(cfg)
    with closing(state.envs), own_stream(state.device):
        state.row = state.envs.reset_row()
        started = time.perf_counter()
        while len(state.replay) <= cfg.seq_length:
            state.observe("random")
            state.row = state.envs.step(state.action())
        per_step = (time.perf_counter() - started) / max(1, state.step)
        for _ in range(1 + WARM_UP if state.device.type == "cuda" else 1):  # they pay for what later ones find ready
            state.learn()
        wait_for(state.device)
        started = time.perf_counter()
        for _ in range(TIMED_UPDATES):
            state.learn()
        wait_for(state.device)
        per_update = (time.perf_counter() - started) / TIMED_UPDATES
    updates = max(0, cfg.steps - cfg.prefill) / cfg.update_every
    seconds = updates * per_update + cfg.steps * per_step
    return Cost(seconds, state.forecast.disk(cfg.keep_checkpoints), BASE_MEMORY + state.forecast.memory)


def _begun(cfg: RunConfig) -> State:
    """A run that has not moved, without pictures, and with a replay that holds a sequence, however short it is."""
    steps = max(cfg.steps, cfg.num_envs * cfg.seq_length)
    quiet = dataclasses.replace(cfg, steps=steps, tv=dataclasses.replace(cfg.tv, control=cfg.tv.control or "sham"))
    return State(quiet, None)


def free_disk(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def jobs_for(plan: Plan, machine: Machine) -> int:
    """Runs side by side: as cores and memory allow on a CPU; one on an accelerator, which one run can fill.

    Raises UserError if there is not the memory for a single run.
    """
    if machine.device != "cpu":
        return 1
    at_work, memory = cores() // machine.threads, free_memory(torch.device("cpu"))
    if at_work < 2 or memory is None:
        return max(1, at_work)
    return max(1, min(at_work, int(memory / _memory_of_a_run(plan, machine))))


def _memory_of_a_run(plan: Plan, machine: Machine) -> float:
    """Bytes of the run that takes most; of methods that differ in no size, the first speaks for all."""
    kinds: dict[tuple[object, ...], RunConfig] = {}
    for key in plan.cells():
        cfg = machine.settle(plan.config(key))
        kinds.setdefault((cfg.steps, cfg.replay_capacity, cfg.num_envs, cfg.agent.world, cfg.agent.behavior), cfg)
    found = 0.0
    for cfg in kinds.values():
        state = _begun(cfg)
        found = max(found, BASE_MEMORY + state.forecast.memory)
        state.envs.close()
    return found


def dry_run(plan: Plan, out: Path, known: Machine | None, jobs: int) -> int:
    """Print what is to do and what it takes. Starts and writes nothing."""
    machine = known or plan.machine_alone()
    grid = read_grid(out) if known else None
    done = {c.folder.name for c in grid.finished} if grid else set()
    table = Table(title=f"{plan.common.env_name}: {len(plan.methods)} methods x {len(plan.arms)} arms x "
                  f"{len(plan.seeds)} seeds")  # fmt: skip
    table.add_column("method", no_wrap=True)
    for column in ("cells to run", "env steps", "minutes each"):
        table.add_column(column, justify="right")
    table.add_column("from")
    total = 0
    seconds = longest = disk = memory = 0.0
    for method in plan.methods:
        keys = [k for k in plan.cells() if k.method == method and k.name not in done]
        if not keys:
            table.add_row(method, "0", "0", "-", "finished")
            continue
        cost = _cost(plan, machine, grid, method)
        steps = sum(plan.config(k).steps for k in keys)
        table.add_row(method, f"{len(keys)}", f"{steps:,}", f"{cost.seconds / 60:.1f}",
                      "finished cells" if cost.measured else "a short timing")  # fmt: skip
        total += len(keys)
        seconds += cost.seconds * len(keys)
        longest = max(longest, cost.seconds)
        disk += cost.disk * len(keys)
        memory = max(memory, cost.memory)
    console = Console()
    console.print(table)
    for arm in plan.arms:
        say(console, f"{arm:<12} {plan.words(arm, machine)}")
    for line in plan.vain():
        say(console, line)
    jobs = min(jobs or jobs_for(plan, machine), max(1, total))
    at_once = jobs
    if machine.device == "cpu":
        at_once = min(jobs, max(1, cores() // machine.threads))  # more would only wait for each other
        needs = f", {memory * jobs / 1e9:.1f} GB of memory."
    else:
        needs = ". Those that learn as one on a GPU take a part of that time, which finished cells will tell."
    minutes = round(max(longest, seconds / at_once) / 60)
    say(
        console,
        f"{total} cells to run and {len(list(plan.cells())) - total} finished. "
        f"About {minutes:,} minute{'s' * (minutes != 1)} with {jobs} side by side, "
        f"{disk / 1e9:.1f} GB of disk at most, less with --slim ({free_disk(out) / 1e9:.0f} GB free){needs}",
    )
    return 0


def _cost(plan: Plan, machine: Machine, grid: Grid | None, method: str) -> Cost:
    known = from_finished([c for c in grid.finished if c.method == method]) if grid else None
    cfg = machine.settle(plan.config(Key(method, next(iter(plan.arms)), plan.seeds[0])))
    if known is None:
        return timed(cfg)
    if known.disk:
        return known
    state = _begun(cfg)
    state.envs.close()
    return dataclasses.replace(known, disk=float(state.forecast.disk(cfg.keep_checkpoints)))
