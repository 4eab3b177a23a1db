"""Experts Resampler: any number of expert tokens in, 64 latents out (Prismer section 3.2).

Learned latents look at the tokens of all experts, as in the Perceiver and Flamingo. Each layer::

    latents += attention(query = LN1(latents), keys and values = [LN1(latents), LN2(tokens)])
    latents += MLP(LN3(latents))        ratio 4, squared ReLU

Pre-norm, no dropout, no gate, no weights shared between layers (official code). Tokens have no order
and no mark of their expert beyond what the stems put in: permuting them changes nothing.
Shapes: B batch, M tokens of all experts, L latents, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaptors import squared_relu
from .blocks import Attention
from .errors import InputError

EPS = 1e-5  # of every LayerNorm


class ResamplerLayer(nn.Module):
    """Latents read themselves and the tokens, then each is changed alone."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.norm3 = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, D), (B, M, D) -> (B, L, D)."""
        latents = latents + self.read(self.norm1(latents), self.norm2(tokens))
        return latents + self.fc2(squared_relu(self.fc1(self.norm3(latents))))

    def read(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Attention of normalised latents over themselves and the normalised tokens: (B, L, D)."""
        heads, source = self.attention, torch.cat([latents, tokens], dim=1)  # (B, L + M, D)
        query = heads.split(heads.query(latents))  # (B, H, L, D / H)
        key, value = heads.split(heads.key(source)), heads.split(heads.value(source))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, H, L, D / H)
        return heads.out(mixed.transpose(1, 2).flatten(2))  # (B, H, L, D / H) -> (B, L, D)


class Resampler(nn.Module):
    """Tokens of all experts -> L latents.

    Args:
        width: D.
        latents: L.
        layers: number of layers.
        heads: H; divides D.

    Raises:
        InputError: heads do not divide the width, or a number is below 1.
    """

    def __init__(self, width: int, latents: int = 64, layers: int = 4, heads: int = 8):
        super().__init__()
        if min(latents, layers, heads) < 1 or width % heads:
            raise InputError(
                f"Resampler: latents={latents}, layers={layers} and heads={heads} must be 1 or "
                f"more, and heads must divide the width {width}."
            )
        self.latents = nn.Parameter(torch.empty(latents, width))
        if not self.latents.is_meta:
            nn.init.normal_(self.latents, std=width**-0.5)
        self.layers = nn.ModuleList(ResamplerLayer(width, heads) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, D) -> (B, L, D)."""
        latents = self.latents.expand(len(tokens), -1, -1)  # (L, D) -> (B, L, D)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return latents
