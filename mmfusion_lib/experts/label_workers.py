"""The processes that label pictures: one worker holds the experts, a pool holds the workers.

Each label file is written whole or not at all, and what is there already is left, so a run may be
stopped at any time and started again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.images import open_image
from ..errors import InputError
from .image_files import is_whole, label_bytes
from .labels import Expert, LabelMap, read_labels, write_labels


@dataclass(frozen=True)
class Job:
    """What every process needs to know."""

    folder: Path
    labels: Path
    experts: tuple[str, ...]
    load: Callable[[str, str | None], Expert]


@dataclass(frozen=True)
class Batch:
    """What came of one batch."""

    made: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    bytes: int


class Worker:
    """The experts of one process."""

    def __init__(self, job: Job, device: str | None):
        self.job = job
        # Depth comes first: detection asks it which box lies in front.
        names = sorted(job.experts, key=lambda name: name != "depth")
        self.experts = {name: job.load(name, device) for name in names}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What made the labels, for the record beside them."""
        return {
            name: {
                "model": expert.model,
                "licence": expert.licence,
                "source": getattr(expert, "source", {}),
            }
            for name, expert in self.experts.items()
        }

    def run(self, names: Sequence[str]) -> Batch:
        """Make the labels that these pictures lack."""
        job, start, images, wrong, size = self.job, time.perf_counter(), {}, {}, 0
        for name in names:
            try:
                images[name] = open_image(job.folder / name, name)
            except InputError as error:
                wrong[name] = str(error)
        for expert in self.experts.values():
            missing = [name for name in images if not is_whole(job.labels, expert.name, name)]
            maps = self.ask(expert, missing, images) if missing else []
            for name, found in zip(missing, maps):
                if isinstance(found, LabelMap):
                    found = self.write(found, name, images[name].size)
                if found is not None:
                    wrong.setdefault(name, f"{expert.name} failed: {found}")
        done = [name for name in names if name not in wrong]
        for name in done:
            size += sum(label_bytes(job.labels, expert, name) for expert in self.experts)
        return Batch(len(done), tuple(wrong.items()), time.perf_counter() - start, size)

    def ask(self, expert: Expert, names: list[str], images: dict[str, Any]) -> list[Any]:
        """A map of each picture, or what went wrong; if a batch fails, one picture at a time."""
        more = {"depth": [self.depth(name) for name in names]} if _uses_depth(expert) else {}
        try:
            maps = expert([images[name] for name in names], **more)
            if len(maps) != len(names):
                raise InputError(f"{len(maps)} maps for {len(names)} pictures: mend the expert.")
            return list(maps)
        except Exception as error:  # experts are foreign code
            if len(names) > 1:
                return [self.ask(expert, [name], images)[0] for name in names]
            return [str(error).strip() or type(error).__name__]

    def write(self, found: LabelMap, name: str, size: tuple[int, int]) -> str | None:
        """Write one map; returns what is wrong with it. A full or closed disk ends the run."""
        try:
            write_labels(self.job.labels, found, name, size)
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return str(error)
        return None

    def depth(self, name: str) -> LabelMap | None:
        """The depth map of a picture, where it is on disk."""
        if not is_whole(self.job.labels, "depth", name):
            return None
        return read_labels(self.job.labels, "depth", name)


def _uses_depth(expert: Expert) -> bool:
    return getattr(expert, "uses_depth", False)


def gpus() -> int:
    """How many CUDA devices there are."""
    import torch

    return torch.cuda.device_count()


def run(
    job: Job, batches: Sequence[Sequence[str]], workers: int, started: Callable[[dict], None]
) -> Iterator[Batch]:
    """Work through the batches, as they come with one worker, in any order with several.

    Args:
        job: what to do.
        batches: names of pictures.
        workers: 1 works in this process; worker i of several runs on GPU i, modulo their number.
        started: is called with ``Worker.describe()`` before the first batch; it may raise.
    """
    if workers == 1:
        worker = Worker(job, None)
        started(worker.describe())
        yield from map(worker.run, batches)
        return
    import multiprocessing
    import os

    context = multiprocessing.get_context("spawn")  # a process that holds CUDA cannot be forked
    devices, count = context.SimpleQueue(), gpus()
    for number in range(workers):
        devices.put(f"cuda:{number % count}" if count else "cpu")
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, context, _start, (job, devices, threads))
    try:
        # One worker loads the experts first: what must be downloaded is downloaded once.
        started(pool.submit(_describe).result())
        yield from _as_done(pool, batches, 2 * workers)
    except BrokenProcessPool as error:
        raise InputError(
            "A process was killed, perhaps for want of memory: use fewer workers or a smaller "
            "batch and run the same again, which goes on from here."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _as_done(pool: ProcessPoolExecutor, batches: Iterable, most: int) -> Iterator[Batch]:
    """Results as they come, with no more than ``most`` batches handed out at a time."""
    waiting = set()
    for batch in batches:
        waiting.add(pool.submit(_run, batch))
        if len(waiting) >= most:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (each.result() for each in done)


_ours: list[Any] = []  # of a process of the pool: its job and device, then also its worker


def _start(job: Job, devices: Any, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    torch.set_num_threads(threads)
    _ours[:] = [job, devices.get()]


def _worker() -> Worker:
    if len(_ours) == 2:  # loaded here, so that an error reaches the parent as it is
        _ours.append(Worker(*_ours))
    return _ours[2]


def _describe() -> dict[str, dict[str, Any]]:
    return _worker().describe()


def _run(names: Sequence[str]) -> Batch:
    return _worker().run(names)
