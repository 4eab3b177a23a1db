"""The captions that Prismer is pre-trained on, beside COCO's: Visual Genome, CC3M + SBU and CC12M.

Expected in the tree of :mod:`mmfusion_lib.data.prismer_sets`::

    vg_caption.json                 vg/            Visual Genome (Krishna et al., 2017)
    filtered_cc3m_sbu.json          cc3m_sgu/      Conceptual Captions 3M and SBU, captions by BLIP
    filtered_cc12m.json             cc12m/         Conceptual 12M, captions by BLIP

All lists are ``[{"image": ..., "caption": text}, ...]``. ``cc3m_sgu`` is the official spelling.
Pictures of the web disappear, so rows of the last two whose picture is missing are left out and
counted. For millions of pictures, pack the rows into shards: :mod:`mmfusion_lib.data.webshards`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from . import coco
from .json_lists import field, read_list
from .paper_sets import LeftOut, Published
from .prismer_sets import (
    Pictures,
    as_dataset,
    find_list,
    find_tree,
)

if TYPE_CHECKING:
    import datasets

SOURCES = {  # name -> list, folder, whether pictures may be missing
    "vg": ("vg_caption.json", "vg", False),
    "cc3m_sbu": ("filtered_cc3m_sbu.json", "cc3m_sgu", True),
    "cc12m": ("filtered_cc12m.json", "cc12m", True),
}
LAYOUT = (
    "vg_caption.json with vg/, filtered_cc3m_sbu.json with cc3m_sgu/, and filtered_cc12m.json with "
    "cc12m/"
)

_PAPER = "Prismer, rounded, with COCO's training part; not published for each list"
PUBLISHED: Published = {
    "pairs of the four lists": (12_700_000, _PAPER),
    "pictures of the four lists": (11_000_000, _PAPER),
}


def load(split: str, root: str | Path | None = None, *, source: str) -> datasets.Dataset:
    """Read one list.

    Args:
        split: train; there is no other part.
        root: of the tree; by default ``MMFUSION_DATA``.
        source: ``vg``, ``cc3m_sbu`` or ``cc12m``.

    Returns:
        Columns id, image (decodes to PIL), maps, group (the picture) and captions (one), as those
        of `coco.load` for train, with which they can be concatenated. Rows without a caption, and
        those of the web whose picture is missing, are left out; a warning counts them.

    Raises:
        InputError: unknown split or source, a missing file or field, or a missing picture of Visual
            Genome, by file and row.
    """
    import datasets

    if split != "train":
        raise InputError(f"The web captions have no split {split!r}: use train.")
    columns, left_out = _read(source, root)
    left_out.warn(f"web {source}")
    captions = {"captions": datasets.List(datasets.Value("string"))}
    return as_dataset(source, split, find_tree("web", root, LAYOUT), columns, captions)


def mixture(root: str | Path | None = None) -> datasets.Dataset:
    """Prismer's whole pre-training mixture: COCO's train, then the lists of `SOURCES`.

    Raises:
        InputError: as `load`, and as `coco.load`.
    """
    import datasets

    parts = [coco.load("train", root), *(load("train", root, source=name) for name in SOURCES)]
    return datasets.concatenate_datasets(parts)


def count(root: str | Path | None = None) -> dict[str, int]:
    """Pairs and pictures of the lists that are there, and what is left out of each."""
    tree, found = find_tree("web", root, LAYOUT), {}
    for source, (file, _, _) in SOURCES.items():
        if not any((place / file).is_file() for place in (tree, tree / "web")):
            continue
        columns, left_out = _read(source, root)
        found[f"{source} pairs"] = len(columns["id"])
        found[f"{source} pictures"] = len(set(columns["group"]))
        found |= {f"{source} left out: {reason}": n for reason, n in left_out.counts.items()}
    return found


def _read(source: str, root: str | Path | None) -> tuple[dict[str, list], LeftOut]:
    if source not in SOURCES:
        raise InputError(f"There is no source {source!r}: use one of {', '.join(SOURCES)}.")
    tree = find_tree("web", root, LAYOUT)
    file, folder, may_miss = SOURCES[source]
    path = find_list("web", tree, file, LAYOUT)
    pictures, left_out = Pictures(tree, folder), LeftOut()
    columns: dict[str, list] = {name: [] for name in ("id", "maps", "group", "captions")}
    for row, record in read_list(path):
        where = f"{path}, row {row}"
        image, caption = field(record, "image", where), field(record, "caption", where)
        place = pictures.find(image, where) if may_miss else pictures.need(image, where)
        if place is None:
            left_out.add("rows whose picture is missing", where)
        elif not caption:
            left_out.add("rows without a caption", where)
        else:
            columns["id"].append(f"{source}#{row}")
            columns["maps"].append(place)
            columns["group"].append(place)
            columns["captions"].append([caption])
    if not columns["id"]:
        raise InputError(f"{path} holds no row that can be used: fetch the file and its pictures.")
    return columns, left_out
