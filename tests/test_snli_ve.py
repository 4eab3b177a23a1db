"""SNLI-VE on a made copy in the published form, with each known fault in it."""

from __future__ import annotations

import json
import warnings

import pytest
from PIL import Image

from mmfusion_lib.data import snli_ve
from mmfusion_lib.data.images import open_image
from mmfusion_lib.errors import InputError

SECRET = "the caption that must not be read"


def row(number, image="3416050480", label="neutral", **more):
    """A line as published: pairID is <image>.jpg#<caption><relation of the hypothesis>."""
    pair = {
        "Flickr30K_ID": image,
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#4",
        "gold_label": label,
        "pairID": f"{image}.jpg#4r{number}n",
        "sentence1": SECRET,
        "sentence1_parse": f"(ROOT {SECRET})",
        "sentence2": f"Hypothesis {number}.",
        "sentence2_parse": "(ROOT)",
    }
    return {key: value for key, value in (pair | more).items() if value is not None}


def write(root, rows, name="train"):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)
    (root / f"snli_ve_{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "snli_ve"
    (root / "flickr30k_images").mkdir(parents=True)
    for name in ("3416050480", "17", "18"):
        Image.new("RGB", (7, 5), "blue").save(root / f"flickr30k_images/{name}.jpg")
    return root


def test_pictures_are_stored_once(root):
    rows = [row(1), row(2, "17", "entailment"), row(3, label="contradiction"), row(4, "17")]
    write(root, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = snli_ve.load("train", root=root)
    assert pairs.classes == ("entailment", "neutral", "contradiction")
    assert pairs.labels.tolist() == [1, 0, 2, 1] and pairs.rows.tolist() == [0, 1, 0, 1]
    assert [open_image(image).size for image in pairs.images] == [(7, 5), (7, 5)]
    assert pairs.images[1] == str(root / "flickr30k_images/17.jpg")
    assert pairs.groups == ["3416050480", "17", "3416050480", "17"]
    assert pairs.texts == [f"Hypothesis {n}." for n in (1, 2, 3, 4)]
    assert pairs.take([1, 3]).images == [pairs.images[1]]


def test_the_first_sentence_is_never_read(root):
    write(root, [row(1), row(2, sentence1=None, sentence1_parse=None), row(3, sentence1=7)])
    pairs = snli_ve.load("train", root=root)
    assert len(pairs.texts) == 3 and SECRET not in repr(pairs)


def test_both_spellings_and_both_forms_of_the_id(root):
    old = row(2, Flickr30K_ID=None, Flikr30kID="17")
    older = row(3, Flickr30K_ID=None, Flikr30kID="18.jpg")
    write(root, [row(1), old, older], "dev")
    pairs = snli_ve.load("validation", root=root)
    assert pairs.groups == ["3416050480", "17", "18"]
    write(root, [row(1), row(2, Flickr30K_ID=None)], "dev")
    with pytest.raises(InputError, match="line 2 has neither Flickr30K_ID nor Flikr30kID"):
        snli_ve.load("validation", root=root)


def test_known_faults_are_left_out_and_counted(root):
    rows = [
        row(1),
        row(2, label="-"),
        row(3, pairID="vg_2349.jpg#1r1n"),
        row(4, captionID="vg_2349"),
        row(
            5, image="vg_2349", pairID="5", captionID="5"
        ),  # its picture is not there, and is not looked for
        row(6, sentence2=" "),
        row(7, label="-"),
    ]
    write(root, rows, "test")
    with pytest.warns(UserWarning) as caught:
        pairs = snli_ve.load("test", root=root)
    assert pairs.texts == ["Hypothesis 1."]
    path = root / "snli_ve_test.jsonl"
    assert str(caught[0].message) == (
        f"snli_ve test: rows left out: 2 pairs without a majority label (first: {path}, line 2); "
        f"3 pairs of Visual Genome (first: {path}, line 3); "
        f"1 pairs without a hypothesis (first: {path}, line 6)."
    )


def test_lines_end_only_at_line_ends(root):
    write(root, [row(1, sentence2="One\u2028two."), row(2)])
    path = root / "snli_ve_train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert snli_ve.load("train", root=root).texts == ["One\u2028two.", "Hypothesis 2."]


@pytest.mark.parametrize(
    "bad, message",
    [
        (row(1), r"train\.jsonl, line 2: the pairID '3416050480\.jpg#4r1n' is already .* line 1"),
        (row(2, label="maybe"), "line 2: the gold_label 'maybe' is unknown"),
        (row(2, image="99"), r"line 2: the picture .*flickr30k_images/99\.jpg does not exist"),
        (row(2, sentence2=None), "line 2 has no text field 'sentence2'"),
        (row(2, pairID=None), "line 2 has no text field 'pairID'"),
        ([1], "line 2 has no text field 'pairID'"),
    ],
)
def test_bad_lines(root, bad, message):
    write(root, [row(1), bad])
    with pytest.raises(InputError, match=message):
        snli_ve.load("train", root=root)


def test_bad_files(root, tmp_path, monkeypatch):
    path = root / "snli_ve_train.jsonl"
    for damaged in (b'{"pairID": "1"', b'{"pairID": "caf\xe9"}'):
        path.write_bytes(json.dumps(row(1)).encode() + b"\n" + damaged + b"\n")
        with pytest.raises(InputError, match=r"train\.jsonl, line 2 is not valid JSON"):
            snli_ve.load("train", root=root)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no pair that can be used"):
        snli_ve.load("train", root=root)
    with pytest.raises(InputError, match=r"snli_ve_dev\.jsonl does not exist"):
        snli_ve.load("validation", root=root)
    with pytest.raises(InputError, match="no split 'dev'"):
        snli_ve.load("dev", root=root)
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path / "snli_ve"))
    with pytest.raises(InputError, match=r"snli_ve/snli_ve: it is not distributed.*snli_ve\.md"):
        snli_ve.load("train")


def test_counts_under_the_published_names(root, tmp_path, monkeypatch):
    for name in ("train", "dev", "test"):
        write(root, [row(1), row(2, "17"), row(3, label="entailment"), row(4, label="-")], name)
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path))
    found = snli_ve.count()
    assert set(snli_ve.PUBLISHED) <= set(found)
    assert found["test images"] == 2 and found["test neutral"] == 2
    assert found["validation entailment"] == 1 and found["train contradiction"] == 0
    assert found["train left out: pairs without a majority label"] == 1
