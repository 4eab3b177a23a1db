"""Prismer's vision side: a picture and the label maps of experts become one sequence of tokens.

Prismer section 3.2, the order of steps as in the official code::

    picture -> patches + positions ------------------------------\\
    maps -> stems -> + positions (+ instances) -> resampler ------ [patches, latents] -> norm
         -> blocks, each with an adaptor between attention and MLP -> norm -> (B, L, D)

There is no CLS token. Experts have no mark but their stem; instances of a detection have one: a row
of a table is added where the instance lies. Shapes: B batch, D width, N patches, L all tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaptors import Adaptor
from .blocks import Block
from .encoders import ImageEncoder
from .errors import InputError
from .experts.label_map import NOTHING, kind_of
from .experts.painting import low, paint
from .prismer_config import PrismerConfig
from .resampler import Resampler
from .stems import Stem, channels_of, stem_of

INSTANCES = 128  # rows of the instance table; the last is that of "nothing here" (id 255)


class AdaptedBlock(nn.Module):
    """A pretrained pre-norm block with an adaptor between its two halves."""

    def __init__(self, block: Block, adaptor: Adaptor):
        super().__init__()
        self.block = block
        self.adaptor = adaptor

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        block = self.block
        tokens = tokens + block.scale1(block.attention(block.norm1(tokens)))
        tokens = self.adaptor(tokens)
        return tokens + block.scale2(block.mlp(block.norm2(tokens)))


class PrismerEncoder(nn.Module):
    """Picture and label maps -> tokens for the decoder.

    Args:
        image_encoder: pretrained or random; its patch projection, positions, blocks and norms are
            taken over (not copied). CLS and its position are left out.
        config: ``config.image`` must be the configuration of ``image_encoder``.
    """

    def __init__(self, image_encoder: ImageEncoder, config: PrismerConfig):
        super().__init__()
        width, patch = config.image.width, config.image.patch_size
        self.config = config
        self.patch = image_encoder.patch
        rows = config.image_size // patch
        self.positions = nn.Parameter(torch.empty(rows * rows, width))
        if not self.positions.is_meta:
            with torch.no_grad():
                self.positions.copy_(image_encoder.resized_positions(rows, rows)[0, 1:])
        self.stems = nn.ModuleDict()
        for stem in config.stems:
            self.stems[stem] = Stem(channels_of(stem), width, patch, kind_of(stem).semantic)
        self.resampler = None
        if config.experts:
            sizes = config.num_latents, config.resampler_layers, config.resampler_heads
            self.resampler = Resampler(width, *sizes)
        self.instances = None
        if "obj_detection" in config.experts:
            self.instances = nn.Parameter(torch.empty(INSTANCES, width))
            if not self.instances.is_meta:
                nn.init.normal_(self.instances, std=width**-0.5)
        self.input_norm = image_encoder.input_norm
        options = (config.adaptor_bottleneck, config.adaptor_gate, config.adaptor_near_zero)
        self.layers = nn.ModuleList(
            AdaptedBlock(block, Adaptor(width, "pre", *options)) for block in image_encoder.layers
        )
        self.norm = image_encoder.norm

    def forward(
        self,
        experts: Mapping[str, Any],
        instance_rows: Mapping[int, int] | Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Picture and any of the maps -> (B, L, D), L = patches, then latents.

        Args:
            experts: ``"rgb"`` (B, 3, H, W), normalised; and label maps by expert, in any order, see
                ``experts.tensors``. Experts that are left out are not missed: their tokens are not
                there. With none at all there are no latents either.
            instance_rows: row of the instance table for each id, where not id i -> row i and
                255 -> row 127; see ``draw_instance_rows``.

        Raises:
            InputError: no picture, an unknown expert, or a map of the wrong type or shape.
        """
        tokens = [self.embed_image(self._picture(experts))]
        names = [name for name in experts if name != "rgb"]
        if names:
            seen = [self.embed_map(name, experts[name], instance_rows) for name in names]
            for name, part in zip(names, seen):
                if len(part) != len(tokens[0]):
                    raise InputError(
                        f"experts[{name!r}] has {len(part)} maps but there are {len(tokens[0])} "
                        "pictures: give one for each."
                    )
            tokens.append(self.resampler(torch.cat(seen, dim=1)))  # (B, M, D) -> (B, 64, D)
        x = self.input_norm(torch.cat(tokens, dim=1))  # (B, L, D)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> patches with positions (B, N, D); rows and columns that fill no patch go."""
        grid = self.patch(pixels.to(self.patch.weight.dtype))  # (B, D, h, w)
        return grid.flatten(2).transpose(1, 2) + self.resized_positions(*grid.shape[-2:])

    def embed_map(self, name: str, value: Any, instance_rows: Any = None) -> Tensor:
        """The map of one expert -> its tokens with positions (B, M_e, D).

        Raises:
            InputError: an expert that the model was not made for, or a bad map.
        """
        if name not in self.config.experts and stem_of(name) not in self.stems:
            raise InputError(
                f"This model was not made for the expert {name!r}: give some of "
                f"{', '.join(self.config.experts) or 'none: it is PrismerZ'}."
            )
        stem, dtype = stem_of(name), self.patch.weight.dtype
        label = value["label"] if name == "obj_detection" else value
        maps = paint(label, dtype) if kind_of(stem).semantic else low(label, dtype)
        grid = self.stems[stem](maps)  # (B, D, h, w)
        if name == "obj_detection":
            grid = grid + self.embed_instances(value["instance"], grid.shape[-2:], instance_rows)
        tokens = grid.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h * w, D)
        return tokens + self.resized_positions(*grid.shape[-2:])

    def embed_instances(self, ids: Tensor, size: Sequence[int], rows: Any) -> Tensor:
        """Instance ids (B, 1, h, w), 255 = none -> a vector at each cell (B, D, rows, columns)."""
        small = F.interpolate(ids.float(), tuple(size), mode="nearest").long()
        small = small[:, 0]  # (B, 1, rows, columns) -> (B, rows, columns)
        lookup = _row_of_id(rows).to(small.device)  # (256,)
        chosen = lookup[small]
        if (chosen < 0).any():
            bad = int(small[chosen < 0][0])
            raise InputError(
                f"Instance id {bad} has no row in the table of {INSTANCES}: use ids 0 to "
                f"{INSTANCES - 2}, and {NOTHING} for nothing."
            )
        return self.instances[chosen].permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)

    def resized_positions(self, rows: int, columns: int) -> Tensor:
        """The position table for another grid, bicubic: (rows * columns, D)."""
        side = round(len(self.positions) ** 0.5)
        if (rows, columns) == (side, side):
            return self.positions
        return resize_positions(self.positions, rows, columns)

    def _picture(self, experts: Mapping[str, Any]) -> Tensor:
        if "rgb" not in experts:
            raise InputError("experts has no 'rgb': give the picture too, (B, 3, H, W).")
        pixels, patch = experts["rgb"], self.config.image.patch_size
        if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < patch:
            raise InputError(
                f"experts['rgb'] has shape {tuple(pixels.shape)}: give (B, 3, H, W) of {patch} "
                "pixels a side or more."
            )
        if not pixels.is_floating_point():
            raise InputError(
                f"experts['rgb'] has type {pixels.dtype}: scale to [0, 1] and normalise first "
                "(checkpoints.image_transform does both)."
            )
        return pixels


def resize_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """A square position table (side^2, D) -> (rows * columns, D), bicubic, in float32."""
    side = round(len(table) ** 0.5)
    grid = table.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # -> (1, D, side, side)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.to(table.dtype)  # (D, rows, columns) -> (rows * columns, D)


def draw_instance_rows(ids: Tensor, seed: int | None = None) -> dict[int, int]:
    """A random row for each id that occurs in a batch, 255 included, as the official code draws them.

    It does so at every forward pass, at test time too, so that its captions change from call to call.

    Args:
        ids: (B, 1, h, w) instance ids.
        seed: None: from Python's global generator.
    """
    generator = random if seed is None else random.Random(seed)
    return {int(i): generator.randrange(INSTANCES) for i in ids.unique().tolist()}


def _row_of_id(rows: Any) -> Tensor:
    """(256,) row of the instance table for each id; -1 where there is none."""
    lookup = torch.full((NOTHING + 1,), -1)
    if rows is None:
        lookup[: INSTANCES - 1] = torch.arange(INSTANCES - 1)
        lookup[NOTHING] = INSTANCES - 1
        return lookup
    pairs = rows.items() if isinstance(rows, Mapping) else enumerate(rows)
    for number, row in pairs:
        if not (0 <= int(number) <= NOTHING and 0 <= int(row) < INSTANCES):
            raise InputError(
                f"instance_rows gives id {int(number)} the row {int(row)}: ids go from 0 to "
                f"{NOTHING}, rows from 0 to {INSTANCES - 1}."
            )
        lookup[int(number)] = int(row)
    return lookup
