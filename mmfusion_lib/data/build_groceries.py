"""Build the groceries set from its repository, for people who do not have the pack.

GroceryStoreDataset (M. Klasson et al., WACV 2019, MIT). Its ``dataset`` folder lists the pictures
of a split in ``train.txt``, ``val.txt`` and ``test.txt`` (path, fine label, coarse label; early
versions give the path alone), the classes in ``classes.csv``, and one description per class in
``iconic-images-and-descriptions``. Pictures become RGB JPEGs of quality 82, longest side 160.

The code is tested on a small made tree and a local repository; the download of the real one
(about 200 MB) has not been run by us. No commit is known for the pack, so the tip of the default
branch is taken, and the numbers of rows and the class names are compared with the pack's.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import InputError
from ..files import write_json
from .groceries import CLASSES, COARSE_CLASSES, PACK
from .images import open_image
from .repositories import fetch

REPOSITORY = "marcusklasson/GroceryStoreDataset"
ROWS = {"train": 2640, "validation": 296, "test": 2485}
_LISTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
LONGEST_SIDE = 160  # pixels
JPEG_QUALITY = 82


def build(
    out: str | Path,
    *,
    host: str = "https://github.com/",
    checkouts: str | Path | None = None,
    expected: dict[str, int] | None = ROWS,
) -> dict[str, Any]:
    """Fetch the repository and write ``out/groceries/{train,validation,test}.parquet``.

    Args:
        out: a data root; point MMFUSION_DATA at it afterwards.
        host: prefix of the repository address; a local folder or file:// works too.
        checkouts: where the repository goes; by default in the cache. It may be deleted after.
        expected: rows per split that must come out; None accepts any.

    Returns:
        Rows per split and the commit; also written to ``groceries/build.json``.

    Raises:
        InputError: the repository cannot be fetched, or differs from what is described above.
    """
    tree = Path(checkouts or settings.cache_root() / "repositories")
    tree = tree / REPOSITORY.replace("/", "--")
    commit = fetch(host + REPOSITORY, None, tree, ("dataset",))
    data = tree / "dataset"
    classes = read_classes(data)
    parts = {split: read_split(data, split, classes) for split in _LISTS}
    counts = {split: len(rows) for split, rows in parts.items()}
    for split in _LISTS if expected is not None else ():
        if counts[split] != expected[split]:
            raise InputError(
                f"{data / _LISTS[split]} lists {counts[split]} pictures and not {expected[split]}: the "
                "repository has changed, and the numbers in the book are for the other version: "
                f"{_older(data)}"
            )
    for split, rows in parts.items():  # nothing is written before all is checked
        PACK.write(Path(out) / "groceries" / f"{split}.parquet", rows)
    report = {"rows": counts, "commit": commit}
    write_json(Path(out) / "groceries" / "build.json", report)
    return report


def _older(data: Path) -> str:
    """What to do about a repository that is not what is described above."""
    return f"check out an older commit in {data.parent}, and build again."


def read_classes(data: Path) -> dict[str, dict[str, Any]]:
    """Class folder name -> label, coarse label and description, from ``classes.csv``.

    Raises:
        InputError: a class is unknown, out of order, or has no description.
    """
    path = data / "classes.csv"
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: the repository's layout has changed: {_older(data)}"
        )
    classes = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        records = list(csv.reader(file))[1:]
    for line, record in enumerate(records, start=2):
        try:
            name, label, coarse_name, coarse_label, _, description = record[:6]
            if CLASSES[int(label)] != name.replace("-", " ") or COARSE_CLASSES[
                int(coarse_label)
            ] != coarse_name.replace("-", " "):
                raise ValueError(f"{name} is not class {label} of {coarse_label}")
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}, line {line}: {error}: the classes have changed: {_older(data)}"
            ) from error
        classes[name] = {
            "label": int(label),
            "coarse_label": int(coarse_label),
            "description": _description(data, description, f"{path}, line {line}"),
        }
    return classes


def _description(data: Path, listed: str, where: str) -> str:
    """The description file's text; some listed names are misspelt, the folder has the file."""
    path = data / listed.strip().lstrip("/")
    candidates = [path, *sorted(path.parent.glob("*_Description*"))]
    for candidate in candidates:
        if candidate.is_file():
            text = candidate.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                return " ".join(text.split())
    raise InputError(
        f"{where}: no description in {path.parent}: the repository is incomplete: delete {data.parent} and "
        "build again."
    )


def read_split(data: Path, split: str, classes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one split, pictures shrunk.

    Raises:
        InputError: an unknown class, a label that contradicts the folder, a missing picture.
    """
    from tqdm.auto import tqdm

    path = data / _LISTS[split]
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: the repository's layout has changed: {_older(data)}"
        )
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(tqdm(lines, f"groceries {split}"), start=1):
        name, *labels = [part.strip() for part in line.split(",")]
        known = classes.get(Path(name).parent.name)
        if known is None:
            raise InputError(
                f"{path}, line {number}: {name} is in no class of classes.csv: {_older(data)}"
            )
        if labels and labels != [str(known["label"]), str(known["coarse_label"])]:
            raise InputError(
                f"{path}, line {number}: the labels {', '.join(labels)} contradict the folder of "
                f"{name}, which is {known['label']}, {known['coarse_label']}: correct the line."
            )
        image = {"image": shrink(data / name), "source": f"{REPOSITORY}:dataset/{name}"}
        rows.append(known | image)
    return rows


def shrink(path: Path) -> bytes:
    """A picture file as an RGB JPEG with the longest side at most 160 pixels."""
    from PIL import Image

    image = open_image(path)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
