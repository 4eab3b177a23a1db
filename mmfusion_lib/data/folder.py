"""Your own data: a folder of class sub-folders, or a table (CSV, TSV, JSONL) of paths and texts.

Three layouts are understood::

    flowers/rose/a.jpg  flowers/rose/a.txt  flowers/tulip/b.jpg ...     class folders, text optional
    flowers/train/rose/a.jpg  flowers/test/rose/b.jpg ...               the same, split by you
    flowers.csv with columns image,text,label[,split][,id]              .tsv and .jsonl likewise

Either of picture and text may be absent; image paths are relative to the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .images import open_image
from .subsets import stratified
from .tables import read_table, read_text

if TYPE_CHECKING:
    import datasets

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def load(
    path: str | Path,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
    labelled: bool = True,
) -> datasets.Dataset:
    """Read and check the user's own data.

    Args:
        path: a folder, or a ``.csv``, ``.tsv`` or ``.jsonl`` file.
        image_column, text_column, label_column, split_column, id_column: columns of the table; by
            default ``image``, ``text``, ``label``, ``split`` and ``id``, those of them that exist.
            A column named here must exist. Ignored for a folder.
        labelled: False for rows to predict on: labels may then be absent.

    Returns:
        Columns: id; image (decodes to PIL) and text, those that the data have; label
        (`ClassLabel`, classes in alphabetical order) where labelled; split where given.

    Raises:
        InputError: missing or broken picture (file and row), empty label or text, duplicate id,
            broken line, unknown column, fewer than two classes, nothing to read.
    """
    path = Path(path)
    if path.is_dir():
        rows = _folder_rows(path)
    elif path.is_file():
        named = {
            "image": image_column, "text": text_column, "label": label_column,
            "split": split_column, "id": id_column,
        }  # fmt: skip
        rows = _table_rows(path, named)
    else:
        raise InputError(f"{path} does not exist: give a folder, or a .csv, .tsv or .jsonl file.")
    if not rows:
        raise InputError(f"{path} holds no rows: nothing can be read from it.")
    _check_rows(path, rows, labelled)
    return _dataset(path, rows, labelled)


def split(
    dataset: datasets.Dataset, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> dict[str, datasets.Dataset]:
    """Divide into train, validation and test.

    A ``split`` column decides if there is one (a missing validation part is then cut from train);
    otherwise a seeded stratified draw does. Train is drawn first, so that it has every class.

    Args:
        dataset: as `load` gives it, with labels.
        fractions: shares of train, validation and test; they add up to 1.
        seed: of the draw.

    Raises:
        InputError: fractions that do not add up to 1, an unknown split name, or an empty part.
    """
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise InputError(f"The fractions {tuple(fractions)} must be three shares adding up to 1.")
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    labels = dataset["label"]
    if "split" in dataset.column_names:
        for row, name in enumerate(dataset["split"]):
            if str(name).lower() not in _SPLIT_NAMES:
                raise InputError(
                    f"Row {row} ({dataset['id'][row]}): split {name!r} is unknown: use train, "
                    "validation or test."
                )
            parts[_SPLIT_NAMES[str(name).lower()]].append(row)
        if not parts["validation"] and parts["train"]:
            share = fractions[0] / (fractions[0] + fractions[1])
            parts["train"], parts["validation"] = _draw(labels, parts["train"], share, seed)
    else:
        everything = list(range(len(dataset)))
        parts["train"], rest = _draw(labels, everything, fractions[0], seed)
        share = fractions[1] / max(1e-9, fractions[1] + fractions[2])
        parts["validation"], parts["test"] = _draw(labels, rest, share, seed)
    for name, fraction in zip(parts, fractions):
        if not parts[name] and fraction:
            raise InputError(
                f"The {name} part is empty ({len(dataset)} rows in all): give more rows, other "
                "fractions, or a split column that fills it."
            )
    return {name: dataset.select(rows) for name, rows in parts.items()}


def _draw(
    labels: Sequence[int], rows: list[int], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """A stratified share of ``rows``, and the rest."""
    picked = set(stratified([labels[row] for row in rows], round(share * len(rows)), seed))
    return (
        [row for i, row in enumerate(rows) if i in picked],
        [row for i, row in enumerate(rows) if i not in picked],
    )


def _folder_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a folder of class folders, or of split folders that hold class folders."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if folders and all(folder.name.lower() in _SPLIT_NAMES for folder in folders):
        return [row | {"split": f.name} for f in folders for row in _class_rows(f, path)]
    return _class_rows(path, path)


def _class_rows(path: Path, base: Path) -> list[dict[str, Any]]:
    """Rows of the class folders in ``path``; ids are relative to ``base``."""
    rows = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(p for p in folder.rglob("*") if not p.name.startswith("."))
        images = [p for p in files if p.suffix.lower() in IMAGE_ENDINGS]
        # Pictures, each with its text beside it if any; without pictures, the texts themselves.
        for file in images or [p for p in files if p.suffix.lower() == ".txt"]:
            row = {"id": file.relative_to(base).as_posix(), "label": folder.name}
            row["where"] = str(file)
            text = file.with_suffix(".txt")
            if file in images:
                row["image"] = str(file)
            if text.is_file():
                row["text"] = read_text(text).strip()
            rows.append(row)
    return rows


def _table_rows(path: Path, named: dict[str, str | None]) -> list[dict[str, Any]]:
    """Rows of a table, with our column names; image paths made absolute."""
    records = read_table(path)
    if not records:
        return []
    present = list(dict.fromkeys(column for _, record in records for column in record))
    columns = {}
    for ours, theirs in named.items():
        if theirs is not None and theirs not in present:
            raise InputError(f"{path} has no column {theirs!r}: it has {', '.join(present)}.")
        if (theirs or ours) in present:
            columns[ours] = theirs or ours
    if not {"image", "text"} & set(columns):
        raise InputError(
            f"{path} has neither an image nor a text column (it has {', '.join(present)}): name "
            "one with image_column or text_column."
        )
    rows = []
    for line, record in records:
        row: dict[str, Any] = {"id": f"{path.name}:{line}"}
        row["where"] = f"{path}, line {line}"
        for ours, theirs in columns.items():
            value = record.get(theirs)
            row[ours] = "" if value is None else str(value).strip()
        if row.get("image"):
            row["image"] = str(path.parent / row["image"])
        rows.append(row)
    return rows


def _check_rows(path: Path, rows: list[dict[str, Any]], labelled: bool) -> None:
    """Raise on the first row that cannot be used."""
    kinds = {kind for kind in ("image", "text") if any(kind in row for row in rows)}
    seen: dict[str, str] = {}
    for row in rows:
        where = row["where"]
        for kind in sorted(kinds):
            if not row.get(kind):
                raise InputError(
                    f"{where}: the {kind} is missing or empty, but other rows have one: complete "
                    "the row, or leave it out."
                )
        if labelled and not row.get("label"):
            raise InputError(f"{where}: the label is empty: give one, or leave the row out.")
        if not row["id"] or row["id"] in seen:
            raise InputError(
                f"{where}: the id {row['id']!r} is "
                + (f"already used at {seen[row['id']]}" if row["id"] else "empty")
                + ": ids must be there and unique."
            )
        seen[row["id"]] = where
        if "image" in row and not Path(row["image"]).is_file():
            raise InputError(
                f"{where}: the image {row['image']} does not exist: correct the path (it is "
                f"relative to {path if path.is_dir() else path.parent})."
            )
    classes = {row["label"] for row in rows if row.get("label")}
    if labelled and len(classes) < 2:
        raise InputError(
            f"{path} has {len(classes)} class ({', '.join(classes)}): a classifier needs at least "
            "two, as sub-folders or as values of the label column."
        )
    if "image" in kinds:
        _check_images(rows)


def _check_images(rows: list[dict[str, Any]]) -> None:
    """Decode every picture once, on all cores, with a progress bar."""
    from tqdm.auto import tqdm

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checks = pool.map(lambda row: open_image(row["image"]) and None, rows)
        for _ in tqdm(checks, "checking pictures", len(rows), leave=False, disable=len(rows) < 500):
            pass


def _dataset(path: Path, rows: list[dict[str, Any]], labelled: bool) -> datasets.Dataset:
    """Checked rows as a `datasets.Dataset` in memory; pictures stay in their files."""
    import datasets

    columns: dict[str, list] = {"id": [row["id"] for row in rows]}
    features: dict[str, Any] = {"id": datasets.Value("string")}
    if "image" in rows[0]:
        columns["image"] = [{"bytes": None, "path": row["image"]} for row in rows]
        features["image"] = datasets.Image()
    for column in ("text", "split"):
        if column in rows[0]:
            columns[column] = [row[column] for row in rows]
            features[column] = datasets.Value("string")
    if labelled:
        names = sorted({row["label"] for row in rows})
        columns["label"] = [names.index(row["label"]) for row in rows]
        features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
