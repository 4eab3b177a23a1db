"""Scenes as data: determinism, labels against the graph, held-out pairs, the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest

pytest.importorskip("trimesh", reason="scenes need trimesh: pip install mmfusion_lib[scenes]")
pytest.importorskip("embreex", reason="scenes need embreex: pip install mmfusion_lib[scenes]")

from mmfusion_lib import InputError
from mmfusion_lib.data import scene_draw, scenes

ARRAYS = ("image", "depth", "normal", "classes", "instances", "edges")


def digest(scene: scenes.Scene) -> str:
    parts = [getattr(scene, name).tobytes() for name in ARRAYS]
    return hashlib.sha256(b"".join(parts) + json.dumps(scene.graph).encode()).hexdigest()


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[scenes.Scene]]:
    """20 scenes of each split."""
    return {split: [scenes.make_scene(split, i) for i in range(20)] for split in scenes.SPLITS}


def test_the_same_scene_twice_alone_and_in_another_process(drawn):
    assert digest(scenes.make_scene("test", 7)) == digest(drawn["test"][7])
    assert digest(scenes.make_scene("test", 7, seed=1)) != digest(drawn["test"][7])
    assert digest(scenes.make_scene("train", 7)) != digest(drawn["test"][7])
    code = (
        "import hashlib, json; from mmfusion_lib.data import scenes;"
        "scene = scenes.make_scene('test', 7);"
        f"parts = [getattr(scene, name).tobytes() for name in {ARRAYS!r}];"
        "data = b''.join(parts) + json.dumps(scene.graph).encode();"
        "print(hashlib.sha256(data).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(drawn["test"][7])


def test_labels_agree_with_the_graph(drawn):
    for scene in chain.from_iterable(drawn.values()):
        things = scene.graph["objects"]
        assert 2 <= len(things) <= 5
        assert scene.image.shape == scene.normal.shape == (112, 112, 3)
        assert set(np.unique(scene.instances)) == {scenes.NOTHING, *range(len(things))}
        assert ((scene.classes == 255) == (scene.instances == 255)).all()
        assert set(np.unique(scene.edges)) == {0, 255}
        assert np.isfinite(scene.depth).all() and 0.5 < scene.depth.min() < scene.depth.max() < 4
        for number, thing in enumerate(things):
            own = scene.instances == number
            x0, y0, x1, y1 = thing["box"]
            assert thing["id"] == number and thing["pixels"] == own.sum() >= 150
            assert own[y0:y1, x0:x1].sum() == own.sum()  # nothing outside, and each side touched:
            assert own[y0, x0:x1].any() and own[y1 - 1, x0:x1].any()
            assert own[y0:y1, x0].any() and own[y0:y1, x1 - 1].any()
            assert (scene.classes[own] == scenes.KINDS.index(thing["kind"])).all()
            assert thing["visible"] >= (0.95 if thing["word"] else 0.65)
            assert (thing["word"] in scenes.WORDS) == (thing["kind"] == "sign")
            assert thing["colour"] in scenes.COLOURS and thing["texture"] in scenes.TEXTURES
            # The centre's distance and the nearest depths on the object, within its half size.
            assert abs(scene.depth[own].min() - thing["distance"]) < 0.4


def test_depth_and_instances_order_objects_as_their_distances_do(drawn):
    right = total = 0
    for scene in chain.from_iterable(drawn.values()):
        things = scene.graph["objects"]
        for a in things:
            for b in things:
                if a["distance"] < b["distance"] - 0.15:
                    means = [scene.depth[scene.instances == o["id"]].mean() for o in (a, b)]
                    right, total = right + (means[0] < means[1]), total + 1
    assert total > 50 and right / total > 0.97


def test_held_out_pairs_occur_in_test_only_and_in_every_test_scene(drawn):
    assert len(scenes.HELD_OUT) == 40
    assert set(Counter(colour for colour, _ in scenes.HELD_OUT).values()) == {5}
    assert set(Counter(kind for _, kind in scenes.HELD_OUT).values()) == {2}
    for split, drawn_scenes in drawn.items():
        for scene in drawn_scenes:
            pairs = {(thing["colour"], thing["kind"]) for thing in scene.graph["objects"]}
            assert bool(pairs & scenes.HELD_OUT) == (split == "test")


def test_every_word_of_the_graph_varies():
    rng = np.random.default_rng(0)
    things = [t for _ in range(1000) for t in scene_draw._draw_things(rng, "train", 4)]
    for key, values in (
        ("kind", scenes.KINDS),
        ("colour", scenes.COLOURS),
        ("texture", scenes.TEXTURES),
        ("size", scenes.SIZES),
    ):
        counts = Counter(thing[key] for thing in things)
        assert set(counts) == set(values)
        if key == "kind":  # signs are three times as frequent; everything else is drawn evenly
            assert 2 < counts.pop("sign") / np.mean(list(counts.values())) < 4
        assert min(counts.values()) > 0.6 * max(counts.values()), key


def test_footprints_do_not_intersect():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    tilted = square @ np.array([[1, 1], [-1, 1]]) / 2**0.5  # a diamond: x from -0.71 to 0.71
    assert scene_draw._overlap(square, square + np.array([0.9, 0.9]))
    assert not scene_draw._overlap(square, square + np.array([1.1, 0]))
    assert scene_draw._overlap(square, tilted)
    # Its bounding box meets the square's corner, the diamond itself does not.
    assert not scene_draw._overlap(square, tilted + np.array([1.6, 0.55]))


def test_size_changes_the_pixels_and_not_the_scene(drawn):
    small, scene = scenes.make_scene("train", 3, size=48), drawn["train"][3]
    assert small.image.shape == (48, 48, 3) and small.depth.shape == (48, 48)
    for a, b in zip(small.graph["objects"], scene.graph["objects"]):
        assert [a[k] for k in ("kind", "position")] == [b[k] for k in ("kind", "position")]
        np.testing.assert_allclose(np.array(a["box"]) / 48, np.array(b["box"]) / 112, atol=0.035)


def test_encode_and_decode_lose_only_what_is_documented(drawn):
    scene = drawn["validation"][0]
    back = scenes.decode(scenes.encode(scene))
    for name in ("image", "classes", "instances", "edges"):
        np.testing.assert_array_equal(getattr(back, name), getattr(scene, name))
    assert np.abs(back.depth - scene.depth).max() < 0.5e-4 + 1e-6
    angle = np.degrees(np.arccos(np.clip((back.normal * scene.normal).sum(-1), -1, 1)))
    assert angle.max() < 0.4
    assert back.graph == scene.graph
    with pytest.raises(InputError, match="Column 'depth' of scene 'validation-000000'"):
        scenes.decode({**scenes.encode(scene), "depth": b"no picture"})


def shards(cache) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("scenes/*/*")}


def test_load_makes_reads_extends_and_finds_broken_shards(cache, monkeypatch):
    monkeypatch.setattr(scenes.os, "cpu_count", lambda: 2)
    dataset = scenes.load("train", 40, size=32)  # two shards: two worker processes
    assert len(dataset) == 40 and dataset["id"][39] == "train-000039"
    assert set(dataset.column_names) == {"id", "graph", *ARRAYS}
    assert dataset[5]["image"].size == (32, 32)
    here, there = scenes.make_scene("train", 39, size=32), scenes.decode(dataset[39])
    assert there.graph == here.graph
    np.testing.assert_array_equal(there.image, here.image)
    made = shards(cache)
    assert sorted(made) == ["train-00000000.parquet", "train-00000032.parquet"]

    prefix = scenes.load("train", 3, size=32)
    assert prefix["id"][:] == dataset["id"][:3] and shards(cache) == made  # nothing made anew
    assert prefix._fingerprint != dataset._fingerprint

    path = next(cache.glob("scenes/*/train-00000032.parquet"))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole[:5000] + b"X" * 50 + whole[5050:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"train-00000032\.parquet is broken: delete it"):
            scenes.load("train", 40, size=32)
    path.write_bytes(path.with_name("train-00000000.parquet").read_bytes())
    with pytest.raises(InputError, match="holds other scenes"):
        scenes.load("train", 40, size=32)


def test_a_run_that_is_stopped_half_way_is_resumed(cache, monkeypatch):
    monkeypatch.setattr(scenes.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(scenes, "SHARD", 2)
    real, made = scenes.make_scene, []

    def stopping(split, index, seed, size):
        made.append(index)
        if index == 5 and made.count(5) == 1:
            raise KeyboardInterrupt
        return real(split, index, seed, size)

    monkeypatch.setattr(scenes, "make_scene", stopping)
    with pytest.raises(KeyboardInterrupt):
        scenes.load("test", 8, size=32)
    # Scenes 0 to 3 are whole, 4 was made in vain; nothing half-written is left behind.
    assert sorted(shards(cache)) == ["test-00000000.parquet", "test-00000002.parquet"]
    assert len(scenes.load("test", 8, size=32)) == 8
    assert made == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]


def test_a_worker_answers_each_order_with_its_problem_or_nothing(monkeypatch, capsys):
    def write(folder, split, first, size, seed):
        if first:
            raise InputError("The disk is full.")

    orders = [json.dumps(["/cache", "train", first, 112, 0]) + "\n" for first in (0, 32)]
    monkeypatch.setattr(scenes, "_write", write)
    monkeypatch.setattr(scenes.sys, "stdin", orders)
    scenes._serve()
    assert capsys.readouterr().out == '""\n"The disk is full."\n'


def test_a_worker_that_dies_ends_the_run(cache, monkeypatch):
    monkeypatch.setattr(scenes.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(scenes.sys, "executable", shutil.which("false") or pytest.skip("no false"))
    with pytest.raises(RuntimeError, match="died"):
        scenes.load("train", 40)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: scenes.load("dev", 1), "Unknown split 'dev'"),
        (lambda: scenes.load("train", 0), "0 scenes were asked for"),
        (lambda: scenes.load("train", 1, size=8), "size 8"),
        (lambda: scenes.load("train", 1, seed=-1), "Seed -1"),
        (lambda: scenes.make_scene("train", -1), "index -1"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_a_missing_ray_tracer_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    with pytest.raises(InputError, match=r"pip install mmfusion_lib\[scenes\]"):
        scenes.make_scene("train", 0)
