"""A few dozen of the hostile files whose counts are in ``benchmarks/results/faults``; and harm would be seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# A target that does what ours must not. In a process of its own, for nobody takes an audit hook away again.
PLANTED = """
import json, os, pickle, sys, tempfile, time
from pathlib import Path
from hypothesis import strategies as st
from tests.faults import hostile

def unpickles(made):
    pickle.loads(pickle.dumps(hostile.Call(made)))

def writes_outside(made):
    (Path.cwd().parent / "outside").write_text("x")

def lets_go(made):
    raise KeyError(made)

def writes_lines(made):
    raise hostile.UserError("one" + chr(10) + "two")

def dawdles(made):
    time.sleep(0.02)

def behaves(made):
    (Path.cwd() / "inside").write_text("x")

watch = hostile.Watch()
for name, call in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve() / "home"
        home.mkdir()
        os.chdir(home)
        made = st.just(hostile.CALLS[call])
        hostile.SLOWEST = 0.01 if name == "dawdles" else 5.0
        print(json.dumps(hostile.attack(made, globals()[name], home, watch, 1, 0).wrong))
        os.chdir(folder)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=280, check=False
    )


def test_a_few_dozen_hostile_files_for_every_target_do_no_harm(tmp_path: Path) -> None:
    done = run("-m", "tests.faults.hostile", "--cases", "40", "--seed", "7", "--out", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    targets = json.loads((tmp_path / "out.json").read_text())["targets"]
    assert {name: (out["cases"], out["wrong"]) for name, out in targets.items()} == dict.fromkeys(
        ("checkpoint", "agent", "dataset", "config", "run name"), (40, [])
    )
    assert all(out["refused"] for out in targets.values()), "nothing hostile was among them"


HARM: list[tuple[str, int, list[str]]] = [
    ("unpickles", 0, ["os.system", "code was run"]),
    ("unpickles", 1, ["code was run"]),
    ("unpickles", 2, ["subprocess.Popen", "code was run"]),
    ("unpickles", 3, ["code was run"]),
    ("writes_outside", 0, ["outside"]),
    ("lets_go", 0, ["KeyError"]),
    ("writes_lines", 0, ["more than one line"]),
    ("dawdles", 0, ["0.0 s for"]),
    ("behaves", 0, []),
]


def test_harm_that_is_planted_is_seen() -> None:
    done = run("-c", PLANTED, json.dumps([[name, call] for name, call, _ in HARM]))
    assert done.returncode == 0, done.stderr
    for (name, _, seen), line in zip(HARM, done.stdout.splitlines(), strict=True):
        wrong = json.loads(line)
        assert bool(wrong) == bool(seen), (name, wrong)
        for part in seen:
            assert any(part in told for told in wrong), (name, wrong)
