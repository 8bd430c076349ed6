"""``dreamer-lpm doctor``: what this machine offers. ``dreamer-lpm doctor RUN``: whether a run is whole, and what of it.

Exit status 0 when all is well, 1 when a file is damaged or missing.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from dreamer_lpm import checkpoint
from dreamer_lpm.curiosity import UnknownCuriosity
from dreamer_lpm.evaluate import AGENT_FILE, load
from dreamer_lpm.forecast import free_memory
from dreamer_lpm.lock import holder
from dreamer_lpm.machine import pick_device, pick_precision, pick_threads
from dreamer_lpm.noisy_tv.cifar10 import OFFICIAL, at_hand
from dreamer_lpm.report.grid import Cell
from dreamer_lpm.report.metrics import METRICS_FILE, read_metrics
from dreamer_lpm.report.summary import CONFIG_FILE, SUMMARY_FILE, versions
from dreamer_lpm.train import BEST_AGENT, is_begun, read_config
from dreamer_lpm.types import UserError, printable


class Finding(NamedTuple):
    """One line of what the doctor says: "ok", "damaged" or "note", of what, and in words."""

    state: Literal["ok", "damaged", "note"]
    what: str
    words: str


def main(args: list[str]) -> int:
    """Entry point of ``dreamer-lpm doctor``. Returns 0, or 1 when something is damaged. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="dreamer-lpm doctor", description="Verify every file of a run; without a run, look at this machine."
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run, such as runs/my-run")
    run = parser.parse_args(args).run
    found = list(examine_machine() if run is None else examine(run))
    width = max(len(finding.what) for finding in found)
    for state, what, words in found:
        print(printable(f"{state:<7}  {what:<{width}}  {words}"))
    return int(any(finding.state == "damaged" for finding in found))


def examine(run_dir: Path) -> Iterator[Finding]:
    """Every file of a run, and what ``--resume`` would do. Changes nothing. Raises UserError where there is no run."""
    if not is_begun(run_dir):
        raise UserError(f"{run_dir} holds no run (no {CONFIG_FILE}); give the folder of a run, such as runs/my-run.")
    legible = True
    try:
        about = read_config(run_dir)
        run = str(about.get("run") or "")
        words = f"{about['config'].get('env_name')}, {about['config'].get('steps')} steps asked for"
        yield Finding("ok", CONFIG_FILE, words)
    except UserError as error:
        run, legible = "", False
        yield Finding("damaged", CONFIG_FILE, str(error))
    wholes = []
    for folder in checkpoint.checkpoints(run_dir):
        wrong = checkpoint.problems(run_dir, folder, run)
        if not wrong:
            wholes.append(folder)
        yield Finding("damaged" if wrong else "ok", folder.name, "; ".join(wrong) or "every file is as it was written")
    yield from _metrics(run_dir, wholes)
    yield from _summary(run_dir)
    yield from _agents(run_dir)
    yield from _lock(run_dir)
    if legible:
        yield _outlook(run_dir, wholes, about["config"].get("steps", 0))
    else:
        yield Finding("note", "resume", f"refused until {CONFIG_FILE} is restored")


def _metrics(run_dir: Path, wholes: list[Path]) -> Iterable[Finding]:
    try:
        rows = read_metrics(run_dir)
    except UserError as error:
        missing = not (run_dir / METRICS_FILE).is_file()
        return [Finding("note" if missing and not wholes else "damaged", METRICS_FILE, str(error))]
    if wholes and not checkpoint.metrics_intact(run_dir, wholes[-1]):
        return [Finding("damaged", METRICS_FILE, f"it is not the record that {wholes[-1].name} was saved with")]
    last = f" to step {rows[-1]['step']:,}" if rows else ""
    return [Finding("ok", METRICS_FILE, f"{len(rows):,} lines{last}")]


def _summary(run_dir: Path) -> Iterator[Finding]:
    if (run_dir / SUMMARY_FILE).is_file():
        try:
            summary = Cell("", "", 0, run_dir).summary or {}
            yield Finding("ok", SUMMARY_FILE, f"of a run that ended at {summary.get('env_steps')} steps")
        except UserError as error:
            yield Finding("damaged", SUMMARY_FILE, str(error))


def _agents(run_dir: Path) -> Iterator[Finding]:
    for path in (run_dir / AGENT_FILE, run_dir / BEST_AGENT):
        if path.exists():
            try:
                steps = load(path).about.get("steps")
                yield Finding("ok", path.name, f"an agent of {steps} steps")
            except UserError as error:
                yield Finding("note" if isinstance(error, UnknownCuriosity) else "damaged", path.name, str(error))


def _lock(run_dir: Path) -> Iterator[Finding]:
    process = holder(run_dir)
    if process is not None:
        yield Finding("note", "in use", f"by process {process}: what it writes meanwhile may look damaged")


def _outlook(run_dir: Path, wholes: list[Path], asked: int) -> Finding:
    here = run_dir.resolve()
    elsewhere = "" if here.parent == Path("runs").resolve() else f" --runs {shlex.quote(str(run_dir.parent))}"
    again = f"--resume --run-name {shlex.quote(here.name)}{elsewhere}"
    if wholes:
        step = checkpoint.step_of(wholes[-1])
        if not checkpoint.metrics_reach(run_dir, wholes[-1]):
            return Finding("note", "resume", f"refused until {METRICS_FILE} is restored: it ends before step {step:,}")
        if step >= asked:
            again += f" --steps N (more than {step})"
        return Finding("note", "resume", f"{again} goes on at step {step:,}, with {wholes[-1].name}")
    if checkpoint.checkpoints(run_dir):
        return Finding("note", "resume", "nothing can be resumed: every checkpoint is damaged")
    if (run_dir / SUMMARY_FILE).is_file():
        return Finding("note", "resume", "finished without a checkpoint: it cannot go further")
    return Finding("note", "resume", f"nothing was saved yet: {again} begins again at step 0")


def examine_machine() -> Iterator[Finding]:
    """What a run would find here."""
    device = pick_device("auto")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    yield Finding("ok", "device", f"{device.type}{name}, arithmetic {pick_precision('auto', device)}")
    yield Finding("ok", "threads", f"{pick_threads(0)} of a CPU")
    memory = free_memory(device)
    free = "free " if device.type == "cuda" or sys.platform == "linux" else ""  # else nobody says how much of it is
    yield Finding("ok", "memory", "unknown" if memory is None else f"{memory / 1e9:.1f} GB {free}on {device.type}")
    yield Finding("ok", "disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free in {Path.cwd()}")
    pictures = at_hand(None)
    if pictures is None:
        words = f"none here: a run tries {OFFICIAL.url}, and else shows scikit-image's photographs"
    else:
        words = f"CIFAR-10 from {pictures}"
    yield Finding("ok", "TV", words)
    for package, version in versions().items():
        yield Finding("ok", package, version)
