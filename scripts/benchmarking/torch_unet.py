"""DDPM++ and NCSN++ written plainly in PyTorch, for `scripts/benchmark --models --against-torch` alone.

The architecture of `models.ncsnpp` with BigGAN blocks; imported only where PyTorch happens to be installed.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

NETWORKS = ("ddpmpp", "ncsnpp")


class Programs(NamedTuple):
    """Ready to be called, in the faster of the two memory layouts."""

    forward: Callable[[], Any]
    step: Callable[[], Any]
    sample: Callable[[], Any]
    layout: str
    parameters: int


def fir(channels: int) -> torch.Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 64
    return kernel[None, None].repeat(channels, 1, 1, 1)


def resample(x: torch.Tensor, way: str, smooth: bool) -> torch.Tensor:
    channels = x.shape[1]
    if way == "up":
        if not smooth:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv_transpose2d(x, 4 * fir(channels), stride=2, padding=1, groups=channels)
    return F.conv2d(x, fir(channels), stride=2, padding=1, groups=channels) if smooth else F.avg_pool2d(x, 2)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, features: int, way: str, smooth: bool) -> None:
        super().__init__()
        self.way, self.smooth = way, smooth
        self.norm_in = nn.GroupNorm(min(inputs // 4, 32), inputs, eps=1e-6)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embedding = nn.Linear(features, outputs)
        self.norm_out = nn.GroupNorm(min(outputs // 4, 32), outputs, eps=1e-6)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if way or inputs != outputs else None

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.norm_in(x))
        if self.way:
            h, x = resample(h, self.way, self.smooth), resample(x, self.way, self.smooth)
        h = self.conv_in(h) + self.embedding(embedding)[:, :, None, None]
        h = self.conv_out(F.silu(self.norm_out(h)))
        return ((x if self.skip is None else self.skip(x)) + h) * math.sqrt(0.5)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.inputs, self.output = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        tokens = self.inputs(self.norm(x)).reshape(batch, 3, channels, height * width).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(tokens[:, 0], tokens[:, 1], tokens[:, 2])
        return (x + self.output(mixed.transpose(1, 2).reshape(x.shape))) * math.sqrt(0.5)


class UNet(nn.Module):
    def __init__(self, settings: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.settings, width, features = settings, settings.channels, 4 * settings.channels
        fourier, smooth = settings.embedding != "positional", settings.fir
        self.register_buffer("frequency", torch.randn(width) * settings.fourier_scale)
        self.embed_in = nn.Linear(2 * width if fourier else width, features)
        self.embed_out = nn.Linear(features, features)
        self.conv_in = nn.Conv2d(shape[-1], width, 3, padding=1)
        block = lambda inputs, outputs, way="": Block(inputs, outputs, features, way, smooth)
        attends = lambda height: height in settings.attention_resolutions
        height, channels, skips, pyramid = shape[0], width, [width], shape[-1]
        self.down, self.up, last = nn.ModuleList(), nn.ModuleList(), len(settings.channel_multipliers) - 1
        for level, multiplier in enumerate(settings.channel_multipliers):
            blocks, attention = nn.ModuleList(), nn.ModuleList()
            for _ in range(settings.blocks_per_resolution):
                blocks.append(block(channels, width * multiplier))
                channels = width * multiplier
                attention.append(Attention(channels) if attends(height) else nn.Identity())
                skips.append(channels)
            between = join = nn.Identity()
            if level < last:
                between = block(channels, channels, "down")
                if settings.progressive_input == "residual":
                    join, pyramid = nn.Conv2d(pyramid, channels, 3, stride=2), channels
                skips.append(channels)
                height //= 2
            self.down.append(nn.ModuleList([blocks, attention, between, join]))
        self.middle = nn.ModuleList([block(channels, channels), Attention(channels), block(channels, channels)])
        for level, multiplier in reversed(list(enumerate(settings.channel_multipliers))):
            blocks = nn.ModuleList()
            for _ in range(settings.blocks_per_resolution + 1):
                blocks.append(block(channels + skips.pop(), width * multiplier))
                channels = width * multiplier
            attention = Attention(channels) if attends(height) else nn.Identity()
            self.up.append(
                nn.ModuleList([blocks, attention, block(channels, channels, "up") if level else nn.Identity()])
            )
            height *= 2
        self.norm = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, shape[-1], 3, padding=1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        embedding = F.silu(self.embed_out(F.silu(self.embed_in(self.features(noise)))))
        pyramid, h, skips, last = x, self.conv_in(x), [], len(self.down) - 1
        skips.append(h)
        for level, (blocks, attention, between, join) in enumerate(self.down):
            for block, attend in zip(blocks, attention, strict=True):
                h = attend(block(h, embedding))
                skips.append(h)
            if level < last:
                h = between(h, embedding)
                if self.settings.progressive_input == "residual":
                    channels = pyramid.shape[1]
                    kernel = fir(channels)
                    pyramid = join(F.conv2d(F.pad(pyramid, (2, 2, 2, 2)), kernel, groups=channels))
                    pyramid = h = (pyramid + h) * math.sqrt(0.5)
                skips.append(h)
        first, attend, second = self.middle
        h = second(attend(first(h, embedding)), embedding)
        for level, (blocks, attend, between) in enumerate(self.up):
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], 1), embedding)
            h = attend(h)
            h = between(h, embedding) if level < last else h
        return self.conv_out(F.silu(self.norm(h)))

    def features(self, noise: torch.Tensor) -> torch.Tensor:
        if self.settings.embedding != "positional":
            angle = noise[:, None] * self.frequency[None] * 2 * math.pi
        else:
            half = self.settings.channels // 2
            angle = noise[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))[None]
        return torch.cat([angle.sin(), angle.cos()], 1)


def fastest(call: Callable[[], Any], rounds: int) -> float:
    """Seconds."""
    call()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def programs(name: str, settings: Any, shape: tuple[int, ...], batch: int, evaluations: int) -> Programs:
    """Of the network with the settings of ours, in the layout whose training step is faster."""
    made = [_programs(settings, shape, batch, evaluations, layout) for layout in ("NCHW", "NHWC")]
    return min(made, key=lambda each: fastest(each.step, 2))


def _programs(settings: Any, shape: tuple[int, ...], batch: int, evaluations: int, layout: str) -> Programs:
    torch.manual_seed(0)
    network, x = UNet(settings, shape), torch.randn(batch, shape[-1], *shape[:-1])
    if layout == "NHWC":
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    noise = torch.linspace(0.1, 900.0, batch)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    average = [parameter.detach().clone() for parameter in network.parameters()]

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return network(x, noise)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (network(x, noise) ** 2).mean().backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(network.parameters()), 0.001)

    def sample() -> None:
        with torch.inference_mode():
            y = x
            for _ in range(evaluations):
                y = 0.9 * y + 0.1 * network(y, noise)

    return Programs(forward, step, sample, layout, sum(parameter.numel() for parameter in network.parameters()))
