"""What the readers of Prismer's data sets share: one tree of folders, lists in JSON, and pictures.

The published layout is one tree for all sets, because VQAv2 and COCO captions have the same
pictures. By default it is ``MMFUSION_DATA`` itself::

    <root>/vqav2/{train2014,val2014,test2015}/  nocaps/  vg/  cc3m_sgu/  cc12m/      pictures
    <root>/imagenet_train/<wnid>/  imagenet/<wnid>/
    <root>/<list>.json, or <root>/<set>/<list>.json                                  lists

A row's ``maps`` is its picture's path below the root, which names its expert labels, too:
``experts.labels.read_labels(labels, "depth", row["maps"])``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .. import settings
from ..errors import InputError
from ..files import atomic_path, digest, read_json
from .json_lists import field

if TYPE_CHECKING:
    import datasets


def find_tree(name: str, root: str | Path | None, layout: str) -> Path:
    """The folder tree that holds a set: ``root``, or ``MMFUSION_DATA``.

    Raises:
        InputError: there is no such folder.
    """
    root = settings.data_root() if root is None else Path(root)
    if root is None or not root.is_dir():
        raise InputError(
            f"The set {name} is not at {root or 'MMFUSION_DATA (the variable is not set)'}: it is not "
            f"distributed with the book, so obtain it as data_cards/{name}.md says, put {layout} into "
            "one folder, and set MMFUSION_DATA to that folder."
        )
    return root


def find_list(name: str, root: Path, file: str, layout: str) -> Path:
    """A list of a set: ``<root>/<file>``, or ``<root>/<name>/<file>``.

    Raises:
        InputError: neither is there.
    """
    for path in (root / file, root / name / file):
        if path.is_file():
            return path
    raise InputError(
        f"{root / file} does not exist: {name} needs {layout}; data_cards/{name}.md says where to "
        "get it."
    )


class Pictures:
    """Which pictures are there. Every folder is listed once, which is faster than a look a picture.

    Args:
        root: of the tree.
        folder: of the set's pictures; lists name pictures below it, or below the root.
    """

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, folder
        self._names: dict[PurePosixPath, frozenset[str]] = {}

    def find(self, image: str, where: str) -> str | None:
        """The path below the root, or None where the picture is missing.

        Raises:
            InputError: the path is empty, absolute, or leaves the folder.
        """
        path = PurePosixPath(image)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise InputError(f"{where}: the picture {image!r} leaves its folder: correct the path.")
        for place in (PurePosixPath(self.folder) / path, path):
            if place.name in self._listing(place.parent):
                return str(place)
        return None

    def need(self, image: str, where: str) -> str:
        """As `find`, but a missing picture is an error."""
        path = self.find(image, where)
        if path is None:
            raise InputError(
                f"{where}: the picture {self.root / self.folder / image} does not exist: complete "
                "the folder."
            )
        return path

    def _listing(self, folder: PurePosixPath) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(self.root / folder))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
        return self._names[folder]


def references(path: Path) -> tuple[dict[int, list[str]], list[dict[str, Any]]]:
    """Captions by image id, and the ``images``, of a ground truth in COCO's form.

    Raises:
        InputError: a missing field, an annotation of an unknown picture, an id used twice.
    """
    truth = read_json(path)
    images = field(truth, "images", str(path), list)
    found: dict[int, list[str]] = {}
    for row, image in enumerate(images):
        number = field(image, "id", f"{path}, images, row {row}", int)
        if number in found:
            raise InputError(f"{path}, images, row {row}: the id {number} is used twice: drop one.")
        found[number] = []
    seen = set()
    for row, annotation in enumerate(field(truth, "annotations", str(path), list)):
        where = f"{path}, annotations, row {row}"
        number = field(annotation, "image_id", where, int)
        name = annotation.get("id", row)
        if number not in found or name in seen:
            what = f"image_id {number} is not among the images"
            what = what if number not in found else f"id {name} is used twice"
            raise InputError(f"{where}: the {what}: repair the row.")
        seen.add(name)
        found[number].append(field(annotation, "caption", where))
    return found, images


def as_dataset(
    name: str,
    split: str,
    root: Path,
    columns: Mapping[str, Sequence[Any]],
    features: Mapping[str, Any],
) -> datasets.Dataset:
    """Rows as a dataset whose pictures are decoded when a row is taken.

    Args:
        columns: ``id`` and ``group`` (texts), ``maps`` (paths below the root), and those of
            ``features``.
        features: types of the other columns, as `datasets` names them.
    """
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable

    text = datasets.Value("string")
    schema = datasets.Features(
        {"id": text, "image": datasets.Image(), "maps": text, "group": text, **features}
    )
    types = schema.arrow_schema
    paths = pa.array([str(root / path) for path in columns["maps"]], pa.string())
    empty = pa.nulls(len(paths), pa.binary())
    arrays = {
        column: pa.StructArray.from_arrays([empty, paths], ["bytes", "path"])
        if column == "image"
        else pa.array(columns[column], types.field(column).type)
        for column in schema
    }
    content = [bytes(b) for array in arrays.values() for b in array.buffers() if b is not None]
    return datasets.Dataset(
        InMemoryTable(pa.table(arrays, schema=types)),
        info=datasets.DatasetInfo(features=schema, dataset_name=name),
        split=datasets.NamedSplit(split),
        fingerprint=digest(name, split, *content),
    )


def write_results(path: str | Path, ids: Sequence[str], values: Sequence[str], keys: str) -> Path:
    """Write a file for an evaluation server: ``[{"image_id": 42, "caption": "..."}, ...]``.

    Args:
        ids: of the rows; each is a whole number.
        values: caption or answer of each.
        keys: the two names, as in ``"image_id caption"``.

    Raises:
        InputError: another number of values than rows, an id twice or no number, an empty value.
    """
    key, value_key = keys.split()
    if len(ids) != len(values):
        raise InputError(f"{path}: {len(values)} {value_key}s for {len(ids)} rows: give one each.")
    rows: dict[int, str] = {}
    for name, value in zip(ids, values):
        if not str(name).isdecimal() or int(name) in rows or not str(value).strip():
            raise InputError(
                f"{path}: {key} {name!r} is no number, comes twice, or has an empty {value_key}: "
                "give every row one."
            )
        rows[int(name)] = str(value).strip()
    result = [{key: name, value_key: value} for name, value in rows.items()]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    return Path(path)
