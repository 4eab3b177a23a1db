"""The recipe prismer-speed: what its two units of training compare, and that all of it runs."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from mmfusion_lib import runs, scene_batch, scene_texts
from mmfusion_lib.caption_items import CaptionItems, Pictures
from mmfusion_lib.data import scenes
from mmfusion_lib.experts import painting
from mmfusion_lib.prismer_config import SCENE_EXPERTS
from mmfusion_lib.recipes import prismer_speed as recipe
from mmfusion_lib.recipes import prismer_speed_training as training

SMOKE = training.SMOKE["training-step"]


@pytest.fixture
def model(minilm, dinov2):
    return training._model(SMOKE)


def test_attention_written_out_is_attention():
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()
    seen = torch.rand(2, 1, 5, 5) > 0.5
    seen[..., 0] = True
    for given in ((), (seen,), (None, 0.0, True)):
        expected = F.scaled_dot_product_attention(query, key, value, *given)
        torch.testing.assert_close(training.attention(query, key, value, *given), expected)


def test_maps_are_painted_on_the_host_as_on_the_device(minilm):
    batch = scene_batch.batch(scenes.load("train", 1), lambda _: torch.zeros(1), SCENE_EXPERTS)
    [ids] = batch["seg_scenes"]["ids"]
    item = {"experts": {name: _first(value) for name, value in batch.items()}, "weight": 1}
    found = training.painted(item)["experts"]
    assert found["seg_scenes"].shape == (64, *ids.shape) and found["seg_scenes"].is_contiguous()
    for name in ("seg_scenes", "ocr_detection"):
        assert torch.equal(found[name], painting.paint(batch[name])[0])
    expected = painting.paint(batch["obj_detection"]["label"])[0]
    assert torch.equal(found["obj_detection"]["label"], expected)
    assert found["depth"].dtype == torch.uint8 and found.keys() == batch.keys()


def _first(value):
    """One picture's part of a batch."""
    if isinstance(value, dict):
        return {k: v if k == "table" and v.ndim == 2 else _first(v) for k, v in value.items()}
    return value[0]


def test_only_the_straightforward_step_does_without_what_is_quick(model, monkeypatch):
    seen = {"plain_loss": [], "objective": []}
    fused = F.scaled_dot_product_attention

    def noting(name):
        real = getattr(training, name)

        def note(model, batch):
            attention = F.scaled_dot_product_attention
            whole = torch.is_tensor(batch["experts"]["seg_scenes"])
            half = torch.is_autocast_enabled("cpu")
            seen[name].append((attention, whole, half))
            return real(model, batch)

        monkeypatch.setattr(training, name, note)

    noting("plain_loss"), noting("objective")
    found = training.steps({**SMOKE, "rounds": 2, "precision": "bf16"}, model)
    # Once to warm up, then two rounds.
    assert seen["plain_loss"] == [(training.attention, True, False)] * 3
    assert seen["objective"] == [(fused, False, True)] * 3
    assert {name: len(values) for name, values in found.items()} == {
        "straightforward": 2, "ours": 2, "ratio": 2
    }  # fmt: skip
    for slow, fast, ratio in zip(*found.values()):
        assert ratio == pytest.approx(fast / slow)


def test_steps_that_learn_something_else_are_not_compared(model, monkeypatch):
    real = training.plain_loss
    monkeypatch.setattr(training, "plain_loss", lambda *given: 1.001 * real(*given))
    with pytest.raises(AssertionError, match="different losses"):
        training.steps(SMOKE, model)


def test_scenes_in_files_are_the_scenes(model, tmp_path):
    given = tmp_path / "pictures", tmp_path / "labels"
    rows = training.write_scenes(3, 112, *given)
    table = scenes.load("train", 3)
    assert [row.text for row in rows] == [
        scene_texts.listing(json.loads(graph)) for graph in table["graph"]
    ]
    pictures = Pictures(model, *given)
    items = CaptionItems(rows, pictures, model, dict.fromkeys([row.image for row in rows], ""))
    found = items.collate([items[i] for i in range(3)])["experts"]
    expected = scene_batch.batch(table, model.transform, SCENE_EXPERTS)
    assert found.keys() == expected.keys()
    assert (found["rgb"] - expected["rgb"]).abs().mean() < 0.1  # JPEG
    for name in ("depth", "normal", "edge"):
        assert torch.equal(found[name], expected[name])
    for name in ("seg_scenes", "ocr_detection"):
        same = (painting.paint(each[name]) for each in (found, expected))
        torch.testing.assert_close(*same, atol=1e-5, rtol=1e-4)
    assert torch.equal(*(each["obj_detection"]["instance"] for each in (found, expected)))


def test_one_thread_is_for_a_while():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), training.one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_runs(cache, minilm, dinov2):
    record = runs.run(recipe.RECIPE, "smoke")
    units = {name: result["unit"] for name, result in record.results.items()}
    assert units == {
        "captions-1-published": "tokens per second",
        "captions-1-ours": "tokens per second",
        "captions-1-ratio": "ratio",
        "ranking-published": "answers per second",
        "ranking-ours": "answers per second",
        "ranking-ratio": "ratio",
        "bytes-published": "MB",
        "bytes-ours": "MB",
        "bytes-ratio": "ratio",
        "training-step-straightforward": "samples per second",
        "training-step-ours": "samples per second",
        "training-step-ratio": "ratio",
        "reading-rate": "samples per second",
        "reading-data-wait": "share",
    }
    assert record.settings["training-step"]["precision"] == "no"
    assert 0 < record.results["reading-data-wait"]["mean"] < 1
