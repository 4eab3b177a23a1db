"""What ``Prismer.encode`` refuses before any of it is computed: values that would be misread in silence."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .experts.label_map import NOTHING, kind_of
from .prismer_encoder import INSTANCES
from .stems import stem_of

FLOAT_LIMIT = 16  # a low-level map of floats is about [-1, 1]; one of 0 to 255 goes beyond
SMALLEST = 4  # pixels a side of a map


def check_experts(experts: Any, stems: Container[str]) -> None:
    """Types, shapes and values of a batch of ``experts``, see ``experts.tensors.batch``.

    Values are read where they lie on the CPU; a GPU would have to wait for them.

    Args:
        experts: what ``Prismer.encode`` is given.
        stems: names of the model's; maps of other experts are not looked at.

    Raises:
        InputError: what is wrong with which expert.
    """
    if not isinstance(experts, Mapping):
        raise InputError(
            f"experts is a {type(experts).__name__}: give a dict such as {{'rgb': (B, 3, H, W)}}."
        )
    pictures = experts.get("rgb")
    if pictures is not None and not isinstance(pictures, Tensor):
        raise InputError(
            f"experts['rgb'] is a {type(pictures).__name__}: give a tensor (B, 3, H, W), or pass "
            "files to caption and answer."
        )
    for name, value in experts.items():
        if name == "rgb" or stem_of(name) not in stems:
            continue
        where = f"experts[{name!r}]"
        if name == "obj_detection":
            if not isinstance(value, Mapping) or not {"label", "instance"} <= value.keys():
                raise InputError(f"{where} must hold 'label' and 'instance', see tensors.batch.")
            batch = pictures is not None and pictures.ndim == 4
            _instances(value["instance"], len(pictures) if batch else None)
            value = value["label"]
        kind = kind_of(stem_of(name))
        if kind.semantic and isinstance(value, Mapping):
            ids = value.get("ids")
            if isinstance(ids, Tensor):
                _size(ids, f"{where}['ids']")
                _classes(ids, kind_of(name).classes, where)
        elif not isinstance(value, Tensor):
            raise InputError(
                f"{where} is a {type(value).__name__}: give a tensor, or leave it out."
            )
        else:
            _size(value, where)
            if not kind.semantic:
                _floats(value, where)


def _size(value: Tensor, where: str) -> None:
    if value.ndim >= 2 and min(value.shape[-2:]) < SMALLEST:
        raise InputError(
            f"{where} has {value.shape[-2]} x {value.shape[-1]} pixels: give {SMALLEST} a side or "
            "more (tensors.batch resizes)."
        )


def _floats(value: Tensor, where: str) -> None:
    if value.is_floating_point() and value.device.type == "cpu" and value.numel():
        most = float(value.detach().abs().max())  # NaN stays NaN
        if not most <= FLOAT_LIMIT:
            raise InputError(
                f"{where} holds floats up to {most}: scale it to [-1, 1], or give integers 0 to 255."
            )


def _classes(ids: Tensor, classes: int | None, where: str) -> None:
    if classes is None or ids.device.type != "cpu" or not ids.numel() or ids.is_floating_point():
        return
    known = ids[ids != NOTHING]
    if known.numel() and int(known.max()) >= classes:
        raise InputError(
            f"{where} holds class {int(known.max())} but it has {classes} classes: use 0 to "
            f"{classes - 1}, and {NOTHING} for nothing."
        )


def _instances(ids: Any, count: int | None) -> None:
    where = "experts['obj_detection']['instance']"
    if not isinstance(ids, Tensor) or ids.ndim != 4 or ids.shape[1] != 1:
        found = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"{where} is {found}: give integers (B, 1, h, w).")
    _size(ids, where)
    if count is not None and len(ids) != count:
        raise InputError(f"{where} has {len(ids)} maps for {count} pictures: give one for each.")
    if ids.device.type == "cpu" and ids.numel():
        least, most = torch.aminmax(ids)
        if int(least) < 0 or int(most) > NOTHING:
            raise InputError(
                f"{where} holds {int(least)} to {int(most)}: use 0 to {INSTANCES - 2}, and "
                f"{NOTHING} for nothing."
            )
