"""COCO, NoCaps and the web's captions on made trees in the published layouts, with each fault."""

from __future__ import annotations

import json
import warnings

import numpy as np
import prismer_data_maker as maker
import pytest

from mmfusion_lib.data import coco, json_lists, nocaps, web_captions
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts.labels import LabelMap, read_labels, write_labels


def test_coco_train_has_a_row_a_caption(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = coco.load("train", maker.coco(tmp_path))
    assert data["captions"][:] == [["A cat on a mat."], ["Two giraffes."], ["A black cat."]]
    assert data["id"][:] == ["9#0", "25#0", "9#1"] and data["group"][:] == ["9", "25", "9"]
    assert data["maps"][0] == "vqav2/train2014/COCO_train2014_000000000009.jpg"
    assert data[1]["image"].size == (7, 5)  # decoded when the row is taken


def test_coco_test_has_a_row_a_picture_with_all_references(tmp_path):
    """The list names picture 73 before 42, the ground truth 42 before 73."""
    data = coco.load("test", maker.coco(tmp_path))
    assert data["id"][:] == ["73", "42"]
    assert data["captions"][:] == [["A red bus.", "A bus."], ["A dog.", "A dog runs."]]
    path = coco.write_captions(tmp_path / "out/test.json", data, ["A bus.", "A dog."])
    assert json.loads(path.read_text()) == [
        {"image_id": 73, "caption": "A bus."},
        {"image_id": 42, "caption": "A dog."},
    ]
    with pytest.raises(InputError, match="1 captions for 2 rows"):
        coco.write_captions(path, data, ["A bus."])
    with pytest.raises(
        InputError, match="image_id '42' is no number, comes twice, or has an empty"
    ):
        coco.write_captions(path, data, ["A bus.", " "])


def test_expert_labels_lie_under_the_same_path(tmp_path):
    row = coco.load("train", maker.coco(tmp_path / "data"))[1]
    depth = LabelMap("depth", np.arange(35, dtype=np.uint8).reshape(5, 7))
    write_labels(tmp_path / "labels", depth, row["maps"])
    assert (tmp_path / "labels/depth/vqav2/val2014/COCO_val2014_000000000025.png").is_file()
    read = read_labels(tmp_path / "labels", "depth", row["maps"], row["image"].size)
    assert np.array_equal(read.map, depth.map)


def test_coco_validation_is_optional(tmp_path):
    maker.coco(tmp_path)
    with pytest.raises(InputError, match=r"coco_karpathy_val\.json does not exist: coco needs"):
        coco.load("validation", tmp_path)
    found = coco.count(tmp_path)
    assert found == {"train images": 2, "train captions": 3, "test images": 2, "test captions": 4}
    for name in ("val", "val_gt"):  # lists may lie in a folder of the set, too
        (tmp_path / "coco").mkdir(exist_ok=True)
        source = tmp_path / f"coco_karpathy_{name.replace('val', 'test')}.json"
        (tmp_path / f"coco/coco_karpathy_{name}.json").write_text(source.read_text())
    assert len(coco.load("validation", tmp_path)) == 2
    assert coco.count(tmp_path)["validation captions"] == 4


TRAIN, TEST, GT = (f"coco_karpathy_{name}.json" for name in ("train", "test", "test_gt"))
GOOD = {"image": maker.coco_name(9), "caption": "A cat."}
SEEN = {"image": maker.coco_name(73, "val2014")}
OTHER = {"image": maker.coco_name(42, "val2014")}


@pytest.mark.parametrize(
    "file, rows, message",
    [
        (TRAIN, [GOOD, GOOD | {"image": maker.coco_name(8)}], r"json, row 1: the picture .*8\.jpg"),
        (TRAIN, [GOOD, {"image": maker.coco_name(9)}], "row 1 has no field 'caption'"),
        (TRAIN, [{"caption": "A cat."}], "row 0 has no field 'image' that is a text"),
        (TRAIN, [GOOD, 3], "row 1 has no field 'image'"),
        (TRAIN, [GOOD, GOOD | {"image": "../secret_9.jpg"}], "row 1: .* leaves its folder"),
        (TRAIN, [GOOD | {"image": "train2014/cat.jpg"}], "row 0: .*cat.jpg' has no number"),
        (TRAIN, {"rows": []}, "is no JSON list"),
        (TRAIN, [], "holds no row that can be used"),
        (TEST, [SEEN, OTHER, SEEN], "row 2: the picture .* is listed twice"),
        (TEST, [SEEN], r"test_gt\.json: the picture 42 is not in .*test\.json"),
        (TEST, [SEEN, OTHER, {"image": maker.coco_name(9)}], "row 2: .* has no references in"),
        (GT, {"images": [{"id": 42}, {"id": 42}], "annotations": []}, "row 1: the id 42 is used"),
        (GT, {"images": [], "annotations": [{"image_id": 5, "caption": "A"}]},
         "annotations, row 0: the image_id 5 is not among the images"),
        (GT, {"images": [{"id": 42}],
              "annotations": [{"id": 1, "image_id": 42, "caption": "A"}] * 2},
         "annotations, row 1: the id 1 is used twice"),
    ],
)  # fmt: skip
def test_faults_of_coco_name_file_and_row(tmp_path, file, rows, message):
    maker.write(maker.coco(tmp_path), file, rows)
    with pytest.raises(InputError, match=message):
        coco.load("train" if file == TRAIN else "test", tmp_path)


def test_empty_captions_are_left_out_and_counted(tmp_path):
    maker.write(maker.coco(tmp_path), TRAIN, [GOOD | {"caption": " "}, GOOD])
    with pytest.warns(
        UserWarning, match=r"coco train: rows left out: 1 rows without a caption .*row 0"
    ):
        assert len(coco.load("train", tmp_path)) == 1
    assert coco.count(tmp_path)["train left out: rows without a caption"] == 1


def test_without_data(monkeypatch, tmp_path):
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    for load, name in (
        (lambda: coco.load("train"), "coco"),
        (lambda: nocaps.load("validation"), "nocaps"),
        (lambda: web_captions.load("train", source="vg"), "web"),
    ):
        with pytest.raises(
            InputError, match=rf"The set {name} is not at MMFUSION_DATA \(the .*\.md.* one folder"
        ):
            load()
    monkeypatch.setenv("MMFUSION_DATA", str(maker.coco(tmp_path)))
    assert len(coco.load("test")) == 2
    with pytest.raises(InputError, match="coco has no split 'val'"):
        coco.load("val")


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"a": 1}, {"a": ]', r"row 1 is not valid JSON \(Expecting value"),
        ('[{"a": 1} {"a": 2}]', "row 1 is not valid JSON .a comma is missing"),
        ('[{"a": 1}, {"a": "cut o', "row 1 is not valid JSON .Unterminated string"),
        ('[{"a": 1}', "row 1 is not valid JSON .it ends early"),
        ('[{"a": 1},', "row 1 is not valid JSON"),
        ('[{"a": 1}] 3', "goes on after its list"),
        ("", "is no JSON list"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_a_broken_list_names_its_row(tmp_path, monkeypatch, text, message, chunk):
    """A chunk of one character: every value is decoded across a border."""
    monkeypatch.setattr(json_lists, "CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(json_lists.read_list(path))


def test_a_list_is_read_in_pieces(tmp_path, monkeypatch):
    rows = [{"caption": 'Café "au lait" ]}, [', "n": [1, {"b": None}]}, "text", {"x": "\u2028"}]
    path = tmp_path / "list.json"
    for chunk in (1, 2, 7, 100):
        monkeypatch.setattr(json_lists, "CHUNK", chunk)
        for options in ({}, {"indent": 2}, {"ensure_ascii": False}):
            path.write_text(json.dumps(rows, **options), encoding="utf-8")
            assert list(json_lists.read_list(path)) == list(enumerate(rows))
        path.write_bytes(b"\xef\xbb\xbf [ ]\n")
        assert list(json_lists.read_list(path)) == []
    path.write_bytes(b'[{"a": "caf\xe9"}]')
    with pytest.raises(InputError, match=r"row 0 is not valid JSON \(not UTF-8"):
        list(json_lists.read_list(path))
    monkeypatch.setattr(json_lists, "LONGEST", 20)
    monkeypatch.setattr(json_lists, "CHUNK", 8)
    path.write_text('["a", {"b": ' + "1" * 30 + " ?" + " " * 100)
    with pytest.raises(InputError, match="row 1 is not valid JSON"):
        list(json_lists.read_list(path))


def test_nocaps_with_and_without_references(tmp_path):
    maker.nocaps(tmp_path)
    data = nocaps.load("validation", tmp_path)
    assert data["id"][:] == ["0", "1"] and data["maps"][1] == "nocaps/val/b.jpg"
    assert data["captions"][:] == [[], []] and data["domain"][:] == ["", ""]
    references = {1: ["A yak.", "Yaks."], 0: ["A lute."]}
    maker.write(tmp_path, nocaps.TRUTH, maker.truth(references, domain="out-domain"))
    data = nocaps.load("validation", tmp_path)
    assert data["captions"][:] == [["A lute."], ["A yak.", "Yaks."]]
    assert nocaps.count(tmp_path) == {
        "validation images": 2,
        "validation references": 3,
        "validation images, out-domain": 2,
    }
    path = nocaps.write_captions(tmp_path / "server.json", data, ["A lute.", "A yak."])
    assert json.loads(path.read_text())[1] == {"image_id": 1, "caption": "A yak."}
    maker.write(tmp_path, nocaps.TRUTH, maker.truth({1: ["A yak."]}))
    with pytest.raises(InputError, match=r"val\.json, row 0: the img_id 0 has no references in"):
        nocaps.load("validation", tmp_path)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"image": "val/a.jpg", "img_id": 3}] * 2, "row 1: the img_id 3 is already used in row 0"),
        ([{"image": "val/c.jpg", "img_id": 3}], r"row 0: .*nocaps/val/c\.jpg does not"),
        ([{"image": "val/a.jpg", "img_id": "3"}], "row 0 has no field 'img_id' that is a number"),
        ([], "holds no row"),
    ],
)  # fmt: skip
def test_faults_of_nocaps(tmp_path, rows, message):
    maker.write(maker.nocaps(tmp_path), "nocaps_val.json", rows)
    with pytest.raises(InputError, match=message):
        nocaps.load("validation", tmp_path)
    with pytest.raises(InputError, match="nocaps has no split 'train'"):
        nocaps.load("train", tmp_path)


def test_web_lists(tmp_path):
    maker.web(tmp_path)
    data = web_captions.load("train", tmp_path, source="cc3m_sbu")
    assert data["captions"][:] == [["Row 0."], ["Row 1."], ["Row 2."]]
    assert data["group"][:] == ["cc3m_sgu/0/a.jpg", "cc3m_sgu/0/b.jpg", "cc3m_sgu/0/a.jpg"]
    assert len(set(data["id"][:])) == 3
    vg = web_captions.load("train", tmp_path, source="vg")
    assert vg["maps"][:] == ["vg/VG_100K/1.jpg", "vg/VG_100K/2.jpg"]  # named below the root
    found = web_captions.count(tmp_path)
    assert found["cc3m_sbu pairs"] == 3 and found["cc3m_sbu pictures"] == 2


def test_the_mixture_is_all_four_lists(tmp_path):
    data = web_captions.mixture(maker.web(maker.coco(tmp_path)))
    assert len(data) == 3 + 2 + 3 + 2 and len(set(data["id"][:])) == 10
    assert data[9]["captions"] == ["Row 1."] and data[9]["image"].size == (7, 5)


def test_pictures_of_the_web_may_be_missing(tmp_path):
    """Pictures of the web disappear, and their rows are counted; Visual Genome's do not."""
    maker.web(tmp_path)
    (tmp_path / "cc12m/0/c.jpg").unlink()
    with pytest.warns(UserWarning, match=r"web cc12m: .*1 rows whose picture is missing .*row 0"):
        data = web_captions.load("train", tmp_path, source="cc12m")
    assert data["maps"][:] == ["cc12m/0/d.jpg"]
    assert web_captions.count(tmp_path)["cc12m left out: rows whose picture is missing"] == 1
    (tmp_path / "cc12m/0/d.jpg").unlink()
    with pytest.raises(InputError, match="holds no row that can be used"):
        web_captions.load("train", tmp_path, source="cc12m")
    (tmp_path / "vg/VG_100K/2.jpg").unlink()
    with pytest.raises(InputError, match=r"vg_caption\.json, row 1: the picture .* does not exist"):
        web_captions.load("train", tmp_path, source="vg")
    for split, source, message in (
        ("train", "laion", "no source 'laion'"),
        ("test", "vg", "'test'"),
    ):
        with pytest.raises(InputError, match=message):
            web_captions.load(split, tmp_path, source=source)
