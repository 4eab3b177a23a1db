"""COCO captions in Karpathy's division (Lin et al., 2014; Karpathy and Fei-Fei, 2015).

Expected in the tree of :mod:`mmfusion_lib.data.prismer_sets`::

    coco_karpathy_train.json        [{"image": ..., "caption": text}, ...], a row a caption
    coco_karpathy_test.json         [{"image": ...}, ...], a row a picture
    coco_karpathy_test_gt.json      COCO's form: images and annotations
    coco_karpathy_val.json, coco_karpathy_val_gt.json              optional, as those of test
    vqav2/{train2014,val2014}/COCO_<part>_<id>.jpg                 the pictures

Prismer trains on train and chooses on **test**; a choice of ours is made on validation.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .json_lists import field, read_list
from .packs import SPLITS
from .paper_sets import LeftOut, Published, check_split
from .prismer_sets import (
    Pictures,
    as_dataset,
    find_list,
    find_tree,
    references,
    write_results,
)

if TYPE_CHECKING:
    import datasets

FOLDER = "vqav2"
LAYOUT = (
    "coco_karpathy_train.json, coco_karpathy_test.json, coco_karpathy_test_gt.json and "
    "vqav2/{train2014,val2014}/COCO_<part>_<id>.jpg"
)
_NAMES = {"train": "train", "validation": "val", "test": "test"}

_CATALOGUE = "TensorFlow Datasets catalogue, `coco_captions`"
PUBLISHED: Published = {
    "train images": (113_287, f"{_CATALOGUE}: train and restval"),
    "validation images": (5_000, _CATALOGUE),
    "test images": (5_000, _CATALOGUE),
}


def load(split: str, root: str | Path | None = None) -> datasets.Dataset:
    """Read one split.

    Args:
        split: train (a row a caption), validation or test (a row a picture).
        root: of the tree; by default ``MMFUSION_DATA``.

    Returns:
        Columns id, image (decodes to PIL), maps, group (the picture's number) and captions: one
        in train, all references else. In validation and test the id is the picture's number. Rows
        of train without a caption are left out; a warning counts them.

    Raises:
        InputError: a missing file, picture or field, a picture listed twice, or references that
            are not those of the list, by file and row.
    """
    import datasets

    columns, left_out = _read(split, root)
    left_out.warn(f"coco {split}")
    captions = {"captions": datasets.List(datasets.Value("string"))}
    return as_dataset("coco", split, find_tree("coco", root, LAYOUT), columns, captions)


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`, captions, and what is left out."""
    tree, found = find_tree("coco", root, LAYOUT), {}
    for split in SPLITS:
        if split == "validation" and not _has_validation(tree):
            continue  # optional
        columns, left_out = _read(split, root)
        found[f"{split} images"] = len(set(columns["group"]))
        found[f"{split} captions"] = sum(map(len, columns["captions"]))
        found |= {f"{split} left out: {reason}": n for reason, n in left_out.counts.items()}
    return found


def write_captions(path: str | Path, data: datasets.Dataset, captions: list[str]) -> Path:
    """Write captions of a test or validation part as COCO's server and tools take them.

    Raises:
        InputError: another number of captions than rows, or an empty one.
    """
    return write_results(path, data["id"][:], captions, "image_id caption")


def image_id(image: str, where: str = "The list") -> int:
    """The number in a picture's name: ``val2014/COCO_val2014_000000391895.jpg`` -> 391895.

    Raises:
        InputError: the name has none.
    """
    match = re.search(r"_(\d+)\.\w+$", image)
    if not match:
        raise InputError(
            f"{where}: the picture {image!r} has no number as COCO_val2014_000000000042.jpg has: "
            "correct the name."
        )
    return int(match.group(1))


def _has_validation(tree: Path) -> bool:
    return any((place / "coco_karpathy_val.json").is_file() for place in (tree, tree / "coco"))


def _read(split: str, root: str | Path | None) -> tuple[dict[str, list], LeftOut]:
    check_split("coco", split)
    tree = find_tree("coco", root, LAYOUT)
    stem = f"coco_karpathy_{_NAMES[split]}"
    path = find_list("coco", tree, f"{stem}.json", LAYOUT)
    pictures, left_out = Pictures(tree, FOLDER), LeftOut()
    columns: dict[str, list] = {name: [] for name in ("id", "maps", "group", "captions")}
    truth: dict[int, list[str]] = {}
    if split != "train":
        truth_path = find_list("coco", tree, f"{stem}_gt.json", LAYOUT)
        truth, _ = references(truth_path)
    seen: Counter[int] = Counter()
    for row, record in read_list(path):
        where = f"{path}, row {row}"
        image = field(record, "image", where)
        number = image_id(image, where)
        if split == "train":
            caption = field(record, "caption", where)
            if not caption:
                left_out.add("rows without a caption", where)
                continue
            captions, name = [caption], f"{number}#{seen[number]}"
        else:
            if seen[number]:
                raise InputError(f"{where}: the picture {image!r} is listed twice: delete one row.")
            if not truth.get(number):
                raise InputError(
                    f"{where}: the picture {image!r} has no references in {truth_path}: fetch the "
                    "two files again."
                )
            captions, name = truth[number], str(number)
        columns["maps"].append(pictures.need(image, where))
        columns["id"].append(name)
        columns["group"].append(str(number))
        columns["captions"].append(captions)
        seen[number] += 1
    if not columns["id"]:
        raise InputError(f"{path} holds no row that can be used: fetch the file again.")
    for number in truth:
        if not seen[number]:
            raise InputError(
                f"{truth_path}: the picture {number} is not in {path}: fetch the two files again."
            )
    return columns, left_out
