"""Build the figures set from its sources, for people who do not have the pack.

Eleven OpenStax textbooks, each at a commit whose licence is CC BY 4.0 (later commits of most
changed it: keep the pin). A book is a git repository with one CNXML document a section,
``modules/*/index.cnxml``, and its pictures in ``media/``. The rules:

1. A figure with exactly one picture, a caption and an alternative text is a row. Captions shorter
   than 5 words and alternative texts shorter than 4 words or 20 characters are left out.
2. The credit line is split off the caption and kept in a column of its own.
3. A picture whose caption or credit names another licence than CC BY, CC0 or public domain, or
   somebody else's copyright, is left out.
4. Of exact duplicates (the same file content) in a book the first stays; a picture that is in two
   books is left out of both, as it has no single subject.
5. The split goes by section title, so that a section is in one split; it is the pack's, listed
   in ``figures_splits.json``. A section that is not listed there goes to train.
6. Pictures: RGB, longest side at most 224, JPEG quality 80.

The code is tested on a small made tree and a local repository; the download of the eleven real
repositories (several GB, mostly pictures at full size) has not been run by us from end to end.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from .. import settings
from ..errors import InputError
from ..files import write_json
from .caption_rules import foreign_rights, split_credit, usable_text
from .figures import CLASSES, PACK
from .images import open_image
from .packs import SPLITS
from .repositories import fetch

LONGEST_SIDE = 224  # pixels
JPEG_QUALITY = 80
LICENCE = "creativecommons.org/licenses/by/4.0"


@dataclass(frozen=True)
class Book:
    """One textbook: its class, its repository and the commit to take."""

    subject: str
    repository: str
    commit: str


BOOKS = (
    Book("american-government", "openstax/osbooks-american-government", "5c90dd7907db"),
    Book("anatomy-physiology", "openstax/osbooks-anatomy-physiology", "b0058a743bdd"),
    Book("anthropology", "openstax/osbooks-introduction-anthropology", "418eedd9bef2"),
    Book("astronomy", "openstax/osbooks-astronomy", "63157f370b09"),
    Book("chemistry", "openstax/osbooks-chemistry-bundle", "32c719622fbb"),
    Book("microbiology", "openstax/osbooks-microbiology", "ecf34dad129d"),
    Book("physics", "openstax/osbooks-college-physics-bundle", "f98d7a792138"),
    Book("psychology", "openstax/osbooks-psychology", "e061043bf2f9"),
    Book("sociology", "openstax/osbooks-introduction-sociology", "d35d5f3bdac4"),
    Book("us-history", "openstax/osbooks-us-history", "046331cfcea0"),
    Book("world-history", "openstax/osbooks-world-history", "3e17beda9130"),
)


def build(
    out: str | Path,
    *,
    books: tuple[Book, ...] = BOOKS,
    host: str = "https://github.com/",
    checkouts: str | Path | None = None,
) -> dict[str, Any]:
    """Fetch the books, parse them and write ``out/figures/{train,validation,test}.parquet``.

    Args:
        out: a data root; point MMFUSION_DATA at it afterwards.
        books: what to fetch.
        host: prefix of the repository addresses; a local folder or file:// works too.
        checkouts: where the repositories go; by default in the cache. They may be deleted after.

    Returns:
        Rows per split and pictures left out per reason; also written to ``figures/build.json``.

    Raises:
        InputError: a repository cannot be fetched, its licence is not CC BY 4.0, or nothing is left.
    """
    from tqdm.auto import tqdm

    checkouts = Path(checkouts or settings.cache_root() / "repositories")
    left_out: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for book in tqdm(books, "books"):
        tree = checkouts / book.repository.replace("/", "--")
        fetch(host + book.repository, book.commit, tree, ("modules", "media", "collections"))
        check_licence(tree)
        found += parse_book(tree, book, left_out)
    found = drop_duplicates(found, left_out)
    splits = assign_splits(found)
    for split, rows in splits.items():
        if not rows and split == "train":
            raise InputError("No figure is left after the rules: check the repositories' layout.")
        PACK.write(Path(out) / "figures" / f"{split}.parquet", rows)
    report = {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "left_out": dict(sorted(left_out.items())),
        "books": {book.repository: book.commit for book in books},
    }
    write_json(Path(out) / "figures" / "build.json", report)
    return report


def check_licence(tree: Path) -> None:
    """Raise unless every collection of the checkout says CC BY 4.0."""
    collections = sorted(tree.glob("collections/*.collection.xml"))
    for path in collections:
        licences = re.findall(r"<(?:\w+:)?license\b[^>]*", path.read_text(encoding="utf-8"))
        if not licences or not all(LICENCE in licence for licence in licences):
            raise InputError(
                f"{path} does not say {LICENCE}: this commit is not the pinned one, leave it out."
            )
    if not collections:
        raise InputError(
            f"{tree} has no collections/*.collection.xml, so no licence: leave it out."
        )


def parse_book(tree: Path, book: Book, left_out: Counter[str]) -> list[dict[str, Any]]:
    """All usable figures of a checkout as rows, in the order of module names and of the text."""
    rows = []
    for module in sorted(tree.glob("modules/*/index.cnxml")):
        try:
            document = ElementTree.parse(module).getroot()
        except ElementTree.ParseError:
            left_out["module is not well-formed XML"] += 1
            continue
        section = _text(_child(document, "title"))
        for figure in _descendants(document, "figure"):
            row = _figure(figure, module, tree, left_out)
            if row:
                row["section"] = section
                row["subject"] = CLASSES.index(book.subject)
                row["source"] = f"{book.repository}@{book.commit}:{row.pop('path')}"
                rows.append(row)
    return rows


def _figure(
    figure: ElementTree.Element, module: Path, tree: Path, left_out: Counter[str]
) -> dict[str, Any] | None:
    """One figure as a row without its section, or None and a reason counted."""
    images, caption = list(_descendants(figure, "image")), _child(figure, "caption")
    media = list(_descendants(figure, "media"))
    if len(images) != 1 or len(media) != 1:
        return _skip(left_out, "not exactly one picture")
    whole = _text(caption)
    text, credit = split_credit(whole)
    alt = " ".join(media[0].get("alt", "").split())
    if not usable_text(text, alt):
        return _skip(left_out, "caption or alternative text too short")
    if foreign_rights(whole):
        return _skip(left_out, "another licence or a foreign copyright")
    path = (module.parent / unquote(images[0].get("src", ""))).resolve()
    if not path.is_relative_to(tree.resolve()) or not path.is_file():
        return _skip(left_out, "picture file missing")
    content = path.read_bytes()
    try:
        encoded = shrink(content, str(path))
    except InputError:
        return _skip(left_out, "picture does not decode")
    return {
        "image": encoded,
        "caption": text,
        "alt": alt,
        "credit": credit,
        "path": path.relative_to(tree.resolve()).as_posix(),
        "content": hashlib.sha256(content).hexdigest(),
    }


def _skip(left_out: Counter[str], reason: str) -> None:
    left_out[reason] += 1


def shrink(content: bytes, name: str) -> bytes:
    """Any picture file as an RGB JPEG with the longest side at most 224 pixels."""
    from PIL import Image

    image = open_image(content, name)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def drop_duplicates(rows: list[dict[str, Any]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """First of each picture within a book; none of a picture that two books share."""
    subjects: dict[str, set[int]] = {}
    for row in rows:
        subjects.setdefault(row["content"], set()).add(row["subject"])
    kept, seen = [], set()
    for row in rows:
        if len(subjects[row["content"]]) > 1:
            left_out["picture shared by two books"] += 1
        elif row["content"] in seen or row["source"] in seen:
            left_out["exact duplicate"] += 1
        else:
            seen |= {row["content"], row["source"]}
            kept.append(row)
    return kept


def assign_splits(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows per split, by subject and section title."""
    listed = json.loads(Path(__file__).with_name("figures_splits.json").read_text("utf-8"))
    where = {
        (subject, title): split
        for split, subjects in listed.items()
        for subject, titles in subjects.items()
        for title in titles
    }
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for row in rows:
        split = where.get((CLASSES[row["subject"]], row["section"]), "train")
        splits[split].append(row)
    return splits


def _name(element: ElementTree.Element) -> str:
    """Tag without its namespace."""
    return element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""


def _descendants(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element.iter() if _name(child) == name)


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element | None:
    return next((child for child in element if _name(child) == name), None)


def _text(element: ElementTree.Element | None) -> str:
    """All text inside an element, with white space made single blanks."""
    return " ".join("".join(element.itertext()).split()) if element is not None else ""
