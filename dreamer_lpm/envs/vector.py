"""N envs side by side: seeding, auto-reset and exact resume are settled here and nowhere else."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from dreamer_lpm.envs.coverage import Grid, grid_of
from dreamer_lpm.envs.workers import ANSWER_WITHIN, Lost, RemoteEnv, Worker, made, pickled
from dreamer_lpm.envs.wrappers import action_spec, env_name
from dreamer_lpm.types import ActionSpec, NotFinite, UserError

Row = dict[str, np.ndarray]
"""One step of N envs.

===========  ==============  ============================================================================
obs          (N, h, w, 3)    uint8
action       (N, A) float32  that LED to obs, in [-1, 1] or one-hot; zeros where is_first
reward       (N,) float32    that came with obs; 0 where is_first
is_first     (N,) bool       obs came from a reset
is_last      (N,) bool       obs is the true last one of its episode
is_terminal  (N,) bool       the episode ended by itself; False where a time limit cut it
tv_on        (N,) bool       obs is a picture of the TV; False without a TV
===========  ==============  ============================================================================
"""

_MAX_REWARD = float(np.finfo(np.float32).max)


def episode_seed(seed: int, index: int, episode: int) -> int:
    """Seeds the reset that starts episode ``episode`` of env ``index``: 0 to 2**31 - 1, which every env accepts."""
    return int(np.random.SeedSequence(seed, spawn_key=(index, episode)).generate_state(1)[0] >> 1)


class Envs:
    """N copies of an env, stepped together.

    An episode ends with a row that holds its true last observation, ``is_last``. The next step ignores that env's
    action and returns the first observation of its next episode, ``is_first``; no env step is taken for it.

    With ``workers``, that many processes step them, and the rows are the same. Where one dies, or is silent for
    ``timeout`` seconds, another takes its place and its envs' episodes are cut off: by a row in which nothing happens
    (the last observation once more, reward 0, no env step) but ``is_last``.

    Attributes:
        action_spec: what ``step`` wants.
        env_steps: env steps taken by all N together, with action repeat; resets do not count.
        grid: over the env's own state, to measure coverage with; None where nobody has drawn one.

    Raises:
        UserError: from the methods too, if an env breaks the contract; the message names env, episode and step. It is
            NotFinite where a reward or an observation is.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env[Any, Any]],
        num_envs: int,
        seed: int,
        *,
        workers: int = 0,
        timeout: float = ANSWER_WITHIN,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"The number of environments must be at least 1, not {num_envs}.")
        if workers < 0:
            raise UserError(f"env_workers must be 0 or more, not {workers}.")
        self.seed = seed
        self.env_steps = 0
        self._restarts = 0  # before a resumption
        self._workers: list[Worker] = []
        try:
            self._lanes = [_Lane(env, i, seed) for i, env in enumerate(self._make(make, num_envs, workers, timeout))]
        except BaseException:
            for worker in self._workers:
                worker.close()
            raise
        self.action_spec: ActionSpec = self._lanes[0].action_spec
        self.grid: Grid | None = grid_of(self._lanes[0].env)

    def _make(
        self, make: Callable[[], gym.Env[Any, Any]], num_envs: int, workers: int, timeout: float
    ) -> Iterator[gym.Env[Any, Any]]:
        if workers < 1:
            yield from (made(make) for _ in range(num_envs))
            return
        order = pickled(make)
        for part in np.array_split(np.arange(num_envs), min(workers, num_envs)):
            worker = Worker(order, len(part), f"envs {part[0]} to {part[-1]}", timeout)
            self._workers.append(worker)
            yield from (RemoteEnv(worker, index) for index in range(len(part)))

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def restarts(self) -> int:
        """How often a worker died or hung, in all sessions of the run."""
        return self._restarts + sum(worker.restarts for worker in self._workers)

    def news(self) -> list[str]:
        """A sentence for every restart that was not told yet."""
        told = [line for worker in self._workers for line in worker.news]
        for worker in self._workers:
            worker.news.clear()
        return told

    def reset_row(self) -> Row:
        """Starts the next episode of every env and returns its first observations."""
        return _stack([lane.reset() for lane in self._lanes])

    def step(self, actions: np.ndarray) -> Row:
        """One action in each env.

        Args:
            actions: (N, A) float: continuous in [-1, 1] (clipped), or one score per choice, of which the highest is
                taken (one-hot, logits). The row has the action as it was taken.

        Raises:
            ValueError: if the shape is another (NotFinite: if a number is).
        """
        expected = (len(self._lanes), self.action_spec.size)
        if actions.shape != expected:
            raise ValueError(f"Envs.step wants actions of shape {expected}, not {actions.shape}.")
        if not np.isfinite(actions).all():
            raise NotFinite(f"Envs.step got an action that is not finite: {actions.tolist()}.")
        for lane, action in zip(self._lanes, actions, strict=True):
            lane.begin(action)
        cells = [lane.step(action) for lane, action in zip(self._lanes, actions, strict=True)]
        self.env_steps += sum(cell.env_steps for cell in cells)
        return _stack(cells)

    def cells(self) -> list[int]:
        """The cell of ``grid`` that each env is in now; empty without a grid."""
        return [lane.cell(self.grid) for lane in self._lanes] if self.grid else []

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts only (JSON): per env the episode, its actions so far, and whether it has ended."""
        lanes = [lane.state_dict() for lane in self._lanes]
        return {"seed": self.seed, "env_steps": self.env_steps, "restarts": self.restarts, "envs": lanes}

    def load_state_dict(self, state: dict[str, Any]) -> Row:
        """Plays the recorded actions of the current episodes again and returns the last row before the save.

        Warns (RuntimeWarning) if an env did not arrive at the observation it was saved with: then the run goes on, but
        not as it would have.

        Raises:
            UserError: if the state is that of another seed or another number of envs.
        """
        if (state["seed"], len(state["envs"])) != (self.seed, len(self._lanes)):
            raise UserError(
                f"The saved environments had seed {state['seed']} and were {len(state['envs'])}, these have seed "
                f"{self.seed} and are {len(self._lanes)}: resume with the settings of the saved run."
            )
        cells = [lane.load_state_dict(saved) for lane, saved in zip(self._lanes, state["envs"], strict=True)]
        self.env_steps = state["env_steps"]
        self._restarts = state["restarts"]
        return _stack(cells)

    def close(self) -> None:
        """Frees what the envs hold; they cannot be stepped afterwards."""
        for lane in self._lanes:
            with suppress(Exception):  # what an env says at its end is no reason to lose what was learned
                lane.env.close()
        for worker in self._workers:
            worker.close()


@dataclass(frozen=True)
class _Cell:
    """One env's share of a row, and the env steps behind it."""

    obs: np.ndarray
    action: np.ndarray
    reward: float = 0.0
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False
    tv_on: bool = False
    env_steps: int = 0


def _stack(cells: list[_Cell]) -> Row:
    # Copies, for some envs return the same buffer each time.
    return {
        "obs": np.stack([cell.obs for cell in cells]),
        "action": np.stack([cell.action for cell in cells]),
        "reward": np.array([cell.reward for cell in cells], dtype=np.float32),
        "is_first": np.array([cell.is_first for cell in cells]),
        "is_last": np.array([cell.is_last for cell in cells]),
        "is_terminal": np.array([cell.is_terminal for cell in cells]),
        "tv_on": np.array([cell.tv_on for cell in cells]),
    }


class _Lane:
    """One env and the record of its current episode."""

    def __init__(self, env: gym.Env[Any, Any], index: int, seed: int) -> None:
        self.env = env
        self.index = index
        self.seed = seed
        self.action_spec = action_spec(env)
        self.episode = -1
        self.actions: list[int] | list[list[float]] = []
        self.ended = False
        self.cut = False  # ended with its worker
        self.checksum = 0
        self.last: _Cell | None = None

    def reset(self) -> _Cell:
        self.episode += 1
        self.actions = []
        self.ended = self.cut = False
        obs, info = self._reset_env()
        action = np.zeros(self.action_spec.size, np.float32)
        self.last = _Cell(self._checked(obs), action, is_first=True, tv_on=bool(info.get("tv_on", False)))
        return self.last

    def _reset_env(self) -> tuple[Any, dict[str, Any]]:
        while True:  # at most a few times: then the worker gives up
            try:
                with self._blamed():
                    return self.env.reset(seed=episode_seed(self.seed, self.index, self.episode))
            except Lost:
                continue

    def begin(self, action: np.ndarray) -> None:
        """Have a worker begin with what ``step`` will return."""
        if self.episode < 0:
            raise RuntimeError("Call Envs.reset_row() before Envs.step().")
        if not isinstance(self.env, RemoteEnv):
            return
        if self.ended:
            self.env.begin("reset", episode_seed(self.seed, self.index, self.episode + 1))
        else:
            self.env.begin("step", self._sent(self._native(action)))

    def step(self, action: np.ndarray) -> _Cell:
        if self.ended:
            return self.reset()
        native = self._native(action)
        try:
            return self._play(native)
        except Lost:
            return self._cut_off(native)

    def cell(self, grid: Grid) -> int:
        """Where the env is."""
        if isinstance(self.env, RemoteEnv):
            assert self.env.cell is not None
            return self.env.cell
        return grid.cell(self.env)

    def _native(self, action: np.ndarray) -> Any:
        """As recorded: an int, or a list of floats in [-1, 1]."""
        if self.action_spec.is_discrete:
            return int(action.argmax())
        return np.clip(action, -1.0, 1.0).astype(np.float32).tolist()

    def _sent(self, native: Any) -> Any:
        """As the env wants it."""
        return native if self.action_spec.is_discrete else np.array(native, np.float32)

    def _taken(self, native: Any) -> np.ndarray:
        """As the row has it. Never the array that was sent, for some envs write into their action."""
        if not self.action_spec.is_discrete:
            return np.array(native, np.float32)
        taken = np.zeros(self.action_spec.size, np.float32)
        taken[native] = 1
        return taken

    def _cut_off(self, native: Any) -> _Cell:
        """The end of an episode whose worker is gone. Its last action was the worker's last task."""
        assert self.last is not None
        self.actions.append(native)
        self.ended = self.cut = True
        self.last = _Cell(self.last.obs, self._taken(native), is_last=True, tv_on=self.last.tv_on)
        return self.last

    def _play(self, native: Any) -> _Cell:
        with self._blamed():
            obs, reward, terminated, truncated, info = self.env.step(self._sent(native))
        self.actions.append(native)
        # False for NaN too, and for what would overflow to infinity in the row's float32.
        if not abs(float(reward)) <= _MAX_REWARD:
            raise NotFinite(f"{self._where()} returned the reward {reward}; rewards must be finite float32 numbers.")
        self.ended = bool(terminated or truncated)
        self.last = _Cell(
            self._checked(obs),
            self._taken(native),
            reward=float(reward),
            is_last=self.ended,
            is_terminal=bool(terminated),
            tv_on=bool(info.get("tv_on", False)),
            env_steps=int(info.get("env_steps", 1)),
        )
        return self.last

    def _checked(self, obs: Any) -> np.ndarray:
        space = self.env.observation_space
        if not isinstance(obs, np.ndarray) or obs.shape != space.shape or obs.dtype != space.dtype:
            got = f"{obs.dtype} {obs.shape}" if isinstance(obs, np.ndarray) else type(obs).__name__
            raise UserError(
                f"{self._where()} returned the observation {got} where its observation space says "
                f"{space.dtype} {space.shape}; make the two agree."
            )
        self.checksum = zlib.crc32(obs.tobytes())
        return obs

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """An env's own OSError is told as the env's: the run's are about what it writes."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._where()} raised {error!r}; look at the env, then go on with --resume.") from error

    def _where(self) -> str:
        return f"{env_name(self.env)} (env {self.index}, episode {self.episode}, step {len(self.actions)})"

    def state_dict(self) -> dict[str, Any]:
        if self.episode < 0:
            raise RuntimeError("Call Envs.reset_row() before Envs.state_dict().")
        return {
            "episode": self.episode,
            "actions": list(self.actions),
            "ended": self.ended,
            "cut": self.cut,
            "obs_crc32": self.checksum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> _Cell:
        self.episode = state["episode"] - 1
        cell = self.reset()
        actions, cut = state["actions"], state["cut"]
        for native in actions[:-1] if cut else actions:
            if self.ended:
                break
            cell = self._play(native)
        if cut and actions:
            cell = self._cut_off(actions[-1])
        if (self.ended, self.checksum) != (state["ended"], state["obs_crc32"]):
            warnings.warn(
                f"{self._where()} did not come back to where it was saved: reset(seed=...) and the same actions must "
                "lead to the same pictures, or a resumed run cannot equal an uninterrupted one.",
                RuntimeWarning,
                stacklevel=3,
            )
        return cell
