"""The world model: codec, recurrent state-space model, heads."""

from dreamer_lpm.world.codec import Decoder, Encoder
from dreamer_lpm.world.heads import ContinueModel, RewardModel
from dreamer_lpm.world.model import Lesson, Losses, WorldConfig, WorldModel
from dreamer_lpm.world.rssm import RSSM, Dream, Latent, RSSMConfig

__all__ = [
    "RSSM",
    "ContinueModel",
    "Decoder",
    "Dream",
    "Encoder",
    "Latent",
    "Lesson",
    "Losses",
    "RSSMConfig",
    "RewardModel",
    "WorldConfig",
    "WorldModel",
]
