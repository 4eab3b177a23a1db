"""The training loop: one for the CPU, for a GPU, and for several processes (``accelerate launch``).

Read it from the top. Four rules make a run repeatable, and exactly resumable after a kill:

1. The order of epoch e is a function of (seed, e).
2. An item's augmentation is a function of (seed, e, index): draw it from torch's generator.
3. Dropout in step s is a function of (seed, s, process). So no generator state needs saving.
4. The learning rate is a function of s.

Rules 1 to 3 are in ``repeatable.py``, rule 4 in ``train_config.py``. What remains to be stored is the
weights that train, the optimizer's moments and s: ``resume.py``. On a GPU some kernels add in any
order, so there the curves agree to rounding.

Several processes: ``accelerate launch --multi_gpu --num_processes 8 script.py``. Without a GPU, put
``ACCELERATE_USE_CPU=true`` before the same line (``--cpu`` starts one process only). Each has a copy of
the model (DDP) or, with ``TrainConfig(shard=True)``, a slice of it (FSDP2, ``sharding.py``).
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from . import settings, sharding
from .errors import InputError
from .repeatable import epoch_batches, seed_step
from .resume import Checkpoint, Log
from .train_config import TrainConfig, TrainResult, learning_rate, make_optimizer
from .trainable import train_mode, trainable_state

__all__ = ["TrainConfig", "TrainResult", "fit", "learning_rate", "make_optimizer"]


def fit(
    model: nn.Module,
    data: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    folder: str | Path | None = None,
    collate: Callable[[list], Any] = default_collate,
    resume: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Train the parameters of ``model`` that require a gradient; all others are left as they are.

    Frozen modules run in evaluation mode (``trainable.train_mode``), so cached features are exact.
    Global random generators are re-seeded at every step.

    Args:
        model: moved to the device; left there in evaluation mode, with the best weights when
            ``config.select`` is set and with the last ones otherwise.
        data: ``len(data)`` items, ``data[i]``; for instance dicts of tensors. A ``digest``
            attribute, where it has one, is checked on resuming.
        loss: ``loss(model, batch)`` -> scalar, the mean over the batch. It may call any method.
        config: how to train.
        validate: called once an epoch, without gradients, in the training precision; returns
            numbers by name. With several processes each calls it, and the first one's result counts.
        folder: holds ``log.jsonl`` and ``checkpoint.safetensors``; None writes nothing.
        collate: list of items -> batch; the default stacks tensors of equal shape.
        resume: go on from the checkpoint in ``folder`` where there is one; else start afresh.
        progress: show a bar (on the main process).

    Raises:
        InputError: the configuration does not fit the data, the checkpoint belongs to another run,
            the loss is not finite, or the disk is full. The last good checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and saved.
    """
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        broadcast_object_list,
        send_to_device,
    )
    from tqdm.auto import tqdm

    # Where: accelerate knows the processes; one process alone runs where the settings say.
    # A trained part may sit out a batch (an expert that is absent), hence find_unused_parameters.
    # The precision is config's alone (autocast, below), whatever `accelerate launch` was told.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    world, rank = accelerator.num_processes, accelerator.process_index
    device = accelerator.device if world > 1 else settings.device()
    _check(config, data, validate, world)
    per_epoch = len(data) // config.batch_size
    total = config.epochs * per_epoch

    model.to(device)
    objective: nn.Module = _Objective(model, loss)

    # Resume: the checkpoint sets weights, moments, the step, and how much of the log is valid.
    checkpoint = Checkpoint(folder, model, config, data)
    state, best_weights, moments = checkpoint.load(resume)
    step, best, earlier = state["step"], state["best"], state["seconds"]
    log = Log(folder, state["log_bytes"], writes=accelerator.is_main_process)
    history = log.read()
    sliced = world > 1 and config.shard
    if sliced:
        objective = sharding.shard(objective, world, device)
    optimizer = make_optimizer(model, config)
    checkpoint.restore(optimizer, moments)
    if world > 1 and not sliced:
        objective = accelerator.prepare(objective)

    losses: list[Tensor] = []  # of the steps since the last flush; kept on the device
    steps_here, waited, trained, start = 0, 0.0, 0.0, time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def flush() -> bool:
        """Write the losses since the last flush; True when any process was asked to stop."""
        values = torch.stack([*losses, torch.tensor(float(bool(interrupted)), device=device)])
        *numbers, stop = (
            accelerator.reduce(values, "mean").tolist() if world > 1 else values.tolist()
        )
        rows = []
        for at, value in enumerate(numbers, start=step - len(numbers)):
            if not math.isfinite(value):
                log.append(rows)
                raise InputError(_diverged(f"The loss became {value}", at + 1, config, checkpoint))
            rate = learning_rate(at, total, config)
            rows.append({"step": at + 1, "epoch": at // per_epoch + 1, "loss": value, "lr": rate})
        losses.clear()
        history.extend(rows)
        log.append(rows)
        if numbers:
            bar.set_postfix(loss=f"{numbers[-1]:.4f}")
        return stop > 0

    def weights() -> dict[str, Tensor]:
        """What trains, whole."""
        return {name: sharding.whole(value) for name, value in trainable_state(model).items()}

    def save() -> None:
        """Checkpoint this step (on the main process), unless an update went wrong."""
        now = weights()
        if not all(value.isfinite().all() for value in now.values()):
            raise InputError(_diverged("A weight is no longer finite", step, config, checkpoint))
        moments = checkpoint.moments(optimizer)
        if accelerator.is_main_process:
            log.sync()
            seconds = earlier + time.perf_counter() - start
            done = {"step": step, "best": best, "seconds": seconds, "log_bytes": log.size}
            checkpoint.save(done, now, moments, best_weights)

    bar = tqdm(
        total=total,
        initial=step,
        desc="train",
        unit="step",
        disable=not (progress and accelerator.is_main_process),
    )
    with bar, _hold_interrupts() as interrupted:
        for epoch in range(step // per_epoch, config.epochs):
            first = step % per_epoch
            batches = epoch_batches(data, config, epoch, first, rank, world, collate, device)
            train_mode(model)
            for _ in range(first, per_epoch):
                began = time.perf_counter()
                seed_step(config.seed, step, rank, device)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, total, config)

                # One step: the loss of each part, its gradient, one update.
                value = torch.zeros((), device=device)
                for part in range(1, config.accumulate + 1):
                    asked = time.perf_counter()
                    batch = send_to_device(next(batches), device, non_blocking=True)
                    waited += time.perf_counter() - asked
                    last = part == config.accumulate  # only then do processes exchange gradients
                    if sliced:
                        objective.set_requires_gradient_sync(last)
                    alone = not last and not sliced
                    with accelerator.no_sync(objective) if alone else nullcontext():
                        with autocast():
                            share = objective(batch) / config.accumulate
                        share.backward()
                    value += share.detach()
                if config.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(value)
                step += 1
                steps_here += 1
                bar.update()

                # Look up from the work: log, validate, save, stop.
                ends = step % per_epoch == 0
                due = (
                    ends if config.checkpoint_every is None else step % config.checkpoint_every == 0
                )
                due = due or step == total
                stop = False
                if ends or due or step % config.log_every == 0 or (interrupted and world == 1):
                    stop = flush()
                trained += time.perf_counter() - began
                if ends and validate is not None:
                    model.eval()
                    with sharding.gathered(objective), torch.no_grad(), autocast():
                        metrics = {name: float(number) for name, number in validate(model).items()}
                    if world > 1:
                        metrics = broadcast_object_list([metrics])[0]
                    row = {"step": step, "epoch": epoch + 1, "validation": metrics}
                    history.append(row)
                    log.append([row])
                    if _better(metrics, best, config):
                        best = {"step": step, "epoch": epoch + 1, **metrics}
                        best_weights = {
                            name: value.to("cpu", copy=True) for name, value in weights().items()
                        }
                if due or stop:
                    save()
                if stop and step < total:
                    raise KeyboardInterrupt(
                        f"Stopped at step {step} of {total}. "
                        + ("Saved: run the same call again to go on." if folder else "Not saved.")
                    )

    sharding.join(model)
    if best_weights is not None:
        with torch.no_grad():
            for name, value in trainable_state(model).items():
                value.copy_(best_weights[name])
    model.eval()
    return TrainResult(
        history=history,
        best=best,
        steps=step,
        seconds=earlier + time.perf_counter() - start,
        samples_per_second=steps_here * config.batch_size / trained if trained else 0.0,
        data_wait_share=waited / trained if trained else 0.0,
        peak_bytes=_peak_bytes(device),
        device=str(device),
    )


class _Objective(nn.Module):
    """The loss as a module, so that several processes exchange the gradients of whatever it calls."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def _check(config: TrainConfig, data: Any, validate: Any, world: int) -> None:
    if len(data) < config.batch_size:
        raise InputError(
            f"batch_size={config.batch_size} is more than the {len(data)} samples given: lower it."
        )
    if config.batch_size % (world * config.accumulate):
        raise InputError(
            f"batch_size={config.batch_size} does not divide over {world} processes x "
            f"accumulate={config.accumulate}: choose a multiple of {world * config.accumulate}."
        )
    if config.select is not None and validate is None:
        raise InputError(f"select={config.select!r} needs validate, which returns that metric.")


def _better(metrics: dict[str, float], best: dict[str, Any] | None, config: TrainConfig) -> bool:
    if config.select is None:
        return False
    if config.select not in metrics:
        raise InputError(
            f"select={config.select!r} is not among the metrics that validate returned: use one of "
            f"{', '.join(metrics)}."
        )
    if best is None:
        return True
    new, old = metrics[config.select], best[config.select]
    return new < old if config.select_lowest else new > old


def _diverged(what: str, step: int, config: TrainConfig, checkpoint: Checkpoint) -> str:
    kept = f"; {checkpoint.path} holds the last good step" if checkpoint.exists() else ""
    return f"{what} at step {step}{kept}: lower lr={config.lr}, or add warm-up or clipping."


@contextmanager
def _hold_interrupts() -> Iterator[list[int]]:
    """Note the first Ctrl-C instead of raising inside a half-done step; a second one raises at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield seen  # only the main thread can receive a signal
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
