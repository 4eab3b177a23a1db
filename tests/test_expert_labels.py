"""Label maps: what is refused, their files, and crop, flip and shift together with a picture."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import geometry, labels
from mmfusion_lib.experts.geometry import Geometry
from mmfusion_lib.experts.labels import LabelMap, check, kind_of, read_labels, write_labels

PICTURE = "coco/train/a.b.JPG"


def grey(*rows, dtype=np.uint8):
    return np.array(rows, dtype)


def detection(names=None):
    return LabelMap("obj_detection", grey([17, 17, 3, 255]), grey([0, 1, 2, 255]), names)


def stored(folder, expert, suffix=".png"):
    return folder / expert / "coco" / "train" / f"a.b{suffix}"


def same(a, b):
    assert (a.expert, a.names) == (b.expert, b.names)
    np.testing.assert_array_equal(a.map, b.map)
    assert (a.instances is None) == (b.instances is None)
    if a.instances is not None:
        np.testing.assert_array_equal(a.instances, b.instances)


# What a map is.


def test_kinds():
    assert [name for name in labels.EXPERTS if not kind_of(name).semantic] == [
        "depth",
        "normal",
        "edge",
        "saliency",
    ]
    assert kind_of("seg_anything").semantic and kind_of("seg_coco").classes == 133
    with pytest.raises(InputError, match=r"no expert 'edges'.*use one of depth"):
        kind_of("edges")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("depth", grey([0, 300], dtype=np.int64)), "depth holds int64, 0 to 300: give uint8"),
        (("depth", grey([0.5], dtype=np.float32)), "depth holds float32.*give uint8"),
        (("depth", np.zeros((2, 2, 3), np.uint8)), r"depth has shape \(2, 2, 3\): give \(H, W\)"),
        (("normal", grey([0])), r"normal has shape \(1, 1\): give \(H, W, 3\)"),
        (("edge", np.zeros((0, 4), np.uint8)), r"edge has shape \(0, 4\)"),
        (("obj_detection", grey([1])), "without instances: give them"),
        (("depth", grey([1]), grey([1])), "with instances: give them for obj_detection"),
        (
            ("obj_detection", grey([1, 2]), grey([1])),
            r"\(1, 2\) but its instances are uint8 of \(1,",
        ),
        (("ocr_detection", grey([1])), "ocr_detection comes without names"),
    ],
)
def test_bad_form(arguments, match):
    with pytest.raises(InputError, match=match):
        LabelMap(*arguments)


def two_classes_in_one_instance():
    return LabelMap("obj_detection", grey([1, 2]), grey([0, 0]))


@pytest.mark.parametrize(
    ("labels", "given", "match"),
    [
        (LabelMap("edge", grey([0, 1])), {"image_size": (1, 2)}, "2 x 1 pixels but .* is 1 x 2"),
        (LabelMap("seg_coco", grey([132, 133])), {}, "class 133 but seg_coco has 133 classes"),
        (LabelMap("seg_x", grey([0, 9])), {"classes": 9}, "class 9 but seg_x has 9 classes"),
        (detection({0: "dog", 1: "dog"}), {}, "instance 2, which has no name"),
        (LabelMap("ocr_detection", grey([0, 4]), names={0: "a"}), {}, "number 4, which has no"),
        (two_classes_in_one_instance(), {}, "instance 0 have more than one class"),
        (LabelMap("obj_detection", grey([1, 255]), grey([0, 1])), {}, "instance 1 have .* or none"),
        (LabelMap("obj_detection", grey([1, 2]), grey([0, 255])), {}, "instance 255 have"),
    ],
)
def test_bad_values(labels, given, match):
    with pytest.raises(InputError, match=f"a.png.*{match}"):
        check(labels, where="a.png", **given)


def test_good_values_pass():
    check(LabelMap("seg_coco", grey([132, 255])), image_size=(2, 1))
    check(detection({0: "dog", 1: "dog", 2: "car", 9: "hidden by another"}), classes=18)
    for name in labels.EXPERTS:
        check(labels.nothing(name, (3, 2)), image_size=(3, 2), classes=0)


# Files.


@pytest.mark.parametrize(
    "given",
    [
        LabelMap("depth", grey([0, 7], [255, 3])),
        LabelMap("normal", np.arange(12, dtype=np.uint8).reshape(2, 2, 3)),
        LabelMap("seg_coco", grey([0, 132, 255])),
        LabelMap("seg_scenes", grey([0, 1]), names={0: "mug", 1: "lamp"}),
        LabelMap("ocr_detection", grey([0, 1, 255]), names={0: "open", 1: "café"}),
        LabelMap("ocr_detection", grey([255]), names={}),
        detection(),
        detection({0: "dog", 1: "dog", 2: "car"}),
        LabelMap("obj_detection", grey([721, 65535], dtype=np.uint16), grey([0, 255])),
    ],
)
def test_written_labels_are_read_back(tmp_path, given):
    path = write_labels(tmp_path, given, PICTURE, given.size)
    assert path == stored(tmp_path, given.expert)
    same(read_labels(tmp_path, given.expert, PICTURE, given.size), given)
    write_labels(tmp_path, given, PICTURE)  # again, over our own
    left = sorted(each.name for each in path.parent.iterdir())
    assert left in (["a.b.png"], ["a.b.json", "a.b.png"])  # no temporary file


def test_published_detection_is_read(tmp_path):
    """As the official code writes it: PNG of instance ids, JSON of UniDet's classes, 0 to 721."""
    path = stored(tmp_path, "obj_detection")
    path.parent.mkdir(parents=True)
    Image.fromarray(grey([0, 1, 255])).save(path)
    path.with_suffix(".json").write_text('{"0": 721, "1": 4}')
    found = read_labels(tmp_path, "obj_detection", PICTURE)
    assert found.map.tolist() == [[721, 4, 65535]] and found.instances.tolist() == [[0, 1, 255]]
    names = [f"class {number}" for number in range(722)]
    found = read_labels(tmp_path, "obj_detection", PICTURE, class_names=names)
    assert found.names == {0: "class 721", 1: "class 4"}
    with pytest.raises(InputError, match=r"a\.b\.json gives instance 0 the class 721.*0 to 79"):
        read_labels(tmp_path, "obj_detection", PICTURE, class_names=names[:80])
    path.with_suffix(".json").write_text('{"0": 721}')
    with pytest.raises(InputError, match="instance 1 the class None"):
        read_labels(tmp_path, "obj_detection", PICTURE)


def test_segmentation_takes_the_names_of_its_classes(tmp_path):
    write_labels(tmp_path, LabelMap("seg_x", grey([1, 255])), PICTURE)
    found = read_labels(tmp_path, "seg_x", PICTURE, class_names=["sky", "sea"])
    assert found.names == {0: "sky", 1: "sea"}
    with pytest.raises(InputError, match=r"a\.b\.png holds class 1 but seg_x has 1 classes"):
        read_labels(tmp_path, "seg_x", PICTURE, class_names=["sky"])


@pytest.mark.parametrize("expert", ["depth", "normal", "edge", "seg_coco", "obj_detection"])
def test_an_empty_file_says_nothing(tmp_path, expert):
    path = stored(tmp_path, expert)
    path.parent.mkdir(parents=True)
    path.touch()
    same(read_labels(tmp_path, expert, PICTURE, (4, 3)), labels.nothing(expert, (4, 3)))
    same(read_labels(tmp_path, expert, PICTURE), labels.nothing(expert))
    path.unlink()
    with pytest.raises(InputError, match=f"does not exist: make the labels of {expert} first"):
        read_labels(tmp_path, expert, PICTURE)


def test_absent_words_say_nothing(tmp_path):
    found = read_labels(tmp_path, "ocr_detection", PICTURE, (4, 3))
    assert found.size == (4, 3) and (found.map == 255).all() and found.names == {}


def test_an_interrupted_write_is_not_taken_for_labels(tmp_path, monkeypatch):
    """JSON first, PNG last: what a crash leaves is no label, and the next write completes it."""
    given = LabelMap("ocr_detection", grey([0]), names={0: "open"})
    write_labels(tmp_path, LabelMap("ocr_detection", grey([0]), names={0: "shut"}), PICTURE)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_labels(tmp_path, given, PICTURE)
    with pytest.raises(InputError, match="does not exist"):
        read_labels(tmp_path, "ocr_detection", PICTURE)
    write_labels(tmp_path, given, PICTURE)
    same(read_labels(tmp_path, "ocr_detection", PICTURE), given)


def test_a_pickle_is_refused_unopened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    path = stored(tmp_path, "ocr_detection", ".pt")
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"is a pickle.*regenerate the words as JSON"):
        read_labels(tmp_path, "ocr_detection", PICTURE)


def test_a_picture_is_never_overwritten(tmp_path):
    path = stored(tmp_path, "depth")
    path.parent.mkdir(parents=True)
    Image.new("RGB", (2, 2), "red").save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="no label file of ours"):
        write_labels(tmp_path, LabelMap("depth", grey([0, 7])), PICTURE)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp"])
def test_any_suffix_is_replaced(tmp_path, suffix):
    found = labels.label_path(tmp_path, "edge", f"d/jpg/x.jpg.y{suffix}")
    assert found == tmp_path / "edge" / "d" / "jpg" / "x.jpg.y.png"


@pytest.mark.parametrize(
    ("path", "match"),
    [("/d/a.jpg", "leaves"), ("../a.jpg", "leaves"), ("d/a.txt", "no picture"), ("d/a", "no pict")],
)
def test_bad_paths(tmp_path, path, match):
    with pytest.raises(InputError, match=match):
        labels.label_path(tmp_path, "edge", path)


@pytest.mark.parametrize(
    ("expert", "picture", "table", "match"),
    [
        ("depth", Image.new("I;16", (2, 2)), None, "has mode I;16 where L, 8 bits"),
        ("depth", Image.new("RGB", (2, 2)), None, "has mode RGB where L"),
        ("normal", Image.new("L", (2, 2)), None, "has mode L where RGB"),
        ("depth", b"not a picture", None, "cannot be decoded"),
        ("depth", Image.new("L", (3, 3)), None, "3 x 3 pixels but its picture is 2 x 2"),
        ("seg_coco", Image.new("L", (2, 2), 200), None, "holds class 200 but seg_coco has 133"),
        ("ocr_detection", Image.new("L", (2, 2), 0), None, "number 0, which has no name"),
        ("ocr_detection", Image.new("L", (2, 2), 0), {"0": 5}, "with str values"),
        ("ocr_detection", Image.new("L", (2, 2), 0), {"zero": "a"}, "numbers 0 to 254"),
        ("ocr_detection", Image.new("L", (2, 2), 0), ["a"], "holds a list"),
        ("obj_detection", Image.new("L", (2, 2), 0), {"0": "dog"}, "with int values"),
        ("obj_detection", Image.new("L", (2, 2), 0), {"0": 1, "names": [1]}, "with str values"),
        (
            "obj_detection",
            Image.new("L", (2, 2), 0),
            {"0": 1, "names": {"1": "a"}},
            "instance 0, wh",
        ),
    ],
)
def test_damaged_files(tmp_path, expert, picture, table, match):
    path = stored(tmp_path, expert)
    path.parent.mkdir(parents=True)
    path.write_bytes(picture) if isinstance(picture, bytes) else picture.save(path)
    if table is not None:
        path.with_suffix(".json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=match) as error:
        read_labels(tmp_path, expert, PICTURE, (2, 2))
    assert "a.b." in str(error.value)  # names the file


# Geometry.


def test_geometry_by_hand():
    seg = LabelMap("seg_x", grey([0, 1, 2, 3]))
    cases = [
        (Geometry(), [0, 1, 2, 3]),
        (Geometry(flip=True), [3, 2, 1, 0]),
        (Geometry(shift=(0.25, 0)), [255, 0, 1, 2]),  # a quarter of four pixels is one
        (Geometry(shift=(-0.5, 0)), [2, 3, 255, 255]),
        (Geometry(flip=True, shift=(0.25, 0)), [255, 3, 2, 1]),  # shifted after the flip
        # The right half, stretched to four pixels, each twice.
        (Geometry(box=(0.5, 0, 1, 1)), [2, 2, 3, 3]),
    ]
    for given, expected in cases:
        assert geometry.transform_labels(given, seg).map.tolist() == [expected]
    assert geometry.transform_labels(Geometry(shift=(0, 0.5)), seg, (4, 2)).map.tolist() == [
        [255] * 4,
        [0, 1, 2, 3],
    ]
    assert geometry.resize(seg, (2, 1)).map.tolist() == [[1, 3]]  # under the centres 1/4 and 3/4


def test_what_comes_in_from_outside_says_nothing():
    """No edge (the official fill 0 would be one), no direction, farthest, and no class."""
    found = {}
    for name in labels.EXPERTS:
        shape = (1, 2, 3) if name == "normal" else (1, 2)
        instances = np.zeros(shape, np.uint8) if name == "obj_detection" else None
        full = LabelMap(name, np.full(shape, 9, np.uint8), instances, {0: "a", 9: "b"})
        moved = geometry.transform_labels(Geometry(shift=(0.5, 0)), full)
        found[name] = moved.map[0, 0].tolist()
        assert moved.map[0, 1].tolist() == full.map[0, 0].tolist()
        assert moved.instances is None or moved.instances.tolist() == [[255, 0]]
        assert found[name] == labels.nothing(name).map[0, 0].tolist()
    assert found["depth"] == 0 and found["edge"] == 255 and found["normal"] == [128, 128, 128]
    assert found["seg_coco"] == found["obj_detection"] == found["ocr_detection"] == 255


def test_a_flip_turns_normals():
    # Normals (0.6, 0, 0.8) and (0, 0, 1) as (n + 1) / 2 * 255: (204, 128, 230) and (128, 128, 255).
    normal = LabelMap("normal", np.uint8([[[204, 128, 230], [128, 128, 255]]]))
    turned = geometry.transform_labels(Geometry(flip=True), normal).map[0] / 127.5 - 1
    np.testing.assert_allclose(turned, [[0, 0, 1], [-0.6, 0, 0.8]], atol=0.005)
    back = geometry.transform_labels(Geometry(flip=True), normal)
    same(geometry.transform_labels(Geometry(flip=True), back), normal)


def marker(place, size):
    """A picture (size, size, 3) and its segmentation at 224, with one square round ``place``."""

    def square(side):
        at = (np.arange(side) + 0.5) / side
        return (abs(at - place[1]) < 0.08)[:, None] & (abs(at - place[0]) < 0.08)

    picture = np.repeat(square(size)[..., None], 3, 2).astype(np.uint8) * 255
    return picture, LabelMap("seg_x", np.where(square(224), 0, 255).astype(np.uint8))


def centre(mask):
    """(x, y) of a mask, in shares of its size."""
    return (np.argwhere(mask).mean(0)[::-1] + 0.5) / np.array(mask.shape[::-1])


def official_shift(picture, seg, share):
    """The official bug: a shift computed from the picture's width, applied in pixels to both."""
    pixels = int(share * len(picture[0]))
    picture, moved = np.roll(picture, pixels, 1), np.roll(seg.map, pixels, 1)
    picture[:, :pixels], moved[:, :pixels] = 0, 255
    return picture, moved


@pytest.mark.parametrize("size", [224, 384, 480])
def test_picture_and_labels_stay_aligned(size):
    generator = torch.Generator().manual_seed(0)
    drawn = [geometry.sample(generator, flip=1.0, shift_chance=1.0) for _ in range(12)]
    assert len({each.shift for each in drawn}) == 4  # left or right, up or down
    checked = 0
    for each in drawn:
        left, top, right, bottom = each.box
        picture, seg = marker(((left + right) / 2 + 0.02, (top + bottom) / 2 - 0.03), size)
        image, maps = geometry.apply(each, picture, {"seg_x": seg})
        assert image.shape == picture.shape and maps["seg_x"].size == (224, 224)
        seen, labelled = image[..., 0] > 127, maps["seg_x"].map == 0
        assert seen.any() and labelled.any()
        assert abs(centre(seen) - centre(labelled)).max() < 1 / 224  # within one label pixel
        checked += 1
    assert checked == 12


def test_the_alignment_test_can_fail():
    """The official shift slides the labels away at 480 pixels, and is harmless at 224."""
    for size, slides in ((224, False), (480, True)):
        picture, seg = marker((0.4, 0.5), size)
        image, moved = official_shift(picture, seg, geometry.SHIFT)
        apart = abs(centre(image[..., 0] > 127) - centre(moved == 0)).max()
        assert (apart > 1 / 224) == slides
    # 79 pixels of 224 instead of 79 of 480: 0.353 - 0.165 = 0.188 too far.
    assert apart == pytest.approx(79 / 224 - 79 / 480, abs=0.005)


def test_pil_images_and_other_sizes():
    picture, seg = marker((0.5, 0.5), 48)
    given = Geometry(box=(0.1, 0.2, 0.9, 1.0), flip=True, shift=(0.1, -0.1))
    as_array, _ = geometry.apply(given, picture, {}, image_size=(32, 24))
    image, maps = geometry.apply(
        given, Image.fromarray(picture), {"seg_x": seg}, image_size=(32, 24), label_size=(8, 6)
    )
    assert image.size == (32, 24) and maps["seg_x"].size == (8, 6)
    np.testing.assert_array_equal(np.array(image), as_array)


def test_samples_keep_to_the_published_ranges():
    generator = torch.Generator().manual_seed(1)
    drawn = [geometry.sample(generator, aspect=1.5) for _ in range(400)]
    boxes = np.array([each.box for each in drawn])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (width * height).min() > 0.4 and (width * height).max() <= 1
    inside = (width < 1) & (height < 1)  # where no side was cut off at the picture's edge
    assert (width * height)[inside].min() >= 0.5 - 1e-9
    ratios = (1.5 * width / height)[inside]
    assert ratios.min() >= 3 / 4 - 1e-9 and ratios.max() <= 4 / 3 + 1e-9
    assert 150 < sum(each.flip for each in drawn) < 250  # 200 expected, spread 10
    for axis in (0, 1):
        shifts = [each.shift[axis] for each in drawn]
        assert set(shifts) == {0.0, 79 / 480, -79 / 480}
        assert 50 < sum(shift != 0 for shift in shifts) < 110  # 80 expected, spread 8
    again = torch.Generator().manual_seed(1)
    assert drawn[0] == geometry.sample(again, aspect=1.5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"box": (0.5, 0, 0.5, 1)}, "box="),
        ({"box": (0, 0, 1, 1.2)}, "box="),
        ({"shift": (0, 1.0)}, "shift="),
    ],
)
def test_bad_geometry(arguments, match):
    with pytest.raises(InputError, match=match):
        Geometry(**arguments)
