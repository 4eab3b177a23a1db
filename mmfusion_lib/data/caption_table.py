"""Your own captions, or questions with answers: tables of pictures and texts, read and written.

Two tables are known, as ``.csv``, ``.tsv`` or ``.jsonl`` (one JSON object a line)::

    captions.csv with columns image,caption              one caption a row; a picture may have several
    answers.csv with columns image,question,answer       one question a row

Pictures lie in the folder of the table, or below it. Texts are texts: HTML, quotes and line ends in
them are kept and mean nothing.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..experts.image_files import RECORD
from ..files import write_text
from ..prismer_text import _DROPPED, WORDS
from .folder import IMAGE_ENDINGS
from .tables import read_table

COLUMNS = {"caption": ("image", "caption"), "answer": ("image", "question", "answer")}
TABLES = (".csv", ".tsv", ".jsonl")


class Row(NamedTuple):
    """One line of a table."""

    image: str  # path of the picture below the folder
    question: str  # "" for a caption
    text: str  # caption or answer
    where: str  # "captions.csv, line 3", for errors


def check_task(task: str) -> None:
    """Raise InputError where there is no such task."""
    if task not in COLUMNS:
        raise InputError(f"Unknown task {task!r}: use {' or '.join(COLUMNS)}.")


def read_rows(path: str | Path, task: str) -> tuple[Path, list[Row]]:
    """The folder of the pictures and the checked rows; no picture is opened.

    Args:
        path: a table, or a folder that holds ``captions.csv`` or ``answers.csv`` (or another ending).
        task: "caption" or "answer".

    Raises:
        InputError: no table or two of them, a missing column, an empty text or one that is no text, a
            question without words or with too many, a path that leaves the folder, or no such picture.
    """
    check_task(task)
    table = _table(Path(path), task)
    records = read_table(table)
    if not records:
        raise InputError(f"{table} holds no rows: nothing can be learnt from it.")
    rows = []
    for line, record in records:
        where = f"{shown(str(table))}, line {line}"
        image, *texts = [_text(record, column, where) for column in COLUMNS[task]]
        check_inside(image, where)
        if not _is_file(table.parent / image):
            raise InputError(
                f"{where}: the picture {shown(image)} is not in {table.parent}: correct the path."
            )
        if task == "answer":
            check_question(texts[0], f"{where}: the question")
        rows.append(Row(image, texts[0] if task == "answer" else "", texts[-1], where))
    return table.parent, rows


def check_question(question: str, what: str = "The question") -> None:
    """Refuse a question that Prismer would ask in part only: it reads 30 words.

    Raises:
        InputError: no words, or too many.
    """
    count = len(_DROPPED.sub(" ", question).replace("?", " ").split())
    if count == 0:
        raise InputError(f"{what} has no words: ask something.")
    if count > WORDS:
        raise InputError(f"{what} has {count:,} words, but only {WORDS} are read: shorten it.")


def check_inside(image: str, where: str) -> None:
    """Raise InputError for a path that leads out of the folder of the pictures."""
    if Path(image).is_absolute() or ".." in Path(image).parts:
        raise InputError(f"{where}: {shown(image)} leads out of the folder: give a path below it.")


def find_pictures(folder: str | Path) -> list[str]:
    """Paths of all pictures below a folder, sorted; hidden ones and label maps are left out.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{shown(str(folder))} is no folder: give the folder of the pictures.")
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if RECORD in names:  # labels that experts have made are PNG files too
            folders.clear()
            continue
        inside = Path(parent).relative_to(folder)
        found += [
            (inside / name).as_posix()
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_ENDINGS
        ]
    if not found:
        raise InputError(
            f"{shown(str(folder))} holds no pictures: give a folder with {', '.join(IMAGE_ENDINGS)} "
            "files."
        )
    return sorted(found)


def check_new(path: str | Path) -> Path:
    """Where a table may be written: a new file with a known ending.

    Raises:
        InputError: another ending, something is there already, or its folder cannot be one.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLES:
        raise InputError(
            f"{shown(str(path))} does not end in {', '.join(TABLES)}: give it one of these endings."
        )
    if path.exists():
        raise InputError(
            f"{shown(str(path))} is there already and is not written over: give another name."
        )
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"{shown(str(nearest))} is no folder: give a file in a folder.")
    return path


class Kept:
    """What is done of a table that takes long, kept beside it, so that the same call goes on from there.

    Args:
        file: the table, see ``check_new``; the parts lie in ``.<name>.part`` in its folder.
        of: names whatever decides the rows; what was kept of something else is forgotten.

    Attributes:
        parts: by key, as they were given to ``add``.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, file: Path, of: str):
        self.path = file.with_name(f".{file.name}.part")
        before = self.path.read_text("utf-8") if self.path.is_file() else ""
        first, *lines = before.split("\n")[:-1] or [""]  # the last one ends in nothing, or was cut
        lines = lines if first == of else []
        self.parts = dict(map(json.loads, lines))
        write_text(self.path, "\n".join([of, *lines, ""]))

    def add(self, key: str, value: Any) -> None:
        """Keep a part; a JSON value.

        Raises:
            InputError: it cannot be written.
        """
        self.parts[key] = value
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([key, value]) + "\n")
        except OSError as error:
            raise InputError(
                f"{shown(str(self.path))} cannot be written ({error.strerror}): free some space and "
                "give the same command again; what is done is kept."
            ) from error

    def forget(self) -> None:
        """Remove the file of parts."""
        self.path.unlink(missing_ok=True)


def write_rows(path: str | Path, task: str, rows: Iterable[Sequence[str]]) -> None:
    """Write a table that ``read_rows`` reads, whole or not at all.

    Args:
        path: a new file; its ending says how.
        task: "caption" or "answer".
        rows: values in the order of ``COLUMNS[task]``.

    Raises:
        InputError: as ``check_new``; or the disk is full or cannot be written to.
    """
    path, columns = check_new(path), COLUMNS[task]
    file = io.StringIO()
    if path.suffix.lower() == ".jsonl":
        for row in rows:
            file.write(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n")
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    write_text(path, file.getvalue())


def shown(text: str) -> str:
    """A name for one line of a terminal: in quotes and escaped where it holds control characters."""
    return text if text.isprintable() else repr(text)


def _table(path: Path, task: str) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path} does not exist: give a folder, or a table of {task}s.")
        return path
    found = [path / f"{task}s{ending}" for ending in TABLES]
    found = [each for each in found if each.is_file()]
    if len(found) != 1:
        names = " and ".join(each.name for each in found)
        raise InputError(
            f"{path} holds {names}: name the one that is meant."
            if found
            else f"{path} holds no {task}s.csv: write one with the columns "
            f"{', '.join(COLUMNS[task])}."
        )
    return found[0]


def _text(record: dict[str, Any], column: str, where: str) -> str:
    if column not in record:
        raise InputError(
            f"{where}: there is no column {column!r}, only {', '.join(map(str, record))}: add it."
        )
    value = record[column]
    if not isinstance(value, str):
        raise InputError(f"{where}: the {column} is {value!r}, not a text: put it in quotes.")
    if not value.strip():
        raise InputError(f"{where}: the {column} is empty: complete the row, or leave it out.")
    if column != "image" and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(
            f"{where}: the {column} {value!a} holds half of a character: write it whole."
        )
    # A file name is taken to the letter: a space at its end belongs to it.
    return value if column == "image" else value.strip()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False
