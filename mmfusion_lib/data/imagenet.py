"""ImageNet with few shots: 1 to 16 training pictures a class (Russakovsky et al., 2015).

Expected in the tree of :mod:`mmfusion_lib.data.prismer_sets`::

    imagenet_train/<wnid>/*.JPEG        training pictures
    imagenet/<wnid>/*.JPEG              the 50,000 pictures of ILSVRC's validation part: our test
    imagenet/imagenet_answer.json       list of class names, in the order of the class numbers
    imagenet/imagenet_class.json        {"n01440764": 0, ...} wnid -> class number

Nobody links to the two JSON files; `write_class_files` makes them from the list that comes with the
pictures. The official code takes the first files that the file system gives; here they are sorted,
and a seed chooses.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files import read_json, write_json
from .paper_sets import Published, check_split
from .prismer_sets import as_dataset, find_tree
from .tables import read_text

if TYPE_CHECKING:
    import datasets

LAYOUT = (
    "imagenet_train/<wnid>/*.JPEG, imagenet/<wnid>/*.JPEG, imagenet/imagenet_answer.json and "
    "imagenet/imagenet_class.json"
)
HELD_OUT = 4  # training pictures of each class that are for validation only
_SUFFIXES = (".jpeg", ".jpg")

_SOURCE = "Russakovsky et al., 2015"
PUBLISHED: Published = {
    "training pictures": (1_281_167, _SOURCE),
    "test pictures": (50_000, f"{_SOURCE}; their validation part"),
    "classes": (1_000, _SOURCE),
}


def load(
    split: str, root: str | Path | None = None, *, shots: int | None = None, seed: int = 0
) -> datasets.Dataset:
    """Read one split.

    The pictures of a class are sorted, then shuffled by the seed and the class. The first ``shots``
    are for training, the last `HELD_OUT` for validation. So 2 shots contain the 1 of the same seed,
    and no shot is ever in validation.

    Args:
        split: train, validation (of the training pictures) or test.
        root: of the tree; by default ``MMFUSION_DATA``.
        shots: training pictures of each class; None: all but those held out.
        seed: of the choice; test does not depend on it.

    Returns:
        Columns id, image (decodes to PIL), maps, group (the picture) and label (`ClassLabel` of
        wnids; `class_names` has the names), class after class.

    Raises:
        InputError: a missing or empty folder or file, a folder that is no class, an empty picture,
            or fewer pictures than shots.
    """
    import datasets

    check_split("imagenet", split)
    if shots is not None and (shots < 1 or split != "train"):
        raise InputError(f"imagenet: shots is {shots} for {split}: give 1 or more, for train only.")
    tree = find_tree("imagenet", root, LAYOUT)
    _, numbers = _classes(tree)
    folder = "imagenet" if split == "test" else "imagenet_train"
    columns: dict[str, list] = {name: [] for name in ("id", "maps", "group", "label")}
    for wnid, files in _pictures(tree, folder, numbers).items():
        for file in _chosen(tree / folder / wnid, files, split, shots, seed):
            path = f"{folder}/{wnid}/{file}"
            if not (tree / path).stat().st_size:
                raise InputError(f"{tree / path} is empty: fetch the picture again.")
            for column in ("id", "maps", "group"):
                columns[column].append(path)
            columns["label"].append(numbers[wnid])
    label = datasets.ClassLabel(names=list(numbers))  # wnids: class names can occur twice
    return as_dataset("imagenet", split, tree, columns, {"label": label})


def class_names(root: str | Path | None = None) -> list[str]:
    """Names of the classes in the order of their numbers, as they follow "A photo of a"."""
    return _classes(find_tree("imagenet", root, LAYOUT))[0]


def write_class_files(mapping: str | Path, root: str | Path) -> list[Path]:
    """Make the two JSON files from ``LOC_synset_mapping.txt``, which comes with Kaggle's copy.

    Its lines are a wnid, a blank, and names with commas between; the first name is kept.

    Args:
        mapping: that file.
        root: of the tree; the files are written to its folder ``imagenet``.

    Raises:
        InputError: no such file; a line of another form, or a wnid twice, by line.
    """
    if not Path(mapping).is_file():
        raise InputError(
            f"{mapping} does not exist: give LOC_synset_mapping.txt, which comes with Kaggle's copy."
        )
    names, numbers = [], {}
    for number, line in enumerate(read_text(Path(mapping)).split("\n"), start=1):
        wnid, _, words = line.strip().partition(" ")
        name = words.split(",")[0].strip()
        if not line.strip():
            continue
        if not name or wnid in numbers:
            raise InputError(
                f"{mapping}, line {number}: {line.strip()!r} is no new wnid with a name: repair it."
            )
        numbers[wnid] = len(names)
        names.append(name)
    folder = Path(root) / "imagenet"
    write_json(folder / "imagenet_answer.json", names)
    write_json(folder / "imagenet_class.json", numbers)
    return [folder / "imagenet_answer.json", folder / "imagenet_class.json"]


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`, and class names used twice."""
    tree = find_tree("imagenet", root, LAYOUT)
    names, numbers = _classes(tree)
    train, test = (_pictures(tree, f, numbers) for f in ("imagenet_train", "imagenet"))
    return {
        "training pictures": sum(map(len, train.values())),
        "test pictures": sum(map(len, test.values())),
        "classes": len(names),
        "fewest training pictures of a class": min(map(len, train.values())),
        "class names that are used twice": len(names) - len(set(names)),
    }


def _classes(tree: Path) -> tuple[list[str], dict[str, int]]:
    """Names by number, and number by wnid."""
    named, numbered = (tree / f"imagenet/imagenet_{kind}.json" for kind in ("answer", "class"))
    for path in (named, numbered):
        if not path.is_file():
            raise InputError(
                f"{path} does not exist: make it with imagenet.write_class_files from "
                "LOC_synset_mapping.txt."
            )
    names, numbers = read_json(named), read_json(numbered)
    if not isinstance(names, list) or not names:
        raise InputError(f"{named} is no list of names: make it with imagenet.write_class_files.")
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{named}, row {row}: the name {name!r} is no text: correct it.")
    if not isinstance(numbers, dict):
        raise InputError(f"{numbered} is no object: make it with imagenet.write_class_files.")
    seen: dict[int, str] = {}
    for wnid, number in numbers.items():
        if type(number) is not int or not 0 <= number < len(names) or number in seen:
            raise InputError(
                f"{numbered}: the class {number!r} of {wnid} is not a new number from 0 to "
                f"{len(names) - 1}, as {named.name} has names: correct it."
            )
        seen[number] = wnid
    if len(seen) != len(names):
        missing = next(number for number in range(len(names)) if number not in seen)
        raise InputError(f"{numbered} has no wnid for class {missing}: correct it.")
    return names, {seen[number]: number for number in range(len(names))}


def _pictures(tree: Path, folder: str, numbers: dict[str, int]) -> dict[str, list[str]]:
    """wnid -> sorted names of its pictures, in the order of class numbers."""
    if not (tree / folder).is_dir():
        raise InputError(f"{tree / folder} does not exist: imagenet needs {LAYOUT}.")
    there = sorted(
        entry.name
        for entry in os.scandir(tree / folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    for wnid in there:
        if wnid not in numbers:
            raise InputError(
                f"{tree / folder / wnid}: the class is not in imagenet_class.json: remove the "
                "folder, or correct the file."
            )
    found = {}
    for wnid in numbers:
        names = os.listdir(tree / folder / wnid) if wnid in there else []
        found[wnid] = sorted(
            name for name in names if name.lower().endswith(_SUFFIXES) and name[0] != "."
        )
        if not found[wnid]:
            raise InputError(f"{tree / folder / wnid} holds no .JPEG picture: complete the set.")
    return found


def _chosen(folder: Path, files: list[str], split: str, shots: int | None, seed: int) -> list[str]:
    """The pictures of one class that a split takes."""
    if split == "test":
        return files
    wanted = (shots or 1) + HELD_OUT
    if len(files) < wanted:
        raise InputError(
            f"{folder} holds {len(files)} pictures where {wanted} are needed ({shots or 1} shots "
            f"and {HELD_OUT} for validation): ask for fewer shots, or complete the folder."
        )
    order = list(files)
    random.Random(f"{seed}/{folder.name}").shuffle(order)  # a text seeds alike on every machine
    if split == "validation":
        return sorted(order[-HELD_OUT:])
    return order[:shots] if shots else sorted(order[:-HELD_OUT])
