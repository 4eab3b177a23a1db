"""UPMC Food-101: a photograph from the web and the text of its page -> dish (Wang et al., 2015).

Not the Food-101 of ETH Zurich, which has no texts. Two texts of the same pictures are in use, and
scores differ between them, so the reader wants to be told which::

    images/{train,test}/<class>/<class>_<n>.jpg        the pictures, in both cases
    texts_txt/<class>/<class>_<n>.txt                  text="pages": the whole page (PMF, MMBT)
    texts/train_titles.csv  texts/test_titles.csv      text="titles": its title (the Kaggle copy)
    split.json                                         optional lists train, val, test of file names

The title files are no proper CSV (one quote is never closed, which makes a CSV reader swallow the
rows after it), so they are read line by line: first field the image, last the class, title between.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import InputError
from ..files import read_json
from .pairs import Pairs
from .paper_sets import LeftOut, Published, check_split, find
from .subsets import stratified
from .tables import read_text

VARIANTS = ("titles", "pages")
VALIDATION = 5000  # rows, or a tenth of the training rows where that is less
PAGE_LENGTH = 10_000  # characters of a page that are kept; BERT's 512 tokens end well before
LAYOUT = (
    "images/{train,test}/<class>/<class>_<n>.jpg, and texts/{train,test}_titles.csv or "
    "texts_txt/<class>/<class>_<n>.txt"
)

_LISTS = "`split.json` of YiLunLee/missing_aware_prompts"
PUBLISHED: Published = {
    "pictures for training and validation": (67_988, _LISTS),
    "pictures for testing": (22_716, _LISTS),
    "classes": (101, "Wang et al., 2015"),
}


def load(split: str, *, text: str, root: str | Path | None = None, seed: int = 0) -> Pairs:
    """Read one split of one variant.

    The set has no validation part: unless ``split.json`` lists one, a seeded stratified draw takes
    it from the training pictures, before any is left out: both variants validate on the same ones.

    Args:
        split: train, validation or test.
        text: ``titles`` or ``pages``; always say which beside a result.
        root: the set's folder; by default ``<MMFUSION_DATA>/food101``.
        seed: of the draw of the validation part.

    Returns:
        Pairs with labels (N,); every picture is a group. White space in texts is made single blanks
        and pages are cut at `PAGE_LENGTH` characters; nothing else is changed.

    Raises:
        InputError: the set is absent; a missing picture, an unknown class or an image listed twice,
            by file and row.
    """
    pairs, left_out = _read(split, text, root, seed)
    left_out.warn(f"food101 {split}, {text}")
    return pairs


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`; what is listed twice or left out."""
    root = find("food101", root, LAYOUT)
    train = _pictures(root, "train")
    found = {
        "pictures for training and validation": len(train),
        "pictures for testing": len(_pictures(root, "test")),
        "classes": len(set(train.values())),
    }
    lists = root / "split.json"
    if lists.is_file():  # a picture in train and val is learnt and chosen by
        names = [name for listed in read_json(lists).values() for name in listed]
        found["pictures that split.json lists twice"] = len(names) - len(set(names))
    for text, folder in zip(VARIANTS, ("texts", "texts_txt")):
        for split in ("train", "validation", "test") if (root / folder).is_dir() else ():
            pairs, left_out = _read(split, text, root, 0)
            found[f"{text}: {split} rows"] = len(pairs.texts)
            for reason, n in left_out.counts.items():
                found[f"{text}: {split} left out: {reason}"] = n
    return found


def _read(split: str, text: str, root: str | Path | None, seed: int) -> tuple[Pairs, LeftOut]:
    check_split("food101", split)
    if text not in VARIANTS:
        raise InputError(f"food101 has no text {text!r}: say text='titles' or text='pages'.")
    root = find("food101", root, LAYOUT)
    part = "test" if split == "test" else "train"
    pictures, left_out = _pictures(root, part), LeftOut()
    classes = tuple(
        sorted(set((_pictures(root, "train") if part == "test" else pictures).values()))
    )
    for label in sorted(set(pictures.values()) - set(classes)):
        raise InputError(
            f"{root / 'images' / part / label}: the class has no pictures in images/train: add "
            "some, or remove the folder."
        )
    titles = _titles(root, part, pictures, left_out) if text == "titles" else {}
    kept, texts = [], []
    for name in _chosen(root, split, pictures, seed):
        if text == "titles":
            value, where = titles.get(name, ""), str(root / "images" / part / pictures[name] / name)
        else:
            path = root / "texts_txt" / pictures[name] / f"{Path(name).stem}.txt"
            value, where = _page(path), str(path)
        if value:
            kept.append(name)
            texts.append(value)
        else:
            left_out.add(
                f"pictures without a {'title' if text == 'titles' else 'page text'}", where
            )
    if not kept:
        raise InputError(f"No {text} were found for {split} in {root}: food101 needs {LAYOUT}.")
    return Pairs(
        [str(root / "images" / part / pictures[name] / name) for name in kept],
        torch.arange(len(kept)),
        texts,
        torch.tensor([classes.index(pictures[name]) for name in kept]),
        kept,
        classes,
    ), left_out


def _pictures(root: Path, part: str) -> dict[str, str]:
    """File name -> class of the pictures in ``images/<part>``, by class and name."""
    folder = root / "images" / part
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: food101 needs {LAYOUT}.")
    found: dict[str, str] = {}
    for path in sorted(folder.glob("[!.]*/[!.]*.jpg")):
        if path.name in found:
            raise InputError(
                f"{path}: a picture of this name is in {folder / found[path.name]} too: remove one."
            )
        found[path.name] = path.parent.name
    return found


def _chosen(root: Path, split: str, pictures: dict[str, str], seed: int) -> list[str]:
    """File names of the split, in the order of ``pictures``."""
    lists = root / "split.json"
    if lists.is_file():
        key = {"train": "train", "validation": "val", "test": "test"}[split]
        listed = read_json(lists)
        if not isinstance(listed, dict) or not isinstance(listed.get(key), list):
            raise InputError(f"{lists} has no list {key!r}: repair the file, or remove it.")
        for row, name in enumerate(listed[key]):
            if name not in pictures:
                raise InputError(
                    f"{lists}, {key!r}, row {row}: the picture {name!r} is not in "
                    f"{root / 'images' / ('test' if split == 'test' else 'train')}: complete the "
                    "folder, or remove split.json."
                )
        wanted = set(listed[key])
        return [name for name in pictures if name in wanted]
    names = list(pictures)
    if split == "test":
        return names
    size = min(VALIDATION, max(1, len(names) // 10))
    held_out = set(stratified(list(pictures.values()), size, seed))
    return [name for i, name in enumerate(names) if (i in held_out) == (split == "validation")]


def _titles(root: Path, part: str, pictures: dict[str, str], left_out: LeftOut) -> dict[str, str]:
    """File name -> title of one title file; rows that name no picture are counted."""
    path = root / "texts" / f"{part}_titles.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist: food101 with titles needs {LAYOUT}.")
    titles: dict[str, str] = {}
    classes = set(pictures.values())
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}, line {number}"
        fields = line.split(",")
        name, label = fields[0].strip().strip('"'), fields[-1].strip().strip('"')
        if not line.strip():
            continue
        if name.endswith(".txt"):
            left_out.add("title rows that name a .txt file", where)
        elif len(fields) < 3 or not name.endswith(".jpg"):
            left_out.add("lines that are not image,title,class", where)
        elif label not in classes:
            raise InputError(
                f"{where}: the class {label!r} is unknown: correct or delete the line."
            )
        elif name in titles:
            raise InputError(f"{where}: the image {name!r} occurs twice: delete one of the lines.")
        elif pictures.get(name) != label:
            raise InputError(
                f"{where}: the picture {root / 'images' / part / label / name} does not exist: "
                "complete the folder, or delete the line."
            )
        else:
            titles[name] = _unquoted(",".join(fields[1:-1]))
    return titles


def _unquoted(field: str) -> str:
    """A title without the quotes around it, closed or not, and with single blanks."""
    field = " ".join(field.split())
    if field.startswith('"'):
        field = field[1:]
        # Inside, a quote is doubled: an odd number at the end includes the closing one.
        if (len(field) - len(field.rstrip('"'))) % 2:
            field = field[:-1]
        field = field.replace('""', '"')
    return field.strip()


def _page(path: Path) -> str:
    """A page's text; empty where the file is missing. Bytes that are not UTF-8 are replaced."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return " ".join(text.split())[:PAGE_LENGTH]
