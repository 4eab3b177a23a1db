"""Randomness that is a function of (seed, position), so that a run can be repeated or resumed.

A random generator's state would have to be saved, and differs between one process and several.
A number computed from the seed and the place where it is used needs no saving.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .train_config import TrainConfig


def mix(*parts: object) -> int:
    """A 63-bit number that is a fixed, well-spread function of ``parts``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed Python, NumPy and torch for one step of one process."""
    number = mix(seed, "step", step, rank)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)  # torch.manual_seed is 100 times slower
    if device.type == "cuda":
        torch.cuda.manual_seed_all(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


class Items(Dataset):
    """``data`` in one epoch, whose item i always meets torch's generator in the same state."""

    def __init__(self, data: Any, seed: int, epoch: int) -> None:
        self.data, self.seed, self.epoch = data, seed, epoch

    def __getitems__(self, indices: list[int]) -> list[Any]:
        items = []
        with torch.random.fork_rng(devices=[]):
            for index in indices:
                torch.default_generator.manual_seed(mix(self.seed, "item", self.epoch, index))
                items.append(self.data[index])
        return items


def epoch_batches(
    data: Any,
    config: TrainConfig,
    epoch: int,
    first: int,
    rank: int,
    world: int,
    collate: Callable[[list], Any],
    device: torch.device,
) -> Iterator[Any]:
    """This process's parts of the batches of ``epoch``, from step ``first`` of the epoch on."""
    generator = torch.Generator().manual_seed(mix(config.seed, "order", epoch))
    order = torch.randperm(len(data), generator=generator).tolist()
    part = config.batch_size // (world * config.accumulate)
    whole = len(data) // config.batch_size * config.batch_size
    parts = [order[i : i + part] for i in range(0, whole, part)]
    loader = DataLoader(
        Items(data, config.seed, epoch),
        batch_sampler=parts[rank::world][first * config.accumulate :],
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=generator,  # else the loader would draw from the global one
    )
    return iter(loader)
