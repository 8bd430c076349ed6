"""A grid of runs, methods x arms x seeds, read from its folder alone; its ``results.csv`` and ``summary.json``.

``grid.json`` says what was asked for and which folder belongs to which cell; everything else is in the runs' folders.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dreamer_lpm.report.measures import WINDOW
from dreamer_lpm.report.metrics import METRICS_FILE, Row, read_metrics
from dreamer_lpm.report.statistics import (
    ENOUGH_SEEDS,
    Estimate,
    estimate,
    probability_of_improvement,
    proportion,
    share_kept,
)
from dreamer_lpm.report.strict_json import loads, write_atomically, write_json
from dreamer_lpm.report.summary import CONFIG_FILE, SUMMARY_FILE
from dreamer_lpm.types import UserError

GRID_FILE = "grid.json"
RESULTS_FILE = "results.csv"
REPORT_FILE = "report.html"
FORMAT = 1

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measure:
    """A figure that every run has: its key in ``summary.json``, its name, how it is written, and what is better."""

    key: str
    name: str
    percent: bool = False
    better: Better | None = None
    of_tv: bool = False  # means something only where a TV can be watched


RETURN = Measure("eval_return_mean", "Return", better="higher")
SHARE = Measure("tv_share", "TV share, whole run", percent=True, better="lower", of_tv=True)
LATE_SHARE = Measure("tv_share_last_quarter", "TV share, last quarter", percent=True, better="lower", of_tv=True)
ESCAPED = Measure("escaped", "Escaped the TV", percent=True, better="higher", of_tv=True)  # 0 or 1
COVERAGE = Measure("coverage", "Coverage", percent=True, better="higher")
MEASURES = (
    RETURN,
    Measure("eval_return_tv_off", "Return, TV shows nothing", better="higher", of_tv=True),
    LATE_SHARE,
    SHARE,
    Measure("tv_over_chance", "TV share / chance", of_tv=True, better="lower"),
    COVERAGE,
    ESCAPED,
    Measure("escape_step", "Env steps until escape", better="lower", of_tv=True),
    Measure("dream_tv_share", "TV share in dreams", percent=True, of_tv=True),
    Measure("recon_tv_share", "Reconstruction spent on the TV", percent=True, of_tv=True),
    Measure("bonus_tv_on", "Bonus, TV on", of_tv=True),
    Measure("bonus_tv_off", "Bonus, TV off", of_tv=True),
)

COMPARED = (RETURN, LATE_SHARE, SHARE, COVERAGE)


@dataclass(frozen=True)
class Arm:
    """A TV setting. ``sham``: the arm that is the same with a TV that shows nothing, if the grid has it."""

    name: str
    words: str = ""
    sham: str | None = None


@dataclass
class Cell:
    """One run of a grid. Raises UserError when a file that should be there is damaged."""

    method: str
    arm: str
    seed: int
    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The run's ``summary.json``; None while it is not finished."""
        path = self.folder / SUMMARY_FILE
        found = _read(path) if path.is_file() else None
        if not _fits(found or {}, _SUMMARY):
            raise _damaged(path)
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's settings; empty before it starts."""
        path = self.folder / CONFIG_FILE
        found = _read(path).get("config", {}) if path.is_file() else {}
        if not (isinstance(found, dict) and _fits(found, _CONFIG)):
            raise _damaged(path)
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """The run's metrics; none before it starts."""
        return read_metrics(self.folder) if (self.folder / METRICS_FILE).is_file() else []

    @property
    def videos(self) -> list[Path]:
        """The run's films, oldest first; a user's own, named otherwise, are left out."""
        films = [
            p for p in (self.folder / "videos").glob("eval_iter_*.mp4")
            if p.stem.split("_")[2].isdecimal() and p.is_file() and not p.is_symlink()  # a page may take them in
        ]  # fmt: skip
        return sorted(films, key=lambda p: int(p.stem.split("_")[2]))

    def value(self, measure: Measure) -> float | None:
        """The run's figure; None if it has none."""
        summary = self.summary
        if summary is None or (measure.of_tv and self.chance is None):
            return None
        known: Mapping[str, Any] = {**summary, **self._derived(summary)}
        found = known.get(measure.key)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            return None
        return float(found)

    @property
    def chance(self) -> float | None:
        """TV share of a random policy, which may be 0; None without a TV that shows something."""
        shows = self.config.get("noisy_tv") and (self.config.get("tv") or {}).get("control") is None
        found = (self.summary or {}).get("tv_chance")
        return float(found) if shows and found is not None else None

    @property
    def chosen(self) -> bool:
        """Whether the policy has a say in when its TV is on; else its share says nothing of the policy."""
        return (self.config.get("tv") or {}).get("trigger") not in ("always", "passive")

    @property
    def idle(self) -> bool:
        """Whether its agent has nothing to want: neither curiosity nor the task's reward."""
        agent = self.config.get("agent") or {}
        return agent.get("curiosity") == "none" and agent.get("extrinsic") == 0

    def _derived(self, summary: Mapping[str, Any]) -> dict[str, float | None]:
        if not self.chosen:
            return {"escape_step": None}
        derived: dict[str, float | None] = {}
        share = summary.get(LATE_SHARE.key, summary.get(SHARE.key))
        if share is not None and self.chance:
            derived["tv_over_chance"] = share / self.chance
        if "escape_step" in summary and summary.get("env_steps", 0) >= WINDOW:  # shorter, there was nothing to judge by
            escaped = summary["escape_step"] is not None
            derived["escaped"] = float(escaped)
            derived["escape_step"] = summary["escape_step"] if escaped else summary["env_steps"]  # at least that long
        return derived

    @property
    def seconds(self) -> float:
        """Wall time of the finished run, or its share where several had one process."""
        summary = self.summary or {}
        if "shared_seconds" in summary:
            return float(summary["shared_seconds"])
        return float(summary.get("wall_seconds", 0)) / float(summary.get("runs_in_process", 1))  # of older runs

    @property
    def env(self) -> tuple[Any, ...]:
        """What makes its returns comparable to another's."""
        return tuple(self.config.get(key) for key in ("env_name", "action_repeat", "time_limit"))

    def random_returns(self) -> list[float]:
        """Returns of the training episodes that a random policy played, before learning began."""
        prefill = self.config.get("prefill", 0)
        return [row["return"] for row in self.rows if row["kind"] == "episode" and row["step"] <= prefill]


@dataclass(frozen=True)
class Grid:
    """What a grid's folder says. Only finished cells count in figures."""

    folder: Path
    methods: list[str]
    arms: dict[str, Arm]
    seeds: list[int]
    cells: list[Cell]
    about: dict[str, Any]  # the whole of grid.json

    @cached_property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.summary is not None]

    def of(self, method: str, arm: str) -> list[Cell]:
        """The finished cells of a method in an arm, by seed."""
        return sorted((c for c in self.finished if (c.method, c.arm) == (method, arm)), key=lambda c: c.seed)

    def values(self, method: str, arm: str, measure: Measure) -> dict[int, float]:
        """Seed -> figure, of the finished cells that have it."""
        found = ((cell.seed, cell.value(measure)) for cell in self.of(method, arm))
        return {seed: value for seed, value in found if value is not None}

    def estimate(self, method: str, arm: str, measure: Measure) -> Estimate | None:
        """IQM (of what is 0 or 1, the mean) and interval; None where no seed has the figure."""
        values = list(self.values(method, arm, measure).values())
        return (proportion(values) if measure is ESCAPED else estimate(values)) if values else None

    def chance(self, arm: str, method: str | None = None) -> float | None:
        """TV share of a random policy in the arm; None without a TV. A method may have a TV or an env of its own."""
        cells = (c for c in self.finished if c.arm == arm and method in (None, c.method))
        return next((c.chance for c in cells if c.chance is not None), None)

    def chosen(self, arm: str, method: str | None = None) -> bool:
        """Whether policies have a say in when the arm's TV is on."""
        return all(c.chosen for c in self.finished if c.arm == arm and method in (None, c.method))

    def measures(self) -> list[Measure]:
        """Those that some finished cell has."""
        return [m for m in MEASURES if any(cell.value(m) is not None for cell in self.finished)]

    def share_measure(self, arm: str) -> Measure:
        """The TV share to judge by: of the last quarter if every run of the arm says it, else of the whole run."""
        cells = [c for c in self.finished if c.arm == arm]
        return LATE_SHARE if cells and all(c.value(LATE_SHARE) is not None for c in cells) else SHARE


@dataclass(frozen=True)
class Verdict:
    """What the TV made of a method: ``"captured"`` (the whole interval above chance, and above what the grid's methods
    that want nothing come to), ``"free"`` (none of it above chance), ``"open"`` (neither), or ``"few seeds"`` (fewer
    than 5)."""

    word: Literal["captured", "free", "open", "few seeds"]
    share: Estimate
    chance: float
    measure: Measure


@dataclass(frozen=True)
class AgainstSham:
    """A method's return in an arm against its return where the TV shows nothing, over the seeds that both have.

    ``kept``: share of the gain over random play that is left, None with the reason where that means nothing.
    ``difference``: in units of return, TV minus sham.
    """

    sham: str
    seeds: list[int]
    difference: Estimate
    kept: Estimate | None
    reason: str = ""


def verdict(grid: Grid, method: str, arm: str) -> Verdict | None:
    """Whether the TV captured the method; None where nothing was measured, or the policy has no say in it."""
    measure, chance = grid.share_measure(arm), grid.chance(arm, method)
    share = grid.estimate(method, arm, measure)
    if share is None or chance is None or not grid.chosen(arm, method):
        return None
    if share.low is None or share.high is None or share.n < ENOUGH_SEEDS:
        return Verdict("few seeds", share, chance, measure)
    # A policy that is as random as it can be is not uniformly random: a clipped normal is at its ends more often.
    idle = [m for m in grid.methods if all(c.idle for c in grid.of(m, arm)) and grid.chance(arm, m) == chance]
    aimless = [e.value for m in idle if (e := grid.estimate(m, arm, measure))]
    word: Literal["captured", "free", "open"] = (
        "free" if share.high <= chance else "captured" if share.low > max([chance, *aimless]) else "open"
    )
    return Verdict(word, share, chance, measure)


def against_sham(grid: Grid, method: str, arm: str) -> AgainstSham | None:
    """The method's return with the TV against that without; None where the grid has no such pair."""
    sham = grid.arms[arm].sham
    if sham is None:
        return None
    noisy, quiet = grid.values(method, arm, RETURN), grid.values(method, sham, RETURN)
    seeds = sorted(noisy.keys() & quiet.keys())
    if not seeds:
        return None
    with_tv, without = [noisy[s] for s in seeds], [quiet[s] for s in seeds]
    difference = estimate(np.subtract(with_tv, without))
    own_env = grid.of(method, sham)[0].env  # random play is that of all methods, but for those with another env
    random = [r for c in grid.finished if c.arm == sham and c.env == own_env for r in c.random_returns()]
    if not random:
        return AgainstSham(sham, seeds, difference, None, "no episode of random play ended before learning began")
    if all((c.config.get("agent") or {}).get("extrinsic") == 0 for c in grid.of(method, sham)):
        return AgainstSham(sham, seeds, difference, None, "it never sought the task's reward")
    kept = share_kept(with_tv, without, float(np.mean(random)))
    reason = "" if kept else "without the TV it learned nothing clear of random play"
    return AgainstSham(sham, seeds, difference, kept, reason)


def is_grid(folder: Path) -> bool:
    return (folder / GRID_FILE).is_file()


def read_grid(folder: Path) -> Grid:
    """The grid in ``folder``. Raises UserError if there is none, or its ``grid.json`` is damaged."""
    path = folder / GRID_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no grid (no {GRID_FILE}); give the --out folder of dreamer-lpm compare.")
    about = _read(path)
    try:
        if about["format"] != FORMAT:
            raise UserError(f"{path} has format {about['format']}, this version reads {FORMAT}; update dreamer-lpm.")
        if not (_fits(about, _GRID) and all(_fits(arm, _ARM) for arm in about["arms"].values())):
            raise _damaged(path)
        if any(Path(c["folder"]).is_absolute() or ".." in Path(c["folder"]).parts for c in about["cells"]):
            raise UserError(f"{path} has cells outside of {folder}; move them there, and name them so.")
        arms = {name: Arm(name, arm.get("words", ""), arm.get("sham")) for name, arm in about["arms"].items()}
        cells = [Cell(c["method"], c["arm"], int(c["seed"]), folder / c["folder"]) for c in about["cells"]]
        return Grid(folder, list(about["methods"]), arms, [int(s) for s in about["seeds"]], cells, about)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged (at {error}); restore it, or start the grid in a new folder.") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(data, dict):
        raise _damaged(path)
    return data


_NUMBER = (int, float)
_FIGURES = ("env_steps", "tv_chance", "wall_seconds", "shared_seconds", "runs_in_process", *(m.key for m in MEASURES))
_SUMMARY = {**dict.fromkeys(_FIGURES, _NUMBER), "versions": dict}
_CONFIG = {"env_name": str, "agent": dict, "tv": dict, "steps": _NUMBER, "prefill": _NUMBER}
_GRID = {
    "env_name": str, "commands": list, "arms": dict, "methods": dict, "seeds": list, "cells": list, "common": dict,
    "machine": dict,
}  # fmt: skip
_ARM = {"settings": dict, "words": str, "sham": str}


def _fits(data: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    """Whether what there is of these keys is of its kind, or null."""
    return all(data.get(key) is None or isinstance(data[key], kind) for key, kind in kinds.items())


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; restore it, or move its folder away and run again.")


def write_results(grid: Grid) -> None:
    """Write ``results.csv`` and ``summary.json`` into the grid's folder."""
    write_atomically(grid.folder / RESULTS_FILE, results_csv(grid))
    write_json(grid.folder / SUMMARY_FILE, summary(grid))


def results_csv(grid: Grid) -> str:
    """One row a finished cell: method, arm, seed, every figure of its summary, revision and versions."""
    rows = [
        {"method": cell.method, "arm": cell.arm, "seed": cell.seed, **dict(_flat(cell.summary or {}))}
        for cell in sorted(
            grid.finished, key=lambda c: (_place(grid.methods, c.method), _place(list(grid.arms), c.arm), c.seed)
        )
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["method", "arm", "seed"]
    columns.sort(key=lambda key: key.startswith("version_") or key == "git_revision")  # stable: those go to the end
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _flat(summary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The figures of a run as columns; lists are left to the run's own file."""
    for key, value in summary.items():
        if key == "versions" and isinstance(value, Mapping):
            yield from ((f"version_{name}", v) for name, v in value.items())
        elif key == "tv_images":
            yield key, (value or {}).get("used", "")
        elif key not in ("method", "arm", "seed") and (value is None or isinstance(value, str | int | float)):
            yield key, "" if value is None else value


def summary(grid: Grid) -> dict[str, Any]:
    """What the grid says, as JSON-able data; the keys are explained in docs/compare.md."""
    pairs = [(method, arm) for arm in grid.arms for method in grid.methods if grid.of(method, arm)]
    return {
        "cells": {"finished": len(grid.finished), "planned": len(grid.cells)},
        "measures": {
            arm: {
                method: {
                    m.key: {**asdict(found), "seeds": grid.values(method, arm, m)}
                    for m in grid.measures()
                    if (found := grid.estimate(method, arm, m)) is not None
                }
                for method in grid.methods
                if (method, arm) in pairs
            }
            for arm in grid.arms
        },
        "tv": _nested(pairs, lambda method, arm: _verdict_data(verdict(grid, method, arm))),
        "against_sham": _nested(pairs, lambda method, arm: _sham_data(against_sham(grid, method, arm))),
        "improvement": {arm: improvements(grid, arm) for arm in grid.arms},
    }


def improvements(grid: Grid, arm: str) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """measure -> method -> other method -> chance that the first does better. Of ``COMPARED`` alone.

    Methods with envs of their own, or TVs that are on more often by chance, are not compared.
    """
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for measure in COMPARED:
        if measure.of_tv and not grid.chosen(arm):
            continue
        values = {m: list(grid.values(m, arm, measure).values()) for m in grid.methods}
        present = [m for m in grid.methods if values[m]]
        square: dict[str, dict[str, dict[str, Any]]] = {m: {} for m in present}
        for a, b in combinations(present, 2):
            if _ground(grid, a, arm, measure) != _ground(grid, b, arm, measure):
                continue
            more = probability_of_improvement(values[a], values[b])
            first, second = (more, _against(more)) if measure.better == "higher" else (_against(more), more)
            square[a][b], square[b][a] = asdict(first), asdict(second)
        if len(present) > 1:
            found[measure.key] = square
    return found


def _ground(grid: Grid, method: str, arm: str, measure: Measure) -> object:
    """What two methods must have in common for such figures of theirs to be compared."""
    return grid.chance(arm, method) if measure.of_tv else {cell.env for cell in grid.of(method, arm)}


def _against(chance: Estimate) -> Estimate:
    """The other way round."""
    low, high = (None if end is None else 1 - end for end in (chance.high, chance.low))
    return Estimate(1 - chance.value, low, high, chance.n)


def _nested(pairs: Sequence[tuple[str, str]], make: Callable[[str, str], dict[str, Any] | None]) -> dict[str, Any]:
    nested: dict[str, dict[str, Any]] = {}
    for method, arm in pairs:
        data = make(method, arm)
        if data is not None:
            nested.setdefault(arm, {})[method] = data
    return nested


def _verdict_data(found: Verdict | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"verdict": found.word, "measure": found.measure.key, "chance": found.chance, **asdict(found.share)}


def _sham_data(found: AgainstSham | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "sham": found.sham,
        "seeds": found.seeds,
        "return_difference": asdict(found.difference),
        "return_kept": asdict(found.kept) if found.kept else None,
        "reason": found.reason,
    }
