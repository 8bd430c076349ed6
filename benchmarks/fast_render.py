"""How near the pictures from tables are to the envs' own, how fast both are, and where an env's own picture spends it.

    python3 benchmarks/fast_render.py

Times are CPU seconds of one thread, so other work on the machine hardly shows; both ways take turns in one run.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import gymnasium as gym
import numpy as np
import pygame
from gymnasium.envs import classic_control
from outcome import leave

from dreamer_lpm.envs import EnvConfig, make_env
from dreamer_lpm.envs.fast_pictures import FAST, FastPicture
from dreamer_lpm.envs.wrappers import Picture

PENDULUM = "Pendulum-v1"
RANGES = {"Pendulum": (-np.pi, np.pi), "MountainCar": (-1.2, 0.6)}  # of the number that places the rod or the car


def differences(env_id: str, states: int) -> dict[str, Any]:
    """Between the table's picture and the env's own 64x64, of 255, over uniformly random states and torques."""
    rng = np.random.default_rng(0)
    low, high = next(limits for start, limits in RANGES.items() if env_id.startswith(start))
    means, largest = [], []
    with closing(gym.make(env_id, render_mode="rgb_array")) as env:
        env.reset(seed=0)
        raw: Any = env.unwrapped
        own, fast = Picture(env, 64), FastPicture(env, 64)
        for i in range(states):
            raw.state = np.array([rng.uniform(low, high), 0.0])
            if env_id == PENDULUM:
                raw.last_u = None if i % 10 == 0 else np.float32(rng.uniform(-2, 2))  # None: as after a reset
            apart = np.abs(own.draw().astype(int) - fast.draw())
            means.append(float(apart.mean()))
            largest.append(int(apart.max()))
    return {
        "states": states,
        "mean_absolute": statistics.mean(means),
        "mean_absolute_of_the_worst_frame": max(means),
        "largest_of_any_value": max(largest),
    }


def speeds(env_id: str, frames: int, rounds: int) -> dict[str, float]:
    """Env steps with their picture a second, of the whole env as the agent has it, without action repeat."""
    FAST[env_id].cache_clear()  # type: ignore[attr-defined]  # begin as a run begins
    cfg = EnvConfig(env_id, action_repeat=1)
    own, fast = make_env(cfg), make_env(EnvConfig(env_id, action_repeat=1, fast_render=True))
    first = played(fast, 10_000)
    bare = gym.make(env_id, disable_env_checker=True)
    again = [(played(own, frames), played(fast, frames * 20), played(bare, frames * 20)) for _ in range(rounds)]
    for env in (own, fast):
        env.close()
    return {
        "own": statistics.median(a for a, _, _ in again),
        "fast": statistics.median(b for _, b, _ in again),
        "ratio": statistics.median(b / a for a, b, _ in again),
        "fast_first_10000_frames": first,
        "no_picture": statistics.median(c for _, _, c in again),
    }


def played(env: gym.Env[Any, Any], frames: int) -> float:
    """Steps a second with random actions, resets included."""
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(500)]
    env.reset(seed=0)
    began = time.thread_time()
    for i in range(frames):
        _, _, terminated, truncated, _ = env.step(actions[i % 500])
        if terminated or truncated:
            env.reset()
    return frames / (time.thread_time() - began)


def parts(rounds: int) -> dict[str, Any]:
    """Milliseconds of one of Pendulum's own pictures, of its parts, and with the two cures that change no pixel."""
    with closing(gym.make(PENDULUM, render_mode="rgb_array")) as env:
        env.reset(seed=0)
        env.step(np.array([1.5], np.float32))
        frame: Any = env.render()
        raw: Any = env.unwrapped
        arrow = Path(classic_control.__file__).parent / "assets" / "clockwise.png"
        times: dict[str, Callable[[], Any]] = {
            "render": env.render,
            "load_the_arrow": lambda: pygame.image.load(arrow),
            "copy_the_surface": lambda: np.array(pygame.surfarray.pixels3d(raw.screen)),
            "copy_the_surface_as_bytes": lambda: np.array(as_bytes(raw.screen)),
            "shrink_to_64": lambda: cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA),
        }
        found = {name: milliseconds(call, rounds) for name, call in times.items()}
        keep = mock.patch.object(pygame.image, "load", functools.cache(pygame.image.load))
        copy = mock.patch.object(pygame.surfarray, "pixels3d", as_bytes)
        with keep, copy:
            again: Any = env.render()
            if not np.array_equal(again, frame):
                raise RuntimeError("The cured renderer draws another picture: the cure is none.")
            return {**found, "render_cured": milliseconds(env.render, rounds)}


def as_bytes(surface: pygame.Surface) -> np.ndarray:
    """(W, H, 3) uint8 as ``pygame.surfarray.pixels3d``, with the pixels in the order in which they are copied fast."""
    width, height = surface.get_size()
    return np.frombuffer(pygame.image.tobytes(surface, "RGB"), np.uint8).reshape(height, width, 3).swapaxes(0, 1)


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Median of ``rounds`` calls, after one that does not count."""
    call()
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=2000, help="random states to compare pictures at")
    parser.add_argument("--frames", type=int, default=400, help="own pictures in one round; 20 times as many fast ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fast_render.json")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    result = {
        "unit": "frames per CPU second of one thread; differences of 255; parts in milliseconds",
        "envs": {
            env_id: {
                "difference": differences(env_id, args.states),
                "frames_per_second": speeds(env_id, args.frames, args.rounds),
            }
            for env_id in FAST
        },
        "parts_of_a_pendulum_picture_ms": parts(200),
        "pygame": pygame.version.ver,
    }
    leave(args.out, result)


if __name__ == "__main__":
    main()
