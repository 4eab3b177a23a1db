"""Evidence: what was claimed, what we ran, and whether the two agree.

``book/results/claims.yaml`` lists every number that a page may print about either paper, and our
own claims. ``book/results/runs/*.json`` are run records. Verdicts, tables and the numbers in the
text are made from these two, never typed.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import read_json, write_json

if TYPE_CHECKING:
    from .train_config import TrainResult

PACKAGES = ("torch", "numpy", "accelerate", "datasets", "transformers", "timm", "open_clip_torch")
PROVENANCE = ("paper", "official code", "second-hand", "not available", "ours")


@dataclass(frozen=True)
class Record:
    """What ran, on what, and what came out.

    Attributes:
        results: name -> {"mean", "std", "values" (one a seed), "unit"}.
        comparisons: name -> {"difference", "low", "high"}: paired 95 % bootstrap intervals.
        curves: name -> {"x", "mean", "std", ...}, drawn by the chapters.
        trials: validation trials that every method of a comparison got.
        library: digest of the code that the recipe runs (comments and docstrings excluded).
    """

    recipe: str
    scale: str
    title: str
    seeds: list[int]
    trials: int
    settings: dict[str, Any]
    results: dict[str, dict[str, Any]]
    comparisons: dict[str, dict[str, float]]
    curves: dict[str, dict[str, Any]]
    seconds: float
    peak_bytes: int
    library: str
    date: str = field(default_factory=lambda: date.today().isoformat())
    commit: str = field(default_factory=lambda: commit())
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def text(self, name: str) -> str:
        """``0.65 ± 0.01`` for a result; ``+0.08 [0.05, 0.11]`` for a comparison."""
        if name in self.comparisons:
            c = self.comparisons[name]
            return f"{c['difference']:+.3f} [{c['low']:.3f}, {c['high']:.3f}]"
        if name not in self.results:
            raise InputError(
                f"The record {self.recipe} has no result {name!r}: it has "
                f"{', '.join([*self.results, *self.comparisons])}."
            )
        r = self.results[name]
        if r["unit"] == "parameters":
            return f"{r['mean']:,.0f}"
        if r["unit"] == "learning rate":  # chosen anew by each seed
            return ", ".join(dict.fromkeys(f"{value:g}" for value in r["values"]))
        spread = f" ± {r['std']:.3f}" if len(r["values"]) > 1 else ""
        return f"{r['mean']:.3f}{spread}"

    def caption(self) -> str:
        """One line that says where the numbers come from."""
        m = self.machine
        seeds = f"{len(self.seeds)} seeds" if self.seeds else "nothing random"
        return (
            f"Recorded at {self.scale} scale on {self.date}: {m['device']}, {m['cores']} cores, "
            f"{seeds}, {self.seconds / 60:.1f} minutes."
        )

    def save(self, folder: Path | None = None) -> Path:
        """Write the record to ``folder`` (default: the book's results) and return its path."""
        path = (folder or results_root() / "runs") / f"{self.recipe}.{self.scale}.json"
        write_json(path, asdict(self))
        return path


def results_root() -> Path:
    """``book/results`` of the checkout, or of the current folder where there is none."""
    beside = Path(__file__).resolve().parents[1] / "book" / "results"
    return beside if beside.parent.is_dir() else Path.cwd() / "book" / "results"


def load(recipe: str, scale: str = "lab", folder: Path | None = None) -> Record | None:
    """The committed record of a recipe, or None when it has not run.

    Raises:
        InputError: the file is not a record.
    """
    path = (folder or results_root() / "runs") / f"{recipe}.{scale}.json"
    if not path.exists():
        return None
    try:
        return Record(**read_json(path))
    except TypeError as error:
        raise InputError(
            f"{path} is not a run record ({error}): delete it and run again."
        ) from error


def load_all(folder: Path | None = None) -> list[Record]:
    """All committed records, by name."""
    paths = sorted((folder or results_root() / "runs").glob("*.json"))
    return [load(*path.stem.rsplit(".", 1), folder=path.parent) for path in paths]


def spread(values: Iterable[float], unit: str = "accuracy") -> dict[str, Any]:
    """Mean and sample standard deviation of one value a seed, as a record keeps them."""
    values = [float(v) for v in values]
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "values": values, "unit": unit}


COSTS = {  # of training: name in a record -> field of TrainResult, unit
    "seconds": ("seconds", "seconds"),
    "rate": ("samples_per_second", "samples per second"),
    "data-wait": ("data_wait_share", "share"),
}


def cost(result: TrainResult) -> dict[str, float]:
    """What a training run took, as a unit keeps it."""
    fields = *(field for field, _ in COSTS.values()), "peak_bytes"
    return {field: getattr(result, field) for field in fields}


def costs(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ``spread`` of each cost that the units ``runs`` hold, by ``name-seconds`` and so on."""
    return {
        f"{name}-{what}": spread([run[field] for run in runs], unit)
        for what, (field, unit) in COSTS.items()
        if field in runs[0]
    }


def machine() -> dict[str, Any]:
    """Processor or GPU, cores, memory and platform; nothing that names the machine's owner."""
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    memory = 0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of the checkout; ``+`` marks uncommitted changes of the library, ``none`` no git."""
    where = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(where), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--short", "."))
    except (OSError, subprocess.CalledProcessError):
        return "none"


# --- claims ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One number of a paper, or one statement of ours, and how it is judged.

    Attributes:
        id: unique name.  source: ``PMF``, ``Prismer`` or ``ours``.  chapter: where it is shown.
        claim: what is claimed, in words.  where: table, figure, section, or line of code.
        metric, data: what is measured, on what.
        value: the claimed number; None where it was not available to us or is a direction.
        provenance: one of ``PROVENANCE``.
        tolerance: largest accepted absolute difference from ``value``.
        least: in place of the two, a number that ours must reach; of a difference, what its interval
            must lie above (None: 0; for "no worse", minus the margin).
        recipe, result: the record and its result (or comparison) that answers the claim.
        why: reason why it is not attempted; empty when it is.
    """

    id: str
    source: str
    chapter: str
    claim: str
    where: str
    metric: str
    data: str
    provenance: str
    value: float | None = None
    tolerance: float | None = None
    least: float | None = None
    recipe: str = ""
    result: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCE:
            raise InputError(
                f"Claim {self.id!r} has provenance {self.provenance!r}: use one of "
                f"{', '.join(PROVENANCE)}."
            )
        if bool(self.recipe) == bool(self.why):
            raise InputError(f"Claim {self.id!r} needs either a recipe or a 'why', not both.")

    def verdict(self, folder: Path | None = None) -> tuple[str, str]:
        """(our number, verdict): reproduced, not reproduced, pending or not attempted."""
        if self.why:
            return "-", f"not attempted: {self.why}"
        record = load(self.recipe, folder=folder)
        if record is None:
            return "-", "pending"
        text = record.text(self.result)
        if self.result in record.comparisons:
            good = record.comparisons[self.result]["low"] > (self.least or 0)
        elif self.least is not None:
            good = record.results[self.result]["mean"] >= self.least
        else:
            good = abs(record.results[self.result]["mean"] - self.value) <= self.tolerance
        return text, "reproduced" if good else "not reproduced"


def claims(path: Path | None = None) -> list[Claim]:
    """Read the claims file.

    Raises:
        InputError: it is missing, is not YAML, or an entry has a wrong, missing or repeated field.
    """
    import yaml

    path = path or results_root() / "claims.yaml"
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: restore it from the repository.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({error}): repair it.") from error
    found: dict[str, Claim] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            claim = Claim(**entry)
        except TypeError as error:
            raise InputError(f"Entry {number} of {path} is wrong: {error}.") from error
        if claim.id in found:
            raise InputError(f"Claim id {claim.id!r} stands twice in {path}: rename one.")
        found[claim.id] = claim
    return list(found.values())


def markdown(what: str) -> str:
    """A generated Markdown table.

    Args:
        what: ``status`` (every recipe: record, age, machine), ``verdicts`` (how many claims of each
            source have which), ``claims`` (all of them), or those of a source, of a chapter, or of
            both: ``claims:PMF``, ``claims:04``, ``claims:Prismer:04``; ``grid:BEGINNING`` (claimed
            numbers whose id begins so: a row a metric, a column a model), ``commands`` (recipes
            without a record, and how to run each), ``reasons`` (why claims were not attempted).

    Raises:
        InputError: there is no such table, or no claim belongs in it.
    """
    from .record_tables import table

    return table(what)
