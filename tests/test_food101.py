"""UPMC Food-101 on a made tree in the published layouts, with each known fault in it."""

from __future__ import annotations

import json
import warnings
from collections import Counter

import pytest
import torch
from PIL import Image

from mmfusion_lib.data import food101
from mmfusion_lib.data.images import open_image
from mmfusion_lib.errors import InputError

DISHES = ("breakfast_burrito", "nachos", "tacos")


@pytest.fixture
def root(tmp_path):
    """Three dishes; ten training pictures each, numbered from 725, and two test pictures each."""
    root = tmp_path / "food101"
    for part, numbers in (("train", range(725, 735)), ("test", range(2))):
        lines = []
        for dish in DISHES:
            (root / "images" / part / dish).mkdir(parents=True)
            (root / "texts_txt" / dish).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                name = f"{dish}_{number}"
                Image.new("RGB", (6, 4), "red").save(root / f"images/{part}/{dish}/{name}.jpg")
                (root / f"texts_txt/{dish}/{name}.txt").write_text(f"Page  of\n{name}\t. ")
                lines.append(f"{name}.jpg,Title of {name},{dish}")
        (root / "texts").mkdir(exist_ok=True)
        (root / f"texts/{part}_titles.csv").write_text("\n".join(lines) + "\n")
    return root


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def quiet(split, **options):
    """Load, and fail on any warning: nothing may be left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return food101.load(split, **options)


@pytest.mark.parametrize("text", food101.VARIANTS)
def test_splits_of_a_faultless_copy(root, text):
    parts = {s: quiet(s, text=text, root=root) for s in ("train", "validation", "test")}
    # A tenth of the 30 training pictures, one of each dish, validates.
    assert {name: len(part.texts) for name, part in parts.items()} == {
        "train": 27, "validation": 3, "test": 6,
    }  # fmt: skip
    assert sorted(parts["validation"].labels.tolist()) == [0, 1, 2]
    train = parts["train"]
    assert train.classes == DISHES and not train.several
    assert train.rows.tolist() == list(range(27)) and len(set(train.groups)) == 27
    assert not set(train.groups) & set(parts["validation"].groups)
    for image, name, label in zip(train.images, train.groups, train.labels):
        assert image == str(root / "images" / "train" / DISHES[label] / name)
    assert open_image(train.images[0]).size == (6, 4)
    test = parts["test"]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    start = "Title of nachos_1" if text == "titles" else "Page of nachos_1 ."
    assert test.texts[3] == start


def test_the_text_must_be_named(root):
    with pytest.raises(TypeError, match="text"):
        food101.load("train", root=root)
    with pytest.raises(InputError, match="no text 'title': say text='titles' or text='pages'"):
        food101.load("train", text="title", root=root)


def test_the_draw_of_validation_is_seeded_and_the_same_for_both_texts(root):
    (root / "texts_txt/nachos/nachos_725.txt").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = {
            (text, seed): set(food101.load("validation", text=text, root=root, seed=seed).groups)
            for text in food101.VARIANTS
            for seed in range(8)
        }
    assert len({frozenset(names) for (text, _), names in drawn.items() if text == "titles"}) > 1
    for seed in range(8):
        assert drawn["titles", seed] - drawn["pages", seed] <= {"nachos_725.jpg"}
        assert drawn["pages", seed] <= drawn["titles", seed]


def test_a_quote_that_is_never_closed_swallows_nothing(root):
    path = root / "texts/train_titles.csv"
    edit(path, "Title of breakfast_burrito_730,", '"Best burrito, ever, breakfast_burrito,')
    edit(path, ",Title of nachos_730,", ',"Nachos, ""loaded"", with beans",')
    edit(path, ",Title of tacos_730,", ',"Say ""taco""",')
    edit(path, ",Title of tacos_731,", ',Tacos  - the "real" thing,')
    pairs = [quiet(split, text="titles", root=root) for split in ("train", "validation")]
    titles = {n: t for part in pairs for n, t in zip(part.groups, part.texts)}
    assert len(titles) == 30
    assert titles["breakfast_burrito_730.jpg"] == "Best burrito, ever, breakfast_burrito"
    assert titles["breakfast_burrito_731.jpg"] == "Title of breakfast_burrito_731"
    assert titles["nachos_730.jpg"] == 'Nachos, "loaded", with beans'
    assert titles["tacos_730.jpg"] == 'Say "taco"'
    assert titles["tacos_731.jpg"] == 'Tacos - the "real" thing'


def test_rows_that_name_no_picture_are_left_out_and_counted(root):
    path = root / "texts/test_titles.csv"
    edit(path, "nachos_0.jpg", "nachos_0.txt")
    edit(path, "nachos_1.jpg", "nachos_1.txt")
    edit(path, "Title of tacos_1,", " ,")
    path.write_text(path.read_text() + "\na stray end\nof a title, too, nachos\n")
    with pytest.warns(UserWarning) as caught:
        pairs = food101.load("test", text="titles", root=root)
    assert pairs.groups == ["breakfast_burrito_0.jpg", "breakfast_burrito_1.jpg", "tacos_0.jpg"]
    (message,) = [str(w.message) for w in caught]
    assert "food101 test, titles: rows left out:" in message
    assert f"2 title rows that name a .txt file (first: {path}, line 3)" in message
    assert f"2 lines that are not image,title,class (first: {path}, line 8)" in message
    # Both pictures of the .txt rows, and the one whose title is blank.
    first = root / "images/test/nachos/nachos_0.jpg"
    assert f"3 pictures without a title (first: {first})" in message
    assert caught[0].filename == __file__  # points at the caller


def test_missing_and_empty_pages_are_left_out_and_counted(root):
    (root / "texts_txt/tacos/tacos_0.txt").unlink()
    (root / "texts_txt/tacos/tacos_1.txt").write_text(" \n")
    (root / "texts_txt/nachos/nachos_0.txt").write_bytes(b"caf\xe9 " + b"x" * 20_000)
    with pytest.warns(UserWarning, match=r"2 pictures without a page text \(first: .*tacos_0\.txt"):
        pairs = food101.load("test", text="pages", root=root)
    assert len(pairs.texts) == 4 and 2 not in pairs.labels
    assert pairs.classes == DISHES  # those of train, whatever the split holds
    page = pairs.texts[2]
    assert page.startswith("caf\ufffd xx") and len(page) == food101.PAGE_LENGTH


def test_split_lists_are_followed(root):
    lists = {
        "train": ["tacos_730.jpg", "nachos_726.jpg"],
        "val": ["tacos_725.jpg"],
        "test": ["nachos_1.jpg"],
    }
    (root / "split.json").write_text(json.dumps(lists))
    for split, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert sorted(quiet(split, text="titles", root=root).groups) == sorted(lists[key])
    assert food101.count(root)["pictures that split.json lists twice"] == 0
    lists["val"].append("tacos_730.jpg")  # trained on, and chosen by
    (root / "split.json").write_text(json.dumps(lists))
    assert food101.count(root)["pictures that split.json lists twice"] == 1
    lists["val"][1] = "tacos_999.jpg"
    (root / "split.json").write_text(json.dumps(lists))
    with pytest.raises(
        InputError, match=r"split\.json, 'val', row 1: the picture 'tacos_999\.jpg'"
    ):
        food101.load("validation", text="pages", root=root)
    (root / "split.json").write_text("{}")
    with pytest.raises(InputError, match="has no list 'test'"):
        food101.load("test", text="pages", root=root)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "nachos_1.jpg",
            "nachos_7.jpg",
            r"csv, line 4: the picture .*nachos_7\.jpg does not exist",
        ),
        ("nachos_1,nachos", "nachos_1,nacho", r"csv, line 4: the class 'nacho' is unknown"),
        ("nachos_1.jpg", "nachos_0.jpg", r"csv, line 4: the image 'nachos_0\.jpg' occurs twice"),
        (
            "nachos_1,nachos",
            "nachos_1,tacos",
            r"line 4: the picture .*tacos/nachos_1\.jpg does not",
        ),
    ],
)
def test_bad_title_rows(root, old, new, message):
    edit(root / "texts/test_titles.csv", old, new)
    with pytest.raises(InputError, match=message):
        food101.load("test", text="titles", root=root)


def test_bad_trees(root, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no split 'dev': use one of train, validation, test"):
        food101.load("dev", text="pages", root=root)
    extra = root / "images/test/pho"
    extra.mkdir()
    Image.new("RGB", (6, 4)).save(extra / "pho_1.jpg")
    with pytest.raises(InputError, match="images/test/pho: the class has no pictures in"):
        food101.load("test", text="pages", root=root)
    (extra / "pho_1.jpg").rename(extra / "nachos_1.jpg")
    with pytest.raises(
        InputError, match=r"pho/nachos_1\.jpg: a picture of this name is in .*nachos"
    ):
        food101.load("test", text="pages", root=root)
    (root / "texts/train_titles.csv").unlink()
    with pytest.raises(InputError, match=r"train_titles\.csv does not exist"):
        food101.load("train", text="titles", root=root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="images/train does not exist: food101 needs images/"):
        food101.load("train", text="titles", root=tmp_path / "empty")
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    with pytest.raises(
        InputError, match=r"not distributed with the book, .*data_cards/food101\.md"
    ):
        food101.load("train", text="titles")


def test_data_root_and_counts(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path))
    (root / "texts_txt/tacos/tacos_0.txt").unlink()
    found = food101.count()
    assert {key: found[key] for key in food101.PUBLISHED} == {
        "pictures for training and validation": 30, "pictures for testing": 6, "classes": 3,
    }  # fmt: skip
    assert found["pages: test rows"] == 5 and found["titles: test rows"] == 6
    assert found["pages: test left out: pictures without a page text"] == 1
    assert Counter(food101.load("test", text="titles").labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert food101.load("train", text="titles").labels.dtype == torch.long
