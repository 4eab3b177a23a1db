"""Read a JSON list row by row, in little memory, so that a fault is named by its row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError

CHUNK = 1 << 20  # characters read at once
LONGEST = 1 << 24  # characters: a row longer than this is a broken one


def read_list(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 0, value) of a JSON list, in little memory: CC12M's has gigabytes.

    Raises:
        InputError: the file is no JSON list, or is broken, by row.
    """
    decoder, row, opened, after = json.JSONDecoder(), 0, False, False
    with open(path, encoding="utf-8-sig") as file:
        buffer, at, more = "", 0, True
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            if at == len(buffer) and more:
                buffer, at, more = _next(path, file, row)
                continue
            mark = buffer[at : at + 1]
            if not opened:
                if mark != "[":
                    raise InputError(f"{path} is no JSON list: it must begin with [ and end in ].")
                opened, at = True, at + 1
            elif mark == "]":
                if (buffer[at + 1 :] + file.read()).strip():
                    raise InputError(f"{path} goes on after its list: delete what follows the ].")
                return
            elif after:
                if mark != ",":
                    raise _broken(path, row, "it ends early" if not mark else "a comma is missing")
                after, at = False, at + 1
            else:
                try:
                    value, at = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError as error:
                    if not more or len(buffer) - at > LONGEST:
                        raise _broken(path, row, error.msg) from error
                    chunk, _, more = _next(path, file, row)  # the row may end further on
                    buffer, at = buffer[at:] + chunk, 0
                    continue
                yield row, value
                row, after = row + 1, True


def _next(path: Path, file: Any, row: int) -> tuple[str, int, bool]:
    """The next characters, 0, and whether there were any."""
    try:
        chunk = file.read(CHUNK)
    except UnicodeDecodeError as error:
        raise _broken(path, row, f"not UTF-8: {error.reason}") from error
    return chunk, 0, bool(chunk)


def _broken(path: Path, row: int, why: str) -> InputError:
    return InputError(
        f"{path}, row {row} is not valid JSON ({why}): repair it, or fetch the file again."
    )


def field(record: Any, name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """One field of a row; texts are stripped, and may be empty.

    Raises:
        InputError: the row is no object, or the field is absent or of another type.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(
            {"str": "text", "int": "number"}.get(k.__name__, "list") for k in kinds
        )
        raise InputError(f"{where} has no field {name!r} that is a {wanted}: repair the row.")
    return value.strip() if isinstance(value, str) else value
