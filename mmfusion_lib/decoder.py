"""The language side of Prismer: a text encoder made causal, with vision tokens read in each layer.

One layer is: the attention half of a pretrained block, now causal; a new cross-attention to the
vision tokens; an adaptor; the MLP half of the block. Every norm stands after its sum, as in BERT.
New parts have no gate and do not start as the identity. One more random block and the head of
RoBERTa, tied to the word table, follow (the extra block is in the official code only).

Writing token by token, each token is computed once: ``start`` projects the vision tokens to keys
and values, ``step`` adds words. Shapes: B images, R = B * G texts (G of each image, side by side),
N or n tokens, T tokens in the cache, D width, H heads, L vision tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaptors import Adaptor
from .blocks import Block
from .decoder_layer import (
    Cache,
    CrossAttention,
    DecoderLayer,
    Head,
    attention_half,
    causal,
    mlp_half,
)
from .encoders import TextEncoder
from .errors import InputError

IGNORED = -100  # label of a position that is not learnt


class Decoder(nn.Module):
    """See the head of this file.

    Args:
        text_encoder: its tables and blocks are taken over, not copied, and keep their
            ``requires_grad``; it must be of the post-norm family (BERT, MiniLM, RoBERTa).
        vision_width: D_v, width of the vision tokens.
        extra_layer: append the random block of the official code.
        adaptor: further arguments of every ``Adaptor``; ``norm`` is "post".

    Raises:
        InputError: the encoder is pre-norm.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        vision_width: int,
        *,
        extra_layer: bool = True,
        adaptor: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        config = self.config = text_encoder.config
        if config.norm != "post":
            raise InputError(
                "Decoder: the text encoder has norm='pre' but the layer is built from post-norm "
                "blocks: use one of the BERT or RoBERTa family."
            )
        width, heads, eps, dropout = config.width, config.heads, config.eps, config.dropout
        self.vision_width = vision_width
        self.words, self.positions = text_encoder.words, text_encoder.positions
        self.types, self.input_norm = text_encoder.types, text_encoder.input_norm
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(
                block,
                CrossAttention(width, vision_width, heads, eps, dropout),
                Adaptor(width, **{"norm": "post", **(adaptor or {})}),
            )
            for block in text_encoder.layers
        )
        self.output_layer = None
        if extra_layer:
            self.output_layer = Block(
                width, heads, config.mlp_width, pre_norm=False,
                activation=config.activation, eps=eps, dropout=dropout,
            )  # fmt: skip
        self.head = Head(width, config.vocab_size, eps)
        self._initialise((adaptor or {}).get("near_zero", False))

    def forward(
        self, input_ids: Tensor, latents: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            input_ids: (R, N).
            latents: (B, L, D_v); R is a multiple of B, usually B itself.
            attention_mask: (R, N), 1 = a token, 0 = padding, wherever it stands; None: no padding.
                Padding changes nothing at the tokens.

        Returns:
            (R, N, V). Logits at padding mean nothing, though the official code reads first answer
            tokens off padding behind a short question; ``generate.left_packed`` avoids that.

        Raises:
            InputError: ids outside the vocabulary, more tokens than positions, or a mask or latents
                of another shape.
        """
        return self.step(input_ids, self.start(latents), attention_mask)

    def start(self, latents: Tensor) -> Cache:
        """Project the vision tokens (B, L, D_v) to the keys and values of every layer, once."""
        if latents.ndim != 3 or latents.shape[-1] != self.vision_width:
            raise InputError(
                f"latents has shape {tuple(latents.shape)} but this decoder reads (B, L, "
                f"{self.vision_width}): give what its own image encoder returns."
            )
        blocks = len(self.layers) + (self.output_layer is not None)
        return Cache([layer.cross.project(latents) for layer in self.layers], [None] * blocks)

    def step(self, ids: Tensor, cache: Cache, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (R, n, V) of new tokens ``ids`` (R, n), which the cache then holds too.

        Args:
            ids: what comes after the tokens in the cache; R may be any multiple of the B images at
                first, and stays the same until ``Cache.select``.
            cache: of ``start``; changed in place.
            attention_mask: (R, n), of the new tokens alone; None: no padding among them.
        """
        return self.logits(self.advance(ids, cache, attention_mask))

    def advance(self, ids: Tensor, cache: Cache, attention_mask: Tensor | None = None) -> Tensor:
        """``step`` without the head: (R, n) -> tokens (R, n, D)."""
        self._check(ids, cache, attention_mask)
        plain = attention_mask is None and cache.mask is None
        new = torch.ones_like(ids).bool() if attention_mask is None else attention_mask.bool()
        past = new[:, :0] if cache.mask is None else cache.mask
        # RoBERTa counts what is no padding *token*, also where it wrote that token itself.
        words = new & (ids != self.config.pad_id) if self.config.position_offset else new
        before = ids.new_zeros(len(ids)) if cache.words is None else cache.words  # (R,)
        count = (before[:, None] + words.cumsum(1)) * words  # (R, n): 1, 2, ...; 0 at padding
        if not ids.is_meta and count.numel() and int(count.max()) > self.config.max_positions:
            raise InputError(
                f"A text is {int(count.max())} tokens long and this decoder has "
                f"{self.config.max_positions} positions: shorten it."
            )
        mask = torch.cat([past, new], dim=1)  # (R, T + n)
        tokens = self.run(ids, count, None if plain else causal(mask, ids.shape[1]), cache)
        cache.mask, cache.words = mask, before + words.sum(1)
        return tokens

    def run(self, ids: Tensor, count: Tensor, keep: Tensor | None, cache: Cache) -> Tensor:
        """All blocks over new tokens, unchecked: ``advance`` and ``rank`` say who sees whom.

        Args:
            ids: (R, n).
            count: (R, n), which word of its text a token is: 1, 2, ...; 0 for padding.
            keep: (R, 1, n, T + n) boolean, True = visible; None: causal, nothing in the cache.
            cache: grows by n keys and values; its ``mask`` does not.

        Returns:
            (R, n, D).
        """
        # The first word has row pad_id + 1 and padding row pad_id (RoBERTa), or row 0 (BERT).
        rows = (count + self.config.position_offset - 1).clamp(min=0)
        tokens = self.words(ids) + self.types.weight[:1] + self.positions(rows)
        tokens = self.dropout(self.input_norm(tokens))
        for number, (layer, cross) in enumerate(zip(self.layers, cache.cross)):
            tokens, cache.own[number] = layer(tokens, keep, cross, cache.own[number])
        if self.output_layer is not None:
            tokens, cache.own[-1] = attention_half(self.output_layer, tokens, keep, cache.own[-1])
            tokens = mlp_half(self.output_layer, tokens)
        return tokens

    def logits(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.head(tokens, self.words.weight)

    def _initialise(self, near_zero: bool) -> None:
        """Weights of spread 0.02 and biases 0 in all that is new, adaptors included."""
        fresh = [self.head, *([] if self.output_layer is None else [self.output_layer])]
        fresh += [part for layer in self.layers for part in (layer.cross, layer.adaptor)]
        kept = {id(layer.adaptor.up) for layer in self.layers} if near_zero else set()
        for module in (m for part in fresh for m in part.modules()):
            if isinstance(module, nn.Linear) and id(module) not in kept:
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _check(self, ids: Tensor, cache: Cache, mask: Tensor | None) -> None:
        images = len(cache.cross[0][0])
        if ids.ndim != 2 or ids.is_floating_point():
            raise InputError(
                f"input_ids has shape {tuple(ids.shape)} and type {ids.dtype}: give integers "
                "(R, N)."
            )
        if (
            images == 0
            or len(ids) % images
            or (cache.mask is not None and len(ids) != len(cache.mask))
        ):
            held = "" if cache.mask is None else f" and {len(cache.mask)} texts in the cache"
            raise InputError(
                f"There are {len(ids)} texts for {images} images{held}: give one text for each "
                "image, or equally many, side by side."
            )
        if mask is not None and mask.shape != ids.shape:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)} but input_ids {tuple(ids.shape)}: "
                "give one value a token, 1 to keep and 0 to hide."
            )
        check_ids(ids, self.config.vocab_size)


def check_ids(ids: Tensor, vocabulary: int, what: str = "input_ids") -> None:
    """Raise ``InputError`` where an id is outside the vocabulary."""
    if ids.is_meta or ids.numel() == 0:
        return
    low, high = ids.aminmax()
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"{what} holds {int(low if low < 0 else high)}, outside the vocabulary of "
            f"{vocabulary}: use the tokenizer that belongs to this decoder."
        )


def loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy of every next token, summed over the tokens of a text (official code).

    Label smoothing e as in ``torch.nn.functional.cross_entropy``: the target has probability
    1 - e + e / V, every other word e / V.

    Args:
        logits: (B, N, V).
        labels: (B, N), the token *at* each position, predicted from those before; -100: not learnt.
        smoothing: e.

    Returns:
        (B,). The mean over the batch is what is trained: long texts weigh more.

    Raises:
        InputError: labels and logits have other shapes.
    """
    if labels.shape != logits.shape[:2]:
        raise InputError(
            f"labels has shape {tuple(labels.shape)} but logits {tuple(logits.shape)}: give one "
            "label for each position, -100 where nothing is to be learnt."
        )
    each = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),  # (B, N, V) -> (B * (N - 1), V)
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return each.unflatten(0, (len(labels), -1)).sum(dim=1)  # (B * (N - 1),) -> (B,)
