"""Image and text encoders: one block family, two ways to make tokens.

An encoder is anything with ``embed(inputs) -> tokens``, ``layers`` (each: tokens, mask -> tokens)
and ``readout(tokens, mask) -> (B, R)``. The rest of the book knows nothing else about it, so a
larger encoder is a change of one word. The whole forward pass is::

    tokens = encoder.embed(inputs)
    for layer in encoder.layers:
        tokens = layer(tokens, mask)
    summary = encoder.readout(tokens, mask)

Shapes: B batch, N tokens, D width, R width of the summary. ``encoder_config.py`` holds the sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block
from .encoder_config import CONFIGS, EncoderConfig, named_config
from .errors import InputError

__all__ = [
    "CONFIGS",
    "EncoderConfig",
    "ImageEncoder",
    "TextEncoder",
    "attention_maps",
    "build_encoder",
    "masked_mean",
    "named_config",
]


class Encoder(nn.Module):
    """What both kinds of encoder share: blocks, the last norm, and a summary of the tokens."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_width,
                pre_norm=config.norm == "pre",
                activation=config.activation,
                eps=config.eps,
                layer_scale=config.layer_scale,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        # A post-norm block ends with a norm already.
        self.norm = _norm(config) if config.norm == "pre" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def run_layers(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """All blocks and the last norm: (B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return self.norm(tokens)

    def readout(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summary of the tokens that leave a *block*: last norm, then ``pool``.

        What ``forward`` returns has been through the last norm: give that to ``pool`` instead.

        Args:
            tokens: (B, N, D), CLS first.
            mask: (B, N), 1 = keep; None keeps all.

        Returns:
            (B, R).
        """
        return self.pool(self.norm(tokens), mask)

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summary of normalised tokens, as this encoder was trained to be read: -> (B, R)."""
        cls = tokens[:, 0]  # (B, N, D) -> (B, D)
        if self.config.readout == "cls":
            return cls
        if self.config.readout == "mean":
            return masked_mean(tokens, mask)
        patches = masked_mean(tokens[:, 1:], None if mask is None else mask[:, 1:])
        return torch.cat([cls, patches], dim=1)  # 2 x (B, D) -> (B, 2D)

    def _initialise(self) -> None:
        """Normal weights of spread 0.02, biases 0, as ViT and BERT are trained from scratch."""
        if next(self.parameters()).is_meta:  # nothing there to fill
            return
        for table in self.parameters(recurse=False):  # CLS and positions of an image encoder
            nn.init.normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)


class ImageEncoder(Encoder):
    """Vision transformer (Dosovitskiy et al. 2021): an image is a sentence of square patches."""

    def __init__(self, config: EncoderConfig):
        super().__init__(_of_kind(config, "image"))
        width, patch = config.width, config.patch_size
        self.patch = nn.Conv2d(config.channels, width, patch, stride=patch, bias=config.patch_bias)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + config.patches, width))
        self.input_norm = _norm(config) if config.input_norm else nn.Identity()
        self._initialise()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens after the last norm (B, 1 + N, D), CLS first."""
        return self.run_layers(self.embed(pixel_values))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Patches, CLS and positions.

        Args:
            pixel_values: (B, 3, H, W) float, normalised as the encoder expects; H and W are
                multiples of ``patch_size`` and need not be ``image_size``.

        Returns:
            (B, 1 + N, D) with N = (H / patch_size) * (W / patch_size).

        Raises:
            InputError: wrong number of axes or channels, wrong size, or integer pixels.
        """
        self._check(pixel_values)
        grid = self.patch(pixel_values.to(self.patch.weight.dtype))  # -> (B, D, h, w)
        patches = grid.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h * w, D)
        cls = self.cls.expand(len(patches), -1, -1)  # (1, 1, D) -> (B, 1, D)
        tokens = torch.cat([cls, patches], dim=1)  # (B, 1 + N, D)
        return self.dropout(self.input_norm(tokens + self.resized_positions(*grid.shape[-2:])))

    def resized_positions(self, rows: int, columns: int) -> Tensor:
        """The position table for a grid of patches, resized bicubically where the grid differs.

        Returns:
            (1, 1 + rows * columns, D).
        """
        side = self.config.image_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.positions
        cls, table = self.positions[:, :1], self.positions[:, 1:]
        table = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # -> (1, D, side, side)
        # In float32: resizing in half precision would shift the table.
        resized = F.interpolate(table.float(), (rows, columns), mode="bicubic").to(table.dtype)
        resized = resized.flatten(2).transpose(1, 2)  # (1, D, rows, columns) -> (1, N, D)
        return torch.cat([cls, resized], dim=1)

    def _check(self, pixels: Tensor) -> None:
        channels, patch = self.config.channels, self.config.patch_size
        shape = tuple(pixels.shape)
        if pixels.ndim != 4 or shape[1] != channels:
            raise InputError(
                f"pixel_values has shape {shape}: give a batch (B, {channels}, H, W), "
                "channels before height."
            )
        if min(shape[2:]) < patch or shape[2] % patch or shape[3] % patch:
            raise InputError(
                f"pixel_values is {shape[2]} x {shape[3]} pixels: resize both sides to a multiple "
                f"of the patch size {patch}."
            )
        if not pixels.is_floating_point():
            raise InputError(
                f"pixel_values has type {pixels.dtype}: scale to [0, 1] and normalise first "
                "(checkpoints.image_transform does both)."
            )


class TextEncoder(Encoder):
    """BERT (Devlin et al. 2019) and its family: word pieces in, one vector for each out."""

    def __init__(self, config: EncoderConfig):
        super().__init__(_of_kind(config, "text"))
        self.words = _table(config.vocab_size, config.width)
        self.positions = _table(config.max_positions + config.position_offset, config.width)
        self.types = _table(config.token_types, config.width)
        self.input_norm = _norm(config)
        self._initialise()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Ids (B, N), mask (B, N) with 1 = keep (None: no padding) -> (B, N, D).

        What stands at hidden positions changes nothing at the kept ones.
        """
        return self.run_layers(self.embed(input_ids), attention_mask)

    def embed(self, input_ids: Tensor, token_types: Tensor | None = None) -> Tensor:
        """Word + position + segment, normalised.

        Args:
            input_ids: (B, N) integers in [0, vocab_size).
            token_types: (B, N) segment of each token; None: segment 0 everywhere.

        Returns:
            (B, N, D).

        Raises:
            InputError: not (B, N) integers, an id out of range, or a text that is too long.
        """
        self._check(input_ids)
        types = self.types.weight[:1] if token_types is None else self.types(token_types)
        tokens = self.words(input_ids) + types + self.positions(self._position_ids(input_ids))
        return self.dropout(self.input_norm(tokens))

    def _position_ids(self, input_ids: Tensor) -> Tensor:
        """BERT counts all tokens from 0: (N,). RoBERTa counts words only, from pad_id + 1: (B, N)."""
        if self.config.position_offset == 0:
            return torch.arange(input_ids.shape[1], device=input_ids.device)
        is_word = (input_ids != self.config.pad_id).long()
        return is_word.cumsum(dim=1) * is_word + self.config.pad_id

    def _check(self, ids: Tensor) -> None:
        shape, longest = tuple(ids.shape), self.config.max_positions
        if ids.ndim != 2 or ids.is_floating_point():
            raise InputError(
                f"input_ids has shape {shape} and type {ids.dtype}: give integers (B, N)."
            )
        if shape[1] > longest:
            raise InputError(
                f"The text is {shape[1]} tokens long and this encoder has {longest} positions: "
                f"cut it (tokenizer(..., max_length={longest}))."
            )
        if ids.is_meta or ids.numel() == 0:
            return
        low, high = ids.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            worst = int(low if low < 0 else high)
            raise InputError(
                f"input_ids holds {worst}, outside the vocabulary of {self.config.vocab_size}: "
                "use the tokenizer that belongs to this encoder."
            )


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the kept tokens: (B, N, D), mask (B, N) with 1 = keep -> (B, D)."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)[..., None]  # (B, N) -> (B, N, 1)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


@torch.no_grad()
def attention_maps(encoder: Encoder, inputs: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Who reads whom, in every layer.

    Args:
        encoder: an ``ImageEncoder`` or ``TextEncoder``.
        inputs: what its ``embed`` takes.
        mask: (B, N), 1 = keep.

    Returns:
        One tensor (B, H, N, N) a layer: row = reader, column = read; a row sums to 1.
    """
    maps: list[Tensor] = []

    def record(attention: nn.Module, arguments: tuple) -> None:
        maps.append(attention.maps(*arguments))

    hooks = [layer.attention.register_forward_pre_hook(record) for layer in encoder.layers]
    try:
        encoder.run_layers(encoder.embed(inputs), mask)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, eps=config.eps)


def _table(rows: int, width: int) -> nn.Embedding:
    """A table that ``_initialise`` fills; ``nn.Embedding(rows, width)`` would fill it twice."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def _of_kind(config: EncoderConfig, kind: str) -> EncoderConfig:
    if config.kind != kind:
        raise InputError(
            f"EncoderConfig has kind={config.kind!r} but an encoder of {kind}s was asked for: "
            "use build_encoder, which picks the class."
        )
    return config


def build_encoder(config: str | EncoderConfig) -> ImageEncoder | TextEncoder:
    """An encoder with random weights, in training mode, from a name in ``CONFIGS`` or a config.

    Inside ``with torch.device("meta"):`` it takes no memory, which is how large ones are counted.
    """
    config = named_config(config) if isinstance(config, str) else config
    return (ImageEncoder if config.kind == "image" else TextEncoder)(config)
