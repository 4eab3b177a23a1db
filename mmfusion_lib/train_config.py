"""What a training run is told, what it gives back, and the two rules that follow from the first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        epochs: passes over the data. Each has ``len(data) // batch_size`` steps; the samples left
            over at the end of its random order wait for another epoch.
        batch_size: samples per optimizer step, over all processes and accumulated parts together.
            So without dropout and BatchNorm the loss curve is the same, to rounding, on one GPU and
            on eight. Dropout is drawn by each process. BatchNorm, as in the stems of Prismer's
            experts, sees ``batch_size / (processes * accumulate)`` samples at once: where that is
            equal, so is the curve. Its running statistics that are validated and saved are those
            of the first process, of its own samples alone.
        lr: highest learning rate.
        weight_decay: for weights of two or more dimensions; biases, norms and other vectors get 0.
        optimizer: ``"adamw"`` or ``"sgd"``.
        momentum: of SGD.
        warmup: share of all steps in which the rate rises linearly from 0.
        schedule: after warm-up, ``"cosine"`` to 0 or ``"constant"``.
        precision: ``"no"`` (float32) or ``"bf16"`` (autocast; weights and moments stay float32).
        clip: largest norm of the whole gradient, or None.
        accumulate: parts in which a process handles its share of a batch, to save memory.
        seed: of order, augmentation and dropout. Initial weights are the caller's.
        select: name of the validation metric by which the best weights are kept, or None to keep
            the last. On a tie the earlier epoch wins.
        select_lowest: the best ``select`` is the lowest one.
        checkpoint_every: steps between checkpoints; None: at the end of every epoch.
        log_every: steps between two writes of the log (each step still has its line).
        workers: loader processes; 0 loads in this one.
        shard: of several processes each keeps a slice of the model in place of a copy.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    momentum: float = 0.0
    warmup: float = 0.0
    schedule: str = "cosine"
    precision: str = "no"
    clip: float | None = 1.0
    accumulate: int = 1
    seed: int = 0
    select: str | None = None
    select_lowest: bool = False
    checkpoint_every: int | None = None
    log_every: int = 10
    workers: int = 0
    shard: bool = False

    def __post_init__(self) -> None:
        def need(right: bool, message: str) -> None:
            if not right:
                raise InputError(f"TrainConfig: {message}.")

        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            need(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name, allowed in (
            ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "constant")),
            ("precision", ("no", "bf16")),
        ):
            value = getattr(self, name)
            need(value in allowed, f"{name}={value!r} must be one of {', '.join(allowed)}")
        need(self.lr > 0, f"lr={self.lr} must be positive")
        need(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        need(0 <= self.warmup < 1, f"warmup={self.warmup} is a share of all steps: 0 <= warmup < 1")
        need(self.clip is None or self.clip > 0, f"clip={self.clip} must be positive or None")
        need(
            self.checkpoint_every is None or self.checkpoint_every >= 1,
            f"checkpoint_every={self.checkpoint_every} must be at least 1, or None",
        )
        need(0 <= self.momentum < 1, f"momentum={self.momentum} must lie in [0, 1)")
        need(
            self.momentum == 0 or self.optimizer == "sgd",
            f"optimizer='adamw' has no use for momentum={self.momentum}: set momentum to 0, or "
            "optimizer to 'sgd'",
        )
        need(
            self.batch_size % self.accumulate == 0,
            f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}",
        )


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    ``history`` holds the lines of the log: one a step, ``{"step", "epoch", "loss", "lr"}``, and one
    a validation, ``{"step", "epoch", "validation": {...}}``; steps and epochs count from 1.
    ``best`` is ``{"step", "epoch", **metrics}`` of the weights that the model now has, or None when
    ``select`` was None. ``seconds`` is the time of the whole run, interrupted parts included.
    The last four describe this call alone, and exclude validation: samples trained on per second,
    the share of that time spent waiting for data, peak memory in bytes (CUDA: tensors allocated;
    CPU: resident set of the process since it started; 0 where the system does not tell), the device.
    """

    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    steps: int
    seconds: float
    samples_per_second: float
    data_wait_share: float
    peak_bytes: int
    device: str

    @property
    def losses(self) -> list[float]:
        """Training loss of every step, the mean over its batch."""
        return [row["loss"] for row in self.history if "loss" in row]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """``{"step", "epoch", **metrics}`` of every validation."""
        return [
            {"step": row["step"], "epoch": row["epoch"], **row["validation"]}
            for row in self.history
            if "validation" in row
        ]


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Rate of ``step`` (from 0) of ``total``: linear warm-up, then cosine to 0 or constant."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that train; only those of >= 2 dimensions decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{type(model).__name__} has no trainable parameter: unfreeze a part.")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
