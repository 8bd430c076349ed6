"""The Noisy TV in front of an agent of another library:  python3 examples/sb3_noisy_tv.py [steps]

A2C of stable-baselines3 learns CartPole from pictures. A third button does nothing but switch the TV on, and the sham
twin's button does nothing at all. Needs: pip install -e ".[sb3]"
"""

import sys
from typing import Any

import gymnasium as gym
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback

from dreamer_lpm.noisy_tv import NoisyTV, TVSpec, add_tv, check_tv


def cartpole(spec: TVSpec) -> NoisyTV:
    """Pictures of 64 x 64, and the TV in front of them."""
    env = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
    return add_tv(gym.wrappers.ResizeObservation(env, (64, 64)), spec)


class Watching(BaseCallback):
    """Counts the steps whose button was the TV's."""

    pressed = 0

    def _on_step(self) -> bool:
        self.pressed += sum(info["tv_triggered"] for info in self.locals["infos"])
        return True


def share_of_presses(spec: TVSpec, steps: int) -> float:
    """How often an agent presses the button while it learns for ``steps`` steps, in [0, 1]."""
    env = cartpole(spec)
    check_tv(env)  # or one line says what is broken
    counter: Any = Watching()
    A2C("CnnPolicy", env, n_steps=16, seed=0, device="cpu").learn(steps, counter)
    env.close()
    return counter.pressed / counter.num_timesteps


def main(steps: int) -> dict[str, float]:
    """The share of presses of each arm, beside that of chance."""
    real = TVSpec(source="static", trigger="remote")
    sham = TVSpec(source="static", trigger="remote", control="sham")
    print(real.describe())
    shares = {"real": share_of_presses(real, steps), "sham": share_of_presses(sham, steps)}
    shares["chance"] = real.chance_level(gym.spaces.Discrete(2))
    for arm, share in shares.items():
        print(f"{arm:<7}{share:.0%}")
    return shares


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
