"""Recipes: experiments with a name, cut into units that can be interrupted and resumed.

A recipe is three functions over plain JSON values: which units there are, how to run one, and how
to sum them up. Each unit is written to the cache as soon as it is done, under a digest of its
settings and of the code it runs; a second call does only what is missing.

Separate processes that run the same recipe share its units. The processes of one ``accelerate launch``
are together at one unit, of which they share each step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from . import settings
from .code_digest import library_digest
from .errors import InputError
from .files import digest, read_json, write_json
from .records import Record, load

Settings = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """An experiment.

    Attributes:
        name: for the command line.  title: what it measures.  chapter: where it is shown.
        scales: settings by scale; each holds at least ``seeds``.
        minutes: expected minutes on two CPU cores, by scale.
        units: settings -> names of the units.
        run_unit: (settings, unit) -> JSON-like result of that unit.
        summarise: (settings, {unit: result}) -> ``results``, ``comparisons``, ``curves``.
        trials: validation trials of every method compared.
    """

    name: str
    title: str
    chapter: str
    scales: dict[str, Settings]
    minutes: dict[str, float]
    units: Callable[[Settings], list[str]]
    run_unit: Callable[[Settings, str], Any]
    summarise: Callable[[Settings, dict[str, Any]], dict[str, Any]]
    trials: int = 1


def run(
    recipe: Recipe | str, scale: str | None = None, *, publish: bool = False, **changes: Any
) -> Record:
    """Run what is missing of a recipe and return its record.

    Args:
        recipe: a recipe or its name.
        scale: as in :func:`mmfusion_lib.settings.scale`.
        publish: also write the record to ``book/results/runs``.
        changes: settings to replace, for instance ``seeds=[0]``; inside ``train``, ``{"train.lr": 1e-4}``.

    Raises:
        InputError: unknown recipe, scale or setting; or whatever a unit finds wrong.
    """
    recipe = get(recipe) if isinstance(recipe, str) else recipe
    settings.device()  # a device that is asked for and absent is found out now, not in minutes
    scale = settings.scale(scale)
    if scale not in recipe.scales:
        raise InputError(
            f"Recipe {recipe.name!r} has no scale {scale!r}: it has {', '.join(recipe.scales)}."
        )
    chosen = changed(recipe, scale, changes)
    library = code_digest(recipe)
    folder = unit_folder(recipe, scale, chosen)
    names = recipe.units(chosen)
    done: dict[str, Any] = dict.fromkeys(names)  # in this order
    quiet = len(names) < 2 or not is_first()
    with tqdm(total=len(names), desc=recipe.name, unit="unit", disable=quiet) as bar:
        for wait in (False, True):  # what another process is at comes last
            for name in [name for name, unit in done.items() if unit is None]:
                work = _unit if _processes() == 1 else _unit_together
                done[name] = work(recipe, chosen, name, folder, wait)
                bar.update(done[name] is not None)
    summary = recipe.summarise(chosen, {name: unit["result"] for name, unit in done.items()})
    record = Record(
        recipe=recipe.name,
        scale=scale,
        title=recipe.title,
        seeds=list(chosen["seeds"]),
        trials=recipe.trials,
        settings=chosen,
        results=summary.get("results", {}),
        comparisons=summary.get("comparisons", {}),
        curves=summary.get("curves", {}),
        seconds=sum(unit["seconds"] for unit in done.values()),
        peak_bytes=max(unit["peak_bytes"] for unit in done.values()),
        library=library,
    )
    if publish and is_first():
        record.save()
    return record


def changed(recipe: Recipe, scale: str, changes: dict[str, Any]) -> Settings:
    """The settings of a scale with some of them replaced.

    Raises:
        InputError: the recipe has no such setting.
    """
    from .train_config import TrainConfig

    chosen = dict(recipe.scales[scale])
    known = list(chosen)
    if "train" in chosen:
        known += [f"train.{field.name}" for field in fields(TrainConfig)]
    for key, value in changes.items():
        if key not in known:
            raise InputError(
                f"Recipe {recipe.name!r} has no setting {key!r}: it has {', '.join(known)}."
            )
        part, _, field = key.partition(".")
        chosen[part] = {**chosen[part], field: value} if field else value
    return chosen


def is_first() -> bool:
    """Whether this process speaks and writes for those that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _unit(
    recipe: Recipe, chosen: Settings, name: str, folder: Path, wait: bool
) -> dict[str, Any] | None:
    """Result and cost of one unit; None where another process is at it, unless that is waited for."""
    path = folder / f"{name}.json"
    if not path.exists():
        with _hold(folder, name, wait) as held:
            if not held:
                return None
            if not path.exists():
                write_json(path, _work(recipe, chosen, name))
    return read_json(path)


def _unit_together(
    recipe: Recipe, chosen: Settings, name: str, folder: Path, wait: bool
) -> dict[str, Any] | None:
    """The same, where ``accelerate launch`` started several processes: the first reads and writes."""
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    Accelerator(mixed_precision="no")  # as in ``train.fit``; from here the processes can talk
    path, found = folder / f"{name}.json", [None, True]
    with _hold(folder, name, wait) if is_first() else nullcontext(True) as held:
        if is_first():
            found = [read_json(path) if path.exists() else None, held]
        unit, held = broadcast_object_list(found)
        if unit is None and held:
            unit = _work(recipe, chosen, name)
            if is_first():
                write_json(path, unit)
            [unit] = broadcast_object_list([unit])
    return unit


def _work(recipe: Recipe, chosen: Settings, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    result = recipe.run_unit(chosen, name)
    return {
        "result": result,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes(),
    }


@contextmanager
def _hold(folder: Path, name: str, wait: bool) -> Iterator[bool]:
    """Hold the lock of a unit; False where another process has it, unless that is waited for."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): set MMFUSION_CACHE to a folder you "
            "can write to."
        ) from error
    try:
        yield lock.is_locked
    finally:
        lock.release()


def lab(minutes: float, on_start: Callable[[Recipe], None] = lambda recipe: None) -> list[Record]:
    """Run lab recipes whose record is missing or from other code, most valuable first.

    No recipe is started that is expected to end after ``minutes``; records are published.
    """
    end = time.monotonic() + 60 * minutes
    made = []
    for recipe in pending():
        if time.monotonic() + 60 * recipe.minutes["lab"] > end:
            continue
        on_start(recipe)
        made.append(run(recipe, "lab", publish=True))
    return made


def pending() -> list[Recipe]:
    """Recipes without a current lab record, in order of value."""
    from .recipes import ALL

    found = []
    for recipe in ALL:
        record = load(recipe.name)
        if "lab" in recipe.scales and (record is None or record.library != code_digest(recipe)):
            found.append(recipe)
    return found


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none.
    """
    from .recipes import ALL

    for recipe in ALL:
        if recipe.name == name:
            return recipe
    raise InputError(f"Unknown recipe {name!r}: use one of {', '.join(r.name for r in ALL)}.")


def unit_folder(recipe: Recipe, scale: str, chosen: Settings) -> Path:
    """Where the finished units of these settings lie."""
    key = digest(chosen, code_digest(recipe))
    return settings.cache_root() / "runs" / recipe.name / scale / key


def peak_bytes() -> int:
    """Peak memory of this process so far: of the GPU where one is used, else resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows keeps no such record
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def code_digest(recipe: Recipe) -> str:
    """Digest of the library code that decides a recipe's numbers: see ``code_digest.py``."""
    modules = {part.__module__ for part in (recipe.units, recipe.run_unit, recipe.summarise)}
    return library_digest(sorted(modules), Path(__file__).resolve().parent)
