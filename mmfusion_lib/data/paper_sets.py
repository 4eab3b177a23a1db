"""What the readers of the papers' data sets share.

Food-101, MM-IMDB and SNLI-VE may not be passed on, so the book holds none of them: a reader works on
a copy that you obtained yourself. It counts what it leaves out, and the card prints the published
numbers beside those of your copy.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from .. import settings
from ..errors import InputError
from .packs import SPLITS

Published = Mapping[str, tuple[int, str]]  # what is counted -> number, and where it was published


def find(name: str, root: str | Path | None, layout: str) -> Path:
    """The folder of a set.

    Args:
        name: of the set, of its card, and of its folder under the data root.
        root: the set's own folder; None: ``<MMFUSION_DATA>/<name>``.
        layout: what belongs into the folder, for the message.

    Raises:
        InputError: there is no such folder.
    """
    if root is None:
        data = settings.data_root()
        root = data / name if data else None
    if root is None or not Path(root).is_dir():
        raise InputError(
            f"The set {name} is not at {root or f'MMFUSION_DATA/{name} (the variable is not set)'}:"
            f" it is not distributed with the book, so obtain it as data_cards/{name}.md "
            f"says and put {layout} into that folder."
        )
    return Path(root)


def check_split(name: str, split: str) -> None:
    """Raise unless the split is train, validation or test."""
    if split not in SPLITS:
        raise InputError(f"{name} has no split {split!r}: use one of {', '.join(SPLITS)}.")


class LeftOut:
    """Rows that a reader skips, as its set's card says: how many for each reason, and the first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one row; ``where`` names the file, and the line where there is one."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def warn(self, what: str) -> None:
        """One warning with all counts; nothing where no row was left out."""
        if self.counts:
            reasons = [f"{n} {why} (first: {self.first[why]})" for why, n in self.counts.items()]
            warnings.warn(f"{what}: rows left out: {'; '.join(reasons)}.", stacklevel=3)


def published(name: str, numbers: Published) -> str:
    """The numbers of a card as a Markdown table; nothing is counted."""
    return "\n".join(
        [
            "Published, **not counted by us**: the set is not distributed with the book.",
            f"`python -m mmfusion_lib card {name}` counts a copy of your own beside these numbers.",
            "",
            "| what | number | where it was published |",
            "| --- | --- | --- |",
            *(f"| {what} | {n:,} | {source} |" for what, (n, source) in numbers.items()),
        ]
    )


def compared(numbers: Published, found: Mapping[str, int]) -> str:
    """Published numbers beside those of a copy, as a Markdown table; differences are marked."""
    lines = ["| what | published | this copy |", "| --- | --- | --- |"]
    for what in [*numbers, *(extra for extra in found if extra not in numbers)]:
        theirs = f"{numbers[what][0]:,}" if what in numbers else "-"
        ours = f"{found[what]:,}" if what in found else "-"
        mark = "" if "-" in (theirs, ours) or theirs == ours else " (differs)"
        lines.append(f"| {what} | {theirs} | {ours}{mark} |")
    return "\n".join(lines)
