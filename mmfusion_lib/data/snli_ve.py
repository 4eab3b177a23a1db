"""SNLI-VE: does a photograph entail, contradict or leave open a sentence? (Xie et al., 2018, 2019)

Expected in one folder, as published::

    snli_ve_train.jsonl  snli_ve_dev.jsonl  snli_ve_test.jsonl     one JSON object a line
    flickr30k_images/<id>.jpg                                      Flickr30k

The text is the hypothesis, ``sentence2``. The premise is the picture. ``sentence1`` is the caption
that the picture replaces: it gives the premise away as text, and nothing here reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .packs import SPLITS
from .pairs import Pairs
from .paper_sets import LeftOut, Published, check_split, find

CLASSES = ("entailment", "neutral", "contradiction")
IMAGES = "flickr30k_images"
LAYOUT = f"snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl and {IMAGES}/<id>.jpg"
_FILES = {"train": "train", "validation": "dev", "test": "test"}
_IDS = ("Flickr30K_ID", "Flikr30kID")  # the older files have the second spelling

_README = "README of necla-ml/SNLI-VE"
PUBLISHED: Published = {
    f"{split} {what}": (number, _README)
    for split, numbers in (
        ("train", (29_783, 176_932, 176_045, 176_550)),
        ("validation", (1_000, 5_959, 5_960, 5_939)),
        ("test", (1_000, 5_973, 5_964, 5_964)),
    )
    for what, number in zip(("images", *CLASSES), numbers)
}


def load(split: str, *, root: str | Path | None = None) -> Pairs:
    """Read one split; a picture with several hypotheses is stored once.

    Pairs of Visual Genome, pairs without a majority label (``-``) and pairs without a hypothesis are
    left out; a warning counts them.

    Args:
        split: train, validation (the published ``dev``) or test.
        root: the set's folder; by default ``<MMFUSION_DATA>/snli_ve``.

    Returns:
        Pairs with labels (N,) into `CLASSES`; groups are image ids.

    Raises:
        InputError: the set is absent; a broken line, an unknown label, a missing field or picture,
            or a pair that occurs twice, by file and line.
    """
    pairs, left_out = _read(split, root)
    left_out.warn(f"snli_ve {split}")
    return pairs


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`, and what is left out."""
    found = {}
    for split in SPLITS:
        pairs, left_out = _read(split, root)
        found[f"{split} images"] = len(pairs.images)
        counts = torch.bincount(pairs.labels, minlength=len(CLASSES)).tolist()
        found |= {f"{split} {label}": n for label, n in zip(CLASSES, counts)}
        found |= {f"{split} left out: {reason}": n for reason, n in left_out.counts.items()}
    return found


def _read(split: str, root: str | Path | None) -> tuple[Pairs, LeftOut]:
    check_split("snli_ve", split)
    root = find("snli_ve", root, LAYOUT)
    path = root / f"snli_ve_{_FILES[split]}.jsonl"
    if not path.is_file():
        raise InputError(f"{path} does not exist: snli_ve needs {LAYOUT}.")
    images: dict[str, int] = {}  # image id -> row
    seen: dict[str, int] = {}  # pair id -> line
    rows, texts, labels, left_out = [], [], [], LeftOut()
    with open(path, "rb") as file:  # hundreds of MB: a line at a time
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            pair = _record(line, where)
            name = pair["pairID"]
            if name in seen:
                raise InputError(
                    f"{where}: the pairID {name!r} is already used in line {seen[name]}: leave one "
                    "of the two out."
                )
            seen[name] = number
            image = _image_id(pair, where)
            if any("vg_" in str(value) for value in (name, pair.get("captionID"), image)):
                left_out.add("pairs of Visual Genome", where)
            elif pair["gold_label"] == "-":
                left_out.add("pairs without a majority label", where)
            elif not pair["sentence2"].strip():
                left_out.add("pairs without a hypothesis", where)
            else:
                if pair["gold_label"] not in CLASSES:
                    raise InputError(
                        f"{where}: the gold_label {pair['gold_label']!r} is unknown: it must be "
                        f"one of {', '.join(CLASSES)}, or '-'."
                    )
                if image not in images:
                    _check_image(root, image, where)
                rows.append(images.setdefault(image, len(images)))
                texts.append(pair["sentence2"].strip())
                labels.append(CLASSES.index(pair["gold_label"]))
    if not rows:
        raise InputError(f"{path} holds no pair that can be used: fetch the file again.")
    names = list(images)
    return Pairs(
        [str(root / IMAGES / f"{name}.jpg") for name in names],
        torch.tensor(rows),
        texts,
        torch.tensor(labels),
        [names[row] for row in rows],
        CLASSES,
    ), left_out


def _record(line: bytes, where: str) -> dict[str, Any]:
    """One line as an object that has the text fields needed."""
    try:
        record = json.loads(line)
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(
            f"{where} is not valid JSON ({getattr(error, 'msg', error)}): repair or delete it."
        ) from error
    for field in ("pairID", "gold_label", "sentence2"):
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise InputError(f"{where} has no text field {field!r}: repair or delete the line.")
    return record


def _image_id(pair: dict[str, Any], where: str) -> str:
    """The picture's id without an ending, under either spelling of the field."""
    for field in _IDS:
        if pair.get(field):
            return str(pair[field]).removesuffix(".jpg")
    raise InputError(f"{where} has neither {' nor '.join(_IDS)}: repair or delete the line.")


def _check_image(root: Path, image: str, where: str) -> None:
    path = root / IMAGES / f"{image}.jpg"
    if not path.is_file():
        raise InputError(f"{where}: the picture {path} does not exist: complete {IMAGES}.")
