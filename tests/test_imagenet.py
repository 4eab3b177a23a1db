"""Few-shot ImageNet on a made tree: shots are sorted, seeded and nested; each fault is named."""

from __future__ import annotations

import json

import prismer_data_maker as maker
import pytest

from mmfusion_lib.data import imagenet
from mmfusion_lib.errors import InputError


def test_shots_are_nested_and_never_in_validation(tmp_path):
    """8 pictures a class: 4 are held out, so that 1, 2 and 4 shots are possible and 5 are not."""
    maker.imagenet(tmp_path)
    chosen = {n: set(imagenet.load("train", tmp_path, shots=n)["id"][:]) for n in (1, 2, 4)}
    assert [len(chosen[n]) for n in (1, 2, 4)] == [3, 6, 12]
    assert chosen[1] < chosen[2] < chosen[4]
    validation = imagenet.load("validation", tmp_path)
    assert len(validation) == 3 * imagenet.HELD_OUT
    assert not set(validation["id"][:]) & chosen[4]
    everything = imagenet.load("train", tmp_path)["id"][:]
    assert set(everything) == chosen[4] and everything == sorted(everything)
    with pytest.raises(
        InputError, match=r"n01440764 holds 8 pictures where 9 are needed \(5 shots"
    ):
        imagenet.load("train", tmp_path, shots=5)


def test_the_choice_depends_on_the_seed_and_not_on_the_file_system(tmp_path, monkeypatch):
    """Files are sorted before the draw, and the test pictures are all taken, in order."""
    maker.imagenet(tmp_path)
    first = imagenet.load("train", tmp_path, shots=2)["id"][:]
    listed = imagenet.os.listdir
    monkeypatch.setattr(imagenet.os, "listdir", lambda folder: listed(folder)[::-1])
    assert imagenet.load("train", tmp_path, shots=2)["id"][:] == first
    assert imagenet.load("train", tmp_path, shots=2, seed=1)["id"][:] != first
    assert first[:2] == CHOSEN
    assert imagenet.load("test", tmp_path, seed=1)["id"][:2] == [
        "imagenet/n01440764/ILSVRC2012_val_0.JPEG",
        "imagenet/n01440764/ILSVRC2012_val_1.JPEG",
    ]


# Recorded once, not worked out: no machine or version may choose otherwise.
CHOSEN = [f"imagenet_train/n01440764/n01440764_{i}.JPEG" for i in (2, 7)]


def test_labels_and_names(tmp_path):
    maker.imagenet(tmp_path)
    data = imagenet.load("test", tmp_path)
    assert data["label"][:] == [0, 0, 1, 1, 2, 2]
    assert data.features["label"].names == list(maker.WNIDS)
    assert data[5]["image"].size == (7, 5) and data["maps"][5].startswith("imagenet/n01484850/")
    assert imagenet.class_names(tmp_path) == ["tench", "goldfish", "great white shark"]
    # The file decides on the numbers, not the order of the folders.
    maker.write(tmp_path, "imagenet/imagenet_class.json", dict(zip(maker.WNIDS, (2, 0, 1))))
    data = imagenet.load("test", tmp_path)
    assert data["label"][:] == [0, 0, 1, 1, 2, 2] and "n01443537" in data["id"][0]
    assert data.features["label"].names == ["n01443537", "n01484850", "n01440764"]


def test_class_files_can_be_made(tmp_path):
    maker.imagenet(tmp_path)
    for kind in ("answer", "class"):
        (tmp_path / f"imagenet/imagenet_{kind}.json").unlink()
    with pytest.raises(
        InputError, match=r"imagenet_answer\.json does not exist: .*write_class_files"
    ):
        imagenet.class_names(tmp_path)
    mapping = tmp_path / "LOC_synset_mapping.txt"
    with pytest.raises(InputError, match=r"mapping\.txt does not exist: give LOC_synset"):
        imagenet.write_class_files(mapping, tmp_path)
    lines = ["n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus"]
    mapping.write_text("\n".join([*lines, "n01484850 great white shark, man-eater"]) + "\n")
    paths = imagenet.write_class_files(mapping, tmp_path)
    assert json.loads(paths[1].read_text()) == dict(zip(maker.WNIDS, range(3)))
    assert imagenet.class_names(tmp_path) == ["tench", "goldfish", "great white shark"]
    for bad in ("n01440764", "n01440764 tench again"):
        mapping.write_text("\n".join([*lines, bad]))
        with pytest.raises(
            InputError, match=r"mapping\.txt, line 3: .* is no new wnid with a name"
        ):
            imagenet.write_class_files(mapping, tmp_path)


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "answer",
            ["tench", "goldfish"],
            "the class 2 of n01484850 is not a new number from 0 to 1",
        ),
        ("answer", ["tench", "", "shark"], r"answer\.json, row 1: the name '' is no text"),
        ("answer", {}, "is no list of names"),
        ("answer", ["tench", "goldfish", "shark", "ray"], r"class\.json has no wnid for class 3"),
        (
            "class",
            dict(zip(maker.WNIDS, (0, 1, 1))),
            "the class 1 of n01484850 is not a new number",
        ),
        ("class", dict(zip(maker.WNIDS, (0, 1, "2"))), "the class '2' of n01484850"),
        ("class", [], "is no object"),
        (
            "class",
            {"n00000001": 0, "n01443537": 1, "n01484850": 2},
            "n01440764: the class is not in",
        ),
    ],
)
def test_faults_of_the_class_files(tmp_path, name, value, message):
    maker.write(maker.imagenet(tmp_path), f"imagenet/imagenet_{name}.json", value)
    with pytest.raises(InputError, match=message):
        imagenet.load("train", tmp_path, shots=1)


def test_faults_of_the_folders(tmp_path):
    maker.imagenet(tmp_path)
    (tmp_path / "imagenet/n01443537/ILSVRC2012_val_0.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match=r"n01443537/ILSVRC2012_val_0\.JPEG is empty"):
        imagenet.load("test", tmp_path)
    for path in (tmp_path / "imagenet/n01443537").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(InputError, match=r"n01443537 holds no \.JPEG picture"):
        imagenet.load("test", tmp_path)
    (tmp_path / "imagenet_train").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="imagenet_train does not exist: imagenet needs"):
        imagenet.load("train", tmp_path, shots=1)
    for split, shots in (("train", 0), ("test", 1)):
        with pytest.raises(InputError, match=f"shots is {shots} for {split}"):
            imagenet.load(split, tmp_path, shots=shots)


def test_counts_under_the_published_names(tmp_path):
    found = imagenet.count(maker.imagenet(tmp_path))
    assert set(imagenet.PUBLISHED) <= set(found)
    assert found["training pictures"] == 24 and found["test pictures"] == 6
    assert found["class names that are used twice"] == 0
