"""Random play in front of a TV: ``check_tv`` holds it to its contract, ``measure_chance`` counts what it shows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamer_lpm.noisy_tv.errors import NoisyTVError
from dreamer_lpm.noisy_tv.wrapper import NoisyTV, add_tv

_KEYS = ("tv_on", "tv_new", "tv_triggered")  # the bools in every info


@dataclass(frozen=True)
class _Moment:
    """What one step or reset gave, and what became of the generators."""

    frame: NDArray[np.uint8]
    reward: bytes  # of the float: NaN is not equal to itself
    ends: tuple[bool, bool]
    info: Mapping[str, Any]
    is_reset: bool
    dice: bytes  # the next bytes that the env's own generator would draw
    stirred: bool  # numpy's global generator has moved


def check_tv(env: gym.Env[Any, Any], *, steps: int = 64, seed: int = 0) -> None:
    """Plays ``steps`` random actions in front of the TV in ``env``, and again with a sham in its place.

    - Spaces: observations are those of the env beneath, actions those of the trigger (the sham has the same button).
    - Equal seeds and actions give equal frames, rewards, ends and TV, whatever was played before.
    - Rewards, ends and random numbers of the env are those in front of the sham, step for step, and numpy's global
      generator is left alone.
    - The TV is switched on by what its spec says and by nothing else: ``tv_triggered`` is that of the sham, and
      ``tv_on`` follows from it.
    - ``tv_on`` is the truth: with the TV on the frame differs from the sham's inside of ``tv_mask``, which is the
      region of the spec, and nowhere else; with the TV off they are equal. ``tv_new`` tells when its picture changed.
    - Frames are of the space; no more pictures are shown than the spec's ``pool`` holds.
    - The TV comes on at all, unless it is a control.

    Any library may have built ``env``, as long as a NoisyTV is among its Gymnasium wrappers. What is wrapped around the
    TV is not looked at. Keeps twice ``steps`` frames in memory. The env is left in the middle of an episode: reset it.

    Raises:
        NoisyTVError: at the first breach, saying which.
    """
    tv = _find(env)
    sham = add_tv(tv.env, replace(tv.tv, control=tv.tv.control or "sham"), when=tv.when)
    _check_spaces(tv, sham)
    actions = _random_actions(sham, steps, seed)
    quiet, shown = (
        _played_twice(one, actions, seed, name) for one, name in ((sham, "The env beneath"), (tv, "The TV"))
    )
    before: _Moment | None = None
    for t, (moment, clean) in enumerate(zip(shown, quiet, strict=True)):
        where = f"step {t} of {steps} after reset(seed={seed})"
        _check_untouched(moment, clean, where)
        _check_trigger(tv, moment, clean, before, where)
        _check_picture(moment, clean, before, sham.mask, where)
        before = moment
    pictures = {moment.frame[sham.mask].tobytes() for moment in shown if moment.info["tv_on"]}
    if tv.tv.pool is not None and len(pictures) > tv.tv.pool:
        raise NoisyTVError(f"the TV showed {len(pictures)} pictures in {steps} steps, and its pool holds {tv.tv.pool}")
    if tv.tv.control is None and not any(moment.info["tv_on"] for moment in shown):
        if tv.tv.trigger == "passive" and tv.tv.probability == 0:
            return
        raise NoisyTVError(
            f"the TV never came on in {steps} random steps, so little was checked: ask for more steps, or for a "
            "trigger that random actions can reach"
        )


def measure_chance(env: gym.Env[Any, Any], *, steps: int = 1000, seed: int = 0) -> float:
    """Share of TV steps, in [0, 1], of ``steps`` uniformly random actions in ``env``: resets are no steps.

    For the trigger "state", whose chance level no formula gives. Wrappers around the TV have their say. The env is left
    in the middle of an episode. Raises NoisyTVError if there is no TV in ``env``, or not one step to count.
    """
    _find(env)
    shown, over = [], True
    for t, action in enumerate(_random_actions(env, steps, seed)):
        if over:
            env.reset(seed=seed + t)
            over = False
        else:
            _, _, terminated, truncated, info = env.step(action)
            shown.append(info["tv_on"])
            over = bool(terminated or truncated)
    if not shown:
        raise NoisyTVError(f"{steps} steps hold no step of random play, for the first is a reset: ask for more")
    return float(np.mean(shown))


def _find(env: Any) -> NoisyTV:
    inner = env
    while isinstance(inner, gym.Wrapper) and not isinstance(inner, NoisyTV):
        inner = inner.env
    if not isinstance(inner, NoisyTV):
        raise NoisyTVError(
            f"there is no TV in {type(env).__name__}: wrap a Gymnasium env with add_tv, and give that one"
        )
    return inner


def _random_actions(env: gym.Env[Any, Any], steps: int, seed: int) -> list[Any]:
    space = copy.deepcopy(env.action_space)  # whoever plays on must not notice
    space.seed(seed)
    return [space.sample() for _ in range(steps)]


def _play(env: gym.Env[Any, Any], actions: list[Any], seed: int) -> Iterator[_Moment]:
    """One moment per action; an action after the end of an episode is left out in favour of a reset."""
    over = True
    for t, action in enumerate(actions):
        world, is_reset = _world(), over
        reward, ends = b"", (False, False)
        if is_reset:
            frame, info = env.reset(seed=seed + t)
        else:
            # Some envs write into their action, and the same ones are played again.
            frame, raw, terminated, truncated, info = env.step(copy.deepcopy(action))
            reward, ends = np.float64(np.asarray(raw).item()).tobytes(), (bool(terminated), bool(truncated))
        over = any(ends)
        dice = copy.deepcopy(env.unwrapped.np_random).bytes(16)
        yield _Moment(np.array(frame), reward, ends, info, is_reset, dice, world != _world())


def _world() -> tuple[bytes, int]:
    """Where numpy's global generator stands."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return state["key"].tobytes(), state["pos"]


def _played_twice(env: NoisyTV, actions: list[Any], seed: int, name: str) -> list[_Moment]:
    first = list(_play(env, actions, seed))
    space = env.observation_space
    for t, (one, two) in enumerate(zip(first, _play(env, actions, seed), strict=True)):
        _check_told(one, t)
        if one.frame.dtype != space.dtype or not space.contains(one.frame):
            raise NoisyTVError(
                f"{name} gave a frame of {one.frame.dtype} {one.frame.shape} in step {t}, not of {space}"
            )
        told = [moment.info[key] for moment in (one, two) for key in _KEYS]
        if (one.reward, one.ends, told[:3]) != (two.reward, two.ends, told[3:]) or (one.frame != two.frame).any():
            raise NoisyTVError(
                f"{name} is not determined by its seed: step {t} of the same actions after reset(seed={seed}) differs; "
                "derive all randomness from reset(seed=...) and start every episode afresh"
            )
    return first


def _check_told(moment: _Moment, t: int) -> None:
    for key in _KEYS:
        if not isinstance(moment.info.get(key), bool):
            raise NoisyTVError(
                f'info["{key}"] is {moment.info.get(key)!r} in step {t}: it must be a bool in every info'
            )


def _check_spaces(tv: NoisyTV, sham: NoisyTV) -> None:
    if tv.observation_space != tv.env.observation_space:
        raise NoisyTVError(f"the TV changed the observation space to {tv.observation_space}: leave it as it is beneath")
    if tv.action_space != sham.action_space:
        raise NoisyTVError(
            f"the TV's actions are {tv.action_space}, those of its trigger {sham.action_space}: use these"
        )


def _check_untouched(moment: _Moment, clean: _Moment, where: str) -> None:
    touched = {
        "the reward": moment.reward != clean.reward,
        "the end of the episode": moment.ends != clean.ends,
        "the env's random numbers": moment.dice != clean.dice,
        "numpy's global generator": moment.stirred != clean.stirred,
    }
    for name, is_touched in touched.items():
        if is_touched:
            raise NoisyTVError(f"the TV changed {name} ({where}): it must leave all but the picture to the env")


def _check_trigger(tv: NoisyTV, moment: _Moment, clean: _Moment, before: _Moment | None, where: str) -> None:
    called = clean.info["tv_triggered"]
    if moment.info["tv_triggered"] != called:
        raise NoisyTVError(
            f"tv_triggered is {moment.info['tv_triggered']} where the trigger {tv.tv.trigger!r} says {called} "
            f"({where}): nothing else may switch the TV on"
        )
    stays = tv.tv.persistence == "sticky" and before is not None and before.info["tv_on"] and not moment.is_reset
    expected = tv.tv.control is None and (called or stays)
    if moment.info["tv_on"] != expected:
        raise NoisyTVError(f"tv_on is {moment.info['tv_on']} where the spec makes it {expected} ({where})")


def _check_picture(
    moment: _Moment, clean: _Moment, before: _Moment | None, region: NDArray[np.bool_], where: str
) -> None:
    mask, differs = moment.info.get("tv_mask"), (moment.frame != clean.frame).any(axis=-1)
    if not moment.info["tv_on"]:
        if differs.any() or mask is not None or moment.info["tv_new"]:
            raise NoisyTVError(f"tv_on is False, and still there is a picture, a tv_mask or tv_new ({where})")
        return
    if not (isinstance(mask, np.ndarray) and mask.dtype == bool and np.array_equal(mask, region)):
        raise NoisyTVError(f"tv_mask is not the region of the spec, bool {region.shape} ({where})")
    if differs[~mask].any():
        raise NoisyTVError(f"the TV left its region: the frame differs outside of tv_mask ({where})")
    if not differs.any():
        raise NoisyTVError(f"tv_on is True, and the frame is the env's own ({where})")
    follows = before is not None and before.info["tv_on"] and not moment.is_reset
    is_new = not (follows and before is not None and np.array_equal(moment.frame[mask], before.frame[mask]))
    if moment.info["tv_new"] != is_new:
        raise NoisyTVError(f"tv_new is {moment.info['tv_new']} where the picture says {is_new} ({where})")
