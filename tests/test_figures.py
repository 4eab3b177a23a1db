"""The figures reader: what it gives, and what it refuses by file and row."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from mmfusion_lib.data import figures
from mmfusion_lib.errors import InputError


def jpeg(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def row(number: int, **changes) -> dict:
    return {
        "image": jpeg(),
        "caption": f"A red lake, number {number}.",
        "alt": "A lake seen from a hill.",
        "credit": "",
        "section": "Lakes",
        "source": f"id-{number}",
        "subject": number % len(figures.CLASSES),
    } | changes


@pytest.fixture
def root(tmp_path, cache):
    for split, count in (("train", 3), ("validation", 2), ("test", 2)):
        rows = [row(i, source=f"{split}-{i}") for i in range(count)]
        figures.PACK.write(tmp_path / "root/figures" / f"{split}.parquet", rows)
    return tmp_path / "root"


def test_reads_what_was_written(root, cache):
    dataset = figures.load("train", root)
    assert len(dataset) == 3 and dataset.column_names[0] == "image"
    assert dataset[1]["image"].size == (6, 4) and dataset[1]["subject"] == 1
    assert dataset.features["subject"].names == list(figures.CLASSES)
    assert [p.parent.name for p in cache.rglob("*") if p.is_file()] == ["checked"]  # the stamp only
    assert figures.load("train", root)._fingerprint == dataset._fingerprint


def test_root_comes_from_the_setting(root, monkeypatch):
    monkeypatch.setenv("MMFUSION_DATA", str(root))
    assert len(figures.load("test")) == 2
    monkeypatch.delenv("MMFUSION_DATA")
    with pytest.raises(InputError, match=r"MMFUSION_DATA.*build figures"):
        figures.load("test")


def test_missing_things(root):
    with pytest.raises(InputError, match=r"no split 'dev'.*validation"):
        figures.load("dev", root)
    (root / "figures/test.parquet").unlink()
    with pytest.raises(InputError, match=r"test\.parquet does not exist.*build figures"):
        figures.load("test", root)


def test_broken_parquet(root):
    path = root / "figures/train.parquet"
    content = path.read_bytes()
    for broken in (b"", b"junk" * 9, content[:-20], content[:200] + b"\0" * 400 + content[600:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"train\.parquet"):
            figures.load("train", root)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"subject": 11}, "row 1: subject 11 is not one of the 11 classes"),
        ({"subject": -1}, "row 1: subject -1"),
        ({"subject": None}, "row 1: subject None"),
        ({"caption": "  "}, "row 1: column 'caption'"),
        ({"section": None}, "row 1: column 'section'"),
        ({"source": "id-0"}, "row 1: source 'id-0' was already used in row 0"),
        ({"image": None}, "row 1 .id-1.: the picture has no bytes"),
        ({"image": jpeg()[:300]}, "row 1 .id-1.: the picture cannot be decoded"),
        ({"image": b"text"}, "row 1 .id-1.: the picture is not an image"),
    ],
)
def test_bad_rows_are_named(tmp_path, cache, changes, message):
    path = tmp_path / "root/figures/train.parquet"
    write_loosely(path, [row(0), row(1, **changes)])
    with pytest.raises(InputError, match=message):
        figures.load("train", tmp_path / "root")


def test_labels_may_be_names_and_columns_must_be_there(tmp_path, cache):
    path = tmp_path / "root/figures/train.parquet"
    write_loosely(path, [row(0, subject="physics"), row(1, subject="astronomy")])
    assert figures.load("train", tmp_path / "root")["subject"] == [6, 3]
    write_loosely(path, [row(0, subject="physics"), row(1, subject="fysics")])
    with pytest.raises(InputError, match="row 1: subject 'fysics'"):
        figures.load("train", tmp_path / "root")
    write_loosely(path, [{k: v for k, v in row(0).items() if k != "alt"}])
    with pytest.raises(InputError, match=r"no column 'alt' .it has image, caption"):
        figures.load("train", tmp_path / "root")


def write_loosely(path, rows) -> None:
    """Parquet with any values, as somebody else may have written it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [r | {"image": {"bytes": r["image"], "path": None}} for r in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_first_words():
    assert figures.first_words("One  two\nthree.", 2) == "One two"
    assert figures.first_words("One two three.", 9) == "One two three."
    assert figures.first_words("One  two", None) == "One two"
    with pytest.raises(InputError):
        figures.first_words("One", 0)


@pytest.mark.parametrize(
    "alt, expected",
    [
        ("A dog sits on a mat. It sleeps.", "A dog sits on a mat."),
        ("A dog sits. It sleeps on a mat.", None),  # three words
        ("A photo of Dr. J. B. Smith in a lab. He reads.", "A photo of Dr. J. B. Smith in a lab."),
        ("The car goes 3.5 meters per second", "The car goes 3.5 meters per second"),
        ("A sign says “Keep off the grass.” People sit.", "A sign says “Keep off the grass.”"),
        ("word " * 25, ("word " * 25).strip()),
        ("word " * 26, None),
    ],
)
def test_caption_target(alt, expected):
    assert figures.caption_target(alt) == expected


def test_credit_line():
    line = figures.credit_line({"subject": 6, "credit": "(credit: J. Doe (NASA))"})
    assert line == "OpenStax, College Physics, CC BY 4.0; credit: J. Doe (NASA)"
    assert figures.credit_line({"subject": 3, "credit": ""}) == "OpenStax, Astronomy, CC BY 4.0"


def test_the_real_set(data_root):
    dataset = figures.load("validation", data_root)
    assert len(dataset) == 700 and min(map(len, dataset["caption"])) > 20
    printable = figures.printable(data_root)
    assert [r["source"] for r in printable] == list(figures.PRINTABLE)
    assert {r["subject"] for r in printable} == set(range(11))
