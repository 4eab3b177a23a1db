"""Read a table file (CSV, TSV, JSON lines) as records with their line numbers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from ..errors import InputError


def read_table(path: Path) -> list[tuple[int, dict]]:
    """(line number, record) of a ``.csv``, ``.tsv`` or ``.jsonl`` file in UTF-8.

    Raises:
        InputError: another kind of file, or a line that cannot be read, by its number.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise InputError(f"{path} ends in {kind!r}: give a folder, or a .csv, .tsv or .jsonl file.")
    if kind == ".jsonl":
        return _read_jsonl(path)
    return _read_csv(path, "\t" if kind == ".tsv" else ",")


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error


def _read_csv(path: Path, delimiter: str) -> list[tuple[int, dict]]:
    """(line number, record) of a table with a header line."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    records = []
    try:
        for record in reader:
            if None in record or None in record.values():
                raise InputError(
                    f"{path}, line {reader.line_num}: {'more' if None in record else 'fewer'} "
                    f"fields than the header's {len(reader.fieldnames)}: put texts that contain "
                    "the delimiter in quotes."
                )
            records.append((reader.line_num, record))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}: repair the line.") from error
    return records


def _read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """(line number, record) of a file with one JSON object a line; blank lines are skipped."""
    records = []
    # Not splitlines(): a JSON text may hold U+2028, which splitlines() takes for a line end.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not valid JSON ({error.msg} at column {error.colno}): "
                "repair or delete the line."
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is not a JSON object: write {{...}} a line.")
        records.append((number, record))
    return records
