"""Data cards: their numbers are counted from the data by a command, and a test compares them.

A card is ``data_cards/<name>.md``: prose, with a block between ``<!-- numbers -->`` and
``<!-- /numbers -->`` that `update` fills and `check` compares. Nobody types a number of the block.

Sets that may not be passed on (`PAPER_SETS`) are not at hand: the block of their cards gives the
published numbers, as the reader lists them with their source, and `compare` counts your own copy.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from . import settings
from .errors import InputError
from .files import sha256, write_text

PAPER_SETS = ("food101", "mmimdb", "snli_ve", "coco", "nocaps", "vqav2", "imagenet", "web")
NAMES = ("scenes", "figures", "groceries", *PAPER_SETS)
START, END = "<!-- numbers -->", "<!-- /numbers -->"
NEAR = 12  # of 256 fingerprint bits: pictures that differ in at most so many are near-duplicates


def card_path(name: str, folder: str | Path | None = None) -> Path:
    """Where a card is; by default in the repository that holds this library.

    Raises:
        InputError: the name is unknown, or the card is missing.
    """
    if name not in NAMES:
        raise InputError(f"There is no data card {name!r}: use one of {', '.join(NAMES)}.")
    folder = Path(folder) if folder else Path(__file__).resolve().parents[1] / "data_cards"
    path = folder / f"{name}.md"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run the command in a checkout of the repository.")
    return path


def update(name: str, *, folder: str | Path | None = None, root: str | Path | None = None) -> Path:
    """Count the numbers of a set again and write them into its card; returns the card."""
    path = card_path(name, folder)
    text = path.read_text(encoding="utf-8")
    before, _, after = _parts(path, text)
    write_text(path, f"{before}{START}\n\n{render(name, root)}\n{END}{after}")
    return path


def check(
    name: str, *, folder: str | Path | None = None, root: str | Path | None = None
) -> list[str]:
    """Lines in which the card and the data differ, as a diff; an empty list if none do."""
    path = card_path(name, folder)
    _, block, _ = _parts(path, path.read_text(encoding="utf-8"))
    lines = difflib.unified_diff(
        block.strip().splitlines(),
        render(name, root).strip().splitlines(),
        "card",
        "data",
        "",
        "",
        0,
    )
    return [line for line in lines if line[:3] not in ("---", "+++", "@@ ")]


def compare(name: str, root: str | Path | None = None) -> str:
    """Published numbers of a set of `PAPER_SETS` beside those of your copy, as a Markdown table.

    Args:
        root: the set's own folder; by default ``<MMFUSION_DATA>/<name>``. The sets of Prismer lie in
            one tree, by default ``MMFUSION_DATA`` itself.

    Raises:
        InputError: as the set's reader.
    """
    from .data.paper_sets import compared

    reader = _paper_set(name)
    return compared(reader.PUBLISHED, reader.count(root))


def _paper_set(name: str) -> Any:
    """The reader of a set that is not distributed."""
    if name not in PAPER_SETS:
        raise InputError(f"{name!r} has no published numbers: use {', '.join(PAPER_SETS)}.")
    module = "web_captions" if name == "web" else name
    return import_module(f"{__package__}.data.{module}")


def front_matter(path: str | Path) -> dict[str, Any]:
    """The YAML block at the head of a card.

    Raises:
        InputError: there is none, or it is not a YAML mapping.
    """
    import yaml

    text = Path(path).read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        fields = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: the front matter is not YAML ({error}): repair it.") from error
    if not isinstance(fields, dict):
        raise InputError(
            f"{path} has no front matter: begin it with a block between two --- lines."
        )
    return fields


def _parts(path: Path, text: str) -> tuple[str, str, str]:
    """Text before, inside and after the block."""
    before, start, rest = text.partition(START)
    block, end, after = rest.partition(END)
    if not start or not end:
        raise InputError(f"{path} has no block between {START} and {END}: add the two lines.")
    return before, block, after


def numbers(name: str, root: str | Path | None = None) -> dict[str, Any]:
    """Everything that a card's block says, as plain values.

    For ``figures`` and ``groceries``: ``files`` (rows, bytes, SHA-256), ``classes`` (rows per class
    and split), ``texts`` (words), ``pictures`` (sizes) and ``faults``. For ``scenes``: the
    generator's vocabulary; its files differ from machine to machine and are not listed. The sets
    of `PAPER_SETS` have `compare` instead.

    Raises:
        InputError: as the set's reader.
    """
    if name == "scenes":
        return _scene_numbers()
    if name == "figures":
        from .data.figures import PACK, caption_target

        column = "subject"
    elif name == "groceries":
        from .data.groceries import PACK

        column = "label"
    else:
        raise InputError(
            f"The numbers of {name!r} are not counted: use scenes, figures, groceries."
        )
    from .data.packs import SPLITS

    root = settings.data_root() if root is None else Path(root)
    paths = {split: PACK.path(split, root) for split in SPLITS}
    splits = {split: _without_decoding(PACK.load(split, root)) for split in SPLITS}
    pictures = {split: _pictures(dataset["image"]) for split, dataset in splits.items()}
    classes = PACK.classes[column]
    counts = {split: Counter(dataset[column]) for split, dataset in splits.items()}
    result: dict[str, Any] = {
        "files": {
            split: {
                "rows": len(splits[split]),
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for split, path in paths.items()
        },
        "classes": {
            label: [counts[split][number] for split in SPLITS]
            for number, label in enumerate(classes)
        },
        "texts": {
            text: _text_numbers([value for dataset in splits.values() for value in dataset[text]])
            for text in PACK.texts
            if text not in ("source", "section")
        },
        "pictures": _size_numbers([size for found in pictures.values() for size in found["sizes"]]),
        "faults": _fault_numbers(pictures)
        | {
            f"classes absent in {split}": sum(not counts[split][c] for c in range(len(classes)))
            for split in SPLITS
        },
    }
    if name == "figures":
        sections = {
            split: set(zip(dataset["subject"], dataset["section"]))
            for split, dataset in splits.items()
        }
        result["sections"] = {split: len(found) for split, found in sections.items()}
        result["faults"] |= {
            "sections in more than one split": sum(map(len, sections.values()))
            - len(set.union(*sections.values())),
            "validation or test captions that are also a train caption": _repeated(
                splits, "caption"
            ),
            "rows without a credit line": sum(not c for d in splits.values() for c in d["credit"]),
        }
        result["targets"] = {
            split: sum(caption_target(alt) is not None for alt in dataset["alt"])
            for split, dataset in splits.items()
        }
    else:
        result["coarse"] = len(PACK.classes["coarse_label"])
        result["faults"]["different descriptions"] = len(
            {text for dataset in splits.values() for text in dataset["description"]}
        )
    return result


def _scene_numbers() -> dict[str, Any]:
    from .data import scenes

    return {
        "kinds": list(scenes.KINDS),
        "colours": list(scenes.COLOURS),
        "textures": list(scenes.TEXTURES),
        "sizes": list(scenes.SIZES),
        "words": list(scenes.WORDS),
        "surfaces": list(scenes.SURFACES),
        "walls": list(scenes.WALLS),
        "held_out": len(scenes.HELD_OUT),
    }


def _without_decoding(dataset: Any) -> Any:
    import datasets

    return dataset.cast_column("image", datasets.Image(decode=False))


def _pictures(images: Any) -> dict[str, Any]:
    """Per picture: (width, height), content digest and a 256-bit fingerprint; and failures."""
    from .data.images import open_image

    sizes, digests, prints, failures = [], [], [], 0
    for image in images:
        try:
            picture = open_image(image["bytes"])
        except InputError:
            failures += 1
            continue
        sizes.append(picture.size)
        digests.append(hashlib.sha256(image["bytes"]).hexdigest())
        prints.append(_fingerprint(picture))
    return {"sizes": sizes, "digests": digests, "prints": np.stack(prints), "failures": failures}


def _fingerprint(picture: Any) -> np.ndarray:
    """Whether each cell of a 16 x 16 grid is brighter than its left neighbour, as +1 or -1.

    Grid cells are averages, so that size and compression hardly matter. Flat areas, where noise
    would decide, count as not brighter.
    """
    grey = np.asarray(picture.convert("L").resize((17, 16), 4), np.float32)  # 4: box filter
    return np.where(grey[:, 1:] > grey[:, :-1] + 2, 1, -1).astype(np.float32).ravel()  # (256,)


def _fault_numbers(pictures: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Broken pictures, and the same picture more than once."""
    everything = [d for found in pictures.values() for d in found["digests"]]
    within = sum(len(f["digests"]) - len(set(f["digests"])) for f in pictures.values())
    train = pictures["train"]["prints"]
    near = 0
    for split in ("validation", "test"):
        # a . b = 256 - 2 x (number of differing bits)
        products = pictures[split]["prints"] @ train.T  # (N, N_train)
        near += int((products.max(1) >= 256 - 2 * NEAR).sum())
    return {
        "pictures that do not decode": sum(found["failures"] for found in pictures.values()),
        "exact duplicate pictures within a split": within,
        "exact duplicate pictures across splits": len(everything) - len(set(everything)) - within,
        "validation or test pictures with a near-duplicate in train": near,
    }


def _repeated(splits: dict[str, Any], column: str) -> int:
    """Validation and test rows whose text is also in train."""
    train = set(splits["train"][column])
    return sum(text in train for split in ("validation", "test") for text in splits[split][column])


def _text_numbers(texts: list[str]) -> dict[str, Any]:
    """Lengths in words of the texts that are not empty."""
    words = sorted(len(text.split()) for text in texts if text.strip())
    return {
        "empty": len(texts) - len(words),
        "least": words[0],
        "median": words[len(words) // 2],
        "mean": round(sum(words) / len(words), 1),
        "most": words[-1],
    }


def _size_numbers(sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Smallest, middle and largest width and height, in pixels."""
    result = {}
    for side, values in zip(("width", "height"), zip(*sizes)):
        values = sorted(values)
        result[side] = [values[0], values[len(values) // 2], values[-1]]
    result["longest side"] = Counter(max(size) for size in sizes).most_common(1)[0]
    return result


def render(name: str, root: str | Path | None = None) -> str:
    """The block of a card as Markdown tables."""
    if name in PAPER_SETS:
        from .data.paper_sets import published

        return published(name, _paper_set(name).PUBLISHED)
    found = numbers(name, root)
    command = f"Counted by `python -m mmfusion_lib card {name}`; do not edit by hand."
    if name == "scenes":
        rows = [
            [key, str(len(values)), ", ".join(values)]
            for key, values in found.items()
            if key != "held_out"
        ]
        rows.append(["colour-kind pairs", str(len(found["colours"]) * len(found["kinds"])), ""])
        rows.append(["of these in test only", str(found["held_out"]), ""])
        return "\n".join([command, "", *_table(["vocabulary", "size", "values"], rows)])
    splits = list(found["files"])
    total = sum(file["rows"] for file in found["files"].values())
    lines = [command, "", "**Files**", ""]
    lines += _table(
        ["split", "rows", "bytes", "SHA-256"],
        [
            [split, f"{f['rows']:,}", f"{f['bytes']:,}", f"`{f['sha256']}`"]
            for split, f in found["files"].items()
        ],
    )
    lines += ["", f"**Rows per class** ({len(found['classes'])} classes)", ""]
    lines += _table(
        ["class", *splits],
        [[label, *map(str, counts)] for label, counts in found["classes"].items()],
    )
    lines += ["", "**Texts** (length in words, empty ones left out)", ""]
    lines += _table(
        ["column", "empty", "least", "median", "mean", "most"],
        [[column, *map(str, values.values())] for column, values in found["texts"].items()],
    )
    lines += ["", "**Pictures** (pixels)", ""]
    lines += _table(
        ["side", "least", "median", "most"],
        [[side, *map(str, found["pictures"][side])] for side in ("width", "height")],
    )
    side, count = found["pictures"]["longest side"]
    lines += ["", f"The longest side is {side} in {count:,} of {total:,} pictures."]
    if "sections" in found:
        lines += ["", "**Groups and targets**", ""]
        lines += _table(
            ["", *splits],
            [
                ["sections (subject and title)", *map(str, found["sections"].values())],
                [
                    "alternative texts that give a caption target",
                    *map(str, found["targets"].values()),
                ],
            ],
        )
    lines += ["", "**Faults looked for**", ""]
    lines += _table(["fault", "number"], [[k, f"{v:,}"] for k, v in found["faults"].items()])
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---' for _ in head)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
