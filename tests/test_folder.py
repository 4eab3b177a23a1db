"""Your own data: folders and tables, and every way in which they can be wrong."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmfusion_lib.data import folder
from mmfusion_lib.errors import InputError


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), colour).save(path)
    return path


@pytest.fixture
def flowers(tmp_path):
    for name in ("rose", "tulip"):
        for number in range(3):
            picture(tmp_path / "flowers" / name / f"{number}.png")
    return tmp_path / "flowers"


def table(tmp_path, text, name="data.csv"):
    for letter in "abcd":
        picture(tmp_path / f"{letter}.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_class_folders(flowers):
    (flowers / "rose/.hidden.png").write_bytes(b"no picture")
    (flowers / "rose/notes.md").write_text("ignored")
    dataset = folder.load(flowers)
    assert dataset.column_names == ["id", "image", "label"]
    assert dataset.features["label"].names == ["rose", "tulip"]
    assert dataset["label"] == [0, 0, 0, 1, 1, 1] and dataset[0]["id"] == "rose/0.png"
    assert dataset[0]["image"].size == (5, 4)


def test_text_beside_each_picture(flowers):
    for file in flowers.rglob("*.png"):
        file.with_suffix(".txt").write_text(f" a {file.parent.name} \n", encoding="utf-8-sig")
    assert folder.load(flowers)["text"][3] == "a tulip"
    (flowers / "tulip/1.txt").unlink()
    with pytest.raises(InputError, match=r"tulip/1\.png: the text is missing"):
        folder.load(flowers)


def test_split_folders(tmp_path):
    for path in ("train/a/0.png", "train/b/0.png", "test/a/1.png", "test/b/1.png"):
        picture(tmp_path / "set" / path)
    dataset = folder.load(tmp_path / "set")
    assert dataset["split"] == ["test", "test", "train", "train"]
    assert dataset.features["label"].names == ["a", "b"]


def test_texts_alone_in_folders(tmp_path):
    for path, text in (("x/1.txt", "one"), ("y/2.txt", "two")):
        (tmp_path / "set" / path).parent.mkdir(parents=True)
        (tmp_path / "set" / path).write_text(text)
    dataset = folder.load(tmp_path / "set")
    assert dataset.column_names == ["id", "text", "label"] and dataset["text"] == ["one", "two"]


def test_csv_with_other_names_and_quotes(tmp_path):
    path = table(tmp_path, 'file,caption,kind\na.png,"red, and round",x\nb.png,"two\nlines",y\n')
    dataset = folder.load(path, image_column="file", text_column="caption", label_column="kind")
    assert dataset["text"] == ["red, and round", "two\nlines"] and dataset["label"] == [0, 1]
    assert dataset[1]["image"].size == (5, 4)


def test_tsv_and_jsonl(tmp_path):
    tsv = table(tmp_path, "text\tlabel\none\tx\ntwo\ty\n", "data.tsv")
    assert folder.load(tsv).column_names == ["id", "text", "label"]
    lines = [{"image": "a.png", "label": 1, "id": 7}, {"image": "b.png", "label": 0, "id": 8}]
    jsonl = table(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "data.jsonl")
    dataset = folder.load(jsonl)
    assert dataset["id"] == ["7", "8"] and dataset.features["label"].names == ["0", "1"]


def test_rows_to_predict_on_need_no_label(tmp_path):
    path = table(tmp_path, "image\na.png\nb.png\n")
    assert folder.load(path, labelled=False).column_names == ["id", "image"]
    with pytest.raises(InputError, match="line 2: the label is empty"):
        folder.load(path)


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("image,label\na.png,x\nz.png,y\n", {}, r"line 3: the image .*z\.png does not exist"),
        ("image,label\na.png,x\nb.png, \n", {}, "line 3: the label is empty"),
        ("image,label\na.png,x\n,y\n", {}, "line 3: the image is missing or empty"),
        ("text,label,id\na,x,1\nb,y,1\n", {}, r"line 3: the id '1' is already used at .*line 2"),
        ("image,label\na.png,x\nb.png,x\n", {}, r"has 1 class \(x\)"),
        (
            "image,label\na.png,x\n",
            {"text_column": "words"},
            "no column 'words': it has image, label",
        ),
        ("file,label\na.png,x\n", {}, r"neither an image nor a text column \(it has file, label\)"),
        ("text,label\none,two,x\n", {}, "line 2: more fields than the header's 2"),
        ("text,label\none\n", {}, "line 2: fewer fields"),
        ("image,label\n", {}, "no rows"),
        ("", {}, "no rows"),
    ],
)
def test_bad_tables(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        folder.load(table(tmp_path, text), **options)


def test_bad_lines_and_files(tmp_path, flowers):
    good = json.dumps({"text": "a", "label": "x"})
    with pytest.raises(InputError, match=r"data\.jsonl, line 2 is not valid JSON"):
        folder.load(table(tmp_path, good + "\n{broken\n", "data.jsonl"))
    with pytest.raises(InputError, match="line 2 is not a JSON object"):
        folder.load(table(tmp_path, good + "\n[1]\n", "data.jsonl"))
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv is not UTF-8"):
        folder.load(tmp_path / "latin.csv")
    for name, message in (("none", "does not exist"), ("data.xlsx", r"'\.xlsx'")):
        if name == "data.xlsx":
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=message):
            folder.load(tmp_path / name)
    (flowers / "tulip/1.png").write_bytes((flowers / "tulip/1.png").read_bytes()[:50])
    with pytest.raises(InputError, match=r"tulip/1\.png cannot be decoded"):
        folder.load(flowers)


def test_seeded_stratified_split(tmp_path):
    rows = "".join(f"t{i},{'x' if i < 30 else 'y' if i < 39 else 'z'}\n" for i in range(40))
    dataset = folder.load(table(tmp_path, "text,label\n" + rows))
    parts = folder.split(dataset, (0.7, 0.15, 0.15), seed=1)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 28, "validation": 6, "test": 6,
    }  # fmt: skip
    assert set(parts["train"]["label"]) == {0, 1, 2}  # the class of one row is trained on
    ids = [name for part in parts.values() for name in part["id"]]
    assert sorted(ids) == sorted(dataset["id"])
    again = folder.split(dataset, (0.7, 0.15, 0.15), seed=1)
    assert all(parts[name]["id"] == again[name]["id"] for name in parts)
    assert folder.split(dataset, seed=2)["test"]["id"] != parts["test"]["id"]


def test_split_column(tmp_path):
    text = "text,label,split\n" + "".join(
        f"t{i},{'xy'[i % 2]},{'Train' if i < 8 else 'test'}\n" for i in range(10)
    )
    parts = folder.split(folder.load(table(tmp_path, text)), (0.6, 0.2, 0.2))
    # Validation is cut from train: a quarter (0.2 of 0.6 + 0.2) of 8 rows.
    assert [len(part) for part in parts.values()] == [6, 2, 2]
    assert parts["test"]["text"] == ["t8", "t9"]
    with pytest.raises(InputError, match="split 'later' is unknown"):
        folder.split(folder.load(table(tmp_path, text.replace("test", "later"))))


def test_bad_fractions(flowers):
    dataset = folder.load(flowers)
    for fractions in ((0.5, 0.5), (0.5, 0.2, 0.2), (1.2, -0.1, -0.1)):
        with pytest.raises(InputError, match="fractions"):
            folder.split(dataset, fractions)
    with pytest.raises(InputError, match="validation part is empty"):
        folder.split(dataset, (0.98, 0.01, 0.01))
