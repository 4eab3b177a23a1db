"""Painting on the device, batches of label maps, and the table of label vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import label_table, tensors
from mmfusion_lib.experts.label_table import COCO_STUFF, COCO_THINGS, LabelTable, vocabulary
from mmfusion_lib.experts.labels import EXPERTS, LabelMap
from mmfusion_lib.experts.painting import WIDTH, low, paint

TEXT = EncoderConfig(
    "text", 8, 2, 2, 16, norm="post", vocab_size=256, max_positions=32, readout="mean", dropout=0.1
)


class Letters:
    """A tokenizer: one id a letter."""

    digest = "letters"

    def __call__(self, texts):
        ids = [[ord(letter) % 255 + 1 for letter in text] for text in texts]
        longest = max(map(len, ids))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        return ids, (ids > 0).long()


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build_encoder(TEXT).eval()


def painted_on_the_cpu(ids, table, empty=0.0):
    """What the official loader does: every value that occurs, one after the other, in numpy."""
    result = np.empty((len(ids), WIDTH, *ids.shape[1:]), np.float32)
    for image, one in enumerate(ids):
        rows = table[image] if table.ndim == 3 else table
        for value in np.unique(one):
            vector = empty if value == 255 else rows[value]
            spot = one == value
            result[image][:, spot] = np.broadcast_to(vector, WIDTH)[:, None]
    return result


# Painting.


@pytest.mark.parametrize("shape", [(5, WIDTH), (2, 5, WIDTH)])
@pytest.mark.parametrize("empty", [None, torch.linspace(-1, 1, WIDTH)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_painting_equals_painting_on_the_cpu(shape, empty, dtype):
    torch.manual_seed(0)
    table = torch.randn(shape)
    ids = torch.randint(0, 5, (2, 4, 6))
    ids[:, 0, :3] = 255
    value = {"ids": ids.to(dtype), "table": table}
    if empty is not None:
        value["nothing"] = empty
    found = paint(value)
    filled = 0.0 if empty is None else empty.numpy()
    expected = painted_on_the_cpu(ids.numpy(), table.numpy(), filled)
    assert found.shape == (2, WIDTH, 4, 6)
    assert torch.equal(found, torch.from_numpy(expected))
    half = paint(value, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half, found.bfloat16())


def test_bytes_that_travel():
    """Six maps of 224 with their tables, against the same maps painted: the ratio, worked out."""
    table = torch.randn(133, WIDTH)
    ids = torch.randint(0, 133, (2, 224, 224), dtype=torch.uint8)
    painted = paint({"ids": ids, "table": table})
    # One byte a pixel against 64 floats of four bytes each: 256 times fewer.
    assert tensors.host_bytes(painted) == 256 * tensors.host_bytes(ids) == 2 * 64 * 4 * 224**2
    # With the table that travels along, 133 * 64 * 4 bytes: 2 * 224^2 * 256 / (2 * 224^2 + 34048).
    together = tensors.host_bytes({"ids": ids, "table": table})
    assert tensors.host_bytes(painted) / together == pytest.approx(191.1, abs=0.1)
    assert tensors.host_bytes({"on the device": ids.to("meta")}) == 0  # no byte has to travel


def test_gradients_reach_a_table():
    table = torch.zeros(2, WIDTH, requires_grad=True)
    paint({"ids": torch.tensor([[[0, 0, 255, 1]]]), "table": table}).sum().backward()
    assert table.grad[:, 0].tolist() == [2, 1]  # two pixels of class 0, one of class 1


def test_painted_maps_and_empty_tables_pass():
    painted = torch.randn(1, WIDTH, 2, 2)
    assert paint(painted) is painted
    ids = torch.full((2, 1, 3), 255)
    for table in (torch.zeros(0, WIDTH), torch.zeros(2, 0, WIDTH)):  # a picture without words
        assert torch.equal(paint({"ids": ids, "table": table}), torch.zeros(2, WIDTH, 1, 3))
    large = torch.randn(300, WIDTH)  # more rows than a byte can name
    assert torch.equal(paint({"ids": ids.byte() - 1, "table": large})[0, :, 0, 0], large[254])


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"ids": torch.tensor([[[0, 2]]]), "table": torch.zeros(2, 64)}, "holds 2 but .* 2 rows"),
        ({"ids": torch.tensor([[[0, -1]]]), "table": torch.zeros(2, 64)}, "ids holds -1"),
        ({"ids": torch.tensor([[[0]]]), "table": torch.zeros(2, 32)}, r"table has shape \(2, 32\)"),
        ({"ids": torch.tensor([[[0]]]), "table": torch.zeros(3, 2, 64)}, "3 tables for 1 maps"),
        ({"ids": torch.tensor([[0]]), "table": torch.zeros(2, 64)}, r"ids has shape \(1, 1\)"),
        (
            {"ids": torch.zeros(1, 1, 1), "table": torch.zeros(2, 64)},
            "torch.float32: give integers",
        ),
        ({"ids": torch.tensor([[[0]]])}, "given as ids: give 'ids' and 'table'"),
        ({"label": 1, "instance": 2}, "given as label, instance"),
        (torch.zeros(1, 3, 2, 2), r"shape \(1, 3, 2, 2\)"),
        (torch.zeros(1, 64, 2, 2).long(), "torch.int64: give float"),
        (
            {"ids": torch.tensor([[[0]]]), "table": torch.zeros(2, 64), "nothing": torch.zeros(3)},
            r"nothing has shape \(3,\)",
        ),
    ],
)
def test_bad_semantic_maps(value, match):
    with pytest.raises(InputError, match=match):
        paint(value)


def test_low_by_hand():
    # 0, 51, 102 of 255 -> 0, 0.2, 0.4 -> 2 x / (0.4 + 1e-6) - 1, about -1, 0, 1
    value = torch.tensor([[[[0, 51, 102]]], [[[7, 7, 7]]]], dtype=torch.uint8)
    found = low(value)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([-1.0, 0, 1]), atol=1e-5, rtol=0)
    assert found[1].tolist() == [[[-1, -1, -1]]]  # constant, and no NaN
    # Normals are stretched over the three channels together: 0, 51, 102 in different channels.
    together = low(value[:1].transpose(1, 3))
    torch.testing.assert_close(together.flatten(), found[0].flatten())
    torch.testing.assert_close(low(value.long()), found)
    ready = torch.randn(2, 1, 2, 2)
    assert low(ready) is ready and low(ready, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(2, 4, 4), r"shape \(2, 4, 4\)"),
        (torch.zeros(2, 2, 4, 4), r"shape \(2, 2, 4, 4\)"),
        (torch.tensor([[[[0, 300]]]]), "holds 0 to 300"),
    ],
)
def test_bad_low_level_maps(value, match):
    with pytest.raises(InputError, match=match):
        low(value)


# Batches.


class Lengths:
    """An embedder: the vector of a word is its length, 64 times."""

    def vectors(self, names):
        return torch.tensor([float(len(name)) for name in names])[:, None].expand(-1, WIDTH)


def grey(*rows):
    return np.array(rows, np.uint8)


TABLES = {"seg_scenes": torch.randn(20, WIDTH), "ocr_detection": Lengths()}
TABLES["obj_detection"] = TABLES["seg_scenes"]


def full_sample():
    return {
        "depth": LabelMap("depth", grey([0, 255])),
        "normal": LabelMap("normal", np.arange(6, dtype=np.uint8).reshape(1, 2, 3)),
        "edge": LabelMap("edge", grey([255, 0])),
        "seg_scenes": LabelMap("seg_scenes", grey([19, 255])),
        "obj_detection": LabelMap("obj_detection", grey([3, 255]), grey([0, 255])),
        "ocr_detection": LabelMap(
            "ocr_detection", grey([0, 2]), names={0: "stop", 1: "x", 2: "ab"}
        ),
    }


def test_a_batch_of_a_full_and_an_empty_sample():
    found = tensors.batch([full_sample(), {}], (2, 4), TABLES)
    assert list(found) == list(full_sample())
    assert found["depth"][0].tolist() == [[[0, 0, 255, 255]] * 2]  # nearest, 1 x 2 -> 2 x 4
    assert found["normal"].shape == (2, 3, 2, 4) and found["normal"][0, :, 0, 3].tolist() == [
        3,
        4,
        5,
    ]
    assert found["edge"][1].unique().tolist() == [255]  # no edge
    assert low(found["edge"]).isfinite().all()
    seg = found["seg_scenes"]
    assert seg["ids"].dtype == torch.uint8 and seg["table"] is TABLES["seg_scenes"]
    assert seg["ids"][:, 0].tolist() == [[19, 19, 255, 255], [255] * 4]
    words = found[
        "ocr_detection"
    ]  # rows are ids: "stop", an unused id, "ab"; nothing for the second
    assert words["table"].shape == (2, 3, WIDTH) and words["table"][0, :, 0].tolist() == [4, 0, 2]
    assert words["table"][1].abs().sum() == 0
    detection = found["obj_detection"]
    assert detection["instance"].shape == (2, 1, 2, 4)
    assert detection["instance"][:, 0, 0].tolist() == [[0, 0, 255, 255], [255] * 4]
    assert paint(detection["label"])[1].abs().sum() == 0  # no detection: painted with zeros
    same = tensors.to(found, "cpu")
    assert tensors.host_bytes(same) == tensors.host_bytes(found)
    assert tensors.to(found, "meta")["obj_detection"]["label"]["ids"].is_meta


def test_a_batch_of_samples_without_anything_detected():
    empty = {
        "obj_detection": LabelMap("obj_detection", grey([255]), grey([255])),
        "ocr_detection": LabelMap("ocr_detection", grey([255]), names={}),
    }
    for table in (TABLES["obj_detection"], Lengths()):
        found = tensors.batch([empty], 2, {**TABLES, "obj_detection": table})
        for value in (found["obj_detection"]["label"], found["ocr_detection"]):
            assert torch.equal(paint(value), torch.zeros(1, WIDTH, 2, 2))


def test_the_nothing_vector_is_passed_on():
    found = tensors.batch([full_sample()], 2, {**TABLES, "nothing": torch.ones(WIDTH)})
    assert paint(found["seg_scenes"])[0, 0, 0, 1] == 1
    assert paint(found["obj_detection"]["label"])[0, 0, 0, 1] == 1


def test_named_experts_are_there_in_any_batch():
    assert list(tensors.batch([{}], 2, TABLES, experts=("edge", "ocr_detection"))) == [
        "edge",
        "ocr_detection",
    ]
    assert tensors.batch([{}], 2, TABLES) == {}
    assert list(tensors.batch([full_sample()], 2, experts=["edge"])) == ["edge"]


def test_an_embedder_names_instances():
    given = LabelMap("obj_detection", grey([9, 9, 5]), grey([0, 3, 1]), {0: "a", 3: "bbb", 1: "cc"})
    value = tensors.batch([{"obj_detection": given}], (1, 3), {"obj_detection": Lengths()})
    assert paint(value["obj_detection"]["label"])[0, 0, 0].tolist() == [1, 3, 2]


def test_detections_of_many_classes_get_a_table_each():
    """UniDet knows 722 classes, more than a byte can name; 255 is one of them."""
    table = torch.arange(722.0)[:, None].expand(-1, WIDTH)
    many = LabelMap("obj_detection", np.uint16([[721, 255, 65535]]), grey([0, 130, 255]))
    few = LabelMap("obj_detection", grey([4, 255, 255]), grey([0, 255, 255]))
    samples = [{"obj_detection": many}, {"obj_detection": few}]
    found = tensors.batch(samples, (1, 3), {"obj_detection": table})["obj_detection"]
    assert found["label"]["ids"].dtype == torch.uint8
    assert paint(found["label"])[:, 5, 0].tolist() == [[721, 255, 0], [4, 0, 0]]
    assert found["instance"][0, 0, 0].tolist() == [0, 3, 255]  # 130 - 127 = 3


@pytest.mark.parametrize(
    ("samples", "size", "tables", "match"),
    [
        ([], 2, {}, "no samples"),
        ([{}], 0, {}, "0 x 0 pixels"),
        (
            [{"edge": LabelMap("depth", grey([0]))}],
            2,
            {},
            "Sample 0 has a map of depth under 'edge'",
        ),
        ([{"edges": LabelMap("depth", grey([0]))}], 2, {}, "map of depth under"),
        ([{"seg_x": LabelMap("seg_x", grey([0]))}], 2, {}, "tables has no 'seg_x'"),
        (
            [{}, {"seg_x": LabelMap("seg_x", grey([4]))}],
            2,
            {"seg_x": torch.zeros(3, 64)},
            "sample 1 holds class 4 but seg_x has 3",
        ),
        ([{"seg_x": LabelMap("seg_x", grey([4]))}], 2, {"seg_x": Lengths()}, "has no names"),
    ],
)
def test_bad_batches(samples, size, tables, match):
    with pytest.raises(InputError, match=match):
        tensors.batch(samples, size, tables)


def test_six_maps_travel_at_least_twenty_times_lighter():
    """The paper's six at 224, with their tables, against what the official loader ships."""
    shape = (224, 224)
    words = LabelMap("ocr_detection", np.zeros(shape, np.uint8), names={0: "stop"})
    flat = {name: LabelMap(name, np.zeros(shape, np.uint8)) for name in ("depth", "edge")}
    flat["normal"] = LabelMap("normal", np.zeros((*shape, 3), np.uint8))
    flat["seg_coco"] = LabelMap("seg_coco", np.zeros(shape, np.uint8))
    flat["obj_detection"] = LabelMap("obj_detection", *[np.zeros(shape, np.uint8)] * 2)
    flat["ocr_detection"] = words
    assert set(flat) == set(EXPERTS) - {"seg_ade", "seg_scenes", "saliency"}
    table = torch.zeros(133, WIDTH)
    tables = {"seg_coco": table, "obj_detection": table[:80], "ocr_detection": Lengths()}
    found = tensors.batch([flat] * 4, 224, tables)
    painted = {name: low(found[name]) for name in ("depth", "normal", "edge")}
    painted |= {name: paint(found[name]) for name in ("seg_coco", "ocr_detection")}
    painted["label"] = paint(found["obj_detection"]["label"])
    painted["instance"] = found["obj_detection"]["instance"].float()
    # Bytes a pixel: 1 + 3 + 1 + 1 + (1 + 1) + 1 = 9, against 4 (1 + 3 + 1 + 64 + (64 + 1) + 64).
    ratio = tensors.host_bytes(painted) / tensors.host_bytes(found)
    assert ratio == pytest.approx(792 / 9, rel=0.05) and ratio > 20


# The table of label vectors.


def test_names_of_the_data_sets():
    assert (len(COCO_THINGS), len(COCO_STUFF)) == (80, 53)
    assert COCO_THINGS[17] == "horse" and COCO_STUFF[0] == "banner"
    assert len(COCO_THINGS + COCO_STUFF) == EXPERTS["seg_coco"].classes
    assert label_table.spoken("sky-other-merged") == "sky"
    words = vocabulary()
    assert len(set(words)) == len(words) and {"mug", "open", "zebra", "galaxy"} < set(words)


def test_two_words_by_hand(encoder, monkeypatch):
    """Readouts (1, 0) and (3, -4): mean (2, -2), one direction along (2, -4) / sqrt(20), turned so
    that its larger entry, the second, is positive: (-1, 2) / sqrt(5). Then "a" = (-1, 2) lies at
    sqrt(5), "b" = (1, -2) at -sqrt(5), and "c" = (2, -2) at 0."""
    readouts = {"a": [1.0, 0.0], "b": [3.0, -4.0], "c": [2.0, -2.0]}
    monkeypatch.setattr(
        label_table, "read_names", lambda _, __, names: torch.tensor([readouts[n] for n in names])
    )
    table = LabelTable.fit(encoder, Letters(), ["a", "b", "a"])
    assert table.kept == pytest.approx(1)
    found = table.vectors(["a", "b", "c"])
    expected = torch.zeros(3, WIDTH)
    expected[:, 0] = torch.tensor([5**0.5, -(5**0.5), 0])
    torch.testing.assert_close(found, expected)


def test_directions_are_orthonormal_and_kept_is_the_variance(encoder):
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    table = LabelTable.fit(encoder, Letters(), words)
    used = table.directions[:, :8]  # width 8: eight directions, the other 56 are zeros
    torch.testing.assert_close(used.T @ used, torch.eye(8), atol=1e-5, rtol=0)
    assert table.directions[:, 8:].abs().sum() == 0 and table.kept == pytest.approx(1)
    vectors = table.vectors(words)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    variance = vectors.var(0)
    assert (variance[:-1] >= variance[1:]).all()  # most first
    few = LabelTable.fit(encoder, Letters(), words[:4])  # of rank 3, all of it kept
    assert few.kept == pytest.approx(1) and few.directions[:, 3:].abs().sum() == 0


def test_fitting_leaves_the_encoder_alone_and_is_repeatable(encoder):
    encoder.train()  # with dropout on, if it were used
    first = LabelTable.fit(encoder, Letters(), ["mug", "lamp", "sign"])
    assert encoder.training
    again = LabelTable.fit(encoder, Letters(), ["mug", "lamp", "sign"])
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(first.vectors(["mug", "words"])[1:], first.vectors(["words"]))
    assert not first.vectors(["mug"]).requires_grad
    assert first.vectors([]).shape == (0, WIDTH)


def test_a_table_is_saved_and_loaded(encoder, tmp_path):
    table = LabelTable.fit(encoder, Letters(), ["mug", "lamp", "sign"])
    table.save(tmp_path / "table.safetensors")
    again = LabelTable.load(tmp_path / "table.safetensors", encoder, Letters())
    assert again.kept == table.kept
    assert torch.equal(again.vectors(["duck"]), table.vectors(["duck"]))
    torch.manual_seed(1)
    with pytest.raises(InputError, match="another encoder"):
        LabelTable.load(tmp_path / "table.safetensors", build_encoder(TEXT), Letters())
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(InputError, match="cannot be read"):
        LabelTable.load(tmp_path / "bad.safetensors", encoder, Letters())
    with pytest.raises(InputError, match="does not exist"):
        LabelTable.load(tmp_path / "none.safetensors", encoder, Letters())


def test_bad_names(encoder):
    with pytest.raises(InputError, match="two different words"):
        LabelTable.fit(encoder, Letters(), ["mug", "mug"])
    table = LabelTable.fit(encoder, Letters(), ["mug", "lamp"])
    for bad in ("", "  ", 3):
        with pytest.raises(InputError, match="is no name for a label"):
            table.vectors(["mug", bad])


def test_the_real_table_tells_words_apart(minilm):
    from mmfusion_lib.checkpoints import load_tokenizer

    table = LabelTable.fit(minilm, load_tokenizer("minilm-l6"))
    assert 0.5 < table.kept < 1
    names = ["cup", "mug", "galaxy", "planet"]
    vectors = torch.nn.functional.normalize(table.vectors(names), dim=1)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2:].max() and likeness[2, 3] > likeness[:2, 2].max()


def test_labels_on_disk_become_a_batch(tmp_path):
    from mmfusion_lib.experts import read_labels, write_labels

    for name, labels in full_sample().items():
        write_labels(tmp_path, labels, "d/f/x.webp", labels.size)
        assert Image.open(tmp_path / name / "d" / "f" / "x.png").size == (2, 1)
    sample = {name: read_labels(tmp_path, name, "d/f/x.webp", (2, 1)) for name in full_sample()}
    found, direct = (tensors.batch([each], 2, TABLES) for each in (sample, full_sample()))
    assert torch.equal(paint(found["ocr_detection"]), paint(direct["ocr_detection"]))
    assert torch.equal(found["normal"], direct["normal"])
