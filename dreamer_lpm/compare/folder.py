"""A grid's folder: what it must be like to go on with it, what is written into it, how its cells are started."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer_lpm.compare.plan import Key, Machine, Plan
from dreamer_lpm.compare.pool import Job
from dreamer_lpm.config import ELSEWHERE, RunConfig
from dreamer_lpm.lock import LOCK_FILE
from dreamer_lpm.report.grid import FORMAT, GRID_FILE, is_grid, read_grid
from dreamer_lpm.report.strict_json import plain, write_json
from dreamer_lpm.report.summary import SUMMARY_FILE, own_revision, versions
from dreamer_lpm.settings import from_plain, to_plain
from dreamer_lpm.train import is_begun
from dreamer_lpm.types import UserError

CELLS = "cells"


def known_machine(out: Path, plan: Plan) -> Machine | None:
    """What an earlier command decided for this folder; None for a new one.

    Raises UserError naming the setting, if the grid there was made with others, or the folder holds something else.
    """
    if not is_grid(out):
        if out.exists() and (not out.is_dir() or any(p.name != LOCK_FILE for p in out.iterdir())):
            raise UserError(f"{out} exists and holds no grid; choose another --out.")
        return None
    about = read_grid(out).about
    before = to_plain(from_plain(RunConfig, about["common"]))
    _same(out, "", {k: v for k, v in before.items() if k not in ELSEWHERE}, plain(to_plain(plan.common)))
    for kind, now in (("methods", plan.methods), ("arms", plan.arms)):
        for name, settings in now.items():
            if name in about[kind]:
                old = about[kind][name]
                _same(out, f"{kind}.{name}.", old["settings"] if kind == "arms" else old, plain(settings))
    return from_plain(Machine, about["machine"], Machine("cpu", "fp32", 1))


def _same(out: Path, where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    keys = before.keys() | now.keys() if where else before.keys()
    for key in sorted(keys):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            _same(out, f"{where}{key}.", a, b)
        elif a != b:
            raise UserError(
                f"The grid in {out} was made with {where}{key} = {a}, not {b}; use that, or another --out folder."
            )


def write_grid(out: Path, plan: Plan, machine: Machine, args: list[str]) -> None:
    """Say in ``grid.json`` what the grid is; methods, arms and seeds of earlier commands stay."""
    old = read_grid(out).about if is_grid(out) else {}
    before = {arm: about["settings"] for arm, about in old.get("arms", {}).items()}
    methods = {**old.get("methods", {}), **plan.methods}
    whole = dataclasses.replace(plan, methods=methods, arms={**before, **plan.arms})
    arms = {
        arm: {
            "settings": settings,
            "words": whole.words(arm, machine),
            "sham": whole.sham_of(arm),
        }
        for arm, settings in whole.arms.items()
    }
    cells = {c["folder"]: c for c in old.get("cells", [])}
    for key in plan.cells():
        cell = {**dataclasses.asdict(key), "folder": f"{CELLS}/{key.name}"}
        if cells.setdefault(cell["folder"], cell) != cell:
            raise UserError(f"The folder {key.name} is another cell's of the grid in {out}; rename a method or an arm.")
    command = shlex.join(["dreamer-lpm", "compare", *args])
    about = {
        "format": FORMAT,
        "env_name": plan.common.env_name,
        "commands": list(dict.fromkeys([*old.get("commands", []), command])),
        "methods": methods,
        "arms": arms,
        "seeds": sorted({*old.get("seeds", []), *plan.seeds}),
        "common": to_plain(plan.common),
        "machine": dataclasses.asdict(machine),
        "versions": versions(),
        "git_revision": own_revision(),
        "cells": list(cells.values()),
    }
    write_json(out / GRID_FILE, about)


def _settings(out: Path, name: str) -> Path:
    return out / "settings" / f"{name}.json"


def together(out: Path, jobs: Sequence[Job]) -> list[str]:
    """The command to start these cells in one process, or to go on with what there is of each."""
    for job in jobs:
        job.command()  # for what it leaves on disk
    settings = [str(_settings(out, job.name)) for job in jobs]
    return [*_python(), "train", "--runs", str(out / CELLS), "--cells", *settings]


def _python() -> list[str]:
    """This program in another process, which finds modules where this one does: -m alone would look here first."""
    safe = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
    return [sys.executable, *safe, "-m", "dreamer_lpm"]


def cell_job(out: Path, key: Key, cfg: RunConfig) -> Job:
    folder = out / CELLS / key.name
    settings = _settings(out, key.name)

    def command() -> list[str]:
        """Start the cell, or go on with what there is of it."""
        start = [*_python(), "train", "--runs", str(folder.parent), "--run-name", folder.name]
        settings.parent.mkdir(parents=True, exist_ok=True)
        write_json(settings, to_plain(cfg))
        if is_begun(folder):
            return [*start, "--resume", *_elsewhere(cfg)]
        shutil.rmtree(folder, ignore_errors=True)  # killed before it began
        return [*start, "--config", str(settings)]

    return Job(
        key.name,
        folder,
        cfg.steps,
        out / "logs" / f"{key.name}.log",
        command,
        lambda: (folder / SUMMARY_FILE).is_file(),
    )


def _elsewhere(cfg: RunConfig) -> list[str]:
    """What of ``ELSEWHERE`` the grid is asked for now, as flags of a run that goes on."""
    flags = []
    for name in ELSEWHERE:
        value, words = getattr(cfg, name), name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{words}" if value else f"--no-{words}")
        elif value is not None:
            flags += [f"--{words}", str(value)]
    return flags


def slim(cell: Job) -> None:
    """Delete what only a resumption of the finished cell would need."""
    for name in ("checkpoints", "replay"):
        shutil.rmtree(cell.folder / name, ignore_errors=True)
