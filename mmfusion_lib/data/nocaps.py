"""NoCaps: captions of objects that COCO's never name (Agrawal et al., 2019). Validation only.

Expected in the tree of :mod:`mmfusion_lib.data.prismer_sets`::

    nocaps_val.json                    [{"image": ..., "img_id": 0}, ...]
    nocaps/                            the pictures
    nocaps_val_4500_captions.json      optional, from nocaps.org: references and domains

Prismer trains on COCO for it. The official code writes a file for the server and computes no score;
with the third file, scores can be had here, for each domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .json_lists import field, read_list
from .paper_sets import Published
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

FOLDER = "nocaps"
LAYOUT = "nocaps_val.json and the pictures in nocaps/"
TRUTH = "nocaps_val_4500_captions.json"

PUBLISHED: Published = {
    "validation images": (4_500, "card of `lmms-lab/NoCaps` on the Hugging Face hub")
}


def load(split: str, root: str | Path | None = None) -> datasets.Dataset:
    """Read the validation part.

    Args:
        split: validation.
        root: of the tree; by default ``MMFUSION_DATA``.

    Returns:
        Columns id (the picture's number), image (decodes to PIL), maps, group (the same number),
        captions (the references) and domain; without the references' file, captions is empty and
        domain is an empty text.

    Raises:
        InputError: another split, a missing file, picture or field, a number used twice, or a
            picture without references, by file and row.
    """
    import datasets

    if split != "validation":
        raise InputError(
            f"nocaps has no split {split!r} here: use validation; training is on coco's train."
        )
    columns = _read(root)
    text = datasets.Value("string")
    features = {"captions": datasets.List(text), "domain": text}
    return as_dataset("nocaps", split, find_tree("nocaps", root, LAYOUT), columns, features)


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`, references, and pictures by domain."""
    columns = _read(root)
    found = {
        "validation images": len(columns["id"]),
        "validation references": sum(map(len, columns["captions"])),
    }
    for domain in sorted(set(columns["domain"]) - {""}):
        found[f"validation images, {domain}"] = columns["domain"].count(domain)
    return found


def write_captions(path: str | Path, data: datasets.Dataset, captions: list[str]) -> Path:
    """Write captions as the server of NoCaps takes them.

    Raises:
        InputError: another number of captions than rows, or an empty one.
    """
    return write_results(path, data["id"][:], captions, "image_id caption")


def _read(root: str | Path | None) -> dict[str, list]:
    tree = find_tree("nocaps", root, LAYOUT)
    path = find_list("nocaps", tree, "nocaps_val.json", LAYOUT)
    truth_path = next((p for p in (tree / TRUTH, tree / FOLDER / TRUTH) if p.is_file()), None)
    truth, images = references(truth_path) if truth_path else ({}, [])
    domains = {image["id"]: str(image.get("domain", "")) for image in images}
    pictures = Pictures(tree, FOLDER)
    columns: dict[str, list] = {name: [] for name in ("id", "maps", "group", "captions", "domain")}
    seen: dict[int, int] = {}
    for row, record in read_list(path):
        where = f"{path}, row {row}"
        number = field(record, "img_id", where, int)
        if number in seen:
            raise InputError(
                f"{where}: the img_id {number} is already used in row {seen[number]}: leave one of "
                "the two out."
            )
        seen[number] = row
        if truth_path and not truth.get(number):
            raise InputError(
                f"{where}: the img_id {number} has no references in {truth_path}: fetch the two "
                "files again."
            )
        columns["maps"].append(pictures.need(field(record, "image", where), where))
        columns["id"].append(str(number))
        columns["group"].append(str(number))
        columns["captions"].append(truth.get(number, []))
        columns["domain"].append(domains.get(number, ""))
    if not seen:
        raise InputError(f"{path} holds no row: fetch the file again.")
    return columns
