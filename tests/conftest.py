"""Settings shared by all tests."""

import torch

torch.set_num_threads(1)  # two cores: thread pools of several processes fight
