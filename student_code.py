"""The parts of the agent under the names that the guide uses.

Each lives where the README's table says; change it there.
"""

from dreamer_lpm.agent import Agent
from dreamer_lpm.behavior import Actor, Critic
from dreamer_lpm.curiosity import ErrorPredictor
from dreamer_lpm.world import RSSM, Decoder, Encoder, RewardModel

__all__ = ["RSSM", "Actor", "Agent", "Critic", "Decoder", "Encoder", "ErrorPredictor", "RewardModel"]
