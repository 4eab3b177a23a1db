"""From label maps to the batch that ``Prismer.encode`` takes: integers, one byte a pixel.

Shapes: B batch, h x w pixels of the maps, K rows of a table of label vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .geometry import resize
from .labels import NOTHING, LabelMap, check, kind_of, nothing
from .painting import WIDTH

INSTANCES = 127  # rows of the instance table for instances; the 128th is for "none"


class Embedder(Protocol):
    """Anything that turns names into label vectors, such as a ``LabelTable``."""

    def vectors(self, names: Sequence[str]) -> Tensor:
        """K names -> (K, 64)."""
        ...


def batch(
    samples: Sequence[Mapping[str, LabelMap]],
    size: int | tuple[int, int],
    tables: Mapping[str, Tensor | Embedder] | None = None,
    experts: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Stack the maps of B pictures.

    Args:
        samples: for each picture its maps, by expert. Where one is absent the expert has nothing to
            say about that picture.
        size: (height, width) of the maps in the batch, or one number (224 is published); nearest
            pixel.
        tables: for each semantic expert its label vectors. Either a table (K, 64), row = class; or
            an ``Embedder``: then each picture gets a table of its own, of the names in its map
            (words need that). ``tables["nothing"]`` (64,), if there, is painted where nothing is.
        experts: which to give, in this order; None: those that occur in the batch. Name them in
            training, or else a picture's tokens depend on its neighbours in the batch.

    Returns:
        By expert: low-level uint8 (B, C, h, w); semantic ``{"ids": uint8 (B, h, w), "table":
        (K, 64) or (B, K, 64)}``; detection ``{"label": as semantic, "instance": uint8
        (B, 1, h, w)}``, where instances 127 and on are counted from 0 again: the model has 127
        rows for them.

    Raises:
        InputError: no samples, an unknown expert, a map filed under another's name, a class without
            a row in its table, no table, or no names where an ``Embedder`` needs them.
    """
    if not samples:
        raise InputError("There are no samples to batch: give the maps of one picture or more.")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise InputError(f"Maps of {height} x {width} pixels are asked for: use 1 or more.")
    found = dict.fromkeys(name for sample in samples for name in sample)
    result: dict[str, Any] = {}
    for name in found if experts is None else experts:
        maps = [sample[name] if name in sample else nothing(name) for sample in samples]
        for row, labels in enumerate(maps):
            if labels.expert != name:
                raise InputError(
                    f"Sample {row} has a map of {labels.expert} under {name!r}: move it."
                )
        maps = [resize(labels, (width, height)) for labels in maps]
        result[name] = _semantic(name, maps, tables or {}) if kind_of(name).semantic else _low(maps)
    return result


def to(experts: Any, device: torch.device | str) -> Any:
    """The batch with all of its tensors on a device."""
    if isinstance(experts, Tensor):
        return experts.to(device, non_blocking=True)
    return {name: to(value, device) for name, value in experts.items()}


def host_bytes(experts: Any) -> int:
    """Bytes of all tensors of the batch that are in the host's memory: what ``to`` has to move."""
    if isinstance(experts, Tensor):
        return experts.numel() * experts.element_size() if experts.device.type == "cpu" else 0
    return sum(host_bytes(value) for value in experts.values())


def _low(maps: list[LabelMap]) -> Tensor:
    stack = torch.from_numpy(np.stack([labels.map for labels in maps]))  # (B, h, w) or (B, h, w, 3)
    return stack[:, None] if stack.ndim == 3 else stack.permute(0, 3, 1, 2).contiguous()


def _semantic(name: str, maps: list[LabelMap], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Ids with their table; of a detection also the instances."""
    table = tables.get(name)
    if table is None:
        raise InputError(
            f"tables has no {name!r}: give its label vectors, (K, 64) or a LabelTable."
        )
    if isinstance(table, Tensor):
        ids, table = _by_class(maps, table)
    else:
        ids, table = _by_name(maps, table)
    value = {"ids": torch.from_numpy(np.stack(ids)), "table": table}  # ids: (B, h, w)
    if "nothing" in tables:
        value["nothing"] = tables["nothing"]
    if name != "obj_detection":
        return value
    instances = np.stack([labels.instances for labels in maps])  # (B, h, w)
    instances = np.where(instances == NOTHING, NOTHING, instances % INSTANCES).astype(np.uint8)
    return {"label": value, "instance": torch.from_numpy(instances)[:, None]}  # (B, 1, h, w)


def _by_class(maps: list[LabelMap], table: Tensor) -> tuple[list[np.ndarray], Tensor]:
    """Rows of one table for all; a table for each picture where class numbers exceed a byte."""
    for row, labels in enumerate(maps):
        check(labels, classes=len(table), where=f"The map of {labels.expert} of sample {row}")
    if all(labels.map.dtype == np.uint8 for labels in maps):
        return [labels.map for labels in maps], table
    ids, rows = [], []
    for labels in maps:
        empty = np.iinfo(labels.map.dtype).max
        classes, position = np.unique(labels.map, return_inverse=True)  # empty, if there, is last
        ids.append(np.where(labels.map == empty, NOTHING, position.reshape(labels.map.shape)))
        rows.append(table[torch.from_numpy(classes[classes != empty].astype(np.int64))])
    return [each.astype(np.uint8) for each in ids], _stack(rows)


def _by_name(maps: list[LabelMap], embedder: Embedder) -> tuple[list[np.ndarray], Tensor]:
    """A table for each picture, row i = the vector of the name of id i."""
    ids, names = [], []
    for row, labels in enumerate(maps):
        where = f"The map of {labels.expert} of sample {row}"
        ids.append(labels.map if labels.instances is None else labels.instances)
        used = np.unique(ids[-1][ids[-1] != NOTHING]).tolist()
        if used and labels.names is None:
            raise InputError(f"{where} has no names: give them, or a table (K, 64) of its classes.")
        check(labels, where=where)
        names.append({number: labels.names[number] for number in used})
    words = list(dict.fromkeys(word for each in names for word in each.values()))
    vectors = embedder.vectors(words) if words else torch.zeros(0, WIDTH)
    place = {word: number for number, word in enumerate(words)}
    rows = []
    for each in names:
        rows.append(torch.zeros(max(each, default=-1) + 1, WIDTH))
        for number, word in each.items():
            rows[-1][number] = vectors[place[word]]
    return ids, _stack(rows)


def _stack(rows: list[Tensor]) -> Tensor:
    """B tables (K_b, 64) -> (B, max K, 64), the shorter ones filled up with zeros."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
