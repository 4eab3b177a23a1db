"""MM-IMDB: poster and plot of a film -> its genres, several a film (Arevalo et al., 2017).

Expected in one folder, as the published ``mmimdb.tar.gz`` unpacks::

    split.json              {"train": [ids], "dev": [ids], "test": [ids]}
    dataset/<id>.json       "plot": list of texts, "genres": list of names, and more
    dataset/<id>.jpeg       the poster

`mmfusion_lib.data.build_mmimdb` unpacks the archive, and turns the other published form
(``multimodal_imdb.hdf5`` with ``metadata.npy``) into this one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import read_json
from .packs import SPLITS
from .pairs import Pairs
from .paper_sets import LeftOut, Published, check_split, find

LAYOUT = "split.json, dataset/<id>.json and dataset/<id>.jpeg"
SPLIT_NAMES = {"train": "train", "validation": "dev", "test": "test"}

_IDS = "`split.json` of the set"
_GENRES = "issue jperezrua/mfas#9"
_FREQUENCY = {
    "Drama": 13_967, "Comedy": 8_592, "Romance": 5_364, "Thriller": 5_192, "Crime": 3_838,
    "Action": 3_550, "Adventure": 2_710, "Horror": 2_703, "Documentary": 2_082, "Mystery": 2_057,
    "Sci-Fi": 1_991, "Fantasy": 1_933, "Family": 1_668, "Biography": 1_343, "War": 1_335,
    "History": 1_143, "Music": 1_045, "Animation": 997, "Musical": 841, "Western": 705,
    "Sport": 634, "Short": 471, "Film-Noir": 338, "News": 64, "Adult": 4, "Talk-Show": 2,
    "Reality-TV": 1,
}  # fmt: skip
PUBLISHED: Published = {
    "train films": (15_552, _IDS),
    "validation films": (2_608, _IDS),
    "test films": (7_799, _IDS),
} | {genre: (number, _GENRES) for genre, number in _FREQUENCY.items()}

GENRES = tuple(_FREQUENCY)[:23]  # most frequent first: the classes
EXTRA = tuple(_FREQUENCY)[23:]  # these occur too, and are no class


def load(split: str, *, root: str | Path | None = None, extra: str = "ignore") -> Pairs:
    """Read one split.

    Films without a plot, or without one of the 23 genres, are left out; a warning counts them.

    Args:
        split: train, validation (the published ``dev``) or test.
        root: the set's folder; by default ``<MMFUSION_DATA>/mmimdb``.
        extra: what the four other genres do: ``ignore`` drops the genre and keeps the film, as the
            set's authors do; ``drop`` leaves the film out, as MMBT's conversion does with News.

    Returns:
        Pairs with float labels (N, 23) of 0 and 1 in the order of `GENRES`. The text is the longest
        of a film's plots (the set's authors' choice; the first of equals), with white space made
        single blanks. Groups are film ids.

    Raises:
        InputError: the set is absent; a missing file, broken JSON, an unknown genre or an id listed
            twice, by file.
    """
    if extra not in ("ignore", "drop"):
        raise InputError(f"mmimdb: extra={extra!r} is unknown: use 'ignore' or 'drop'.")
    check_split("mmimdb", split)
    root = find("mmimdb", root, LAYOUT)
    left_out = LeftOut()
    names, texts, labels = [], [], []
    for name in film_ids(root)[split]:
        path = root / "dataset" / f"{name}.json"
        film = _film(path)
        known = [GENRES.index(genre) for genre in film["genres"] if genre in GENRES]
        plot = max((" ".join(plot.split()) for plot in film["plot"]), key=len, default="")
        if extra == "drop" and len(known) < len(film["genres"]):
            left_out.add(f"films with {', '.join(EXTRA)}", str(path))
        elif not known:
            left_out.add("films without one of the 23 genres", str(path))
        elif not plot:
            left_out.add("films without a plot", str(path))
        else:
            if not path.with_suffix(".jpeg").is_file():
                raise InputError(f"{path.with_suffix('.jpeg')} does not exist: complete dataset/.")
            names.append(name)
            texts.append(plot)
            labels.append(torch.zeros(len(GENRES)).index_fill_(0, torch.tensor(known), 1.0))
    if not names:
        raise InputError(f"{root / 'split.json'} lists no film of {split} that can be used.")
    left_out.warn(f"mmimdb {split}")
    return Pairs(
        [str(root / "dataset" / f"{name}.jpeg") for name in names],
        torch.arange(len(names)),
        texts,
        torch.stack(labels),  # (N, 23)
        names,
        GENRES,
    )


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`, and the faults that `load` leaves out."""
    root = find("mmimdb", root, LAYOUT)
    found: dict[str, int] = {}
    genres: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for split, names in film_ids(root).items():
        found[f"{split} films"] = len(names)
        for name in names:
            film = _film(root / "dataset" / f"{name}.json")
            genres.update(set(film["genres"]))
            faults["films without a plot"] += not any(plot.strip() for plot in film["plot"])
            faults["films without one of the 23 genres"] += not set(film["genres"]) & set(GENRES)
    return found | {genre: genres[genre] for genre in _FREQUENCY} | faults


def film_ids(root: Path) -> dict[str, list[str]]:
    """Film ids of train, validation and test, from ``split.json``.

    Raises:
        InputError: the file is missing or damaged, or an id is listed twice.
    """
    path = root / "split.json"
    if not path.is_file():
        packed = sorted([*root.glob("*.tar.gz"), *root.glob("*.hdf5")])
        raise InputError(
            f"{path} does not exist: "
            + (
                f"run `python -m mmfusion_lib build mmimdb --source {packed[0]} --out DIR`."
                if packed
                else f"mmimdb needs {LAYOUT}."
            )
        )
    lists, seen = read_json(path), {}
    for key in SPLIT_NAMES.values():
        if not isinstance(lists, dict) or not isinstance(lists.get(key), list):
            raise InputError(f"{path} has no list {key!r}: fetch the file again.")
        for name in lists[key]:
            if name in seen:
                raise InputError(
                    f"{path}: the id {name!r} is in {seen[name]} and in {key}: repair it."
                )
            seen[name] = key
    return {split: lists[SPLIT_NAMES[split]] for split in SPLITS}


def _film(path: Path) -> dict[str, Any]:
    """Plots and genres of one film; a field that is absent is an empty list."""
    film = read_json(path)
    if not isinstance(film, dict):
        raise InputError(f"{path} is not a JSON object: fetch the file again.")
    result = {field: film.get(field) or [] for field in ("plot", "genres")}
    for field, values in result.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(f"{path}: {field!r} is not a list of texts: fetch the file again.")
    for genre in result["genres"]:
        if genre not in _FREQUENCY:
            raise InputError(
                f"{path}: the genre {genre!r} is none of the {len(_FREQUENCY)} of MM-IMDB: "
                "correct it, or leave it out."
            )
    return result
