"""Painting: from integer maps to what the stems read, on the device (facts: official data loader).

The official loader paints each pixel with a 64-wide vector on the CPU and ships the result. Here
the map travels as integers, one byte a pixel, together with a small table; looking the vectors up
is the device's work. The result is the same.

Shapes: B batch, K rows of the table, h x w pixels of the map.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

WIDTH = 64  # of a label vector
NOTHING = 255  # id of a pixel about which a semantic expert says nothing
EPSILON = 1e-6  # keeps a constant map from dividing by zero


def paint(value: Tensor | Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """Give every pixel the vector of its label.

    Args:
        value: ``{"ids": (B, h, w) integers, "table": (K, 64) or one for each image (B, K, 64)}``,
            with 255 in ``ids`` for nothing; an optional ``"nothing"`` (64,) is painted there, zeros
            without it. A map that is painted already, float (B, 64, h, w), passes through.
        dtype: of the result.

    Returns:
        (B, 64, h, w), pixel after pixel in memory ("channels last"), so nothing is copied.

    Raises:
        InputError: an id below 0, or of K or more and not 255; another width than 64; shapes or
            types that do not fit together.
    """
    if isinstance(value, Tensor):
        if value.ndim != 4 or value.shape[1] != WIDTH or not value.is_floating_point():
            raise InputError(
                f"A painted map has shape {tuple(value.shape)} and type {value.dtype}: give float "
                f"(B, {WIDTH}, h, w), or integers as {{'ids', 'table'}}."
            )
        return value.to(dtype)
    if not isinstance(value, Mapping) or not {"ids", "table"} <= value.keys():
        found = ", ".join(value) if isinstance(value, Mapping) else type(value).__name__
        raise InputError(f"A semantic map is given as {found}: give 'ids' and 'table'.")
    ids, table = value["ids"], value["table"]
    _check(ids, table, value.get("nothing"))
    images, rows = len(ids), table.shape[-2]
    empty = table.new_zeros(WIDTH) if value.get("nothing") is None else value["nothing"]
    empty = empty.to(table).expand(*table.shape[:-2], 1, WIDTH)  # (1, 64) or (B, 1, 64)
    vectors = torch.cat([table, empty], dim=-2).to(dtype)  # (K + 1, 64) or (B, K + 1, 64)
    index = ids.int()
    index = index.masked_fill(index == NOTHING, rows)  # (B, h, w): 255 -> the last row
    if table.ndim == 3:  # all images' tables under one another, and each image's own stretch of it
        start = torch.arange(images, device=ids.device, dtype=torch.int32) * (rows + 1)
        index, vectors = index + start[:, None, None], vectors.flatten(0, 1)  # (B * (K + 1), 64)
    return F.embedding(index, vectors).permute(0, 3, 1, 2)  # (B, h, w, 64) -> (B, 64, h, w)


def low(value: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Stretch a low-level map to [-1, 1].

    Args:
        value: (B, 1, h, w), or (B, 3, h, w) for normals. Integers, 0 to 255, are stretched image by
            image from their least to their greatest value, normals over the three channels
            together: ``2 (x - min) / (max - min + 1e-6) - 1`` with x from 0 to 1. A constant map
            becomes -1 everywhere. Floats are taken as they are.
        dtype: of the result.

    Raises:
        InputError: another shape, or integers outside 0 to 255.
    """
    if value.ndim != 4 or value.shape[1] not in (1, 3):
        raise InputError(
            f"A low-level map has shape {tuple(value.shape)}: give (B, 1, h, w), or (B, 3, h, w) "
            "for normals."
        )
    if value.is_floating_point():
        return value.to(dtype)
    outside = value.dtype != torch.uint8 and not value.is_meta
    if outside and bool(((value < 0) | (value > 255)).any()):
        raise InputError(
            f"A low-level map of {value.dtype} holds {int(value.min())} to {int(value.max())}: "
            "give integers 0 to 255, or floats in [-1, 1]."
        )
    value = value.float() / 255
    least, most = value.amin((1, 2, 3), keepdim=True), value.amax((1, 2, 3), keepdim=True)
    return (2 * (value - least) / (most - least + EPSILON) - 1).to(dtype)


def _check(ids: Tensor, table: Tensor, empty: Tensor | None) -> None:
    """Raise ``InputError`` unless ids, table and the vector of nothing fit together."""
    if ids.ndim != 3 or ids.is_floating_point() or ids.is_complex():
        raise InputError(
            f"ids has shape {tuple(ids.shape)} and type {ids.dtype}: give integers (B, h, w)."
        )
    if table.ndim not in (2, 3) or table.shape[-1] != WIDTH or not table.is_floating_point():
        raise InputError(
            f"table has shape {tuple(table.shape)} and type {table.dtype}: give float "
            f"(K, {WIDTH}), or (B, K, {WIDTH})."
        )
    if table.ndim == 3 and len(table) != len(ids):
        raise InputError(
            f"There are {len(table)} tables for {len(ids)} maps: give one for each, or one (K, 64)."
        )
    if empty is not None and tuple(empty.shape) != (WIDTH,):
        raise InputError(f"nothing has shape {tuple(empty.shape)}: give one vector ({WIDTH},).")
    known = table.shape[-2]
    ids = ids.long()  # a byte wraps round when compared with 256 and more
    bad = (ids < 0) | ((ids >= known) & (ids != NOTHING))  # (B, h, w)
    if not ids.is_meta and bad.any():
        raise InputError(
            f"ids holds {int(ids[bad][0])} but the table has {known} rows: use 0 to {known - 1}, "
            f"and {NOTHING} for nothing."
        )
