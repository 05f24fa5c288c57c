"""Small models made of blocks, and a calibration task of random batches for them."""

from __future__ import annotations

import torch
from torch import nn

from dpq_core.data.task import CalibrationTask

WIDTH = 8


class Block(nn.Module):
    """A transformer block without its softmax."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x, mask=None):
        h = self.norm1(x)
        mixed = torch.tanh(self.q(h) * self.k(h)) + self.v(h)
        x = x + self.o(mixed if mask is None else mixed * mask)
        h = self.norm2(x)
        return x + self.down(torch.relu(self.gate(h)) * self.up(h))


class Stack(nn.Module):
    """Embedding, blocks, head: what chains."""

    blocks_of = ("blocks.0", "blocks.1", "blocks.2")

    def __init__(self, width=WIDTH):
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.blocks = nn.ModuleList(Block(width) for _ in self.blocks_of)
        self.head = nn.Linear(width, 12)

    def forward(self, batch):
        x, mask = self.embed(batch["index"]), (batch["index"] % 3 > 0)[..., None].float()
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.head(x)


class UNet(nn.Module):
    """Convolutions with skip connections, a layer between blocks, a vector for every block."""

    blocks_of = ("down1", "down2", "up2", "up1")

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.time = nn.Linear(5, 4)
        self.down1, self.down2 = ConvBlock(4, 4), ConvBlock(6, 6)
        self.shrink = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up2, self.up1 = ConvBlock(12, 4), ConvBlock(8, 4)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, batch):
        t = self.time(batch["t"])
        x = one = self.down1(self.first(batch["x"]), t)
        x = two = self.down2(self.shrink(x), t)
        x = self.up2(x, t, two)
        x = nn.functional.interpolate(x, scale_factor=2)
        return self.last(self.up1(x, t, one))


class ConvBlock(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.Conv2d(outside, outside, 3, padding=1),
        )
        self.emb = nn.Linear(4, outside)

    def forward(self, x, t, skip=None):
        x = x if skip is None else torch.cat([x, skip], dim=1)
        h = torch.tanh(self.conv1(x)) + self.emb(t)[:, :, None, None]
        return self.conv2(h)


class Task(CalibrationTask):
    name = "toy"

    def __init__(self, model):
        self.student = model
        self.forwards = 0

    def train_batch(self, step):
        draw = torch.Generator().manual_seed(step)
        return {
            "index": torch.randint(12, (2, 5), generator=draw),
            "x": torch.randn(2, 3, 8, 8, generator=draw),
            "t": torch.randn(2, 5, generator=draw),
        }

    def loss(self, batch):
        raise NotImplementedError

    def validation(self):
        raise NotImplementedError

    def reference_loss(self):
        raise NotImplementedError

    def blocks(self):
        return self.student.blocks_of

    def forward(self, model, batch):
        self.forwards += 1
        return model(batch)
