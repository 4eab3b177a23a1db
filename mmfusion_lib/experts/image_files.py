"""The pictures of a folder, and which of them have their labels already.

Labels never mix with pictures: the folder of labels is left out of the search, and a layout in
which a label could fall on a picture, or two pictures on one label, is refused before any work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files import read_json
from .label_map import kind_of
from .labels import SUFFIXES, label_path

RECORD = "experts.json"  # beside labels: what made them
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"  # the last eight bytes of every whole PNG
_TABLES = ("obj_detection", "ocr_detection")  # experts whose labels have a JSON beside the PNG


def find_images(folder: str | Path, labels: str | Path) -> list[str]:
    """Pictures (.jpg, .jpeg, .png, .webp, in any case) below a folder, at any depth.

    Hidden files and folders and folders of labels (this one, and any other that holds an
    ``experts.json``) are left out; links to folders are not followed.

    Returns:
        Paths relative to ``folder``, sorted.

    Raises:
        InputError: no such folder, no pictures, or two that would share their label files.
    """
    folder, labels = Path(folder), Path(labels).resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the folder that holds the pictures.")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (Path(parent) / name).resolve() != labels
        ]
        if RECORD in files:
            folders.clear()
            continue
        inside = Path(parent).relative_to(folder)
        found += [
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        raise InputError(
            f"{folder} holds no pictures: give a folder with {', '.join(SUFFIXES)} files."
        )
    _no_clash(folder, sorted(found))
    return sorted(found)


def _no_clash(folder: Path, names: Sequence[str]) -> None:
    """Two pictures that differ in their suffix only would write the same label file."""
    seen: dict[str, str] = {}
    clashes = []
    for name in names:
        stem = name.removesuffix(Path(name).suffix)
        other = seen.setdefault(stem, name)
        if other != name:
            clashes.append((other, name))
    if clashes:
        first, second = clashes[0]
        more = f", and so would {len(clashes) - 1} more pairs" if len(clashes) > 1 else ""
        raise InputError(
            f"{first} and {second} in {folder} would share one label file{more}: rename one of them."
        )


def check_places(folder: str | Path, labels: str | Path, experts: Sequence[str]) -> None:
    """See that no label can be written where a picture is.

    Raises:
        InputError: unknown expert, or folders that lie inside each other in a way that does.
    """
    folder, labels = Path(folder).resolve(), Path(labels).resolve()
    if labels == folder:
        raise InputError(
            f"{labels} holds the pictures and cannot hold their labels too: give another folder, "
            f"such as {labels / 'labels'}."
        )
    if not experts:
        raise InputError("No experts are named: give one or more, such as edge,obj_detection.")
    for name in experts:
        kind_of(name)
        if folder.is_relative_to(labels / name):
            raise InputError(
                f"The labels of {name} would be written over the pictures in {folder}: give a "
                "folder of labels that does not hold them."
            )


def is_whole(labels: str | Path, expert: str, image: str) -> bool:
    """Whether the label files of a picture are there, from first byte to last.

    Reads 16 bytes of the PNG, not the picture: millions are checked in minutes. An empty PNG, which
    the official code writes where it finds nothing, is whole.
    """
    path = label_path(labels, expert, image)
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if not start:
                return True
            file.seek(-8, os.SEEK_END)
            if start != _PNG_START or file.read() != _PNG_END:
                return False
        if expert in _TABLES:
            read_json(path.with_suffix(".json"))
    except (OSError, InputError):
        return False
    return True


def label_bytes(labels: str | Path, expert: str, image: str) -> int:
    """Bytes on disk of the label files of a picture."""
    path = label_path(labels, expert, image)
    return sum(each.stat().st_size for each in (path, path.with_suffix(".json")) if each.exists())
