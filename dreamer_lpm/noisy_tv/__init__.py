"""A Noisy TV for any Gymnasium environment that shows pictures, and any RL library.

A TV that the agent can switch on shows pictures nobody can predict. Curiosity that pays for surprise watches it for
ever; curiosity that pays for learning should not. The package needs gymnasium and numpy alone: photographs
take scikit-image, a folder Pillow, CIFAR-10 pooch, the digits scikit-learn, and each is imported only when it is asked
for.

Five lines put one in front of CartPole and add a button that does nothing but switch it on:

>>> import gymnasium as gym
>>> from dreamer_lpm.noisy_tv import TVSpec, add_tv
>>> pixels = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
>>> env = add_tv(pixels, TVSpec(source="static", trigger="remote"))
>>> frame, info = env.reset(seed=0)
>>> frame, reward, terminated, truncated, info = env.step(2)  # 0 and 1 push the cart, 2 is the button

The env beneath never notices: rewards, dynamics, endings and its random numbers stay as they were, and
``info["tv_on"]`` says of every frame whether the TV was in it. Give a fair account with the share of TV steps that
a uniformly random policy would have, and with a ``sham`` twin whose button does nothing at all:

>>> frame.shape, info["tv_on"], info["tv_triggered"]
((400, 600, 3), True, True)
>>> TVSpec(trigger="remote").chance_level(pixels.action_space)
0.3333333333333333
>>> twin = add_tv(pixels, TVSpec(trigger="remote", control="sham"))
>>> twin.action_space == env.action_space
True

``check_tv`` plays the env and holds it to all of this, whoever wrapped it; it raises where anything is broken:

>>> check_tv(env)
"""

from dreamer_lpm.noisy_tv.check import check_tv, measure_chance
from dreamer_lpm.noisy_tv.condition import Condition
from dreamer_lpm.noisy_tv.errors import NoisyTVError
from dreamer_lpm.noisy_tv.images import ImageSource, TVImages, load_images
from dreamer_lpm.noisy_tv.spec import TVSpec
from dreamer_lpm.noisy_tv.wrapper import (
    NoisyTV,
    NoisyTVWrapperContinuous,
    NoisyTVWrapperDiscrete,
    NoisyTVWrapperMultiDiscrete,
    add_tv,
)

__all__ = [
    "Condition",
    "ImageSource",
    "NoisyTV",
    "NoisyTVError",
    "NoisyTVWrapperContinuous",
    "NoisyTVWrapperDiscrete",
    "NoisyTVWrapperMultiDiscrete",
    "TVImages",
    "TVSpec",
    "add_tv",
    "check_tv",
    "load_images",
    "measure_chance",
]
