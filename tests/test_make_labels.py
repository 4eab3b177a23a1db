"""Labels for a folder: what is found, what is made, what is refused, and going on after a stop."""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mmfusion_lib.__main__ import main
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import label_workers, make_labels
from mmfusion_lib.experts.image_files import find_images, is_whole
from mmfusion_lib.experts.labels import LabelMap, read_labels

run = make_labels.make_labels


class Made:
    """An expert that needs no weights: brightness as depth, its inverse as edges, one box."""

    licence, megabytes = "MIT", 0.0
    uses_depth = True

    def __init__(self, name, model="made", fails_on=None):
        self.name, self.model, self.fails_on = name, model, fails_on
        self.sizes, self.depths = [], []

    def __call__(self, images, depth):
        self.sizes.append(len(images))
        self.depths += [each is not None for each in depth]
        return [self.label(np.asarray(image.convert("L"))) for image in images]

    def label(self, grey):
        if self.fails_on == grey.shape:
            raise RuntimeError("out of memory")
        if self.name != "obj_detection":
            return LabelMap(self.name, grey if self.name == "depth" else 255 - grey)
        ids = np.full_like(grey, 255)
        ids[: grey.shape[0] // 2] = 0
        return LabelMap("obj_detection", np.where(ids == 0, 7, 255).astype(np.uint8), ids, {0: "a"})


def load(name, device):
    return Made(name)


def picture(path, size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path.name))).integers(0, 256, (*size[::-1], 3))
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.jpg", "a/b/2.png", "3.webp", "4.jpeg", "5.JPG"):
        picture(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def files_of(labels):
    return {str(each.relative_to(labels)): each for each in labels.rglob("*") if each.is_file()}


# Finding


def test_pictures_are_found_at_any_depth_and_labels_are_not_pictures(folder):
    (folder / "notes.txt").write_text("x")
    picture(folder / ".cache" / "hidden.jpg")
    picture(folder / "labels" / "edge" / "a" / "1.png")
    picture(folder / "older" / "edge" / "9.png")
    (folder / "older" / "experts.json").write_text("{}")  # marks another folder of labels
    found = find_images(folder, folder / "labels")
    assert found == ["3.webp", "4.jpeg", "5.JPG", "a/1.jpg", "a/b/2.png"]


def test_two_pictures_of_one_name_are_refused_before_any_work(folder, tmp_path):
    picture(folder / "a" / "1.png")
    with pytest.raises(InputError, match=r"a/1.jpg and a/1.png in .* share one label file: rename"):
        run(folder, tmp_path / "out", ["edge"], load=load)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pictures", "labels", "words"),
    [
        ("x", "x", "holds the pictures and cannot hold their labels too"),
        ("x/edge", "x", "labels of edge would be written over the pictures"),
        ("x/edge/deep", "x", "labels of edge would be written over the pictures"),
    ],
)
def test_labels_cannot_fall_on_pictures(tmp_path, pictures, labels, words):
    path = picture(tmp_path / pictures / "1.png")
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        run(tmp_path / pictures, tmp_path / labels, ["depth", "edge"], load=load)
    assert path.read_bytes() == before


def test_a_file_of_another_is_never_overwritten(folder, tmp_path):
    theirs = picture(tmp_path / "out" / "edge" / "a" / "1.png")
    theirs.write_bytes(theirs.read_bytes()[:-20])  # not whole, so a label is wanted here
    before = theirs.read_bytes()
    summary = run(folder, tmp_path / "out", ["edge"], load=load)
    assert theirs.read_bytes() == before
    assert [name for name, _ in summary.skipped] == ["a/1.jpg"]
    assert "is no label file of ours" in summary.skipped[0][1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": []}, "No experts are named"),
        ({"experts": ["gossip"]}, "no expert 'gossip'"),
        ({"batch": 0}, "batch=0 must be 1 or more"),
        ({"workers": 0}, "workers=0 must be 1 or more"),
        ({"folder": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, options, words):
    given = {"folder": folder, "experts": ["edge"], **options}
    with pytest.raises(InputError, match=words):
        run(labels=tmp_path / "out", load=load, **given)


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        run(tmp_path / "empty", tmp_path / "out", ["edge"], load=load)


# Making


def test_every_picture_gets_every_label(folder, tmp_path):
    summary = run(folder, tmp_path / "out", ["obj_detection", "depth", "edge"], load=load, batch=2)
    assert (summary.made, summary.already, summary.skipped, summary.status) == (5, 0, (), 0)
    assert summary.rate > 0
    # 5 x (3 PNG + 1 JSON), and the record of what made them
    there = files_of(tmp_path / "out")
    assert len(there) == 21
    total = sum(path.stat().st_size for name, path in there.items() if name != "experts.json")
    assert summary.bytes_per_image == total / 5
    record = json.loads((tmp_path / "out" / "experts.json").read_text())
    assert record["edge"] == {"model": "made", "licence": "MIT", "source": {}}
    grey = np.asarray(Image.open(folder / "a" / "b" / "2.png").convert("L"))
    depth = read_labels(tmp_path / "out", "depth", "a/b/2.png", (6, 4))
    np.testing.assert_array_equal(depth.map, grey)
    assert read_labels(tmp_path / "out", "obj_detection", "a/b/2.png").names == {0: "a"}


def test_depth_is_made_first_and_handed_on(folder, tmp_path):
    experts = {}

    def keep(name, device):
        return experts.setdefault(name, Made(name))

    run(folder, tmp_path / "out", ["obj_detection", "depth"], load=keep, batch=4)
    assert experts["depth"].depths == [False] * 5
    assert experts["obj_detection"].depths == [True] * 5
    assert experts["obj_detection"].sizes == [4, 1]


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("1.jpg", "CMYK", {}),
        ("1.png", "RGBA", {}),
        ("1.png", "P", {}),
        ("1.png", "I;16", {}),
        ("1.png", "1", {}),
        ("1.webp", "RGBA", {"lossless": True}),
    ],
)
def test_any_mode_of_picture(tmp_path, name, mode, options):
    picture(tmp_path / "in" / name, mode=mode, **options)
    assert run(tmp_path / "in", tmp_path / "out", ["edge"], load=load).made == 1
    assert read_labels(tmp_path / "out", "edge", name).size == (6, 4)


def test_labels_are_upright_where_the_picture_is_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    picture(tmp_path / "in" / "1.jpg", exif=exif)
    run(tmp_path / "in", tmp_path / "out", ["edge"], load=load)
    assert read_labels(tmp_path / "out", "edge", "1.jpg").size == (4, 6)


def test_bad_pictures_are_reported_and_left_out(folder, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "cut.jpg").write_bytes((folder / "4.jpeg").read_bytes()[:200])
    picture(folder / "large.png", (8, 8))
    summary = run(
        folder,
        tmp_path / "out",
        ["edge", "depth"],
        load=lambda name, _: Made(name, fails_on=(8, 8) if name == "edge" else None),
    )
    assert (summary.made, summary.status) == (5, 0)
    assert [name for name, _ in summary.skipped] == ["bad.png", "cut.jpg", "large.png"]
    assert summary.skipped[2][1] == "edge failed: out of memory"
    assert "warning: 3 pictures were left out" in str(summary)
    assert is_whole(tmp_path / "out", "depth", "large.png")  # the other expert had no trouble
    assert not is_whole(tmp_path / "out", "edge", "large.png")


def test_status_is_1_where_nothing_came_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    assert run(tmp_path / "in", tmp_path / "out", ["edge"], load=load).status == 1


def test_a_closed_disk_ends_the_run(folder, tmp_path, monkeypatch):
    def full(*_):
        raise InputError("The disk is full: free some space.") from OSError(28, "no space")

    monkeypatch.setattr(label_workers, "write_labels", full)
    with pytest.raises(InputError, match="The disk is full"):
        run(folder, tmp_path / "out", ["edge"], load=load)


# Going on


def test_a_run_that_was_stopped_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    real, calls = label_workers.write_labels, []

    def stop_at_four(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(label_workers, "write_labels", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", ["edge", "obj_detection"], load=load, batch=1)
    # Two experts a picture: one picture is done, of the second the first label.
    before = {name: path.stat().st_mtime_ns for name, path in files_of(tmp_path / "out").items()}
    assert sum(name.endswith(".png") for name in before) == 3
    summary = run(folder, tmp_path / "out", ["edge", "obj_detection"], load=load, batch=1)
    assert (summary.already, summary.made) == (1, 4)
    assert len(calls) == 4 + 7  # ten labels: three were there
    after = files_of(tmp_path / "out")
    assert all(after[name].stat().st_mtime_ns == time for name, time in before.items())
    assert run(folder, tmp_path / "out", ["edge", "obj_detection"], load=load).already == 5


@pytest.mark.parametrize("damage", ["half", "table", "gone"])
def test_label_files_that_are_not_whole_are_made_again(folder, tmp_path, damage):
    run(folder, tmp_path / "out", ["obj_detection"], load=load)
    path = tmp_path / "out" / "obj_detection" / "a" / "1.png"
    whole = path.read_bytes()
    if damage == "half":
        path.write_bytes(whole[:-6])
    elif damage == "table":
        path.with_suffix(".json").write_text('{"0":')
    else:
        path.unlink()
    summary = run(folder, tmp_path / "out", ["obj_detection"], load=load)
    assert (summary.already, summary.made) == (4, 1)
    assert path.read_bytes() == whole
    assert read_labels(tmp_path / "out", "obj_detection", "a/1.jpg").names == {0: "a"}


def test_labels_of_two_models_do_not_mix(folder, tmp_path):
    run(folder, tmp_path / "out", ["edge"], load=load)
    picture(folder / "6.png")
    with pytest.raises(InputError, match=r"made made the labels of edge there, and not another"):
        run(folder, tmp_path / "out", ["edge"], load=lambda name, _: Made(name, "another"))
    summary = run(folder, tmp_path / "out", ["depth"], load=lambda name, _: Made(name, "another"))
    assert summary.made == 6
    assert set(json.loads((tmp_path / "out" / "experts.json").read_text())) == {"edge", "depth"}


# Several processes


def test_several_processes_make_the_same_files_as_one(folder, tmp_path):
    (folder / "bad.png").write_bytes(b"no picture")
    one = run(folder, tmp_path / "one", ["depth", "obj_detection"], load=load, workers=1)
    two = run(folder, tmp_path / "two", ["depth", "obj_detection"], load=load, workers=2, batch=2)
    assert (two.made, two.skipped) == (one.made, one.skipped)
    first, second = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert set(first) == set(second)
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in first)


def test_a_process_that_dies_is_one_sentence(folder, tmp_path, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(label_workers.ProcessPoolExecutor, "submit", killed)
    with pytest.raises(InputError, match=r"A process was killed, .* goes on from here"):
        run(folder, tmp_path / "out", ["edge"], load=load, workers=2, batch=1)


# Sheets, costs, the command


def test_sheets_are_drawn_of_the_first_pictures(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="sheets are drawn by matplotlib")
    run(folder, tmp_path / "out", ["edge", "depth"], load=load, sheets=2)
    assert sorted(files_of(tmp_path / "out" / "sheets")) == ["3.png", "4.png"]
    # The next run does not take the sheets, or labels, of a folder inside for pictures.
    assert run(folder, folder / "labels", ["edge"], load=load, sheets=1).made == 5
    assert run(folder, folder / "labels", ["edge"], load=load).already == 5


def test_costs_by_hand():
    # 2 images/s, 7,200 images: 3,600 s = 1 hour; 50 kB each: 0.36 GB
    cost = make_labels.predict_cost(2, 7200, 50_000)
    assert (cost.hours, cost.gigabytes) == (1, 0.36)
    with pytest.raises(InputError, match="rate=0 must be above 0"):
        make_labels.predict_cost(0, 1, 1)


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    seen = []

    def fake(name, device=None, source="packaged"):
        seen.append((name, source))
        return Made(name)

    monkeypatch.setattr(make_labels, "load_expert", fake)
    argv = ["experts", str(folder), "--experts", "edge, depth", "--to", str(tmp_path / "out")]
    assert main([*argv, "--source", "hub", "--workers", "1"]) == 0
    assert seen == [("depth", "hub"), ("edge", "hub")]
    assert "5 pictures labelled, 0 had their labels already." in capsys.readouterr().out
    assert main([*argv, "--source", "hub", "--workers", "1"]) == 0
    assert "0 pictures labelled, 5 had" in capsys.readouterr().out


def test_an_unknown_source_is_status_2(folder, tmp_path, capsys):
    argv = ["experts", str(folder), "--experts", "edge", "--to", str(tmp_path / "out")]
    assert main([*argv, "--source", "gossip", "--workers", "1"]) == 2
    assert "Unknown source 'gossip'" in capsys.readouterr().err


def test_the_loader_can_be_handed_to_other_processes():
    import pickle

    pickle.loads(pickle.dumps(partial(make_labels.load_expert, source="hub")))
