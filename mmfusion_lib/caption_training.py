"""How a captioner of your own pictures is trained: settings, what is held out, when it may be gone on with.

``run`` does all that ``Captioner.fit`` promises but for saving. Beside the checkpoint it writes down what
it was given, row by row, so that a training that goes on with other data can say which row is another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import prismer_training, train, trainable
from .caption_items import CaptionItems, Pictures, check_pictures
from .data import caption_table
from .data.caption_table import Row, shown
from .errors import InputError
from .files import read_json, sha256, write_json
from .prismer import Prismer, load_prismer

KIND = "Captioner"
GIVEN = "given.json"  # beside the checkpoint: settings and rows
HELD_OUT = 0.1  # share of the pictures
FEWEST = 20  # pictures of which some are held out
BATCH = 16  # pictures that are read at once where nothing is learnt


@dataclass(frozen=True)
class CaptionerConfig:
    """What is learnt, and how. The values are chosen by us.

    Attributes:
        task: "caption" or "answer".
        experts: names of label maps beside the picture; () is PrismerZ.
        epochs, batch_size, lr: as in :class:`mmfusion_lib.train.TrainConfig`. A batch is never larger
            than the training part.
        seed: of the new weights, the split and the order of training.

    Raises:
        InputError: a field that makes no training.
    """

    task: str = "caption"
    experts: tuple[str, ...] = ()
    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        caption_table.check_task(self.task)
        if isinstance(self.experts, str):
            raise InputError(f"experts={self.experts!r} is one string: give a list of names.")
        object.__setattr__(self, "experts", tuple(self.experts))
        self.training(self.batch_size, False)

    def training(self, count: int, select: bool) -> train.TrainConfig:
        """Of the training on ``count`` items; the best epoch is kept where some are held out."""
        return train.TrainConfig(
            self.epochs, min(self.batch_size, count), self.lr, weight_decay=0.05, warmup=0.1,
            seed=self.seed, select="loss" if select else None, select_lowest=True,
        )  # fmt: skip


@dataclass(frozen=True)
class FitReport:
    """What a training did; printed by the command line.

    Attributes:
        out: the file that was written.
        counts: rows of training, held-out rows.
        pictures: different ones, in both parts.
        loss: of the held-out rows in the epoch that was kept; None without such rows.
        blind: the same where each of them sees another picture: no higher than ``loss`` means that the
            pictures are not looked at.
        epoch: the one that was kept, from 1.
        waiting: share of the training time in which pictures were opened.
    """

    out: Path
    counts: tuple[int, int]
    pictures: int
    loss: float | None
    blind: float | None
    epoch: int
    waiting: float

    def __str__(self) -> str:
        held_out = "none held out: fewer than 20 pictures, nothing is known about new ones"
        if self.loss is not None:
            held_out = f"loss {self.loss:.3f} a text after epoch {self.epoch}"
        if self.blind is not None:
            held_out += f"; with the pictures swapped {self.blind:.3f}"
        return (
            f"rows        {self.counts[0]} train, {self.counts[1]} held out, of {self.pictures} "
            f"pictures\nheld out    {held_out}\n"
            f"opening     {self.waiting:.0%} of the time went into opening pictures\n"
            f"saved       {self.out}"
        )


class Trained(NamedTuple):
    """A trained model, and what it takes to write as its texts are written."""

    model: Prismer
    answers: tuple[str, ...]
    lengths: tuple[int, int]  # tokens of the shortest and the longest text, end mark included
    report: FitReport


def run(
    data: str | Path,
    out: Path,
    config: CaptionerConfig,
    start: str | Path | None = None,
    labels: str | Path | None = None,
    resume: bool = True,
) -> Trained:
    """Read and check the table and every picture, then train or go on; see ``Captioner.fit``."""
    folder = out.with_name(f"{out.stem}-training")
    root, rows = caption_table.read_rows(data, config.task)
    model = build(config)
    if start is not None:
        _start_from(model, config, start)
    if config.experts and labels is None:
        if not resume:  # pictures may be others now
            shutil.rmtree(folder / "labels", ignore_errors=True)
        labels = _make_labels(root, folder / "labels", config.experts)
    pictures = Pictures(model, root, labels)
    looks = check_pictures(pictures, rows)
    settings = {**asdict(config), "start": None if start is None else sha256(start)[:16]}
    _same(folder, settings, rows, looks, resume)

    first, second = split(rows, config.seed)
    items = CaptionItems(first, pictures, model, looks)
    held_out = CaptionItems(second, pictures, model, looks) if second else None
    validate: Callable[[Prismer], dict[str, float]] | None = None
    if held_out is not None:

        def validate(model: Prismer) -> dict[str, float]:
            return {"loss": _mean_loss(model, held_out)}

    result = train.fit(
        model, items, prismer_training.objective, config.training(len(items), bool(second)),
        validate=validate, folder=folder, collate=items.collate, resume=resume,
    )  # fmt: skip
    swapped = held_out.swapped() if held_out else None
    report = FitReport(
        out,
        (len(first), len(second)),
        len(looks),
        loss=result.best["loss"] if result.best else None,
        blind=_mean_loss(model, swapped) if swapped else None,
        epoch=result.best["epoch"] if result.best else config.epochs,
        waiting=result.data_wait_share,
    )
    answers = tuple(sorted({row.text for row in rows})) if config.task == "answer" else ()
    return Trained(model, answers, items.lengths, report)


def build(config: CaptionerConfig) -> Prismer:
    """Prismer ``small`` before training: blocks and word table stay as they were pretrained.

    Adaptors start near zero, as the paper says: fresh ones would blur what the encoders know.
    """
    model = load_prismer("small", seed=config.seed, experts=config.experts, adaptor_near_zero=True)
    trainable.freeze(model.decoder.words)
    return model


def metadata(path: str | Path) -> dict[str, Any]:
    """What a file of ``Captioner.save`` says about itself.

    Raises:
        InputError: missing file, or another kind of file.
    """
    try:
        found = trainable.read_trainable(path)[1]["config"]
    except InputError as error:
        if not Path(path).exists():
            raise
        raise InputError(f"{path} is no captioner: give a file that `tune` has saved.") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InputError(f"{path} is no captioner: give a file that `tune` has saved.")
    return found


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows held out, none of which shares its picture with the first."""
    names = sorted({row.image for row in rows})
    count = round(HELD_OUT * len(names)) if len(names) >= FEWEST else 0
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {names[i] for i in order[:count]}
    return (
        [row for row in rows if row.image not in held_out],
        [row for row in rows if row.image in held_out],
    )


def _start_from(model: Prismer, config: CaptionerConfig, start: str | Path) -> None:
    """Fill a new model with what another training has learnt."""
    theirs = tuple(metadata(start).get("config", {}).get("experts", ()))
    if theirs != config.experts:
        raise InputError(
            f"{start} reads the experts ({', '.join(theirs)}), this training "
            f"({', '.join(config.experts)}): name the same ones, in the same order."
        )
    trainable.load_trainable(model, start)


def _make_labels(root: Path, to: Path, experts: Sequence[str]) -> Path:
    """Label files of all pictures by the packaged experts; those that are there are kept."""
    from .experts.make_labels import make_labels

    make_labels(root, to, experts)
    return to


def _same(
    folder: Path,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    looks: Mapping[str, str],
    resume: bool,
) -> None:
    """Write down what this training is given; if it goes on with another, say what differs.

    Raises:
        InputError: a setting, row or picture is not as it was.
    """
    path = folder / GIVEN
    now = {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "rows": [[row.image, row.question, row.text, looks[row.image]] for row in rows],
    }
    if not (resume and path.exists() and (folder / "checkpoint.safetensors").exists()):
        write_json(path, now)
        return
    before = read_json(path)
    what = _difference(before, now, rows)
    if what:
        raise InputError(
            f"{shown(str(folder))} holds a training that was begun with {what}: restore that, give "
            "another file to write, or start afresh with resume=False (--no-resume)."
        )


def _difference(before: Any, now: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What was another when the training began: a setting, or the first row; "" for nothing."""
    for name, value in now["settings"].items():
        if before["settings"].get(name) != value:
            return f"{name}={before['settings'].get(name)!r}, not {value!r}"
    for row, old, new in zip(rows, before["rows"], now["rows"]):
        for part, was, found in zip(("picture", "question", "text"), old, new):
            if was != found:
                return f"another {part} at {row.where}, {was!r}"
        if old[3] != new[3]:
            return f"other pixels or labels of {shown(row.image)} ({row.where})"
    if len(before["rows"]) != len(rows):
        return f"{len(before['rows'])} rows, not {len(rows)}"
    return ""


def _mean_loss(model: Prismer, items: CaptionItems) -> float:
    return prismer_training.mean_loss(model, items, BATCH, items.collate)
