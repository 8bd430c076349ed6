"""Pictures in, pictures out: the convolutional encoder and decoder.

Both keep NHWC memory and stay off the full 64x64 grid: the stem strides, the output is a depth-to-space. On two CPU
cores this is what makes an update take a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_lpm.fusing import any_length, fused, in_front
from dreamer_lpm.nets import EPS, arithmetic

Stages = Sequence[tuple[int, int, int]]  # (kernel, stride, channels as a multiple of depth), first to last


class _Conv(nn.Conv2d):
    """Convolution (B, C, H, W) -> (B, C', H / stride, W / stride) that can also be worked out as one matrix product.

    Faster as a product where several agents are one (flock.py), whose convolution would be a grouped one (docs/gpu.md).
    """

    as_product = False
    fused = False

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, (kernel - stride) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, self.weight)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """With this weight (C', C, k, k) in place of its own."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if not self.as_product or kernel % stride:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)
        # The picture as cells of stride x stride pixels; a kernel covers m x m of them.
        m, border = kernel // stride, (kernel - stride) // 2
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, border, border, border, border))
        n, height, width, channels = x.shape
        h, w = height // stride, width // stride
        cells = x.reshape(n, h, stride, w, stride, channels).transpose(2, 3).reshape(n, h, w, -1)
        blocks = weight.reshape(-1, channels, m, stride, m, stride).permute(2, 4, 3, 5, 1, 0)
        covered: Tensor = cells if m == 1 else _Covered.apply(cells, m, self.fused)  # type: ignore[no-untyped-call]
        y = covered @ blocks.reshape(-1, weight.shape[0])
        return (y if self.bias is None else y + self.bias).permute(0, 3, 1, 2)


class _Covered(torch.autograd.Function):
    """The m x m cells from each cell on: (..., h, w, C) -> (..., h - m + 1, w - m + 1, m m C)."""

    @staticmethod
    def forward(cells: Tensor, m: int, fuse: bool) -> Tensor:
        h, w = cells.shape[-3:-1]
        parts = [cells[..., i : h - m + 1 + i, j : w - m + 1 + j, :] for i in range(m) for j in range(m)]
        return torch.cat(parts, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.m, ctx.fuse = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (fused(_padded_sums, True) if ctx.fuse else _sums)(gradient, ctx.m), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Covered.apply(*in_front(info, in_dims, inputs)), 0  # type: ignore[no-untyped-call]


def _sums(gradient: Tensor, m: int) -> Tensor:
    """Of every cell, over the places where it went. Added up in one place; autograd would make a whole picture of zeros
    for each part.
    """
    rows, columns = gradient.shape[-3:-1]
    parts = gradient.chunk(m * m, -1)
    sums = gradient.new_zeros(*gradient.shape[:-3], rows + m - 1, columns + m - 1, parts[0].shape[-1])
    for k, part in enumerate(parts):
        sums[..., k // m : k // m + rows, k % m : k % m + columns, :].add_(part)
    return sums


def _padded_sums(gradient: Tensor, m: int) -> Tensor:
    """The same so that a compiler makes one kernel of it."""
    parts = enumerate(gradient.chunk(m * m, -1))
    return sum(F.pad(part, (0, 0, k % m, m - 1 - k % m, k // m, m - 1 - k // m)) for k, part in parts)  # type: ignore[return-value]


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of every pixel; with NHWC memory both permutes are free. (B, C, H, W) -> same."""

    as_product = False
    fused = False

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        if self.as_product or x.is_cuda:
            weight, shift = self.norm.weight.unsqueeze(0), self.norm.bias.unsqueeze(0)
            rows = pixels.reshape(-1, pixels.shape[-1]).float()
            normed: Tensor = _RowNorm.apply(rows, weight, shift, self.fused)[0]  # type: ignore[no-untyped-call]
            return normed.reshape(pixels.shape).permute(0, 3, 1, 2)
        return self.norm(pixels.float()).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def _norm(x: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + EPS)
    return torch.addcmul(shift, torch.addcmul(-mean * rstd, x, rstd), weight), mean, rstd


def _norm_back(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    normed = torch.addcmul(-mean * rstd, x, rstd)
    product, inner = gradient * normed, gradient * weight
    along = (product * weight).mean(-1, keepdim=True)
    x_g = (torch.addcmul(inner, normed, along, value=-1) - inner.mean(-1, keepdim=True)) * rstd
    return x_g, product.sum(-2, keepdim=True), gradient.sum(-2, keepdim=True)


class _RowNorm(torch.autograd.Function):
    """Layer norm of many short rows: x (..., N, C), weight and shift (..., 1, C) -> as x; and two for the way back.

    CUDA's own gives every row a block of threads, which is far slower where a row is 16 to 64 numbers (docs/gpu.md).
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, shift: Tensor, fuse: bool) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = fused(_norm, fuse)(any_length(x.detach(), fuse), weight, shift)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.fuse = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.mark_non_differentiable(mean, rstd)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *kept, weight = ctx.saved_tensors
        rows = (any_length(x, ctx.fuse) for x in (gradient, *kept))
        x_g, *sums = fused(_norm_back, ctx.fuse)(*rows, weight)
        # Their shape is said again: on a card, what was compiled of many rows once left the 1 out.
        return x_g, *(x.view_as(weight) for x in sums), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        return _RowNorm.apply(*in_front(info, in_dims, inputs)), 0  # type: ignore[no-untyped-call]


class _DepthToSpace(nn.Module):
    """Convolution at low resolution whose channels unfold into ``factor`` x ``factor`` pixels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, factor: int):
        super().__init__()
        self.conv = _Conv(inputs, outputs * factor**2, kernel)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).permute(0, 2, 3, 1)
        b, h, w, c = y.shape
        f = self.factor
        y = y.reshape(b, h, w, f, f, c // f**2).transpose(2, 3).reshape(b, h * f, w * f, c // f**2)
        return y.permute(0, 3, 1, 2)

    def fold(self, pixels: Tensor) -> Tensor:
        """Pixels (N, h f, w f, C) in the order in which the convolution makes them: (N, 1, 1, P).

        It is far cheaper to fold the bytes that were seen than to unfold the floats that were drawn.
        """
        n, height, width, c = pixels.shape
        f = self.factor
        return pixels.reshape(n, height // f, f, width // f, f, c).transpose(2, 3).reshape(n, 1, 1, -1)


class _SquaredError(torch.autograd.Function):
    """Sum over the values of a picture of (picture - frame / 255)^2: (N, P) -> (N,), float32.

    Both (N, P) around 0 and of one float type, frame from -127.5 to 127.5. Some pictures at a time on a CPU: whole
    batches of them do not fit into its cache, and a pass over main memory costs as much as a convolution.
    """

    @staticmethod
    def forward(ctx: Any, picture: Tensor, frame: Tensor) -> Tensor:
        error = torch.empty(len(picture), device=picture.device)
        off = torch.empty_like(picture)
        some = 8 if picture.device.type == "cpu" else len(picture)
        for first in range(0, len(picture), some):
            part = slice(first, first + some)
            torch.sub(picture[part], frame[part], alpha=1 / 255, out=off[part])
            error[part] = torch.linalg.vector_norm(off[part], dim=1, dtype=torch.float32)
        ctx.save_for_backward(off)
        return error.square_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (off,) = ctx.saved_tensors
        return off * (2 * gradient).to(off.dtype).unsqueeze(-1), None


def _centred(frames: Tensor) -> Tensor:
    """Bytes (..., h, w, c) -> (N, h, w, c) from -127.5 to 127.5, all of which bfloat16 holds exactly."""
    return frames.reshape(-1, *frames.shape[-3:]).to(arithmetic(frames.device)) - 127.5


class Encoder(nn.Module):
    """Pictures (..., 64, 64, 3) from 0 to 255, uint8 or float -> embeddings (..., E)."""

    def __init__(self, depth: int, stages: Stages, size: int = 64):
        super().__init__()
        self.frame = size  # pixels a side
        layers: list[nn.Module] = []
        channels = 3
        for kernel, stride, multiple in stages:
            layers += [
                _Conv(channels, depth * multiple, kernel, stride),
                _ChannelNorm(depth * multiple),
                nn.SiLU(),
            ]
            channels, size = depth * multiple, size // stride
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.size = size * size * channels  # E

    def forward(self, frames: Tensor) -> Tensor:
        lead = frames.shape[:-3]
        stem = self.layers[0]
        assert isinstance(stem, _Conv)
        # Pixels enter as they are; their scale is in the few weights instead.
        x = stem.apply_weight(_centred(frames).permute(0, 3, 1, 2), stem.weight / 255)
        y: Tensor = self.layers[1:](x)
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
        y: Tensor = self.layers(self._cells(feat))
        return y.permute(0, 2, 3, 1).float().reshape(*feat.shape[:-1], *y.shape[2:], 3) + 0.5

    def _cells(self, feat: Tensor) -> Tensor:
        cells: Tensor = self.stem(feat.reshape(-1, feat.shape[-1])).reshape(-1, *self.shape)
        return cells.permute(0, 3, 1, 2)

    def fold(self, frames: Tensor) -> Tensor:
        """Frames (..., 64, 64, 3), uint8, as :meth:`error` wants them: (N, P), one row a frame, -127.5 to 127.5."""
        last = self.layers[-1]
        assert isinstance(last, _DepthToSpace)
        return _centred(last.fold(frames.reshape(-1, *frames.shape[-3:]))).flatten(1)

    def error(self, feat: Tensor, folded: Tensor) -> Tensor:
        """Squared error, summed over pixels in [0, 1], of the pictures of feat (..., F) as drawings of frames (...).

        ``folded`` (N, P) comes from :meth:`fold`. The pictures themselves are never put together.
        """
        last = self.layers[-1]
        assert isinstance(last, _DepthToSpace)
        drawn: Tensor = last.conv(self.layers[:-1](self._cells(feat))).permute(0, 2, 3, 1).flatten(1)
        if last.conv.as_product:  # of several agents at once, which the function below knows nothing of
            off = torch.sub(drawn, folded, alpha=1 / 255)
            error: Tensor = torch.linalg.vector_norm(off, dim=-1, dtype=torch.float32).square()
        else:
            error = _SquaredError.apply(drawn, folded)  # type: ignore[no-untyped-call]
        return error.reshape(feat.shape[:-1])


def as_products(module: nn.Module) -> None:
    """Have all convolutions in it worked out as matrix products from now on, and the norms between them by hand."""
    for part in module.modules():
        if isinstance(part, _Conv | _ChannelNorm):
            part.as_product = True
