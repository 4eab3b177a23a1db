"""Whole training steps of Prismer, measured: peak memory, time, and pictures a second.

Weights, pictures, maps and texts are random, and no file is read: what is timed is a step as ``train.fit``
does it in the paper's stages (bf16, AdamW), once a batch is ready in the host's memory. Label maps travel as
integers with their tables, as ``experts.tensors.batch`` makes them, and are painted on the device.
Each shape starts afresh, with the device's memory free.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import prismer_input, prismer_training
from ..experts import tensors
from ..experts.label_map import NOTHING, kind_of
from ..prismer import build_prismer
from ..prismer_config import PrismerConfig, named_prismer
from ..recompute import recompute_layers
from ..train_config import TrainConfig, make_optimizer
from ..trainable import train_mode

WARM_UP, TIMED = 3, 6  # steps
NAMED = {"obj_detection": 20, "ocr_detection": 10}  # names a picture; of segments: all classes
GIB = 2**30


class Shape(NamedTuple):
    """What a step is measured at.

    Attributes:
        model: a name of ``prismer_config.MODELS``.
        pixels: a side of the picture, a multiple of the patch.
        batch: pictures.
        freeze: mode of ``Prismer.freeze``.
        recompute: with activation checkpointing.
    """

    model: str
    pixels: int
    batch: int
    freeze: str
    recompute: bool

    @property
    def name(self) -> str:
        """Such as "prismer-base-224-64" or "prismer-base-224-64-recompute"."""
        return f"{self.model}-{self.pixels}-{self.batch}{'-recompute' * self.recompute}"


def measure(shape: Shape, length: int, device: torch.device | str) -> dict[str, float]:
    """``-peak`` (GiB), ``-step`` (ms) and ``-rate`` (pictures a second) of a shape, by name.

    Args:
        shape: what to measure.
        length: tokens of every text, begin and end marks included.
        device: where; on a CPU peak is 0, which does not tell.

    Returns:
        Three numbers; none where the shape does not fit into the memory of the GPU.
    """
    found: dict[str, float] = {}
    try:
        peak, milliseconds = step_cost(shape, length, torch.device(device))
        found = {
            f"{shape.name}-peak": peak / GIB,
            f"{shape.name}-step": milliseconds,
            f"{shape.name}-rate": 1000 * shape.batch / milliseconds,
        }
    except torch.cuda.OutOfMemoryError:
        pass
    gc.collect()  # layers that are computed again refer to themselves
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def step_cost(shape: Shape, length: int, device: torch.device) -> tuple[int, float]:
    """Peak bytes and median milliseconds of a step."""
    torch.manual_seed(0)
    config = named_prismer(shape.model, image_size=shape.pixels)
    with torch.device(device):  # drawing large weights takes long on a CPU
        model = build_prismer(config)
    model.freeze(shape.freeze)
    if shape.recompute:
        recompute_layers(model)
    train_mode(model)
    train = TrainConfig(1, shape.batch, lr=1e-5, weight_decay=0.05, precision="bf16")
    optimizer, batch, taken = make_optimizer(model, train), random_batch(config, shape, length), []
    cuda = device.type == "cuda"
    for number in range(WARM_UP + TIMED):
        if cuda:
            torch.cuda.synchronize(device)
            if number == WARM_UP:
                torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        here = tensors.to(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = prismer_training.objective(model, here)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize(device)
        taken.append(1000 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    return peak, statistics.median(taken[WARM_UP:])


def random_batch(config: PrismerConfig, shape: Shape, length: int) -> dict[str, Any]:
    """A batch for ``prismer_training.objective``, in the host's memory, with all of the experts."""
    count, side = shape.batch, min(prismer_input.MAP_SIZE, shape.pixels)
    experts: dict[str, Any] = {"rgb": torch.randn(count, 3, shape.pixels, shape.pixels)}
    for name in config.experts:
        kind, plane = kind_of(name), (side, side)
        if not kind.semantic:
            experts[name] = _bytes(256, count, kind.channels, *plane)
            continue
        known = NAMED.get(name) or kind.classes
        ids = _bytes(known, count, *plane)
        maps = {"ids": ids, "table": torch.randn(count, known, 64)}  # a table a picture
        if name in NAMED:  # half of the picture is nothing
            ids[:, : side // 2] = NOTHING
            maps = {"label": maps, "instance": ids[:, None]} if name == "obj_detection" else maps
        experts[name] = maps
    text = config.text
    ids = torch.randint(text.pad_id + 1, text.vocab_size, (count, length))
    labels = ids.clone()
    labels[:, 0] = prismer_training.IGNORED  # the begin mark; with a prompt, fewer words are learnt
    mask, weight = torch.ones_like(ids), torch.ones(count)
    return {"experts": experts, "ids": ids, "labels": labels, "mask": mask, "weight": weight}


def _bytes(limit: int, *size: int) -> Tensor:
    return torch.randint(limit, size, dtype=torch.uint8)
