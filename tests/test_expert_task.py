"""The task of chapter 4, reading signs: its items, and what the recipe makes of its units."""

from __future__ import annotations

import json

import pytest
import torch

from mmfusion_lib import expert_task
from mmfusion_lib.checkpoints import image_transform
from mmfusion_lib.data import scenes
from mmfusion_lib.data.scene_objects import WORDS
from mmfusion_lib.errors import InputError
from mmfusion_lib.recipes import prismer_experts

SETTINGS = {
    **prismer_experts.LAB,
    "count": {"train": 40, "validation": 40, "test": 40},
}


@pytest.fixture(scope="module")
def signs():
    """(scenes, items with words and segmentation) of the first 40 training scenes."""
    transform = image_transform("dinov2-small", size=112)
    experts = ("seg_scenes", "ocr_detection")
    return scenes.load("train", 40), expert_task.sign_items("train", 40, transform, experts)


def test_scenes_with_one_sign_and_its_word(signs):
    table, items = signs
    expected = {}
    for row in table:
        found = [item["word"] for item in json.loads(row["graph"])["objects"] if item["word"]]
        if len(found) == 1:
            expected[row["id"]] = list(WORDS).index(found[0])
    assert dict(zip(items.groups, items.labels.tolist())) == expected
    assert 2 < len(items) == len(expected) < 40
    assert items.experts["rgb"].shape == (len(items), 3, 112, 112)


def test_none_with_one_sign():
    with pytest.raises(InputError, match="None of the 1 test scenes has exactly one sign"):
        expert_task.sign_items("test", 1, image_transform("dinov2-small", size=112), ())


def test_rows_are_taken_with_the_tables_that_all_share(signs):
    _, items = signs
    taken = items.take([2, 0])
    for name in ("ids", "table"):
        for expert in ("seg_scenes", "ocr_detection"):
            whole = items.experts[expert][name]
            assert len(whole) == len(items)
            assert torch.equal(taken.experts[expert][name], whole[[2, 0]])
    assert taken.groups == [items.groups[2], items.groups[0]]
    assert torch.equal(taken[1]["experts"]["rgb"], items[0]["experts"]["rgb"])
    assert taken[1]["labels"] == items.labels[0]


def test_what_is_spoilt_is_decided_by_seed_split_and_scene():
    def words(split, seed):
        found = prismer_experts.items(SETTINGS, split, "words-wrong-0.5", seed)
        return found.experts["ocr_detection"]["table"].sum((1, 2))  # one number a scene: its word

    clean = prismer_experts.items(SETTINGS, "train", "words", 0)
    true = clean.experts["ocr_detection"]["table"].sum((1, 2))
    first, again, other = words("train", 0), words("train", 0), words("train", 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    wrong = (first != true).float().mean()
    assert 0 < wrong < 1


def test_summary_of_made_units():
    ways = {way: accuracy for way, accuracy in zip(prismer_experts.WAYS, (0, 9, 9, 0, 7, 5, 0, 8))}
    count = len(prismer_experts.items(SETTINGS, "test", "rgb", 0))
    hits = {way: "1" * (n * count // 9) + "0" * (count - n * count // 9) for way, n in ways.items()}
    done = {
        f"{seed}-{way}": {"hits": hits[way], "seconds": 10.0 + seed}
        for way in ways
        for seed in SETTINGS["seeds"]
    }
    found = prismer_experts.summarise(SETTINGS, done)
    assert found["results"]["words"]["mean"] == 1 and found["results"]["rgb"]["mean"] == 0
    assert found["results"]["all-seconds"]["mean"] == pytest.approx(11)
    assert found["comparisons"]["all - rgb"]["difference"] == 1
    assert found["comparisons"]["words+noise - words"]["difference"] < 0
    assert len(found["comparisons"]) == 9
    curve = found["curves"]["wrong words"]
    assert curve["x"] == [0.0, 0.25, 0.5, 1.0]
    assert curve["mean"] == sorted(curve["mean"], reverse=True)
