"""Pictures in, pictures out: the convolutional encoder and decoder.

Both keep NHWC memory and stay off the full 64x64 grid: the stem strides, the output is a depth-to-space. On two CPU
cores this is what makes an update take a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Stages = Sequence[tuple[int, int, int]]  # (kernel, stride, channels as a multiple of depth), first to last


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of every pixel; with NHWC memory both permutes are free. (B, C, H, W) -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1).float())
        return normed.permute(0, 3, 1, 2)


class _DepthToSpace(nn.Module):
    """Convolution at low resolution whose channels unfold into ``factor`` x ``factor`` pixels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, factor: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs * factor**2, kernel, padding=kernel // 2)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).permute(0, 2, 3, 1)
        b, h, w, c = y.shape
        f = self.factor
        y = y.reshape(b, h, w, f, f, c // f**2).transpose(2, 3).reshape(b, h * f, w * f, c // f**2)
        return y.permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """uint8 pictures (..., 64, 64, 3) -> embeddings (..., E)."""

    def __init__(self, depth: int, stages: Stages, size: int = 64):
        super().__init__()
        self.frame = size  # pixels a side
        layers: list[nn.Module] = []
        channels = 3
        for kernel, stride, multiple in stages:
            layers += [
                nn.Conv2d(channels, depth * multiple, kernel, stride, (kernel - stride) // 2),
                _ChannelNorm(depth * multiple),
                nn.SiLU(),
            ]
            channels, size = depth * multiple, size // stride
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.size = size * size * channels  # E

    def forward(self, frames: Tensor) -> Tensor:
        lead = frames.shape[:-3]
        x = frames.reshape(-1, *frames.shape[-3:]).permute(0, 3, 1, 2)
        y: Tensor = self.layers(x.float() / 255 - 0.5)
        return y.permute(0, 2, 3, 1).reshape(*lead, -1)


class Decoder(nn.Module):
    """Features (..., F) -> pictures (..., 64, 64, 3), float, 0 black to 1 white.

    Not clipped: the loss is a squared error.
    """

    def __init__(self, feat_size: int, depth: int, stages: Stages, size: int = 64):
        super().__init__()
        for _, stride, _ in stages:
            size //= stride
        channels = [depth * multiple for _, _, multiple in stages]
        self.shape = (size, size, channels[-1])
        self.stem = nn.Linear(feat_size, size * size * channels[-1])
        layers: list[nn.Module] = [_ChannelNorm(channels[-1]), nn.SiLU()]
        for i in range(len(stages) - 1, 0, -1):
            layers += [
                _DepthToSpace(channels[i], channels[i - 1], 1, stages[i][1]),
                _ChannelNorm(channels[i - 1]),
                nn.SiLU(),
            ]
        # Only the last layer mixes neighbouring blocks: enough to hide their seams, at a third of the cost of doing it
        # everywhere.
        layers.append(_DepthToSpace(channels[0], 3, 3, stages[0][1]))
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, feat: Tensor) -> Tensor:
        lead = feat.shape[:-1]
        x = self.stem(feat.reshape(-1, feat.shape[-1])).reshape(-1, *self.shape).permute(0, 3, 1, 2)
        y: Tensor = self.layers(x)
        return y.permute(0, 2, 3, 1).float().reshape(*lead, *y.shape[2:], 3) + 0.5
