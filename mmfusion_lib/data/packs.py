"""Packs: data sets kept as ``<root>/<set>/{train,validation,test}.parquet``, read and validated.

A pack is read into memory and checked row by row before anyone sees it, so that a training run
never meets a missing caption or a broken picture at step 900. Decoding every picture costs a few
seconds; it is done once for a file's content and remembered by a stamp in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import settings
from ..errors import InputError
from ..files import atomic_path, sha256, write_json
from .images import open_image

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Pack:
    """What a pack must contain.

    Attributes:
        name: folder under the data root, and the name of its builder and card.
        classes: class column -> class names; the stored label is the position in them.
        texts: text column -> whether a row may leave it empty.
        identity: the text column that names a row; its values are unique within a split.
    """

    name: str
    classes: Mapping[str, Sequence[str]]
    texts: Mapping[str, bool]
    identity: str

    @property
    def features(self) -> datasets.Features:
        """Columns and types, as `datasets` describes them."""
        import datasets

        return datasets.Features(
            {"image": datasets.Image()}
            | {column: datasets.Value("string") for column in self.texts}
            | {c: datasets.ClassLabel(names=list(names)) for c, names in self.classes.items()}
        )

    def path(self, split: str, root: str | Path | None = None) -> Path:
        """The parquet file of a split.

        Raises:
            InputError: the split is unknown, or the data root or the file is missing.
        """
        if split not in SPLITS:
            raise InputError(f"{self.name} has no split {split!r}: use one of {', '.join(SPLITS)}.")
        remedy = (
            f"build it with `python -m mmfusion_lib build {self.name} --out DIR` and point "
            "MMFUSION_DATA at DIR."
        )
        root = settings.data_root() if root is None else Path(root)
        if root is None:
            raise InputError(
                f"The set {self.name} needs a data root: set MMFUSION_DATA, or {remedy}"
            )
        path = root / self.name / f"{split}.parquet"
        if not path.is_file():
            raise InputError(f"{path} does not exist: check the data root, or {remedy}")
        return path

    def load(self, split: str, root: str | Path | None = None) -> datasets.Dataset:
        """Read and check one split; pictures decode to PIL images when a row is taken.

        Nothing is downloaded and nothing but the stamp is written.

        Raises:
            InputError: names the file, and the row and column where there is one.
        """
        import datasets
        from datasets.table import InMemoryTable

        path = self.path(split, root)
        table = self._checked(path, _read(path))
        content = sha256(path)
        stamp = settings.cache_root() / "checked" / f"{content}.json"
        if not stamp.is_file():
            _decode_all(path, table["image"].to_pylist(), table[self.identity].to_pylist())
            write_json(stamp, {"file": path.name, "set": self.name, "rows": table.num_rows})
        features = self.features
        return datasets.Dataset(
            InMemoryTable(table.cast(features.arrow_schema)),
            info=datasets.DatasetInfo(features=features, dataset_name=self.name),
            split=datasets.NamedSplit(split),
            fingerprint=content[:16],
        )

    def find(self, identities: Sequence[str], root: str | Path | None = None) -> list[dict]:
        """Rows of any split by their identity, in the order asked for.

        Raises:
            InputError: one of them is in no split.
        """
        rows: dict[str, dict] = {}
        for split in SPLITS:
            dataset = self.load(split, root)
            places = {name: i for i, name in enumerate(dataset[self.identity])}
            rows |= {name: dataset[places[name]] for name in identities if name in places}
        missing = [name for name in identities if name not in rows]
        if missing:
            raise InputError(f"{self.name} has no {self.identity} {missing[0]!r}: check the name.")
        return [rows[name] for name in identities]

    def _checked(self, path: Path, table: pa.Table) -> pa.Table:
        """The declared columns in order, with labels as numbers; raises on the first bad row."""
        import pyarrow as pa

        wanted = ["image", *self.texts, *self.classes]
        missing = [column for column in wanted if column not in table.column_names]
        if missing:
            raise InputError(
                f"{path} has no column {missing[0]!r} (it has {', '.join(table.column_names)}): "
                f"fetch or build the set {self.name} again."
            )
        if not (pa.types.is_struct(table.schema.field("image").type)):
            raise InputError(
                f"{path}, column 'image', holds {table.schema.field('image').type} and not "
                "{bytes, path}: store the encoded pictures in the file."
            )
        columns = {"image": table["image"]}
        for column, may_be_empty in self.texts.items():
            values = table[column].to_pylist()
            for row, value in enumerate(values):
                if not isinstance(value, str) or not (value.strip() or may_be_empty):
                    raise InputError(
                        f"{path}, row {row}: column {column!r} is {value!r}, it must be a "
                        "non-empty text: repair the row, or leave it out."
                    )
            columns[column] = pa.array(values, pa.string())
        seen: dict[str, int] = {}
        for row, value in enumerate(table[self.identity].to_pylist()):
            if value in seen:
                raise InputError(
                    f"{path}, row {row}: {self.identity} {value!r} was already used in row "
                    f"{seen[value]}: leave one of the two out."
                )
            seen[value] = row
        for column, names in self.classes.items():
            columns[column] = pa.array(_labels(path, column, names, table[column]), pa.int64())
        return pa.table(columns)

    def write(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows (``image`` as encoded bytes, labels as numbers) to one parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self.features.arrow_schema
        columns = {
            name: [
                {"bytes": r["image"], "path": None} if name == "image" else r[name] for r in rows
            ]
            for name in schema.names
        }
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns, schema=schema), temporary)


def _read(path: Path) -> pa.Table:
    """The whole file as a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "damaged"
        raise InputError(
            f"{path} is not a readable parquet file ({reason}): fetch or build it again."
        ) from error


def _labels(path: Path, column: str, names: Sequence[str], values: pa.ChunkedArray) -> list[int]:
    """Class numbers; accepts numbers, or names."""
    numbers = {name: number for number, name in enumerate(names)}
    labels = []
    for row, value in enumerate(values.to_pylist()):
        label = numbers.get(value, -1) if isinstance(value, str) else value
        if not isinstance(label, int) or not 0 <= label < len(names):
            raise InputError(
                f"{path}, row {row}: {column} {value!r} is not one of the {len(names)} classes "
                f"(0 = {names[0]!r} to {len(names) - 1} = {names[-1]!r}): correct the label."
            )
        labels.append(label)
    return labels


def _decode_all(path: Path, images: list[dict | None], ids: list[str]) -> None:
    """Decode every picture once, on all cores; the first broken one is named by row and id."""

    def decode(row: int) -> None:
        content = (images[row] or {}).get("bytes")
        name = f"{path}, row {row} ({ids[row]}): the picture"
        if not content:
            raise InputError(f"{name} has no bytes: store the encoded picture in the file.")
        open_image(content, name)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(images))):
            pass
