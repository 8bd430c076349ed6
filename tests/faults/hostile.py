"""Files and names that somebody made to do harm, by the thousand.

    python -m tests.faults.hostile --cases 10000 --out benchmarks/results/faults/hostile.json

Hypothesis invents them: pickles that call something, true files with a few bytes changed, archives with links, ``../``
and bombs, configs with alias bombs, double keys and broken text, names of runs. Whatever comes, the program must answer
with one sentence (UserError, NoisyTVError) or take it for what it is, within seconds; run no code of it; and write
nothing outside of the folder it was given. An audit hook of Python's watches for processes, sockets and writing.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import dreamer_lpm.train as train_module
from dreamer_lpm import checkpoint, commands
from dreamer_lpm.config import RunConfig
from dreamer_lpm.doctor import examine
from dreamer_lpm.envs import EnvConfig
from dreamer_lpm.evaluate import export_agent, load, save_agent
from dreamer_lpm.noisy_tv import NoisyTVError, cifar10, load_images
from dreamer_lpm.presets import preset
from dreamer_lpm.report.command import write_report
from dreamer_lpm.report.strict_json import sealed, write_atomically
from dreamer_lpm.report.summary import versions
from dreamer_lpm.settings import from_plain, read_file
from dreamer_lpm.state import State
from dreamer_lpm.train import read_config, train
from dreamer_lpm.types import UserError
from tests.tiny_run import TINY

SLOWEST = 5.0  # seconds that a case may take
MOST_WRONG = 20  # cases, after which there is no need to go on
RUN = replace(TINY, steps=60, checkpoint_every=50)


@dataclass
class Outcome:
    """What became of a target's cases."""

    cases: int = 0
    refused: int = 0  # with one sentence
    taken: int = 0  # as what they were
    slowest: float = 0.0  # seconds
    slowest_case: str = ""
    wrong: list[str] = field(default_factory=list)

    def took(self, seconds: float, made: Any) -> None:
        """A case is done."""
        self.cases += 1
        if seconds > self.slowest:
            self.slowest, self.slowest_case = round(seconds, 2), f"{made!r:.80}"
        if seconds > SLOWEST:
            self.wrong.append(f"{seconds:.1f} s for {made!r:.300}")


# --- the watch --------------------------------------------------------------------------------------------------------


class Watch:
    """Notes what audit events say of processes, sockets, and writing outside of ``allowed``, while it is on."""

    _RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect")
    _WRITES = (
        "os.mkdir",
        "os.rmdir",
        "os.remove",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.truncate",
        "shutil.rmtree",
    )

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in self._RUNS:
            self.seen.append(f"{event} {arguments[:1]}")
        elif event in self._WRITES or (event == "open" and _is_writing(arguments)):
            self._wrote(event, arguments[0])

    def _wrote(self, event: str, path: Any) -> None:
        where = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None
        assert self.allowed is not None
        if where is not None and str(where) != os.devnull and not where.absolute().is_relative_to(self.allowed):
            self.seen.append(f"{event} {where}")

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Only ``folder`` may be written to, and nothing started."""
        self.allowed, self.seen = folder, []
        try:
            yield
        finally:
            self.allowed = None


def _is_writing(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# --- what is invented -------------------------------------------------------------------------------------------------


class Call:
    """Calls something when it is unpickled. What it calls leaves the file "trap" where the program was started."""

    def __init__(self, what: tuple[Any, ...]) -> None:
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what


CALLS: list[tuple[Any, ...]] = [
    (os.system, ("touch trap",)),
    (os.mkdir, ("trap",)),
    (subprocess.call, (["touch", "trap"],)),
    (eval, ("open('trap', 'w')",)),
    (exec, ("open('trap', 'w')",)),
    (open, ("trap", "w")),
    (Path.touch, (Path("trap"),)),
    (shutil.copy, (__file__, "trap")),
    (importlib.import_module, ("this",)),
    (torch.save, ({}, "trap")),
    (np.save, ("trap.npy", np.zeros(1))),
    (torch.load, ("trap.pt",)),
    (getattr, (Path, "touch")),
    (bytearray, (1 << 40,)),
    (torch.empty, ((1 << 42,),)),
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``leaf`` somewhere inside of dicts, lists and tuples."""
    keys = st.sampled_from(["agent", "optimizer", "carry", "weights", "config", "format", "state", "x"])
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3) | st.tuples(inner),
        max_leaves=4,
    )  # fmt: skip


PAYLOADS = nested(st.sampled_from(CALLS).map(Call) | PLAIN)


def quiet_save(payload: Any, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(payload, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def bomb_of_zeros(megabytes: int) -> bytes:
    """A zip whose one entry is ``megabytes`` of zeros, packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(megabytes << 20))
    return file.getvalue()


PICKLED_CALLS = st.tuples(PAYLOADS, st.integers(0, 5)).map(lambda x: pickle.dumps(x[0], protocol=x[1]))
PICKLES = st.one_of(
    PICKLED_CALLS,
    st.tuples(PAYLOADS, st.booleans()).map(lambda x: quiet_save(x[0], x[1])),
    st.binary(max_size=300),
    st.integers(1, 64).map(bomb_of_zeros),
)


@st.composite
def mutated(draw: st.DrawFn, true: Path | bytes) -> bytes:
    """A true file with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(true if isinstance(true, bytes) else _content(true))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "insert", "end", "double"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "end":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@st.composite
def repacked(draw: st.DrawFn, true: Path) -> bytes:
    """A true archive, one of whose entries is changed, with the checksums of the change: what no checksum finds."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_content(true))) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        pickled = [name for name in names if name.endswith(".pkl")]  # the only part that could be code
        changed = draw(st.sampled_from(pickled * len(names) + names))
        for name in names:
            data = old.read(name)
            new.writestr(name, draw(mutated(data) | PICKLED_CALLS) if name == changed else data)
    return file.getvalue()


@functools.cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


# --- targets: each takes what was invented, and may raise UserError or NoisyTVError ---------------------------------


class Targets:
    """True files to start from, in ``home``; each case works in ``home / "case"``."""

    def __init__(self, home: Path) -> None:
        self.home, self.case = home, home / "case"
        train_module.plot_run = lambda run_dir: run_dir / "curves.png"
        train_module.episode_video = lambda path, trace, **more: path
        self.run = home / "run"
        train(RUN, self.run)
        self.state = State(RUN, None)
        player = load(self.run / "agent_lpm.pth")
        export_agent(home / "exported", player.agent, {"note": "x"})
        save_agent(home / "agent_lpm.pth", player.agent, {"note": "x"})
        for agent in self.run.glob("agent_*.pth"):  # these are a target of their own
            agent.unlink()

    def fresh(self, what: Path | None = None) -> Path:
        """An empty ``case``, or a copy of ``what`` there."""
        shutil.rmtree(self.case, ignore_errors=True)
        if what is None:
            self.case.mkdir()
        else:
            shutil.copytree(what, self.case)
        return self.case

    def all(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]]:
        """Name -> what is invented, and what is done with it."""
        return {
            "checkpoint": (self.checkpoints(), self.read_checkpoint),
            "agent": (self.agents(), self.read_agent),
            "dataset": (archives(), self.read_dataset),
            "config": (CONFIGS, self.read_config),
            "run name": (NAMES, self.name_run),
        }

    def checkpoints(self) -> st.SearchStrategy[dict[str, Any]]:
        newest = checkpoint.checkpoints(self.run)[-1]
        rows = max((self.run / "replay").iterdir())
        true = [*newest.iterdir(), rows]
        arrays = st.lists(PAYLOADS, max_size=2).map(_object_rows)
        return st.fixed_dictionaries({
            "name": st.sampled_from([path.name for path in true]),
            "content": st.one_of(
                PICKLES, arrays, PLAIN.map(lambda x: json.dumps(x).encode()), *map(mutated, true),
                self._other_state(json.loads((newest / "state.json").read_text())),
            ),
            "sealed": st.booleans(),
        }) | st.fixed_dictionaries({
            "name": st.just("state.pt"), "content": repacked(newest / "state.pt"), "sealed": st.just(True),
        }) | st.fixed_dictionaries({
            "name": st.just(rows.name), "content": repacked(rows), "sealed": st.just(True),
        }) | st.fixed_dictionaries({
            "name": st.just("state.json"), "sealed": st.just(True),
            "content": self._other_state(json.loads((newest / "state.json").read_text())),
        })  # fmt: skip

    def _other_state(self, state: dict[str, Any]) -> st.SearchStrategy[bytes]:
        """A true state.json with some of its parts replaced."""

        def put(change: tuple[str, Any]) -> bytes:
            path, value = change
            changed = json.loads(json.dumps(state))
            place = changed
            *folders, last = path.split("/")
            for key in folders:
                place = place[key]
            place[last] = value
            return json.dumps(changed).encode()

        parts = [*state, *(f"tally/{key}" for key in state["tally"]), *(f"envs/{key}" for key in state["envs"])]
        return st.tuples(st.sampled_from(parts), PLAIN).map(put)

    def read_checkpoint(self, made: dict[str, Any]) -> None:
        run_dir = self.fresh(self.run)
        folder = checkpoint.checkpoints(run_dir)[-1]
        path = run_dir / "replay" / made["name"] if made["name"].startswith("rows") else folder / made["name"]
        path.write_bytes(made["content"])
        if made["sealed"] and path.name != "manifest.json":  # by somebody who knows how
            manifest = json.loads((folder / "manifest.json").read_text())
            del manifest["sha256"]
            for group in (manifest["files"], manifest["replay"]):
                if path.name in group:
                    group[path.name] = checkpoint.sha256(path)
            (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
        list(examine(run_dir))
        saved, _ = checkpoint.load_newest(run_dir, str(read_config(run_dir)["run"]))
        if saved is not None:
            self.state.restore(saved)
            if self.state.replay.added > RUN.seq_length:
                self.state.learn()

    def agents(self) -> st.SearchStrategy[dict[str, Any]]:
        true = [*(self.home / "exported").iterdir(), self.home / "agent_lpm.pth"]
        description = json.loads((self.home / "exported" / "config.json").read_text())
        return st.fixed_dictionaries({
            "name": st.sampled_from([path.name for path in true]),
            "content": st.one_of(
                PICKLES, PLAIN.map(lambda x: json.dumps(x).encode()), *map(mutated, true),
                self._other_agent(description),
            ),
        }) | st.fixed_dictionaries({
            "name": st.just("agent_lpm.pth"), "content": repacked(self.home / "agent_lpm.pth"),
        }) | st.fixed_dictionaries({
            "name": st.just("config.json"), "content": self._other_agent(description),
        })  # fmt: skip

    def _other_agent(self, description: dict[str, Any]) -> st.SearchStrategy[bytes]:
        def put(change: tuple[str, Any]) -> bytes:
            changed = json.loads(json.dumps(description))
            place = changed["config"]
            *folders, last = change[0].split("/")
            for key in folders:
                place = place[key]
            place[last] = change[1]
            return json.dumps(changed).encode()

        cfg = description["config"]
        parts = [*cfg, *(f"{group}/{key}" for group in ("world", "behavior", "bonus") for key in cfg[group])]
        return st.tuples(st.sampled_from(parts), PLAIN | st.sampled_from([10**6, 10**9, 10**18])).map(put)

    def read_agent(self, made: dict[str, Any]) -> None:
        if made["name"] == "agent_lpm.pth":
            path = self.fresh() / made["name"]
            path.write_bytes(made["content"])
        else:
            path = self.fresh(self.home / "exported")
            (path / made["name"]).write_bytes(made["content"])
        load(path).act(np.zeros((64, 64, 3), np.uint8))

    def read_dataset(self, made: dict[str, Any]) -> None:
        folder = self.fresh()
        if made["as"] == "archive":
            (folder / cifar10.ARCHIVE_NAME).write_bytes(made["content"])
            cifar10.read_archive(folder / cifar10.ARCHIVE_NAME)
        else:
            (folder / f"picture.{made['as']}").write_bytes(made["content"])
            source, _ = load_images(f"folder:{folder}")
            source(np.random.default_rng(0), (64, 64, 3))

    def read_config(self, made: tuple[str, bytes]) -> None:
        suffix, content = made
        path = self.fresh() / f"config.{suffix}"
        path.write_bytes(content)
        cfg = from_plain(RunConfig, read_file(path), preset("tiny"))
        assert isinstance(cfg.env(), EnvConfig)

    def name_run(self, made: tuple[str, Any]) -> None:
        name, value = made
        folder = self.fresh()
        os.chdir(folder)
        try:
            known = argparse.Namespace(runs=Path("runs"), run_name=name, resume=False)
            run_dir = commands._run_dir(known)
            assert run_dir.parent == Path("runs"), run_dir
            run_dir.mkdir(parents=True)
        finally:
            os.chdir(self.home)
        self._page(folder / "runs" / run_dir.name, value)

    def _page(self, run_dir: Path, value: Any) -> None:
        """The page of a run whose files say HTML where they can."""
        row = {"step": 1, "kind": "episode", "return": 1.0, "length": 1, "note": value}
        (run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (run_dir / "config.json").write_text(json.dumps({"config": {"env_name": value, "agent": {"curiosity": value}}}))
        (run_dir / "summary.json").write_text(
            json.dumps({"env_name": value, "curiosity": value, "versions": {value: 1}})
        )
        page = write_report(run_dir).read_text()
        reader = _Reader()
        reader.feed(page)
        assert not reader.met, reader.met


class _Reader(HTMLParser):
    """Finds the mark of ``HARM`` as a tag or an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "harm" or any(name == "harm" for name, _ in attributes):
            self.met.append(str(self.get_starttag_text()))


HARM = [
    "<harm>",
    '"><b harm>',
    "' harm='",
    "<script harm>1</script>",
    "</script><harm>",
    "--><harm>",
    "&lt;harm&gt;<harm ",
]
NAMES = st.tuples(
    st.one_of(
        st.sampled_from(["..", "../x", "/etc/x", "a/../../x", ".hidden", "a\0b", "a\nb", "CON", "-x", "x" * 300, ""]),
        st.text(max_size=30), st.sampled_from(HARM), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
    ),
    st.sampled_from(HARM),
)  # fmt: skip


def _object_rows(objects: list[Any]) -> bytes:
    file = io.BytesIO()
    array = np.empty(len(objects), dtype=object)
    for i, item in enumerate(objects):
        array[i] = item
    np.savez(file, obs=array)
    return file.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> dict[str, Any]:
    """A data set: an archive with whatever an archive can hold, or a picture that is none."""
    kind = draw(st.sampled_from(["archive", "archive", "archive", "png", "jpg", "bmp"]))
    if kind != "archive":
        head = draw(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"GIF89a", b""]))
        return {"as": kind, "content": draw(st.one_of(st.binary(max_size=200).map(lambda x: head + x), mutated(PNG)))}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for _ in range(draw(st.integers(0, 3))):
            _put(tar, draw)
    content = file.getvalue()
    return {"as": "archive", "content": draw(st.one_of(st.just(content), mutated(content), st.binary(max_size=100)))}


def _put(tar: tarfile.TarFile, draw: st.DrawFn) -> None:
    batch = "cifar-10-batches-bin/data_batch_1.bin"
    names = [batch, f"../{batch}", f"/tmp/{batch}", "data_batch_2.bin", "..", "x/../../data_batch_3.bin", "\N{SNOWMAN}"]
    info = tarfile.TarInfo(draw(st.sampled_from(names) | st.text(max_size=20).filter(lambda x: "\0" not in x)))
    kinds = [tarfile.REGTYPE] * 4 + [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ]
    info.type = draw(st.sampled_from(kinds))
    info.linkname = draw(st.sampled_from(["/etc/passwd", "../../x", batch, ""]))
    size = draw(st.sampled_from([0, 1, cifar10.RECORD, 2 * cifar10.RECORD, 50_000_000]))
    if info.type == tarfile.REGTYPE:
        info.size = size
        tar.addfile(info, io.BytesIO(bytes(size)))
    else:
        tar.addfile(info)


def _png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


PNG = _png()


YAML_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(20)
)
KEYS = [f.name for f in fields(RunConfig)]
CONFIG_TEXTS = st.one_of(
    st.sampled_from([
        YAML_BOMB, MERGE_BOMB, "steps: 10\nsteps: 20\n", "steps = 10\nsteps = 20\n", '{"steps": 1, "steps": 2}',
        "world_lr: .nan", "world_lr = nan", '{"world_lr": NaN}', "lpm_eta: .inf", "steps: 1e400",
        "!!python/object/apply:os.system ['touch trap']", "steps: !!python/name:os.system", "a: &a {b: *a}",
        "[" * 5000, "{a: " * 5000, "x = " + "[" * 5000, "steps: " + "9" * 5000, "steps = " + "9" * 5000,
        "tv: {when: '" + "(" * 150 + "'}", "? " * 5000, "- " * 20_000, "a: |\n" + " x\n" * 20_000,
        "%TAG ! tag:x,2000:\n--- !x 1", "curiosity: " + "lpm+" * 9000,
    ]),
    st.dictionaries(st.sampled_from([*KEYS, "x", "world", "<<"]), PLAIN, max_size=4).map(json.dumps),
    st.text(max_size=200),
    st.from_regex(r"([a-z_]{1,12}(: | = |:)[-\[\]{}&*!|>'\"0-9a-z.,#% \n]{0,30}\n){1,6}", fullmatch=True),
)  # fmt: skip
CONFIGS = st.tuples(
    st.sampled_from(["yaml", "toml", "json", "yml", "txt"]),
    CONFIG_TEXTS.map(lambda x: x.encode("utf-8", "surrogatepass")) | st.binary(max_size=200)
    | CONFIG_TEXTS.map(lambda x: x.encode("utf-16", "surrogatepass")),
)  # fmt: skip


# --- the experiment ---------------------------------------------------------------------------------------------------


def attack(
    strategy: st.SearchStrategy[Any], use: Callable[[Any], None], home: Path, watch: Watch, cases: int, number: int
) -> Outcome:
    """``cases`` cases of ``strategy``, each given to ``use``, which may write inside of ``home``."""
    out = Outcome()
    gc.freeze()  # what was remembered of other targets is not to slow this one down

    @seed(number)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def one(made: Any) -> None:
        begin = time.monotonic()
        with watch.over(home), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                use(made)
                out.taken += 1
            except (UserError, NoisyTVError) as error:
                out.refused += 1
                if "\n" in str(error):
                    out.wrong.append(f"more than one line: {error!r}")
            except Exception as error:  # exactly what must not come
                out.wrong.append(f"{type(error).__name__}: {str(error)[:200]} of {made!r:.300}")
                if len(out.wrong) > MOST_WRONG:
                    raise
        out.took(time.monotonic() - begin, made)
        out.wrong += [f"{event} for {made!r:.300}" for event in watch.seen]
        if any(home.glob("trap*")):
            out.wrong.append(f"code was run: {made!r:.300}")
            raise AssertionError(out.wrong[-1])

    try:
        one()
    except Exception:
        if not out.wrong:  # else it was said, and is enough
            raise
    return out


def experiment(names: list[str], cases: int, number: int) -> dict[str, Outcome]:
    """Every target in its turn."""
    watch, before = Watch(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        targets = Targets(home)
        os.chdir(home)
        try:
            found = {}
            for name in names:
                found[name] = attack(*targets.all()[name], home, watch, cases, number)
                print(f"{name}: {found[name].cases} cases, {len(found[name].wrong)} wrong", file=sys.stderr, flush=True)
            return found
        finally:
            os.chdir(before)


TARGETS = ["checkpoint", "agent", "dataset", "config", "run name"]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Hostile files and names, by the thousand.")
    parser.add_argument("--cases", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(options.seed)
    begin = time.monotonic()
    found = experiment(options.target or TARGETS, options.cases, options.seed)
    said = {
        "command": " ".join(["python -m tests.faults.hostile", *sys.argv[1:]]),
        "targets": {name: asdict(out) for name, out in found.items()},
        "seed": options.seed,
        "seconds": round(time.monotonic() - begin, 1),
        "versions": versions(),
    }
    print(json.dumps(said, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out.absolute(), json.dumps(said, indent=1) + "\n")
    sys.exit(any(out.wrong for out in found.values()))


if __name__ == "__main__":
    main()
