"""What a grid consists of: methods x arms x seeds, every cell's settings checked before anything starts."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dreamer_lpm.agent import AgentConfig, shapes
from dreamer_lpm.config import RunConfig, settled
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.envs import EnvConfig, action_spec, make_env
from dreamer_lpm.noisy_tv import NoisyTVError, TVSpec, load_images
from dreamer_lpm.presets import DEFAULT, preset
from dreamer_lpm.settings import MOST_SEEDS, from_plain, read_file, to_plain
from dreamer_lpm.train import vain
from dreamer_lpm.types import ActionSpec, UserError

Settings = Mapping[str, Any]

_REAL: dict[str, Any] = {"control": None, "pool": None}
ARMS: dict[str, Settings] = {
    "off": {"noisy_tv": False},
    "sham": {"noisy_tv": True, "tv": {**_REAL, "trigger": "remote", "control": "sham"}},
    "remote": {"noisy_tv": True, "tv": {**_REAL, "trigger": "remote"}},
    "remote_k1": {"noisy_tv": True, "tv": {**_REAL, "trigger": "remote", "pool": 1}},
    "action": {"noisy_tv": True, "tv": {**_REAL, "trigger": "action"}},
    "action_sham": {"noisy_tv": True, "tv": {**_REAL, "trigger": "action", "control": "sham"}},
}
# What a TV shows, and where, is no matter to an arm whose TV shows nothing.
_SHOWN = ("control", "source", "pool", "region", "persistence", "probability")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_KEYS = ("methods", "arms", "seeds", "preset", "common")


@dataclass(frozen=True)
class Key:
    """Which cell."""

    method: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, and of its folder."""
        return f"{self.method}-{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A grid that is asked for: settings for all cells, those of each method and each arm, and the seeds."""

    common: RunConfig
    methods: dict[str, Settings]
    arms: dict[str, Settings]
    seeds: tuple[int, ...]

    def cells(self) -> Iterator[Key]:
        """Every cell; seed by seed, so that a grid that is stopped early has whole comparisons."""
        for seed in self.seeds:
            for arm in self.arms:
                for method in self.methods:
                    yield Key(method, arm, seed)

    def _cases(self) -> Iterator[Key]:
        """A cell of each method in each arm."""
        return (key for key in self.cells() if key.seed == self.seeds[0])

    def config(self, key: Key) -> RunConfig:
        """The settings of a cell: those of all, then of its method, then of its arm, then its seed.

        Raises UserError, saying which cell, for settings that cannot be.
        """
        cfg = self.common
        for kind, name, settings in (
            ("method", key.method, self.methods[key.method]),
            ("arm", key.arm, self.arms[key.arm]),
        ):
            try:
                cfg = from_plain(RunConfig, settings, cfg)
            except (UserError, NoisyTVError) as error:
                raise UserError(f"The {kind} '{name}': {error}") from None
        return dataclasses.replace(cfg, seed=key.seed)

    def sham_of(self, arm: str) -> str | None:
        """The arm that is the same with a TV that shows nothing; None if there is none."""

        def plain(name: str) -> dict[str, Any]:
            return to_plain(self._of_arm(name))

        def same(name: str) -> dict[str, Any]:
            settings = {k: v for k, v in plain(name).items() if k != "tv_images"}
            return {**settings, "tv": {k: v for k, v in settings["tv"].items() if k not in _SHOWN}}

        if not self.has_tv(arm):
            return None
        shams = [a for a in self.arms if plain(a)["tv"]["control"] == "sham" and same(a) == same(arm)]
        return shams[0] if shams else None

    def has_tv(self, arm: str) -> bool:
        """Whether a real TV is there, not one of the controls."""
        tv = self._tv(arm)
        return tv is not None and tv.control is None

    def words(self, arm: str, machine: Machine) -> str:
        """The arm's TV in a sentence."""
        tv = machine.settle(self._of_arm(arm)).env().tv
        return tv.describe() if tv else "No TV."

    def dropped(self, before: RunConfig, typed: Container[str] = ()) -> Iterator[tuple[Key, str, Any]]:
        """Settings that were asked for, and differ from a cell's: which cell, name, what it has.

        Asked for is what differs from the settings ``before``, and what is among the names ``typed``. Names are those
        of files, so what an agent consists of stands at the top.
        """
        was, asked = _top(before), _top(self.common)
        for key in self._cases():
            got = _top(self.config(key))
            lost = (n for n in asked if got[n] != asked[n] and (asked[n] != was[n] or n in typed))
            yield from ((key, name, got[name]) for name in lost)

    def check(self) -> None:
        """Raises UserError if any cell could not start: its settings, its curiosity, its env."""
        folders = Counter(key.name for key in self.cells())
        if doubled := {f for f, count in folders.items() if count > 1}:
            raise UserError(f"Two cells would share the folder {min(doubled)}; rename a method or an arm.")
        envs: dict[EnvConfig, ActionSpec] = {}
        agents = set[tuple[AgentConfig, EnvConfig]]()
        for key in self.cells():
            cfg = self.config(key)
            quiet = cfg.env(tv_on=False)  # needs no pictures
            if quiet not in envs:
                env = make_env(quiet)
                envs[quiet] = action_spec(env)
                env.close()
            if (cfg.agent, quiet) in agents:
                continue
            agents.add((cfg.agent, quiet))
            try:
                shapes(cfg.agent, envs[quiet])
            except UserError as error:
                raise UserError(f"Method '{key.method}': {error}") from error

    def vain(self) -> list[str]:
        """What was asked for, in all cells, and will do no good."""
        first, *rest = ({*vain(self.config(key))} for key in self._cases())
        return sorted(first.intersection(*rest))

    def machine(self, known: Machine | None = None) -> Machine:
        """What is left to the machine, decided once; ``known`` is what was decided before, and stays.

        One thread a run on a CPU. Fetches the pictures that "auto" stands for, so that cells side by side do not.
        Raises UserError if the device is not there, NoisyTVError if pictures cannot be had.
        """
        machine = known or self.machine_alone()
        shown = [tv for arm in self.arms if self.has_tv(arm) and (tv := self._tv(arm)) is not None]
        used = {tv.source: load_images(tv.source, self.common.data_dir)[1].used for tv in shown}
        return machine if machine.pictures else dataclasses.replace(machine, pictures=used.get("auto"))

    def machine_alone(self) -> Machine:
        """The same without the pictures: nothing is fetched."""
        found = settled(self.common)
        threads = 1 if self.common.threads == 0 and found.device == "cpu" else found.threads
        return Machine(found.device, found.precision, threads)

    def _tv(self, arm: str) -> TVSpec | None:
        return self._of_arm(arm).env().tv

    def _of_arm(self, arm: str) -> RunConfig:
        """An arm with the first method that it can be with: in a grid that grew, not every one goes with every arm."""
        wrong: UserError | None = None
        for method in self.methods:
            try:
                return self.config(Key(method, arm, 0))
            except UserError as error:
                wrong = wrong or error
        assert wrong is not None, "a plan has a method"
        raise wrong


@dataclass(frozen=True)
class Machine:
    """What ``auto`` means in this grid, so that all cells compute alike, also those of next week."""

    device: str
    precision: str
    threads: int
    pictures: str | None = None

    def settle(self, cfg: RunConfig) -> RunConfig:
        """``cfg`` with nothing left to be decided."""
        tv = cfg.env().tv
        shown = tv is not None and tv.source == "auto" and self.pictures is not None
        return dataclasses.replace(
            cfg,
            device=cast(Any, self.device) if cfg.device == "auto" else cfg.device,
            precision=cast(Any, self.precision) if cfg.precision == "auto" else cfg.precision,
            threads=cfg.threads or self.threads,
            tv_images=self.pictures if shown and self.pictures else cfg.tv_images,
        )


_SEED = "The seeds of a grid come from --seeds; leave 'seed' out of the settings."


def make_plan(
    *,
    file: Path | None,
    methods: Sequence[str] | None,
    arms: Sequence[str] | None,
    seeds: int | Sequence[int] | None,
    preset_name: str | None,
    flags: Callable[[RunConfig], RunConfig],
    typed: Container[str] = (),
) -> Plan:
    """A plan from what the command line and one TOML file say; flags win over the file.

    ``flags`` makes the settings of all cells from the file's; ``typed``: which of them it sets, named as in files.
    Raises UserError for what cannot be.
    """
    data = {} if file is None else read_file(file)
    for key in data:
        if key not in _KEYS:
            raise UserError(
                f"{file} may hold {', '.join(_KEYS)}, not '{key}'; settings of all cells belong into [common]."
            )
    base = preset(preset_name or _text(data.get("preset", DEFAULT)))
    before = from_plain(RunConfig, _table(data.get("common", {}), "common"), base)
    common = flags(before)
    if common.seed != base.seed or "seed" in typed:
        raise UserError(_SEED)
    plan = Plan(
        common,
        _named("method", methods, data.get("methods"), _bonuses()),
        _named("arm", arms, data.get("arms"), ARMS),
        _seeds(seeds if seeds is not None else data.get("seeds", 5)),
    )
    if any("seed" in settings for settings in (*plan.methods.values(), *plan.arms.values())):
        raise UserError(_SEED)
    plan.check()
    for cell, name, has in plan.dropped(before, typed):
        flag = name.replace("_", "-")
        raise UserError(
            f"'{cell.method}' before '{cell.arm}' has its own {flag}, {has}: leave --{flag} out, or make methods "
            "and arms of your own in --grid."
        )
    _check_common(plan, before, base)
    return plan


def _bonuses() -> dict[str, Settings]:
    """Every registered bonus as a method."""
    return {name: {"curiosity": name} for name in REGISTRY}


def _check_common(plan: Plan, common: RunConfig, base: RunConfig) -> None:
    """Raises UserError where the file's [common] asks for what one of our own methods or arms has otherwise.

    Tables in the file may well differ from [common]: that is what they are for.
    """
    ours = dataclasses.replace(
        plan,
        common=common,
        methods={name: s if s == _bonuses().get(name) else {} for name, s in plan.methods.items()},
        arms={name: s if s == ARMS.get(name) else {} for name, s in plan.arms.items()},
    )
    for key, name, has in ours.dropped(base):
        kind, which = ("method", key.method) if name in ours.methods[key.method] else ("arm", key.arm)
        raise UserError(
            f"The {kind} '{which}' has its own {name}, {has}: leave {name} out of [common], or write it into "
            f"[{kind}s.{which}]."
        )


def _named(kind: str, wanted: Sequence[str] | None, given: Any, known: Mapping[str, Settings]) -> dict[str, Settings]:
    """Name -> settings. ``given`` is a list of known names, or tables: new ones, or changes to a known one's."""
    own = _own(kind, given, known)
    names = list(wanted) if wanted is not None else list(own)
    if not names:
        raise UserError(f"Which {kind}s? Name them with --{kind}s, for example: {' '.join(list(known)[:3])}.")
    chosen = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"Name the {kind} with letters, digits, '_', '-' and '.' (40 at most), not {name[:60]!r}; spaces stand "
                f'between names, and what else a {kind} is (curiosity = "lpm_dual+0.5*icm") in --grid, as '
                f"[{kind}s.NAME]."
            )
        if name not in own and name not in known:
            raise UserError(f"Unknown {kind} '{name}'; choose from: {', '.join({**known, **own})}.")
        chosen[name] = own[name] if name in own else known[name]  # an empty table is one, too
    return chosen


def _own(kind: str, given: Any, known: Mapping[str, Settings]) -> dict[str, Settings]:
    if given is None:
        return {}
    if isinstance(given, list):
        return {_text(name): known.get(_text(name), {}) for name in given if _is_known(kind, _text(name), known)}
    return {
        name: merged(known.get(name, {}), _table(settings, f"{kind}s.{name}"))
        for name, settings in _table(given, f"{kind}s").items()
    }


def _is_known(kind: str, name: str, known: Mapping[str, Settings]) -> bool:
    if name not in known:
        raise UserError(f"Unknown {kind} '{name}'; choose from: {', '.join(known)}, or define it as [{kind}s.{name}].")
    return True


def merged(base: Settings, changes: Settings) -> dict[str, Any]:
    """``base`` with ``changes`` written over it, group by group."""
    both = dict(base)
    for key, value in changes.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return both


def _top(cfg: RunConfig) -> dict[str, Any]:
    """Every setting under its name in files, where what an agent consists of stands at the top."""
    return {name.removeprefix("agent."): value for name, value in _flat(to_plain(cfg)).items()}


def _flat(settings: Settings, where: str = "") -> dict[str, Any]:
    """Each setting under its whole name, such as tv.pool."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"'{name}' must be a table of settings, such as [{name}], not {str(value)[:60]!r}.")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"A name must be text, not {str(value)[:60]!r}.")
    return value


def _seeds(given: Any) -> tuple[int, ...]:
    """A number counts them from 0; a list names them."""
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in listed):
        raise UserError("seeds must be whole numbers, 0 or more: one says how many, a list says which.")
    if isinstance(given, int):
        if given > MOST_SEEDS:  # who writes it means the seed of that name
            raise UserError(f"{given} would be {given:,} seeds; for the one of that number write {given}..{given}.")
        listed = list(range(given))
    if not listed or len(set(listed)) < len(listed):
        raise UserError("seeds must be at least one, each only once; for the one seed 0 write 0..0, in a file [0].")
    return tuple(listed)
