"""Any id of Gymnasium's registry that has an ``rgb_array`` picture."""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled

from dreamer_lpm.envs.wrappers import env_name
from dreamer_lpm.types import UserError

# Start of an id -> the module that registers it when imported, and the package to install.
REGISTERED_BY = {
    "ALE/": ("ale_py", "ale-py"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
    "dm_control/": ("shimmy", "shimmy[dm-control]"),
}
# Start of an entry point -> the extra of Gymnasium that it needs.
EXTRAS = {
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.toy_text": "toy-text",
    "gymnasium.envs.phys2d": "jax",
    "gymnasium.envs.tabular": "jax",
}


LAST_STEP = 10_000  # of an episode in an env that was registered without a limit


class GymnasiumSuite:
    """Envs made by ``gymnasium.make``; ``module:Id-v0`` imports ``module`` first, as there."""

    def default_action_repeat(self, env_id: str) -> int:
        """Pendulum 2, every other env 1.

        Pendulum moves little in its 0.05 s: with two steps per action a world model sees motion from frame to frame,
        the episode of 200 steps is 100 decisions, and half as many pictures are drawn, which cost most of the time.
        """
        return 2 if env_id.rpartition(":")[2].startswith("Pendulum-") else 1

    def make(self, env_id: str, time_limit: int | None) -> gym.Env[Any, Any]:
        """The env with its own spaces and ``render_mode="rgb_array"``.

        Args:
            env_id: as registered; the version is part of it.
            time_limit: steps until truncation, in place of the registered limit; None keeps the env's own, or takes
                ``LAST_STEP`` where there is none: else an evaluation might never end.

        Raises:
            UserError: unknown id, package not installed, or no ``rgb_array`` picture.
        """
        # pygame reads it when its display starts; a training run never opens a window.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # SDL's own swallows SIGTERM
        _register(env_id)
        try:
            env = _make(env_id, time_limit)
        except (DependencyNotInstalled, ImportError) as error:
            raise UserError(_missing_extra(env_id, error)) from error
        if time_limit is None and env.spec is not None and not _is_limited(env.spec):
            env = gym.wrappers.TimeLimit(env, LAST_STEP)
        if "rgb_array" not in env.metadata.get("render_modes", ()):
            raise UserError(_no_picture(env_name(env)))
        return env


SUITE = GymnasiumSuite()


def _is_limited(spec: EnvSpec) -> bool:
    """Whether an episode ends by itself after so many steps. Atari's envs count them inside."""
    return spec.max_episode_steps is not None or bool(spec.kwargs.get("max_num_frames_per_episode"))


def _register(env_id: str) -> None:
    """Imports whatever registers ``env_id``; raises UserError if nothing does."""
    module, colon, name = env_id.rpartition(":")
    if colon and not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{env_id}: a Python module's name stands before the colon, as in my_module:MyEnv-v0.")
    fix = "install it, or name the folder it is in with PYTHONPATH=FOLDER"
    for start, (registers, package) in REGISTERED_BY.items():
        if not module and name.startswith(start):
            module, fix = registers, f"run `pip install {package}`"
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"{env_id} needs the Python module {error.name}: {fix}.") from error
    if name not in gym.registry:
        near = difflib.get_close_matches(name, gym.registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`gymnasium.pprint_registry()` lists the known ones."
        if not module:
            hint += " An env of your own needs the module that registers it: my_module:MyEnv-v0."
        raise UserError(f"There is no environment called {name}; {hint}")


def _make(env_id: str, time_limit: int | None) -> gym.Env[Any, Any]:
    with warnings.catch_warnings():
        # Said once, and as an error, by the caller.
        warnings.filterwarnings("ignore", message=".*is being initialised with render_mode")
        try:
            # Gymnasium's passive checker repeats on every step what `check_env` and `Envs` check already.
            return gym.make(env_id, max_episode_steps=time_limit, disable_env_checker=True, render_mode="rgb_array")
        except TypeError as error:
            why = str(error).partition(" was raised from")[0]
            if "required" in why and "argument" in why:
                raise UserError(f"{env_id} cannot be made ({why}): register it with kwargs={{...}}.") from error
            if "render_mode" not in why:
                raise
            raise UserError(_no_picture(env_id)) from error


def _no_picture(name: str) -> str:
    return f"{name} has no picture to learn from: it must offer render_mode='rgb_array'; choose another --env-name."


def _missing_extra(env_id: str, error: Exception) -> str:
    entry_point = str(gym.spec(env_id.rpartition(":")[2]).entry_point)
    for start, extra in EXTRAS.items():
        if entry_point.startswith(start):
            # The cause says which module was missing, or that one is there and broken.
            cause = " ".join(str(error.__cause__ or error).split())
            return f'{env_id} needs a package that is not installed ({cause}): run `pip install "gymnasium[{extra}]"`.'
    return f"{env_id} needs a package that is not installed: {' '.join(str(error).split())}"
