"""Envs in processes of their own: one that dies or hangs costs its episodes, and not the run.

A worker is a fresh Python that imports no torch. It holds some of the envs, does what it is asked in the order in which
it is asked, and ends when the run does. Observations come through its pipe: 12 kB cost less than 0.1 ms.
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Literal

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from dreamer_lpm.envs.coverage import grid_of
from dreamer_lpm.envs.wrappers import env_name
from dreamer_lpm.types import STOPS, UserError

ANSWER_WITHIN = 20.0  # seconds for a step or a reset: a hung env is going again within 30, a run saved within 25
START_WITHIN = 120.0  # seconds until a worker has made its envs
MOST_RESTARTS = 3  # of one worker, each before CALM steps have passed since the one before
CALM = 100

Task = Literal["reset", "step"]
Make = Callable[[], gym.Env[Any, Any]]
# With the path as it is here, so that this package is found where it is not installed, and what was pickled.
_SERVE = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from dreamer_lpm.envs.workers import serve
serve(int(sys.argv[1]))
"""


class Lost(UserError):  # noqa: N818  no error: another worker has taken its place
    """The worker is gone, and the episodes of its envs with it. A new one waits for their resets."""


def pickled(make: Make) -> bytes:
    """What workers are made with, once for all of them: the pictures of a TV may lie in it.

    Raises UserError if ``make`` cannot be pickled.
    """
    try:
        return pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _not_elsewhere(error) from None


def _not_elsewhere(error: Exception) -> UserError:
    return UserError(
        f"These envs cannot be made in another process ({error}); make them by a function of a module that "
        "can be imported, or set env_workers to 0."
    )


def made(make: Make) -> gym.Env[Any, Any]:
    """One env. An OSError of its own is told as the env's: the run's are about what it writes."""
    try:
        return make()
    except OSError as error:
        raise UserError(f"An env could not be made: {error!r}; look at the env.") from error


class Worker:
    """One process with ``count`` envs, each made by what was :func:`pickled`.

    Attributes:
        about: (name, observation space, action space) of its envs.
        life: counts its processes, so that an env knows whether its episode is still under way.
        restarts: how often a process took the place of one that died or hung.
        news: a sentence for each, until somebody takes them out.

    Raises:
        UserError: if its envs cannot be made, or if too many processes die in a row.
    """

    def __init__(self, make: bytes, count: int, name: str, timeout: float = ANSWER_WITHIN) -> None:
        self.name, self._make, self._count, self._timeout = name, make, count, timeout
        self.life = self.restarts = self._in_a_row = 0
        self._calm = CALM
        self.news: list[str] = []
        self.about: tuple[str, gym.Space[Any], gym.Space[Any]]
        self._start()

    def send(self, index: int, task: Task, argument: Any) -> None:
        """Ask for something; :meth:`receive` gives the answer."""
        self._waits_since = time.monotonic()
        with suppress(OSError):  # whoever waits for the answer will find out
            self._pipe.send((index, task, argument))

    def receive(self, task: Task) -> Any:
        """The answer to the oldest open question. Raises Lost when there will be none, and what the env raised."""
        try:
            # Since it was asked, for another worker may have been waited for meanwhile; at least a moment, lest whoever
            # stopped all processes for a while finds them hanging.
            answer = self._answer(max(self._waits_since + self._timeout - time.monotonic(), min(1.0, self._timeout)))
        except Lost as lost:
            self._restart(str(lost))
            raise Lost(f"The worker of {self.name} {lost}; go on with --resume.") from None
        self._waits_since = time.monotonic()  # an env of the same worker comes after this one
        if task == "step":
            self._calm += 1
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise Lost(f"did not answer for {time.monotonic() - self._waits_since:.0f} s")
            fine, value = self._pipe.recv()
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            code = self._process.poll()
            raise Lost(f"was killed by signal {-code}" if code and code < 0 else f"ended with {code}") from None
        if not fine:
            raise value
        return value

    def _start(self) -> None:
        self._waits_since = time.monotonic()
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), json.dumps(sys.path, default=str)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        try:
            with suppress(OSError):
                self._pipe.send(self._count)
                self._pipe.send_bytes(self._make)
            self.about = self._answer(START_WITHIN)
        except Lost as lost:
            self._restart(str(lost))
        except BaseException:
            self.close()
            raise

    def _restart(self, why: str) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._in_a_row = 1 if self._calm >= CALM else self._in_a_row + 1
        self._calm = 0
        if self._in_a_row > MOST_RESTARTS:
            raise UserError(
                f"The worker of {self.name} {why}, for the {self._in_a_row}th time in a row; look at the env, with "
                "env_workers 0 to see its own words, then go on with --resume."
            )
        self.restarts += 1
        self.life += 1
        self.news.append(f"The worker of {self.name} {why} and was started again; their episodes end here.")
        self._start()


class RemoteEnv(gym.Env[Any, Any]):
    """The ``index``-th env of a worker. ``reset`` and ``step`` may be begun ahead, so that workers go side by side.

    Attributes:
        cell: where the env is in its grid of coverage; None without a grid.
    """

    def __init__(self, worker: Worker, index: int) -> None:
        self._worker, self._index = worker, index
        name, self.observation_space, self.action_space = worker.about
        self.spec = EnvSpec(id=name)
        self.cell: int | None = None
        self._episode = self._asked = -1  # lives of the worker in which they began

    def begin(self, task: Task, argument: Any) -> None:
        """Ask for what the next ``reset`` or ``step`` returns."""
        if task == "reset":
            self._episode = self._worker.life
        self._asked = self._worker.life
        if self._episode == self._worker.life:
            self._worker.send(self._index, task, argument)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As of any env. Raises Lost, too."""
        result: tuple[Any, dict[str, Any]] = self._result("reset", seed)
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of any env. Raises Lost, too."""
        result: tuple[Any, Any, bool, bool, dict[str, Any]] = self._result("step", action)
        return result

    def _result(self, task: Task, argument: Any) -> Any:
        if self._asked < 0:
            self.begin(task, argument)
        asked, self._asked = self._asked, -1
        if not asked == self._episode == self._worker.life:
            raise Lost(f"the episode of an env of {self._worker.name} is gone: begin another")
        result, self.cell = self._worker.receive(task)
        return result


def serve(handle: int) -> None:
    """The worker's side, until the run closes the pipe. ``handle``: its end of the pipe."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # these are for the run, which may want to save first
    with Connection(handle) as pipe, suppress(EOFError, OSError):
        count = pipe.recv()
        envs: list[gym.Env[Any, Any]] = []
        order = pipe.recv_bytes()
        try:
            pipe.send(_attempt(lambda: _make(order, count, envs)))
            while len(envs) == count:
                index, task, argument = pipe.recv()
                pipe.send(_attempt(lambda: _do(envs[index], task, argument)))  # noqa: B023  called at once
        finally:
            for env in envs:
                _attempt(env.close)


def _attempt(what: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether it went well, and the result or the exception."""
    try:
        return True, what()
    except Exception as error:  # noqa: BLE001  to be raised on the other side
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001  an exception of somebody's own can be anything
            return False, RuntimeError(traceback.format_exc())
        return False, error


def _make(order: bytes, count: int, envs: list[gym.Env[Any, Any]]) -> tuple[str, gym.Space[Any], gym.Space[Any]]:
    try:
        make = pickle.loads(order)
    except (AttributeError, ImportError) as error:  # what was defined in a script or a notebook is unknown here
        raise _not_elsewhere(error) from None
    for _ in range(count):
        envs.append(made(make))
    return env_name(envs[0]), envs[0].observation_space, envs[0].action_space


def _do(env: gym.Env[Any, Any], task: Task, argument: Any) -> tuple[tuple[Any, ...], int | None]:
    result: tuple[Any, ...] = env.reset(seed=argument) if task == "reset" else env.step(argument)
    *head, info = result
    info = {key: info[key] for key in ("tv_on", "env_steps") if key in info}  # the rest may be of any size
    grid = grid_of(env)
    return (*head, info), None if grid is None else grid.cell(env)
