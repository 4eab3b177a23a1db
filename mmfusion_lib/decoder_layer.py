"""The parts of one layer of Prismer's decoder, its head, and what it remembers.

A pretrained post-norm block is cut into its two halves; between them stand a new cross-attention to
the vision tokens and an adaptor. Shapes: B images, R = B * G texts (G of each image, side by side),
n new tokens, T tokens seen before, D width, H heads, L vision tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaptors import Adaptor
from .blocks import Attention, Block

Pair = tuple[Tensor, Tensor]  # keys and values, each (rows, H, tokens, D / H)


@dataclass
class Cache:
    """What is known of the texts so far; ``Decoder.step`` makes it grow.

    Attributes:
        cross: keys and values of the vision tokens for each layer, (B, H, L, D / H).
        own: keys and values of the words so far for each block, (R, H, T, D / H); None at first.
        mask: (R, T) boolean, False = padding; None at first.
        words: (R,) how many words each text has, by which positions are counted; None at first.
    """

    cross: list[Pair]
    own: list[Pair | None]
    mask: Tensor | None = None
    words: Tensor | None = None

    def select(self, rows: Tensor | slice, images: Tensor | slice | None = None) -> Cache:
        """The texts ``rows``, in this order; they must lie side by side for each image.

        Args:
            rows: indices into the R texts, repeated where a text goes on in several ways.
            images: indices of the images that remain; None: all, and nothing of theirs is copied.
        """
        own = [pair and (pair[0][rows], pair[1][rows]) for pair in self.own]
        mask = None if self.mask is None else self.mask[rows]
        words = None if self.words is None else self.words[rows]
        cross = self.cross
        if images is not None:
            cross = [(keys[images], values[images]) for keys, values in cross]
        return Cache(cross, own, mask, words)


class CrossAttention(nn.Module):
    """Words read all vision tokens: ``LN(x + out(attention(x, vision)))``."""

    def __init__(self, width: int, vision_width: int, heads: int, eps: float, dropout: float):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(vision_width, width)
        self.value = nn.Linear(vision_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def project(self, latents: Tensor) -> Pair:
        """(B, L, D_v) -> keys and values (B, H, L, D / H)."""
        return self._split(self.key(latents)), self._split(self.value(latents))

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(R, n, D) -> (R, n, D). The G texts of an image share its keys: they ask as one text."""
        asked = tokens.reshape(len(keys), -1, tokens.shape[-1])  # (B * G, n, D) -> (B, G * n, D)
        dropout = self.dropout.p if self.training else 0.0
        query = self._split(self.query(asked))
        mixed = F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).reshape(tokens.shape)  # (B, H, G * n, D / H) -> (R, n, D)
        return self.norm(tokens + self.dropout(self.out(mixed)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, D) -> (B, H, L, D / H)


class DecoderLayer(nn.Module):
    """A pretrained block with cross-attention and adaptor between its halves."""

    def __init__(self, block: Block, cross: CrossAttention, adaptor: Adaptor):
        super().__init__()
        self.block = block
        self.cross = cross
        self.adaptor = adaptor

    def forward(
        self, tokens: Tensor, keep: Tensor | None, cross: Pair, past: Pair | None = None
    ) -> tuple[Tensor, Pair]:
        """(R, n, D) -> (R, n, D), and keys and values of all words up to here."""
        tokens, own = attention_half(self.block, tokens, keep, past)
        tokens = self.adaptor(self.cross(tokens, *cross))
        return mlp_half(self.block, tokens), own


class Head(nn.Module):
    """Tokens to logits: dense, GELU, norm, then the word table itself and a bias for each word."""

    def __init__(self, width: int, vocabulary: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, tokens: Tensor, words: Tensor) -> Tensor:
        """(R, n, D), word table (V, D) -> (R, n, V)."""
        return F.linear(self.norm(F.gelu(self.dense(tokens))), words, self.bias)


def causal(mask: Tensor, new: int) -> Tensor:
    """Who sees whom: the last ``new`` tokens see those before them and themselves, but no padding.

    Args:
        mask: (R, T + n) boolean, False = padding.
        new: n.

    Returns:
        (R, 1, n, T + n) boolean. Padding before the first token, which sees nothing, sees itself.
    """
    total = mask.shape[1]
    before = mask.new_ones(new, total).tril(total - new)  # (n, T + n)
    itself = before.triu(total - new)
    keep = before & mask[:, None]  # (R, n, T + n)
    return (keep | (itself & ~keep.any(dim=-1, keepdim=True)))[:, None]


def attention_half(
    block: Block, tokens: Tensor, keep: Tensor | None, past: Pair | None
) -> tuple[Tensor, Pair]:
    """The first half of a post-norm block, causal: (R, n, D), and (R, H, T + n, D / H) twice."""
    attention: Attention = block.attention
    query = attention.split(attention.query(tokens))  # (R, n, D) -> (R, H, n, D / H)
    keys = attention.split(attention.key(tokens))
    values = attention.split(attention.value(tokens))
    if past is not None:
        keys = torch.cat([past[0], keys], dim=2)  # (R, H, T + n, D / H)
        values = torch.cat([past[1], values], dim=2)
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, keys, values, keep, dropout, keep is None)
    mixed = mixed.transpose(1, 2).flatten(2)  # (R, H, n, D / H) -> (R, n, D)
    branch = attention.dropout(attention.out(mixed))
    return block.norm1(tokens + block.scale1(branch)), (keys, values)


def mlp_half(block: Block, tokens: Tensor) -> Tensor:
    """The second half of a post-norm block: (R, n, D) -> (R, n, D)."""
    return block.norm2(tokens + block.scale2(block.mlp(tokens)))
