"""Figures: pictures from eleven open textbooks with their captions -> subject (11 classes).

The set in which fusion is a real question: a linear probe reads the subject from the picture about
as well as from the first five words of the caption, and better from both. The number of caption
words is the dial: `first_words`.

Pictures are CC BY 4.0. Wherever one is shown, its `credit_line` must be shown with it, and it must
have been looked at first (war, slavery and medicine are among the subjects): `PRINTABLE` has been.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .packs import Pack

if TYPE_CHECKING:
    import datasets

CLASSES = (
    "american-government",
    "anatomy-physiology",
    "anthropology",
    "astronomy",
    "chemistry",
    "microbiology",
    "physics",
    "psychology",
    "sociology",
    "us-history",
    "world-history",
)
CAPTION_LENGTHS = (1, 2, 3, 5, 10, 20, None)  # words; None: the whole caption
TITLES = ("American Government", "Anatomy and Physiology", "Introduction to Anthropology",
          "Astronomy", "Chemistry", "Microbiology", "College Physics", "Psychology",
          "Introduction to Sociology", "U.S. History", "World History")  # fmt: skip

PACK = Pack(
    name="figures",
    classes={"subject": CLASSES},
    texts={"caption": False, "alt": False, "credit": True, "section": False, "source": False},
    identity="source",
)

# Looked at before printing: harmless, and one or two of each subject. Ids, by subject.
PRINTABLE = (
    "openstax/osbooks-american-government@5c90dd7907db:media/OSC_AmGov_11_00_Congress.jpg",
    "openstax/osbooks-anatomy-physiology@b0058a743bdd:media/1411_Eye_in_The_Orbit.jpg",
    "openstax/osbooks-introduction-anthropology@418eedd9bef2:media/ANTHRO_Figure_03_03_004.jpg",
    "openstax/osbooks-astronomy@63157f370b09:media/OSC_Astro_01_06_MWay.jpg",
    "openstax/osbooks-chemistry-bundle@32c719622fbb:media/CNX_Chem_18_01_CalciWater.jpg",
    "openstax/osbooks-microbiology@ecf34dad129d:media/OSC_Microbio_02_03_SSBiofilm.jpg",
    "openstax/osbooks-college-physics-bundle@f98d7a792138:media/Figure_28_04_02a.jpg",
    "openstax/osbooks-college-physics-bundle@f98d7a792138:media/Figure_28_00_02a.jpg",
    "openstax/osbooks-psychology@e061043bf2f9:media/CNX_Psych_06_01_Dog.jpg",
    "openstax/osbooks-introduction-sociology@d35d5f3bdac4:media/Soc3e_20_02_01.jpg",
    "openstax/osbooks-us-history@046331cfcea0:media/CNX_History_09_03_Erie.jpg",
    "openstax/osbooks-world-history@3e17beda9130:media/OSX_WorldHist_B04_03_IsfahanSqu.jpg",
)


def load(split: str, root: str | Path | None = None) -> datasets.Dataset:
    """Read one split, validated.

    Args:
        split: ``train``, ``validation`` or ``test``; a book section is in one of them only.
        root: data root; by default `MMFUSION_DATA`.

    Returns:
        Columns image (RGB, longest side 224), caption, alt, credit, section, source (unique id:
        repository@commit:path) and subject (class number into `CLASSES`).

    Raises:
        InputError: missing root or file, broken parquet, wrong label, empty text, duplicate id,
            picture that does not decode; each names file and row.
    """
    return PACK.load(split, root)


def first_words(caption: str, n: int | None) -> str:
    """The caption's first ``n`` words (None: all of them).

    Raises:
        InputError: ``n`` is below 1.
    """
    if n is not None and n < 1:
        raise InputError(f"A caption of {n} words was asked for: use at least 1, or None for all.")
    return " ".join(caption.split()[:n])


# A full stop ends a sentence unless it follows an initial ("H. W.") or a title ("Dr.").
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b[A-Z]\.[A-Z])(?<!\b(?:Dr|Mr|Ms|St|vs|Fr))(?<!\b(?:Mrs|Rev|Gov|Sen|Gen|Fig))"
    r"[.!?][”\"')]?(?=\s+[A-Z“\"(])"
)


def caption_target(alt: str) -> str | None:
    """First sentence of the alternative text if it has 5 to 25 words: a description to learn from.

    None where the sentence is shorter (a label) or longer (a reading of a whole diagram).
    """
    alt = " ".join(alt.split())
    end = _SENTENCE_END.search(alt)
    sentence = alt[: end.end()] if end else alt
    return sentence if 5 <= len(sentence.split()) <= 25 else None


def credit_line(row: Mapping) -> str:
    """What must stand beside the picture of a row when it is shown."""
    book = f"OpenStax, {TITLES[row['subject']]}, CC BY 4.0"
    credit = row["credit"].strip()
    if credit.startswith("(") and credit.endswith(")"):
        credit = credit[1:-1]
    return f"{book}; {credit}" if credit else book


def printable(root: str | Path | None = None) -> list[dict]:
    """The rows of `PRINTABLE`, in its order; show each with its `credit_line`."""
    return PACK.find(PRINTABLE, root)
