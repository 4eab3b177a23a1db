"""Captions and answers on scenes: the items, what each way trains, and the recipe's summary."""

from __future__ import annotations

import pytest
import torch
from scene_maker import ASKED, GRAPHS, serve_two_scenes
from torch.utils.data import default_collate

from mmfusion_lib import checkpoints, prismer_training, scene_captioner, scene_texts, scene_truth
from mmfusion_lib.data import scenes
from mmfusion_lib.errors import InputError
from mmfusion_lib.prismer_training import PrismerItems
from mmfusion_lib.recipes import prismer_captions as recipe
from mmfusion_lib.recipes import prismer_parts


@pytest.fixture
def two_scenes(monkeypatch):
    """Two made scenes in place of rendered ones; the picture of each is its number."""
    pictures = {"rgb": torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)}
    serve_two_scenes(monkeypatch, pictures)


def test_questions_stand_behind_captions_and_share_their_pictures(two_scenes):
    tokenizer = checkpoints.load_tokenizer()
    items, graphs, asked = scene_texts.scene_items("test", 2, None, tokenizer)
    assert (graphs, asked) == (GRAPHS, ASKED)
    assert items.prompts == ["A picture of", "A picture of", "Which?", "What?"]
    assert items.texts[2:] == [["blue"], ["mug"]]
    assert items.groups == ["test-000000", "test-000001", "test-000001", "test-000000"]
    numbers = [float(items[i]["experts"]["rgb"][0, 0, 0]) for i in range(4)]
    assert numbers == [0, 1, 1, 0]
    captions, _ = scene_texts.caption_items("test", 2, None, tokenizer)
    assert captions.texts == items.texts[:2]


def test_a_picture_is_read_with_its_caption_and_one_of_its_questions(two_scenes, monkeypatch):
    more = {"index": 1, "question": "Where?", "answer": "left", "type": "side"}
    rows = [*ASKED, {**more, "scene": "test-000001"}]
    monkeypatch.setattr(scene_texts.scene_tasks, "vqa", lambda graphs, limit: rows)
    tokenizer = checkpoints.load_tokenizer()
    items, *_ = scene_texts.scene_items("test", 2, None, tokenizer)

    def said(part):
        return tokenizer.decode(part["ids"][part["mask"].bool()].tolist())

    talk = scene_texts.SceneTalk(items)
    drawn = [talk[1] for _ in range(40)]
    assert {float(each["experts"]["rgb"][0, 0, 0]) for each in drawn} == {1.0}
    assert len({said(each["caption"]) for each in drawn}) == 1
    # Both of its questions come up, each with its own answer; the other scene's never does.
    assert {said(each["question"]) for each in drawn} == {"which? blue", "where? left"}
    assert said(talk[0]["question"]) == "what? mug"
    assert [len(talk), len(scene_texts.SceneTalk(items, [1]))] == [2, 1]


def test_a_picture_without_a_question_learns_its_caption_alone(two_scenes, monkeypatch, small):
    monkeypatch.setattr(scene_texts.scene_tasks, "vqa", lambda graphs, limit: ASKED[:1])
    tokenizer = checkpoints.load_tokenizer()
    items, *_ = scene_texts.scene_items("test", 2, None, tokenizer)
    talk = scene_texts.SceneTalk(items)
    assert [float(talk[i]["question"]["weight"]) for i in range(2)] == [0.0, 1.0]
    with pytest.raises(InputError, match="No picture has a question"):
        scene_texts.SceneTalk(items, [0])

    model = scene_captioner.build((), 0).eval()
    items.pictures.experts["rgb"] = torch.rand(2, 3, 112, 112)
    batch = default_collate([talk[i] for i in range(2)])
    both = scene_texts.talk_objective(model, batch)
    alone = [prismer_training.objective(model, default_collate([items[i]])) for i in range(3)]
    # (caption + caption) / 2 + (0 + answer) / 2
    assert torch.allclose(both, (alone[0] + alone[1]) / 2 + alone[2] / 2, rtol=1e-5)


def test_the_published_captioner_sees():
    """Its captions are far truer of their own scenes than of the next ones."""
    model = scene_captioner.load()
    given = model.transform, model.tokenizer, model.config.experts
    items, graphs = scene_texts.caption_items("test", 12, *given)
    said = prismer_training.captions(model, items, num_beams=1, min_length=0)
    own, next_ = (
        scene_truth.score(said, held)["named_f1_mean"] for held in (graphs, graphs[1:] + graphs[:1])
    )
    assert own > 0.6 > 0.4 > next_


def test_the_blank_way_differs_from_prismer_in_nothing_but_its_maps():
    assert recipe.WAYS["prismer-blank"] == {**recipe.WAYS["prismer"], "blank": True}
    pictures = {"rgb": torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 3, 16, 16)}
    pictures["depth"] = torch.arange(3)[:, None, None, None].expand(3, 1, 4, 4)
    given = ["a"] * 4, [["b"]] * 4, checkpoints.load_tokenizer(), list("0121")
    items = PrismerItems(pictures, *given, rows=[0, 1, 2, 1])
    found = recipe.with_maps_of(items.take([1, 2, 3]), items)
    seen = [found[i]["experts"] for i in range(3)]
    assert [float(each["rgb"][0, 0, 0]) for each in seen] == [1, 2, 1]
    assert all(not each["depth"].any() for each in seen)


def made(**changes):
    """Small settings."""
    return {**recipe.RECIPE.scales["smoke"], "ways": prismer_parts.PARTS, **changes}


@pytest.fixture
def small(monkeypatch):
    sizes = {**scene_captioner.SIZES, "image": 1, "text": 1, "adaptor_bottleneck": 8}
    monkeypatch.setattr(scene_captioner, "SIZES", sizes)


def trains(way: str) -> set[str]:
    """Names of what trains, the number of a layer left out."""
    model = recipe.build(made(), way, seed=0)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_ablations_change_what_trains_where_they_say(small):
    reference = trains("reference")
    assert any("adaptor" in name for name in reference)
    assert not any(".block." in name for name in reference)
    gone = {"no adaptors": "adaptor", "resampler as drawn": "resampler"}
    for way, part in gone.items():
        assert trains(way) == {name for name in reference if part not in name}
    free = trains("nothing frozen")
    assert reference < free
    assert all(".block." in name for name in free - reference)
    for kept in ("decoder.words.weight", "encoder.positions"):
        assert kept not in free


def test_adaptors_that_do_not_train_stay_near_the_identity(small):
    layer = recipe.build(made(), "no adaptors", seed=0).encoder.layers[0]
    tokens = torch.randn(1, 3, layer.adaptor.up.weight.shape[0])
    assert torch.allclose(layer.adaptor(tokens), tokens, atol=0.02)


def run(captions: list[str], answers: list[str], **others) -> dict:
    """The result of a unit that nobody trained."""
    cases = {"all": (captions, answers), **others}
    return {
        "captions": {case: given[0] for case, given in cases.items()},
        "answers": {case: given[1] for case, given in cases.items()},
        "trainable": 5,
        "losses": [2.0, 1.0],
        "seconds": 1.0,
        "samples_per_second": 8.0,
        "data_wait_share": 0.0,
    }


def test_the_summary_follows_from_the_units(two_scenes):
    s = made(
        ways={"prismer": {}, "prismerz": {}}, seeds=[0], captioned=2, every=10,
        count={"test": 2}, questions={"test": 5},
    )  # fmt: skip
    recipe._loaded.cache_clear()
    true, wrong = ["A red mug on a table.", "A blue ball on a table."], ["A blue tree."] * 2
    done = {
        "0-prismer": run(true, ["blue", "mug"], any=(wrong, ["blue", "ball"])),
        "0-prismerz": run(wrong, ["red", "mug"]),
    }
    try:
        found = recipe.summarise(s, done)
    finally:
        recipe._loaded.cache_clear()
    results = {name: value["mean"] for name, value in found["results"].items()}
    assert results["prismer-objects_f1"] == results["prismer-colours_f1"] == 1
    assert results["prismerz-objects_f1"] == 0
    assert results["prismerz-hallucination"] == 1
    assert ("red", "mug") in scenes.HELD_OUT
    assert results["prismer-new_pairs"] == 1 and results["prismerz-new_pairs"] == 0
    assert results["prismer-answers"] == 1
    assert results["prismerz-answers"] == results["without any-answers"] == 0.5
    assert results["prismerz-answers-colour"] == 0
    assert results["prismerz-answers-kind"] == 1
    assert set(found["comparisons"]) >= {
        "prismer - prismerz", "prismer - template", "prismer - without any",
        "prismer - prismerz answers", "prismer - without any answers",
    }  # fmt: skip
    assert found["comparisons"]["prismer - prismerz answers"]["difference"] == 0.5
    assert found["curves"]["prismer loss"]["x"] == [1, 11]
