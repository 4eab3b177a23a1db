"""One fusion layer of PMF: two frozen layers, run side by side, that send each other a few tokens.

Shapes: B batch, N_i, N_t tokens of image and text, D_i, D_t their widths, M_qp, M_qcp, M_fcp lengths
of the three prompts. A layer has two stages (PMF section 3.2):

1. *Querying.* Each frozen layer reads ``[tokens; query context; query]``. What comes out at the
   query prompts is mapped to the other encoder's width: the message. All else is dropped.
2. *Fusion.* The same frozen layer reads the same tokens again, now as
   ``[tokens; fusion context; message of the other side]``. What comes out at the tokens goes on.

``plain`` writes this down as it is said. ``shared`` computes the same numbers and gradients with
about half the work: see there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Block, attention_weights
from .errors import InputError


class Tokens(NamedTuple):
    """Tokens of one modality, and which of them count."""

    values: Tensor  # (B, N, D)
    mask: Tensor | None  # (B, N), 1 = keep; None: all count


class Mapping(nn.Module):
    """``W2 ReLU(W1 u + b1) + b2``: carries a message to the width of the other encoder.

    Two layers with a narrow middle, no norm, no residual (PMF section 3.2).
    """

    def __init__(self, source: int, hidden: int, target: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(source, hidden)
        self.fc2 = nn.Linear(hidden, target)

    def forward(self, message: Tensor) -> Tensor:
        """(B, M_qp, D_source) -> (B, M_qp, D_target)."""
        return self.fc2(self.fc1(message).relu())


class Side(nn.Module):
    """What one modality trains in one fusion layer: three prompts, and the mapping of its message.

    Args:
        width: D of this modality.  other: D of the other one.
        query, query_context, fusion_context: M_qp, M_qcp, M_fcp; 0 leaves a prompt out. Without
            query prompts there is no message, and so neither query context nor mapping.
        mapping_width: hidden width of the mapping; 0 sends the message as it is.

    Raises:
        InputError: ``mapping_width`` is 0 and the two widths differ.
    """

    def __init__(
        self,
        width: int,
        other: int,
        query: int,
        query_context: int,
        fusion_context: int,
        mapping_width: int,
    ) -> None:
        super().__init__()
        if query and not mapping_width and width != other:
            raise InputError(
                f"mapping_width=0 sends messages unchanged, but the encoders are {width} and "
                f"{other} wide: choose a mapping_width of 1 or more."
            )
        self.query = prompt(query, width)  # (M_qp, D)
        self.query_context = prompt(query_context if query else 0, width)  # (M_qcp, D)
        self.fusion_context = prompt(fusion_context, width)  # (M_fcp, D)
        mapped = query and mapping_width
        self.mapping = Mapping(width, mapping_width, other) if mapped else nn.Identity()
        self.other = other

    def message(self, asked: Tensor) -> Tensor:
        """Outputs of the query prompts (B, M_qp, D) -> message (B, M_qp, D of the other side)."""
        if not len(self.query):
            return asked.new_zeros(len(asked), 0, self.other)
        return self.mapping(asked)


class FusionLayer(nn.Module):
    """The trained part of one fusion layer. The frozen layers are handed to ``forward``.

    Args:
        image, text: the two sides.
        shared: True computes ``shared`` where both layers are blocks of this library.
    """

    def __init__(self, image: Side, text: Side, shared: bool = True) -> None:
        super().__init__()
        self.image, self.text, self.shared = image, text, shared

    def forward(
        self,
        image_layer: nn.Module,
        text_layer: nn.Module,
        image: Tokens,
        text: Tokens,
        image_rows: int | None = None,
        text_rows: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run both stages.

        Args:
            image_layer, text_layer: frozen; each maps tokens and mask to tokens.
            image, text: what enters both layers.
            image_rows, text_rows: only so many first tokens are needed behind this layer; None:
                all. The plain form computes all of them and cuts.

        Returns:
            Image tokens (B, rows, D_i) and text tokens (B, rows, D_t).
        """
        shared = self.shared and isinstance(image_layer, Block) and isinstance(text_layer, Block)
        stages = _Shared if shared else _Plain
        see, read = stages(image_layer, image), stages(text_layer, text)
        to_text = self.image.message(see.query(self.image))  # (B, M_qp, D_t)
        to_image = self.text.message(read.query(self.text))  # (B, M_qp, D_i)
        return (
            see.fuse(self.image.fusion_context, to_image, image_rows),
            read.fuse(self.text.fusion_context, to_text, text_rows),
        )


class _Plain:
    """Both stages of one modality, as the paper writes them: the whole layer, twice."""

    def __init__(self, layer: nn.Module, tokens: Tokens) -> None:
        self.layer, self.tokens = layer, tokens

    def query(self, side: Side) -> Tensor:
        """(B, M_qp, D): what the layer says at the query prompts."""
        count = len(side.query)
        batch, _, width = self.tokens.values.shape
        if count == 0:
            return self.tokens.values.new_zeros(batch, 0, width)
        joined = appended(self.tokens, side.query_context, side.query)
        out = self.layer(joined.values, joined.mask)  # (B, N + M_qcp + M_qp, D)
        return out[:, out.shape[1] - count :]

    def fuse(self, context: Tensor, message: Tensor, rows: int | None) -> Tensor:
        """(B, rows, D): what the layer says at the tokens when it also reads the message."""
        joined = appended(self.tokens, context, message)
        out = self.layer(joined.values, joined.mask)  # (B, N + M_fcp + M_qp, D)
        return out[:, : self.tokens.values.shape[1] if rows is None else rows]


class _Shared:
    """The same numbers with less work, for a :class:`mmfusion_lib.blocks.Block`.

    Both stages read the same tokens with the same weights, so keys and values of the tokens are
    computed once. Of the querying stage only the rows of the query prompts are kept, so only they
    are queries and pass through the MLP. In the last layer the same holds for the rows that the
    readout looks at. Few rows are computed with attention written out, in two parts that need no
    joined copy of keys and values; all rows with PyTorch's fused attention.
    """

    def __init__(self, layer: Block, tokens: Tokens) -> None:
        self.layer, self.values = layer, tokens.values
        self.keep = None if tokens.mask is None else tokens.mask[:, None, None, :].bool()
        self.normed = layer.norm1(tokens.values) if layer.pre_norm else tokens.values  # (B, N, D)
        self.key, self.value = self.keys_and_values(self.normed)  # 2 x (B, H, N, D / H)

    def query(self, side: Side) -> Tensor:
        """(B, M_qp, D): what the layer says at the query prompts."""
        count, batch = len(side.query), len(self.values)
        query = side.query.expand(batch, -1, -1)  # (M_qp, D) -> (B, M_qp, D)
        if count == 0:
            return query
        extra = torch.cat([side.query_context, side.query])[None]  # (1, M_qcp + M_qp, D)
        normed = self.layer.norm1(extra) if self.layer.pre_norm else extra
        asked = normed[:, -count:].expand(batch, -1, -1)  # (B, M_qp, D)
        key, value = self.keys_and_values(normed)  # 2 x (1, H, M_qcp + M_qp, D / H)
        return self.finish(query, self.attend_few(asked, key, value))

    def fuse(self, context: Tensor, message: Tensor, rows: int | None) -> Tensor:
        """(B, rows, D): what the layer says at the tokens when it also reads the message."""
        context = context.expand(len(message), -1, -1)  # (M_fcp, D) -> (B, M_fcp, D)
        extra = torch.cat([context, message], dim=1)  # (B, M_fcp + M_qp, D)
        extra = self.layer.norm1(extra) if self.layer.pre_norm else extra
        key, value = self.keys_and_values(extra)  # 2 x (B, H, M_fcp + M_qp, D / H)
        attend = self.attend_all if rows is None else self.attend_few
        return self.finish(self.values[:, :rows], attend(self.normed[:, :rows], key, value))

    def keys_and_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> 2 x (B, H, N, D / H), laid out once for all products that read them."""
        attention = self.layer.attention
        key, value = attention.key(normed), attention.value(normed)  # 2 x (B, N, D)
        return attention.split(key).contiguous(), attention.split(value).contiguous()

    def attend_all(self, normed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Every token reads tokens and extra ones: -> (B, H, N, D / H)."""
        attention = self.layer.attention
        query = attention.split(attention.query(normed))  # (B, H, N, D / H)
        key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        keep = self.keep
        if keep is not None:
            keep = F.pad(keep, (0, key.shape[2] - keep.shape[3]), value=True)
        if attention.fused:
            dropout = attention.dropout.p if attention.training else 0.0
            return F.scaled_dot_product_attention(query, key, value, keep, dropout)
        return attention.dropout(attention_weights(query, key, keep)) @ value

    def attend_few(self, normed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """A few rows read tokens and extra ones, which are never put side by side."""
        attention = self.layer.attention
        query = attention.split(attention.query(normed)).contiguous()  # (B, H, M, D / H)
        query = query / query.shape[-1] ** 0.5
        own = query @ self.key.transpose(-2, -1)  # (B, H, M, N)
        if self.keep is not None:
            own = own.masked_fill(~self.keep, float("-inf"))
        scores = torch.cat([own, query @ key.transpose(-2, -1)], dim=-1)  # (B, H, M, N + extra)
        weights = attention.dropout(scores.softmax(dim=-1))
        own, extra = weights.split([own.shape[-1], weights.shape[-1] - own.shape[-1]], dim=-1)
        return own @ self.value + extra @ value  # (B, H, M, D / H)

    def finish(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the block, on the rows of ``tokens`` (B, M, D) alone."""
        layer, attention = self.layer, self.layer.attention
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, H, M, D / H) -> (B, M, D)
        tokens = tokens + layer.scale1(attention.dropout(attention.out(mixed)))
        if layer.pre_norm:
            return tokens + layer.scale2(layer.mlp(layer.norm2(tokens)))
        tokens = layer.norm1(tokens)
        return layer.norm2(tokens + layer.scale2(layer.mlp(tokens)))


def prompt(count: int, width: int) -> nn.Parameter:
    """Trained tokens (count, width), drawn from N(0, 0.02^2) as in the official file.

    None asks for no gradient: else a layer with no prompt would keep activations for nothing.
    """
    values = torch.empty(count, width)
    values = values if values.is_meta else nn.init.normal_(values, std=0.02)
    return nn.Parameter(values, requires_grad=count > 0)


def appended(tokens: Tokens, *more: Tensor) -> Tokens:
    """Tokens with others behind them, which are always visible and have no position.

    Args:
        tokens: (B, N, D).
        more: each (M, D), the same for all samples, or (B, M, D).
    """
    batch, count, _ = tokens.values.shape
    parts = [m.expand(batch, -1, -1) for m in more]  # (M, D) -> (B, M, D)
    values = torch.cat([tokens.values, *parts], dim=1)  # (B, N + M + ..., D)
    if tokens.mask is None:
        return Tokens(values, None)
    return Tokens(values, F.pad(tokens.mask, (0, values.shape[1] - count), value=1))
