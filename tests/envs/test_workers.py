"""Envs in other processes: the same rows to the bit, and a process that dies or hangs costs its episodes alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer_lpm.envs import EnvConfig, Envs, Row, episode_seed, make_env
from dreamer_lpm.envs import workers as workers_module
from dreamer_lpm.envs.workers import ANSWER_WITHIN, MOST_RESTARTS, Worker
from dreamer_lpm.noisy_tv import TVSpec
from dreamer_lpm.noisy_tv.images import static
from dreamer_lpm.types import STOPS, NotFinite, UserError
from tests.envs.test_vector import assert_equal_rows, play, random_actions
from tests.probes.counter_env import CounterEnv, read

ROOT = Path(__file__).parents[2]
TV = EnvConfig("Pendulum-v1", time_limit=12, tv=TVSpec(source="static"))
MAKES = {
    "continuous": partial(CounterEnv, length=4),
    "discrete": partial(CounterEnv, length=4, actions="discrete", action_size=3),
    "pendulum with a TV": partial(make_env, TV, images=static),
    "cartpole": partial(make_env, EnvConfig("CartPole-v1")),
}


class Faulty(CounterEnv):
    """At its step 2 it does what the file ``orders`` says: die, hang, nan or raise; perhaps in one episode only."""

    def __init__(self, orders: Path, length: int = 4) -> None:
        super().__init__(length=length)
        self.orders = orders

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        order, _, which = self.orders.read_text().partition(" ") if self.orders.is_file() else ("", "", "")
        if self.count != 2 or which not in ("", str(self.episode)):
            return obs, reward, terminated, truncated, info
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "hang":
            time.sleep(1000)
        if order == "raise":
            raise KeyError("the env's own words")
        if order == "oserror":
            raise FileNotFoundError("level_2.png")
        return obs, np.nan if order == "nan" else reward, terminated, truncated, info


def without_torch() -> CounterEnv:
    assert "torch" not in sys.modules
    return CounterEnv()


@contextmanager
def both(make: Any, num_envs: int, workers: int) -> Iterator[tuple[Envs, Envs]]:
    with closing(Envs(make, num_envs, 5)) as here, closing(Envs(make, num_envs, 5, workers=workers)) as there:
        yield here, there


def state(envs: Envs) -> Any:
    return json.loads(json.dumps(envs.state_dict()))


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize(("num_envs", "workers"), [(1, 1), (5, 2), (2, 8)])
def test_rows_are_equal_to_those_of_one_process_and_so_are_resumed_ones(name: str, num_envs: int, workers: int) -> None:
    with both(MAKES[name], num_envs, workers) as (here, there):
        assert here.action_spec == there.action_spec
        assert here.grid == there.grid
        assert_equal_rows(here.reset_row(), there.reset_row())
        for a, b in zip(play(here, 18), play(there, 18), strict=True):
            assert_equal_rows(a, b)
            assert here.cells() == there.cells()
        assert state(here) == state(there)
        assert (here.env_steps, there.restarts) == (there.env_steps, 0)
        saved = state(there)
        with both(MAKES[name], num_envs, workers) as (resumed_here, resumed_there):
            assert_equal_rows(resumed_here.load_state_dict(saved), resumed_there.load_state_dict(saved))
            assert resumed_here.cells() == resumed_there.cells()
            follow = [play(envs, 7, seed=1) for envs in (here, there, resumed_here, resumed_there)]
        for rows in zip(*follow, strict=True):
            for other in rows[1:]:
                assert_equal_rows(rows[0], other)


class Heavy:
    """Makes an env, and counts how often it was pickled."""

    pickled = 0

    def __call__(self) -> CounterEnv:
        return CounterEnv()

    def __getstate__(self) -> dict[str, Any]:
        type(self).pickled += 1
        return {}


def test_what_makes_the_envs_is_pickled_once_for_all_workers() -> None:
    """With CIFAR-10 in it, it is 150 MB."""
    with closing(Envs(Heavy(), 3, 5, workers=3)) as envs:
        assert envs.reset_row()["is_first"].all()
    assert Heavy.pickled == 1


def lanes(row: Row, which: int) -> Row:
    return {key: value[which] for key, value in row.items()}


@pytest.mark.parametrize(("order", "why"), [("die", "was killed by signal 9"), ("hang", "did not answer for 5 s")])
@pytest.mark.parametrize("ill", [2, 3])
def test_who_dies_or_hangs_is_replaced_and_its_episodes_are_cut_off(
    order: str, why: str, ill: int, tmp_path: Path
) -> None:
    """Of two workers with two envs each the second falls ill at its second step, in its first or its second env."""
    orders = tmp_path / "orders"
    make = partial(Faulty, orders, length=6)
    with closing(Envs(make, 4, 5)) as here, closing(Envs(make, 4, 5, workers=2, timeout=5.0)) as there:
        rng = np.random.default_rng(0)
        want, got = [here.reset_row()], [there.reset_row()]
        actions = [random_actions(here, rng) for _ in range(5)]
        want += [here.step(action) for action in actions]
        orders.write_text(f"{order} {episode_seed(5, ill, 0) % 65536}")
        begin = time.monotonic()
        got += [there.step(action) for action in actions[:2]]
        assert time.monotonic() - begin < 30
        orders.unlink()
        saved = state(there)
        got += [there.step(action) for action in actions[2:]]
        assert there.news() == [f"The worker of envs 2 to 3 {why} and was started again; their episodes end here."]
        assert (there.news(), there.restarts) == ([], 1)
        assert there.env_steps == 5 + 5 + 3 + 3
        cut_at = {2: 2, 3: 2} if ill == 2 else {2: 3, 3: 2}  # an env that had answered is cut off a step later
        for i in range(4):
            end = cut_at.get(i, 6)
            for t in range(end):
                assert_equal_rows(lanes(want[t], i), lanes(got[t], i))
            if end < 6:
                last = lanes(got[end], i)
                np.testing.assert_array_equal(last["obs"], got[end - 1]["obs"][i])
                np.testing.assert_array_equal(last["action"], want[end]["action"][i])
                values = [last[key] for key in ("reward", "is_first", "is_last", "is_terminal", "tv_on")]
                assert values == [0, False, True, False, False]
                assert got[end + 1]["is_first"][i]
                number = read(got[end + 1]["obs"][i]).episode
                assert number == episode_seed(5, i, 1) % 65536
        with closing(Envs(make, 4, 5, workers=1)) as resumed:
            resumed.load_state_dict(saved)
            assert state(resumed) == saved
            assert resumed.restarts == 1
            for action, row in zip(actions[2:], got[3:], strict=True):
                if ill == 2:  # else an episode ends in the other that was still to be cut off
                    assert_equal_rows(resumed.step(action), row)


def test_all_that_hang_at_once_are_waited_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = tmp_path / "orders"
    with closing(Envs(partial(Faulty, orders), 3, 5, workers=3, timeout=4.0)) as envs:
        envs.reset_row()
        play(envs, 1)
        orders.write_text("hang")
        monkeypatch.setattr(Worker, "_start", lambda self: None)  # the time of that depends on the machine
        begin = time.monotonic()
        play(envs, 1)
        assert envs.restarts == 3
        assert 4 <= time.monotonic() - begin < 11, "one after the other they take 12"


UNINSTALLED = """
import sys
sys.path[:0] = {path!r}
from functools import partial
from dreamer_lpm.envs import Envs
from tests.probes.counter_env import CounterEnv
envs = Envs(partial(CounterEnv, length=4), 1, 5, workers=1)
print(envs.reset_row()["is_first"])
envs.close()
"""


def test_workers_find_a_package_that_is_not_installed(tmp_path: Path) -> None:
    """Of the Python beneath the virtual environment, which has nothing of ours."""
    path = [str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))]
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    python = getattr(sys, "_base_executable", sys.executable)
    code = UNINSTALLED.format(path=path)
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip() == "[ True]", done.stderr


def test_a_killed_process_is_replaced_within_seconds() -> None:
    with closing(Envs(MAKES["continuous"], 2, 5, workers=1)) as envs:
        envs.reset_row()
        rows = play(envs, 1)
        os.kill(envs._workers[0]._process.pid, signal.SIGKILL)
        begin = time.monotonic()
        rows += play(envs, 2)
        assert time.monotonic() - begin < 15
        assert [row["is_last"].tolist() for row in rows] == [[False] * 2, [True] * 2, [False] * 2]
        assert [row["is_terminal"].any() for row in rows] == [False] * 3
        np.testing.assert_array_equal(rows[1]["obs"], rows[0]["obs"])
        assert rows[2]["is_first"].all()
        assert envs.env_steps == 2, "what nobody saw is no step"
        assert [lane["episode"] for lane in envs.state_dict()["envs"]] == [1, 1]


def test_one_that_dies_again_and_again_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "orders").write_text("die")
    with closing(Envs(partial(Faulty, tmp_path / "orders"), 1, 5, workers=1)) as envs:
        envs.reset_row()
        with pytest.raises(UserError) as told:
            play(envs, 50)
        assert envs.restarts == MOST_RESTARTS
    assert str(told.value) == (
        "The worker of envs 0 to 0 was killed by signal 9, for the 4th time in a row; look at the env, with "
        "env_workers 0 to see its own words, then go on with --resume."
    )


def test_what_an_env_raises_comes_through(tmp_path: Path) -> None:
    for order, error in (("nan", NotFinite), ("raise", KeyError), ("oserror", UserError)):
        (tmp_path / "orders").write_text(order)
        with closing(Envs(partial(Faulty, tmp_path / "orders"), 1, 5, workers=1)) as envs:
            envs.reset_row()
            with pytest.raises(error) as told:
                play(envs, 2)
            if order == "raise":
                assert "tests/envs/test_workers.py" in str(told.value.__notes__), "where in the env it was"
            assert envs.restarts == 0
    with pytest.raises(UserError, match="No-Such"):
        Envs(partial(make_env, EnvConfig("No-Such-v9")), 1, 0, workers=1)
    with pytest.raises(UserError, match=r"cannot be made in another process .* or set env_workers to 0\."):
        Envs(lambda: CounterEnv(), 1, 0, workers=1)
    with pytest.raises(UserError, match="env_workers must be 0 or more, not -1"):
        Envs(CounterEnv, 1, 0, workers=-1)


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        Envs(CounterEnv, 1, 0, workers=1)


def test_what_only_a_script_knows_cannot_be_made_elsewhere(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        "sys.path.append(pathlib.Path('anywhere'))\n"
        "from dreamer_lpm.envs import Envs\n"
        "def make(): ...\n"
        "try:\n"
        "    Envs(make, 1, 0, workers=1)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "cannot be made in another process" in out
    assert "make them by a function of a module that can be imported" in out


class Telling(CounterEnv):
    """Notes its end in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def close(self) -> None:
        (self.folder / f"closed-{os.getpid()}-{id(self)}").touch()


def test_envs_are_closed_with_their_worker(tmp_path: Path) -> None:
    Envs(partial(Telling, tmp_path), 3, 0, workers=2).close()
    assert len(list(tmp_path.iterdir())) == 3


def test_workers_do_without_torch() -> None:
    assert "torch" in sys.modules or __import__("torch")
    Envs(without_torch, 1, 0, workers=1).close()


PARENT = """
import sys, time
from functools import partial
from dreamer_lpm.envs import Envs
from tests.probes.counter_env import CounterEnv
envs = Envs(partial(CounterEnv, length=4), 2, 5, workers=2)
print(*(worker._process.pid for worker in envs._workers), flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_run_however_it_ends(signum: int) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(signum)
        parent.wait(20)
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_signal_to_all_processes_is_the_runs_to_answer() -> None:
    """As Ctrl-C and a cluster send it: the workers go on, so that what was done can be saved."""
    with closing(Envs(MAKES["continuous"], 2, 5, workers=1)) as envs:
        envs.reset_row()
        for signum in STOPS:
            os.kill(envs._workers[0]._process.pid, signum)
        play(envs, 3)
        assert envs.restarts == 0


def test_a_hung_env_is_going_again_within_30_seconds() -> None:
    """A process starts in a second or two; the test above measures it."""
    assert ANSWER_WITHIN <= 25


def test_deaths_far_apart_are_not_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "CALM", 3)
    with closing(Envs(MAKES["continuous"], 1, 5, workers=1)) as envs:
        envs.reset_row()
        for _ in range(MOST_RESTARTS + 1):
            play(envs, 5)
            os.kill(envs._workers[0]._process.pid, signal.SIGKILL)
            play(envs, 2)
        assert envs.restarts == MOST_RESTARTS + 1


def test_where_one_cannot_start_no_other_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Worker] = []
    start = Worker._start

    def starting(self: Worker) -> None:
        if made:
            raise FileNotFoundError("gone")
        start(self)
        made.append(self)

    monkeypatch.setattr(Worker, "_start", starting)
    with pytest.raises(FileNotFoundError) as told:
        Envs(MAKES["continuous"], 2, 5, workers=2)
    assert told.tb, "its frames are alive"
    assert made[0]._process.poll() is not None
