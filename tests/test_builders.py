"""The builders, on small made trees with every known fault, and on a local git repository."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmfusion_lib.data import build_figures, build_groceries, figures, groceries
from mmfusion_lib.data.build_figures import Book
from mmfusion_lib.data.caption_rules import foreign_rights, split_credit
from mmfusion_lib.errors import InputError

GIT = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
LICENSE = (
    '<col:collection xmlns:col="c" xmlns:md="m"><metadata><md:license '
    'url="http://creativecommons.org/licenses/by/4.0/">CC</md:license></metadata></col:collection>'
)


def noise(seed: int, size=(300, 200), kind="JPEG") -> bytes:
    """A picture unlike every other seed's."""
    pixels = np.random.default_rng(seed).integers(
        0, 255, (size[1] // 20, size[0] // 20, 3), np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, kind)
    return buffer.getvalue()


def figure(src: str, caption: str | None, alt="A lake seen from a hill.", more="") -> str:
    caption = "" if caption is None else f"<caption>{caption}</caption>"
    image = f'<image mime-type="image/jpeg" src="../../media/{src}"/>'
    return f'<figure><media alt="{alt}">{image}</media>{more}{caption}</figure>'


def write_module(tree, name, title, *figures_, extra=""):
    path = tree / "modules" / name / "index.cnxml"
    path.parent.mkdir(parents=True)
    path.write_text(
        f'<document xmlns="http://cnx.rice.edu/cnxml"><title>{title}</title><content>'
        f"<section><title>Inner</title>{''.join(figures_)}</section>{extra}</content></document>",
        encoding="utf-8",
    )


@pytest.fixture
def tree(tmp_path):
    """A book with one good figure of every kind and one of every fault."""
    tree = tmp_path / "openstax" / "book-a"
    (tree / "media").mkdir(parents=True)
    (tree / "collections").mkdir()
    (tree / "collections/book.collection.xml").write_text(LICENSE)
    for number in range(12):
        (tree / f"media/{number}.jpg").write_bytes(noise(number))
    (tree / "media/a b.png").write_bytes(noise(50, (100, 60), "PNG"))
    (tree / "media/copy.jpg").write_bytes(noise(0))
    (tree.parent / "outside.jpg").write_bytes(noise(60))
    (tree / "media/bad.jpg").write_bytes(noise(0)[:500])
    two = '<media alt="Another"><image src="../../media/2.jpg"/></media>'
    write_module(
        tree, "m1", "Lakes and <emphasis>rivers</emphasis>",
        figure("0.jpg", "A red lake in the <emphasis>north</emphasis>\n of it.  (credit: J. Doe)"),
        figure("a%20b.png", "Water is H<sub>2</sub>O and it is wet."),
        figure("1.jpg", "Two pictures in one figure here.", more=two),
        figure("2.jpg", "Too short here. (credit: a long credit line of many words)"),
        figure("3.jpg", "A lake with an alt too short.", alt="A lake."),
        figure("4.jpg", None),
        figure("5.jpg", "Some lake that is not free. (credit: J. Doe/Flickr, CC BY-SA 2.0)"),
        figure("missing.jpg", "A lake whose file is missing."),
        figure("bad.jpg", "A lake whose file is broken."),
        figure("copy.jpg", "The same red lake once again."),
        figure("../../outside.jpg", "A lake that is outside the book."),
    )  # fmt: skip
    write_module(tree, "m2", "The Supreme Court", figure("6.jpg", "A lake before a large court."))
    write_module(
        tree,
        "m3",
        "House and Senate Organizations",
        figure("7.jpg", "A lake before a large house."),
    )
    (tree / "modules/m4").mkdir()
    (tree / "modules/m4/index.cnxml").write_text("<document><title>broken")
    return tree


BOOK_A = Book("american-government", "openstax/book-a", "")


def test_parse_book(tree):
    left_out = Counter()
    rows = build_figures.parse_book(tree, BOOK_A, left_out)
    assert [row["source"].split("media/")[1] for row in rows] == [
        "0.jpg", "a b.png", "copy.jpg", "6.jpg", "7.jpg",
    ]  # fmt: skip
    first = rows[0]
    assert first["caption"] == "A red lake in the north of it."
    assert first["credit"] == "(credit: J. Doe)" and first["alt"] == "A lake seen from a hill."
    assert first["section"] == "Lakes and rivers" and first["subject"] == 0
    assert rows[1]["caption"] == "Water is H2O and it is wet."
    assert left_out == {
        "not exactly one picture": 1,
        "caption or alternative text too short": 3,  # caption, alt, no caption at all
        "another licence or a foreign copyright": 1,
        "picture file missing": 2,  # missing, and outside the book
        "picture does not decode": 1,
        "module is not well-formed XML": 1,
    }
    # 300 x 200 shrinks to 224 x 149; 100 x 60 is not enlarged.
    sizes = [Image.open(io.BytesIO(row["image"])).size for row in rows[:2]]
    assert sizes == [(224, 149), (100, 60)]


def test_duplicates():
    def row(content, subject, source):
        return {"content": content, "subject": subject, "source": source}

    left_out = Counter()
    rows = [
        row("x", 0, "a"),
        row("x", 0, "b"),
        row("y", 0, "c"),
        row("y", 1, "d"),
        row("z", 1, "e"),
    ]
    kept = build_figures.drop_duplicates(rows, left_out)
    assert [r["source"] for r in kept] == ["a", "e"]
    assert left_out == {"exact duplicate": 1, "picture shared by two books": 2}


def test_licence_is_checked(tree):
    build_figures.check_licence(tree)
    path = tree / "collections/book.collection.xml"
    path.write_text(LICENSE.replace("by/4.0", "by-nc-sa/4.0"))
    with pytest.raises(InputError, match=r"book\.collection\.xml"):
        build_figures.check_licence(tree)
    path.unlink()
    with pytest.raises(InputError, match="no licence"):
        build_figures.check_licence(tree)


@pytest.mark.parametrize(
    "caption, text, credit",
    [
        ("A lake. (credit: Jo)", "A lake.", "(credit: Jo)"),
        (
            "A lake. (credit a: Jo (NASA); credit b: Al)",
            "A lake.",
            "(credit a: Jo (NASA); credit b: Al)",
        ),
        (
            "A lake. (credit modification of work by Jo)",
            "A lake.",
            "(credit modification of work by Jo)",
        ),
        ("A lake. (2007, credit: Jo)", "A lake.", "(2007, credit: Jo)"),
        ("A lake (a). (modification of work by Jo)", "A lake (a).", "(modification of work by Jo)"),
        ("A lake. (attribution: Copyright Rice)", "A lake.", "(attribution: Copyright Rice)"),
        ("A lake. (credit: Jo) And a hill.", "A lake. And a hill.", "(credit: Jo)"),
        ("A lake. Credit a: Jo. b: Al", "A lake.", "Credit a: Jo. b: Al"),
        # The known faults of the pack: a plain "credit" is not a credit line.
        ("Both share the credit for the lake.", "Both share the credit for the lake.", ""),
        ("The “Report on Credit” (b) in 1790.", "The “Report on Credit” (b) in 1790.", ""),
        ("Jo is credited (a) with the lake.", "Jo is credited (a) with the lake.", ""),
    ],
)
def test_split_credit(caption, text, credit):
    assert split_credit(caption) == (text, credit)


def test_foreign_rights():
    foreign = [
        "CC BY-SA 3.0",
        "CC-BY-NC",
        "Share Alike",
        "used with permission",
        "© 2001 Jo",
        "GNU FDL",
    ]
    free = [
        "CC BY 2.0",
        "CC0",
        "Public Domain",
        "the Cygnus Arm",
        "Copyright Rice University, CC BY 4.0",
    ]
    assert all(map(foreign_rights, foreign)) and not any(map(foreign_rights, free))


def test_the_pack_follows_the_rules(data_root):
    rows = figures.load("test", data_root).select_columns(["caption", "credit"])
    same = sum(
        split_credit(f"{r['caption']} {r['credit']}".strip()) == (r["caption"], r["credit"])
        for r in rows
    )
    assert same >= 0.998 * len(rows)
    assert {(b.subject, f"{b.repository}@{b.commit}") for b in build_figures.BOOKS} == {
        (figures.CLASSES[s], source.split(":")[0])
        for split in ("train", "test")
        for s, source in zip(
            *map(figures.load(split, data_root).__getitem__, ("subject", "source"))
        )
    }


def test_the_listed_splits_are_the_packs(data_root):
    for split in ("train", "validation", "test"):
        rows = list(figures.load(split, data_root).select_columns(["subject", "section"]))
        assert len(build_figures.assign_splits(rows)[split]) == len(rows)


def commit(tree) -> str:
    """Make a git repository of a folder; returns the commit."""
    run = ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*run, *command], check=True)
    head = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


@GIT
def test_build_figures_from_a_local_repository(tree, tmp_path, cache):
    other = tmp_path / "openstax" / "book-b"
    shutil.copytree(tree, other)
    for module in ("m2", "m3"):
        shutil.rmtree(other / "modules" / module)
    (other / "media/0.jpg").write_bytes(noise(30))
    (other / "media/copy.jpg").write_bytes(noise(31))
    (other / "media/unused.bin").write_bytes(b"x")
    books = tuple(
        Book(subject, f"openstax/{path.name}", commit(path)[:12])
        for subject, path in (("american-government", tree), ("astronomy", other))
    )
    options = {"books": books, "host": f"{tmp_path}/", "checkouts": tmp_path / "checkouts"}
    report = build_figures.build(tmp_path / "root", **options)
    # Book a: 0 and its copy (one stays), "a b.png" is in both books, 6, 7. Book b: 0, copy.
    assert report["left_out"]["picture shared by two books"] == 2
    assert report["left_out"]["exact duplicate"] == 1
    found = {
        split: figures.load(split, tmp_path / "root") for split in ("train", "validation", "test")
    }
    assert sum(map(len, found.values())) == sum(report["rows"].values()) == 5
    assert set(found["train"]["subject"]) == {0, 3}
    for dataset in found.values():
        for row in dataset.select_columns(["source"]):
            assert row["source"].startswith(
                (f"openstax/book-a@{books[0].commit}:media/", "openstax/book-b@")
            )
    assert build_figures.build(tmp_path / "root", **options) == report  # checkouts are used again


@GIT
def test_fetch_errors(tree, tmp_path, cache):
    commit(tree)
    for book, message in (
        (Book("physics", "openstax/none", "abc"), "`git clone`"),
        (Book("physics", "openstax/book-a", "0123456789ab"), "`git checkout`"),
    ):
        with pytest.raises(InputError, match=message):
            build_figures.build(tmp_path / "root", books=(book,), host=f"{tmp_path}/")
    assert not (tmp_path / "root").exists()


@pytest.fixture
def shop(tmp_path):
    """The repository's layout with its 81 classes and three pictures."""
    tree = tmp_path / "marcusklasson" / "GroceryStoreDataset"
    data = tree / "dataset"
    lines = ["Class Name,Class ID,Coarse Class Name,Coarse Class ID,Iconic,Description"]
    for label, name in enumerate(groceries.CLASSES):
        folder, coarse = name.replace(" ", "-"), groceries.COARSE_OF[label]
        path = data / "iconic-images-and-descriptions" / folder / f"{folder}_Description.txt"
        path.parent.mkdir(parents=True)
        path.write_text(f"About {name}.\n")
        listed = path.relative_to(data).as_posix() + (
            "s" if name == "Anjou" else ""
        )  # a misspelling
        coarse_name = groceries.COARSE_CLASSES[coarse].replace(" ", "-")
        lines.append(f"{folder},{label},{coarse_name},{coarse},/none.jpg,/{listed}")
    (data / "classes.csv").write_text("\n".join(lines) + "\n")
    for split, folder, line in (
        ("train", "Anjou", ", 20, 13"), ("val", "Banana", ", 6, 2"), ("test", "Kiwi", ""),
    ):  # fmt: skip
        name = f"{split}/Fruit/{folder}/{folder}_001.jpg"
        (data / name).parent.mkdir(parents=True)
        (data / name).write_bytes(noise(1, (348, 464)))
        (data / f"{split}.txt").write_text(name + line + "\n")
    return tree


@GIT
def test_build_groceries_from_a_local_repository(shop, tmp_path, cache):
    head = commit(shop)
    options = {"host": f"{tmp_path}/", "checkouts": tmp_path / "checkouts"}
    with pytest.raises(InputError, match="lists 1 pictures and not 2640"):
        build_groceries.build(tmp_path / "root", **options)
    with pytest.raises(InputError, match=r"test\.txt lists 1 pictures and not 2"):
        build_groceries.build(
            tmp_path / "root",
            expected=dict.fromkeys(build_groceries.ROWS, 1) | {"test": 2},
            **options,
        )
    assert not (tmp_path / "root").exists()
    report = build_groceries.build(tmp_path / "root", expected=None, **options)
    assert report == {"rows": {"train": 1, "validation": 1, "test": 1}, "commit": head}
    row = groceries.load("train", tmp_path / "root")[0]
    assert row["image"].size == (120, 160) and row["description"] == "About Anjou."
    assert row["source"].endswith("GroceryStoreDataset:dataset/train/Fruit/Anjou/Anjou_001.jpg")
    assert groceries.load("test", tmp_path / "root")["coarse_label"] == [3]


def test_groceries_faults(shop):
    data = shop / "dataset"
    classes = build_groceries.read_classes(data)
    (data / "train.txt").write_text("train/Fruit/Anjou/Anjou_001.jpg, 21, 13\n")
    with pytest.raises(InputError, match="line 1: the labels 21, 13 contradict"):
        build_groceries.read_split(data, "train", classes)
    (data / "train.txt").write_text("train/Fruit/Durian/Durian_001.jpg, 6, 2\n")
    with pytest.raises(InputError, match=r"line 1: .*Durian"):
        build_groceries.read_split(data, "train", classes)
    (data / "train.txt").write_text("train/Fruit/Anjou/Anjou_001.jpg, pear, 12\n")
    with pytest.raises(InputError, match=r"line 1: the labels pear, 12 contradict .*: correct the"):
        build_groceries.read_split(data, "train", classes)
    table = (data / "classes.csv").read_text()
    (data / "classes.csv").write_text(table.replace("Kiwi,7", "Kiwi,8"))
    with pytest.raises(
        InputError, match=r"line 9.*the classes have changed: check out an older commit in .*, and"
    ):
        build_groceries.read_classes(data)


def test_the_packs_numbers_are_expected(data_root):
    assert {
        s: len(groceries.load(s, data_root)) for s in build_groceries.ROWS
    } == build_groceries.ROWS
