"""The one transformer block that every encoder of this library stacks.

ViT, DINOv2, CLIP, BERT, MiniLM and RoBERTa differ in three places only: where the norm stands,
which activation the MLP has, and whether a learned scale multiplies each branch. All three are
arguments here. Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the approximation with which OpenAI's CLIP was trained."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): every token reads every other.

    Args:
        width: D.
        heads: H; each head works on D / H numbers.
        dropout: probability of dropping an attention weight, and an output value, in training.

    Attributes:
        fused: True calls PyTorch's one-kernel attention; False takes the readable path below it.
            Both give the same numbers.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.fused = True
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D), mask (B, N) with 1 = keep -> (B, N, D)."""
        keep = visible(tokens, mask)
        query = self.split(self.query(tokens))
        key = self.split(self.key(tokens))
        value = self.split(self.value(tokens))
        if self.fused:
            dropout = self.dropout.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, keep, dropout)
        else:
            mixed = self.dropout(attention_weights(query, key, keep)) @ value
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, H, N, D/H) -> (B, N, D)
        return self.dropout(self.out(mixed))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N, D / H): one slice of the width for each head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def maps(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights alone: (B, H, N, N), row = reader, column = read; rows sum to 1."""
        query, key = self.split(self.query(tokens)), self.split(self.key(tokens))
        return attention_weights(query, key, visible(tokens, mask))


def attention_weights(query: Tensor, key: Tensor, keep: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(D / H)) over the visible keys.

    Args:
        query: (B, H, N, D / H).
        key: (B, H, M, D / H).
        keep: boolean, broadcast to (B, H, N, M), True = visible; None: all visible.

    Returns:
        (B, H, N, M).
    """
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, H, N, M)
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(dim=-1)


def visible(tokens: Tensor, mask: Tensor | None) -> Tensor | None:
    """Padding mask (B, N), 1 = keep -> boolean (B, 1, 1, N): the same keys for all heads and rows.

    Raises:
        InputError: the mask is not (B, N).
    """
    if mask is None:
        return None
    if mask.shape != tokens.shape[:2]:
        raise InputError(
            f"The mask has shape {tuple(mask.shape)} but there are {tuple(tokens.shape[:2])} "
            "tokens: give one value a token, 1 to keep and 0 to hide."
        )
    return mask[:, None, None, :].bool()  # (B, N) -> (B, 1, 1, N)


class MLP(nn.Module):
    """Two linear maps with an activation between them, applied to each token alone."""

    def __init__(self, width: int, hidden: int, activation: str, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.dropout(self.fc2(self.activation(self.fc1(tokens))))


class LayerScale(nn.Module):
    """One learned factor for each of the D channels of a branch (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), value))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.factor


class Block(nn.Module):
    """One transformer layer: attention, then an MLP, each added to the tokens it has read.

    Args:
        width: D.
        heads: H.
        mlp_width: width between the two linear maps of the MLP.
        pre_norm: True normalises what a branch reads (ViT, DINOv2, CLIP); False normalises the
            sum after it (BERT, MiniLM, RoBERTa).
        activation: a name in ``ACTIVATIONS``.
        eps: added to the variance in both LayerNorms.
        layer_scale: initial value of the factor on each branch; None leaves it out.
        dropout: as in ``Attention``, and on the output of the MLP.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        pre_norm: bool = True,
        activation: str = "gelu",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, mlp_width, activation, dropout)
        scaled = layer_scale is not None
        self.scale1 = LayerScale(width, layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(width, layer_scale) if scaled else nn.Identity()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D), mask (B, N) with 1 = keep -> (B, N, D)."""
        if self.pre_norm:
            tokens = tokens + self.scale1(self.attention(self.norm1(tokens), mask))
            return tokens + self.scale2(self.mlp(self.norm2(tokens)))
        tokens = self.norm1(tokens + self.scale1(self.attention(tokens, mask)))
        return self.norm2(tokens + self.scale2(self.mlp(tokens)))
