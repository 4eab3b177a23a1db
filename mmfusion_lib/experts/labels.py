"""Label maps, and the files that they are kept in.

What a map is stands in ``label_map`` and can be had from here. Files lie as the official code lays
them out::

    <labels>/<expert>/<dataset>/<folder>/<name>.png    the map; of a detection its instance ids
    <labels>/<expert>/<dataset>/<folder>/<name>.json   detection: {"0": 17, ...} instance -> class
                                                       words: {"0": "open", ...} number -> text

Three things are ours: word tables are JSON where the official ones are pickles, which are refused;
a detection's JSON may also hold ``"names": {"0": "mug"}``; a segmentation may have a JSON of names,
as words have. Label files made by the official code, words aside, are read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import atomic_path, read_json, write_json
from .label_map import (
    EXPERTS,
    NOTHING,
    Expert,
    Kind,
    LabelMap,
    check,
    class_of_instance,
    kind_of,
    nothing,
)

__all__ = [
    "EXPERTS",
    "NOTHING",
    "SUFFIXES",
    "Expert",
    "Kind",
    "LabelMap",
    "check",
    "class_of_instance",
    "kind_of",
    "label_path",
    "nothing",
    "read_labels",
    "write_labels",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of the pictures that labels are made for
MARK = "mmfusion_lib labels"  # PNG text entry by which a file of ours is known


def label_path(folder: str | Path, expert: str, image_path: str | Path) -> Path:
    """Where the map of the picture ``<dataset>/<folder>/<name>.jpg`` lies; that path is relative.

    Pictures that differ in their suffix only would share it: give them different names.

    Raises:
        InputError: unknown expert, a path that leaves the folder, or a suffix not in ``SUFFIXES``.
    """
    kind_of(expert)
    path = Path(image_path)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{image_path} leaves its folder: give the path below the data's root.")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{image_path} is no picture: its name must end in {', '.join(SUFFIXES)}.")
    return Path(folder) / expert / path.with_suffix(".png")


def write_labels(
    folder: str | Path,
    labels: LabelMap,
    image_path: str | Path,
    image_size: tuple[int, int] | None = None,
) -> Path:
    """Check a map and write it; the PNG comes last, so where it is the labels are whole.

    Returns:
        The PNG's path.

    Raises:
        InputError: as ``check`` and ``label_path``; or a file is there that this function did not
            write, such as a picture: it is left as it is.
    """
    from PIL import Image, PngImagePlugin

    path = label_path(folder, labels.expert, image_path)
    check(labels, image_size, where=f"The {labels.expert} of {image_path}")
    if path.exists() and path.stat().st_size > 0 and not _is_ours(path):
        raise InputError(f"{path} is there and is no label file of ours: give another folder.")
    path.unlink(missing_ok=True)  # until both files are new there is no label
    names = {str(number): name for number, name in (labels.names or {}).items()}
    if labels.instances is not None:
        classes = {str(number): found for number, found in class_of_instance(labels).items()}
        write_json(path.with_suffix(".json"), {**classes, **({"names": names} if names else {})})
    elif labels.names is not None:
        write_json(path.with_suffix(".json"), names)
    mark = PngImagePlugin.PngInfo()
    mark.add_text(MARK, labels.expert)
    picture = Image.fromarray(labels.map if labels.instances is None else labels.instances)
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=mark)
    return path


def read_labels(
    folder: str | Path,
    expert: str,
    image_path: str | Path,
    image_size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
) -> LabelMap:
    """Read and check the map of a picture.

    Args:
        folder, expert, image_path: as in ``label_path``.
        image_size: (width, height) of the picture; None: not compared.
        class_names: of all classes, in order: fills ``names`` where the file has none.

    Returns:
        The map. An empty PNG (0 bytes) and absent files of words mean "nothing": a map of
        ``Kind.nothing``, of one pixel where ``image_size`` is not given.

    Raises:
        InputError: a missing or damaged file, a pickled word table, or what ``check`` refuses.
    """
    path = label_path(folder, expert, image_path)
    table, pickled = path.with_suffix(".json"), path.with_suffix(".pt")
    if expert == "ocr_detection" and pickled.exists() and not table.exists():
        raise InputError(
            f"{pickled} is a pickle, which can run code, and is not read: regenerate the words as "
            "JSON."
        )
    if not path.exists() and (expert != "ocr_detection" or table.exists()):
        raise InputError(f"{path} does not exist: make the labels of {expert} first.")
    if not path.exists() or path.stat().st_size == 0:
        return nothing(expert, image_size or (1, 1))
    values, entries = _read_png(path, kind_of(expert).channels), _read_table(table)
    if expert == "obj_detection":
        labels = _detection(values, entries, class_names, table)
    elif table.exists() or expert == "ocr_detection":
        labels = LabelMap(expert, values, names=_numbered(entries, str, table))
    else:
        names = None if class_names is None else dict(enumerate(class_names))
        labels = LabelMap(expert, values, names=names)
    check(labels, image_size, None if class_names is None else len(class_names), str(path))
    return labels


def _detection(
    instances: np.ndarray, entries: dict[str, Any], class_names: Sequence[str] | None, table: Path
) -> LabelMap:
    """Instance ids (H, W) and the entries of their table -> a detection."""
    entries = dict(entries)
    names = _numbered(entries.pop("names", {}), str, table)
    listed = _numbered(entries, int, table)
    known = 0xFFFF if class_names is None else len(class_names)
    there = np.unique(instances[instances != NOTHING]).tolist()
    classes = {number: listed.get(number, -1) for number in there}
    for number, found in classes.items():
        if not 0 <= found < known:
            raise InputError(
                f"{table} gives instance {number} the class {listed.get(number)}: give a class "
                f"from 0 to {known - 1}, or make the labels anew."
            )
    dtype = np.uint8 if max(classes.values(), default=0) < NOTHING else np.uint16
    lookup = np.full(NOTHING + 1, np.iinfo(dtype).max, dtype)
    for number, found in classes.items():
        lookup[number] = found
    if class_names is not None and not names:
        names = {number: class_names[found] for number, found in classes.items()}
    return LabelMap("obj_detection", lookup[instances], instances, names or None)


def _numbered(entries: Any, kind: type, table: Path) -> dict[int, Any]:
    """JSON entries by number, 0 to 254, each value of the given type."""
    try:
        found = {int(number): value for number, value in entries.items()}
    except (AttributeError, ValueError):
        found = {-1: None}
    for number, value in found.items():
        if not 0 <= number < NOTHING or type(value) is not kind:
            raise InputError(
                f"{table} is no table of numbers 0 to 254 with {kind.__name__} values: "
                "make it anew."
            )
    return found


def _read_table(table: Path) -> dict[str, Any]:
    entries = read_json(table) if table.exists() else {}
    if not isinstance(entries, dict):
        raise InputError(f"{table} holds a {type(entries).__name__}, not names: make it anew.")
    return entries


def _read_png(path: Path, channels: int) -> np.ndarray:
    """(H, W) uint8, or (H, W, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded ({error}): make the labels anew.") from error
    if mode not in (("RGB",) if channels == 3 else ("L", "P")):
        raise InputError(
            f"{path} has mode {mode} where {'RGB' if channels == 3 else 'L'}, 8 bits, is wanted: "
            "make the labels anew."
        )
    return values


def _is_ours(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return MARK in picture.info
    except (OSError, SyntaxError, ValueError):
        return False
