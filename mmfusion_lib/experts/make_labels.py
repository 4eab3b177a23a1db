"""Labels for a folder of pictures: ``python -m mmfusion_lib experts FOLDER --experts ... --to LABELS``.

Batches of pictures go to one process a GPU, or to as many as are asked for. Each label file appears
whole or not at all, so a run that was stopped goes on where it was; a picture that cannot be read
is reported and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, write_json
from .image_files import RECORD, check_places, find_images, is_whole
from .label_workers import Batch, Job, gpus, run
from .labels import Expert, read_labels

SOURCES = ("packaged", "hub")
PRETRAINING_IMAGES = 11_000_000  # pictures of Prismer's 12.7M pre-training pairs (section 4)


def load_expert(name: str, device: str | None = None, source: str = "packaged") -> Expert:
    """An expert with its weights.

    Args:
        name: as in ``labels.EXPERTS``, or one of the packaged ones.
        device: "cpu", "cuda:0", ...; None: the best there is.
        source: "packaged": no hub is needed; "hub": the paper's, words by the packaged reader.

    Raises:
        InputError: unknown source or name, or weights or a package that cannot be had.
    """
    if source not in SOURCES:
        raise InputError(f"Unknown source {source!r} of experts: use {' or '.join(SOURCES)}.")
    if source == "packaged" or name == "ocr_detection":
        from .packaged import packaged

        return packaged(name, device)
    from ..settings import device as best
    from .hub_experts import load_hub_expert

    return load_hub_expert(name, device or str(best()))


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        made: pictures that got all their labels in this run.
        already: pictures that had them.
        skipped: (picture, reason) of those that went wrong, sorted.
        rate: pictures per second over all processes; loading the experts is not counted.
        bytes_per_image: on disk, all experts together, mean over ``made``.
    """

    made: int
    already: int
    skipped: tuple[tuple[str, str], ...]
    rate: float
    bytes_per_image: float

    @property
    def status(self) -> int:
        """Exit status: 1 where no picture has its labels, else 0, also when some were skipped."""
        return int(self.made + self.already == 0)

    def __str__(self) -> str:
        lines = [f"{self.made} pictures labelled, {self.already} had their labels already."]
        if self.made:
            cost = predict_cost(self.rate, PRETRAINING_IMAGES, self.bytes_per_image)
            lines.append(
                f"{self.rate:.2f} images/s, {self.bytes_per_image / 1000:.1f} kB each; at this "
                f"rate the {PRETRAINING_IMAGES / 1e6:.0f}M images of the pre-training mix take "
                f"{cost.hours:,.0f} hours and {cost.gigabytes:,.0f} GB."
            )
        if self.skipped:
            lines.append(f"warning: {len(self.skipped)} pictures were left out:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)


@dataclass(frozen=True)
class Cost:
    """Of labelling many pictures: hours of the machine that was measured, and disk."""

    hours: float
    gigabytes: float


def predict_cost(rate: float, images: int, bytes_per_image: float) -> Cost:
    """Hours and disk for ``images`` pictures, from a measured rate (images/s) and size.

    Raises:
        InputError: the rate is not above 0.
    """
    if not rate > 0:
        raise InputError(f"rate={rate} must be above 0: measure it on some pictures first.")
    return Cost(images / rate / 3600, images * bytes_per_image / 1e9)


def make_labels(
    folder: str | Path,
    labels: str | Path,
    experts: Sequence[str],
    *,
    batch: int = 8,
    workers: int | None = None,
    load: Callable[[str, str | None], Expert] = load_expert,
    sheets: int = 0,
) -> Summary:
    """Label every picture below a folder; whatever is labelled already is left as it is.

    Args:
        folder: pictures, at any depth; nothing is written over them.
        labels: where label files go, laid out as ``labels.label_path`` says, and ``experts.json``.
        experts: names.
        batch: pictures that an expert gets at once.
        workers: processes; None: one a GPU, or one.
        load: name, device -> expert; for several processes a function that can be pickled.
        sheets: of so many pictures, the first by name, a sheet is drawn into ``labels/sheets``.

    Raises:
        InputError: no pictures, two that would share a label file, labels that would fall on
            pictures, labels there made by another model, or a disk that cannot be written to.
    """
    for name, value in (("batch", batch), ("workers", 1 if workers is None else workers)):
        if value < 1:
            raise InputError(f"{name}={value} must be 1 or more.")
    check_places(folder, labels, experts)
    names = find_images(folder, labels)
    job = Job(Path(folder), Path(labels), tuple(dict.fromkeys(experts)), load)
    todo = [name for name in names if not all(is_whole(labels, e, name) for e in job.experts)]
    batches = [todo[start : start + batch] for start in range(0, len(todo), batch)]
    processes = min(workers or gpus() or 1, max(1, len(batches)))
    results = list(_shown(job, batches, processes, len(names))) if todo else []
    _draw_sheets(job, names[:sheets])
    made, seconds = sum(each.made for each in results), sum(each.seconds for each in results)
    return Summary(
        made=made,
        already=len(names) - len(todo),
        skipped=tuple(sorted(pair for each in results for pair in each.skipped)),
        rate=made * processes / seconds if seconds else 0.0,
        bytes_per_image=sum(each.bytes for each in results) / max(1, made),
    )


def _shown(
    job: Job, batches: Sequence[Sequence[str]], workers: int, images: int
) -> Iterator[Batch]:
    """Run the batches under a progress bar over all pictures."""
    from tqdm.auto import tqdm

    todo = sum(len(batch) for batch in batches)
    with tqdm(total=images, initial=images - todo, unit="images") as bar:
        for result in run(job, batches, workers, lambda found: _record(job.labels, found)):
            bar.update(result.made + len(result.skipped))
            for name, reason in result.skipped:
                bar.write(f"left out {name}: {reason}")
            yield result


def _record(labels: Path, found: dict[str, dict[str, Any]]) -> None:
    """Write down what makes the labels; refuse to mix the labels of two models.

    Raises:
        InputError: labels of the same expert are there and another model, or other weights, made
            them.
    """
    path = labels / RECORD
    there = read_json(path) if path.exists() else {}
    for name, now in found.items():
        if there.get(name, now) != now:
            raise InputError(
                f"{path} says that {there[name]['model']} made the labels of {name} there, and not "
                f"{now['model']} with the weights at hand: give another folder."
            )
    if any(name not in there for name in found):
        write_json(path, {**there, **found})


def _draw_sheets(job: Job, names: Sequence[str]) -> None:
    """A sheet for each of these pictures that has all its labels."""
    from ..data.images import open_image
    from .sheet import save, sheet

    for name in names:
        if all(is_whole(job.labels, expert, name) for expert in job.experts):
            maps = {expert: read_labels(job.labels, expert, name) for expert in job.experts}
            figure = sheet(open_image(job.folder / name, name), maps)
            save(figure, (job.labels / "sheets" / name).with_suffix(".png"))
