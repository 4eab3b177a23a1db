"""Exact label maps of generated scenes, and the dial that spoils them."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion_lib.data.scenes import KINDS, WORDS, Scene
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import from_scenes
from mmfusion_lib.experts.from_scenes import NOISES, from_scene, noisy
from mmfusion_lib.experts.labels import check, kind_of
from mmfusion_lib.experts.tensors import batch

pytest.importorskip("embreex")
SEMANTIC = ("seg_scenes", "obj_detection", "ocr_detection")


def thing(number, kind, box, distance, word=None):
    return {"id": number, "kind": kind, "box": box, "distance": distance, "word": word}


def made_scene(*objects, side=8):
    """A scene in which every object fills its box; depth runs from 1 to 2 m from left to right."""
    instances = np.full((side, side), 255, np.uint8)
    for item in sorted(objects, key=lambda each: -each["distance"]):
        x0, y0, x1, y1 = item["box"]
        instances[y0:y1, x0:x1] = item["id"]
    classes = np.full(256, 255, np.uint8)
    classes[: len(objects)] = [KINDS.index(item["kind"]) for item in objects]
    normal = np.zeros((side, side, 3), np.float32)
    normal[..., 2] = 1
    return Scene(
        image=np.zeros((side, side, 3), np.uint8),
        depth=np.tile(np.linspace(1, 2, side, dtype=np.float32), (side, 1)),
        normal=normal,
        classes=classes[instances],
        instances=instances,
        edges=np.eye(side, dtype=np.uint8) * 255,
        graph={"objects": list(objects)},
    )


@pytest.fixture(scope="module")
def scene():
    from mmfusion_lib.data.scenes import make_scene

    for index in range(20):
        made = make_scene("train", index, size=64)
        if any(item["word"] for item in made.graph["objects"]):
            return made
    raise AssertionError("no sign in twenty scenes")


@pytest.fixture(scope="module")
def maps(scene):
    return from_scene(scene)


# Exact maps.


def test_maps_of_a_real_scene_are_sound(scene, maps):
    assert list(maps) == ["depth", "normal", "seg_scenes", "edge", "obj_detection", "ocr_detection"]
    for labels in maps.values():
        check(labels, image_size=(64, 64))
    assert (maps["seg_scenes"].map == scene.classes).all()
    signs = [item for item in scene.graph["objects"] if item["word"]]
    assert list(maps["ocr_detection"].names.values()) == [item["word"] for item in signs]
    on_words = maps["ocr_detection"].map != 255
    assert set(scene.instances[on_words].tolist()) == {item["id"] for item in signs}
    everywhere = np.isin(scene.instances, [item["id"] for item in signs]).sum()
    assert 0.5 < on_words.sum() / everywhere < 0.95  # the boards, without poles and feet


def test_depth_is_inverse_and_near_is_bright():
    depth = from_scene(made_scene())["depth"].map
    # Inverse depth runs from 1 to 0.5; in column 3 depth is 1 + 3/7, so (0.7 - 0.5) / 0.5 = 0.4.
    assert depth[0, 0] == 255 and depth[0, -1] == 0 and depth[5, 3] == 102
    flat = made_scene()
    flat.depth[:] = 1.5
    assert from_scene(flat)["depth"].map.max() == 0  # constant, and no division by zero


def test_edges_are_dark_on_white_and_normals_are_shifted():
    maps = from_scene(made_scene())
    assert maps["edge"].map[0, :2].tolist() == [0, 255]
    assert maps["normal"].map[0, 0].tolist() == [128, 128, 255]  # (0, 0, 1)


def test_boxes_overlap_by_distance_and_nested_ones_lie_in_front():
    maps = from_scene(
        made_scene(
            thing(0, "house", [0, 0, 6, 6], 1.0),
            thing(1, "tree", [4, 4, 8, 8], 2.0),  # overlaps the house, behind it
            thing(2, "duck", [1, 1, 3, 3], 3.0),  # inside the house's box, and behind
        )
    )
    detection = maps["obj_detection"]
    assert detection.instances[5, 5] == 0 and detection.instances[7, 7] == 1
    assert detection.instances[1, 1] == 2 and detection.instances[0, 7] == 255
    assert detection.map[1, 1] == KINDS.index("duck")
    assert detection.names == {0: "house", 1: "tree", 2: "duck"}


# Noise.


def distance(a, b):
    """Share of the entries of two maps that differ."""
    differ = a.map != b.map
    if a.expert == "ocr_detection":  # the numbers may be the same and the words not
        text = lambda labels: np.vectorize({**labels.names, 255: ""}.get)(labels.map)  # noqa: E731
        differ = text(a) != text(b)
    return differ.mean()


@pytest.mark.parametrize("kind", NOISES)
def test_amount_0_is_the_identity(maps, kind):
    found = noisy(maps, kind, 0, 3)
    assert all(found[name] is maps[name] for name in maps)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_sound_repeatable_and_grows(maps, kind):
    last = dict.fromkeys(maps, 0.0)
    for amount in (0.2, 0.6, 1.0):
        found = noisy(maps, kind, amount, 3)
        alone = noisy({"obj_detection": maps["obj_detection"]}, kind, amount, 3)["obj_detection"]
        assert (alone.map == found["obj_detection"].map).all()  # whatever else is there
        for name, labels in found.items():
            check(labels, image_size=(64, 64))
            now = distance(labels, maps[name])
            assert now >= last[name]
            last[name] = now
    changed = SEMANTIC if kind == "wrong" else maps
    assert all((last[name] > 0) == (name in changed) for name in maps)
    other = noisy(maps, kind, 1.0, 4)["seg_scenes"].map
    assert (
        kind == "dropout" or (other != found["seg_scenes"].map).any()
    )  # another seed, other noise
    tables = {name: np_table() for name in SEMANTIC[:2]} | {"ocr_detection": Lengths()}
    batch([found], 32, tables)


def np_table():
    import torch

    return torch.zeros(len(KINDS), 64)


class Lengths:
    def vectors(self, names):
        import torch

        return torch.zeros(len(names), 64)


def test_more_noise_keeps_what_less_has_done(maps):
    for kind in ("dropout", "noise"):
        less, more = (noisy(maps, kind, amount, 0) for amount in (0.3, 0.7))
        for name in maps:
            spoilt = less[name].map != maps[name].map
            assert (less[name].map[spoilt] == more[name].map[spoilt]).all()


def test_full_dropout_leaves_nothing(maps):
    for name, labels in noisy(maps, "dropout", 1.0, 0).items():
        assert (labels.map == kind_of(name).nothing).all()
        assert labels.instances is None or (labels.instances == 255).all()


def test_full_wrong_leaves_no_class_right(maps):
    found = noisy(maps, "wrong", 1.0, 0)
    there = maps["seg_scenes"].map != 255
    assert (found["seg_scenes"].map[there] != maps["seg_scenes"].map[there]).all()
    assert (found["seg_scenes"].map[~there] == 255).all()
    for name in ("obj_detection", "ocr_detection"):
        for number, right in maps[name].names.items():
            assert found[name].names[number] != right
            assert found[name].names[number] in (KINDS if name == "obj_detection" else WORDS)
    assert (found["obj_detection"].instances == maps["obj_detection"].instances).all()


def test_full_noise_has_nothing_to_do_with_the_picture(maps):
    others = from_scene(made_scene(thing(0, "mug", [0, 0, 32, 32], 1.0), side=64))
    one, other = noisy(maps, "noise", 1.0, 5), noisy(others, "noise", 1.0, 5)
    for name in maps:
        assert (one[name].map == other[name].map).all()
    counts = np.bincount(one["seg_scenes"].map.ravel(), minlength=20)
    # 4,096 pixels over 20 classes: 205 each, spread 14.
    assert counts.sum() == 4096 and counts.min() > 140 and counts.max() < 275


def test_half_noise_replaces_half_of_the_pixels(maps):
    spoilt = noisy(maps, "noise", 0.5, 5)["depth"].map != maps["depth"].map
    assert 0.45 < spoilt.mean() < 0.55  # 4,096 pixels: spread 0.008; one in 256 hits its own value


def test_blur_smooths_depth_and_frays_classes(maps):
    found = noisy(maps, "blur", 0.5, 0)
    edge = lambda labels: np.abs(np.diff(labels.map.astype(int), axis=1)).max()  # noqa: E731
    assert edge(found["depth"]) < edge(maps["depth"])
    assert set(np.unique(found["seg_scenes"].map)) <= set(np.unique(maps["seg_scenes"].map))


def test_bad_noise(maps):
    with pytest.raises(InputError, match="no noise 'salt': use one of blur"):
        noisy(maps, "salt", 0.5, 0)
    for amount in (-0.1, 1.1):
        with pytest.raises(InputError, match="use 0 to 1"):
            noisy(maps, "blur", amount, 0)
    assert from_scenes.NOISES == ("blur", "dropout", "wrong", "noise")
