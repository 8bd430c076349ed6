"""Several small networks that answer side by side, for about the price of one."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_lpm.nets import exactly


class Ensemble(nn.Module):
    """``members`` MLPs with ELUs, as batched products: x (..., I) -> (members, ..., O).

    They share nothing but their input, and begin from different weights.
    """

    def __init__(self, members: int, inputs: int, hidden: int, layers: int, outputs: int):
        super().__init__()
        self.members = members
        self.first = nn.Linear(inputs, members * hidden)  # one product, as all have the same input
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, o in pairwise([hidden] * layers + [outputs]):
            self.weights.append(torch.empty(members, i, o).uniform_(-(i**-0.5), i**-0.5))
            self.biases.append(torch.empty(members, 1, o).uniform_(-(i**-0.5), i**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        h: Tensor = self.first(flat).reshape(len(flat), self.members, -1).transpose(0, 1)
        *layers, (last, bias) = zip(self.weights, self.biases, strict=True)
        for weight, b in layers:
            h = torch.baddbmm(b, F.elu(h), weight)
        h = exactly(lambda h: torch.baddbmm(bias, h, last), F.elu(h))
        return h.reshape(self.members, *x.shape[:-1], -1)
