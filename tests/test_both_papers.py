"""Both papers together: what is asked about scenes, the maps of each pair, equal cost, the summary."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest
import torch

from mmfusion_lib import metrics
from mmfusion_lib.data import scenes
from mmfusion_lib.data.scene_facts import facts
from mmfusion_lib.data.scene_objects import KINDS
from mmfusion_lib.experts.label_map import NOTHING
from mmfusion_lib.recipes import both_papers as recipe

FEW = {"train": 60, "validation": 60, "test": 60}
LABS = [recipe.ON_SIGNS, recipe.ON_SENTENCES]


@pytest.fixture
def forget():
    """Nothing that was asked in one test is left for another."""
    yield
    recipe.asked.cache_clear()
    recipe.maps.cache_clear()


def test_two_questions_about_each_sign(forget):
    table, part, kinds = recipe.asked("signs", "train", 60)
    assert Counter(kinds) == {"word": len(table), "colour": len(table)}
    for row, kind, label, group in zip(part.rows.tolist(), kinds, part.labels, part.groups):
        assert table[row]["id"] == group
        assert part.classes[label] == facts(json.loads(table[row]["graph"]))[kind, "sign"]
    graphs = [json.loads(graph) for graph in scenes.load("train", 60)["graph"]]
    signs = {graph["id"] for graph in graphs if ("word", "sign") in facts(graph)}
    assert set(table["id"]) == signs and 0 < len(signs) < len(graphs)


def test_colours_that_no_sign_had_in_training_are_told_apart(forget):
    _, part, kinds = recipe.asked("signs", "test", 60)
    assert set(kinds) == {"word", "colour", "new colour"}
    answers = defaultdict(set)
    for kind, label in zip(kinds, part.labels.tolist()):
        answers[kind].add(part.classes[label])
    assert {(colour, "sign") for colour in answers["new colour"]} <= scenes.HELD_OUT
    assert not answers["colour"] & answers["new colour"]


def test_sentences_give_nothing_away_by_themselves(forget):
    table, part, kinds = recipe.asked("entailment", "train", 60)
    assert set(kinds) == {"colour", "kind"} and len(kinds) == len(part.texts)
    assert metrics.text_alone(part.texts, part.labels.tolist()) == pytest.approx(0.5)
    assert [table[row]["id"] for row in part.rows.tolist()] == list(part.groups)
    assert set(part.rows.tolist()) == set(range(len(part.images)))


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab["task"])
def test_no_way_costs_more(lab, minilm, dinov2, forget):
    """The settings promise equal parameters, and no more memory than the resampler takes."""
    s = lab | {"count": FEW}
    data = recipe.data(s, "test")
    trained, kept = {}, {}
    for way in recipe.WAYS:
        model = recipe.build(s, way, 0)
        trained[way] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        kept[way] = recipe.activations(model, data, count=2)
    assert max(trained.values()) < 1.001 * min(trained.values())
    assert max(kept.values()) < 1.01 * kept["resampler"]
    if lab["task"] == "signs":
        assert min(kept["prompts"], kept["both"]) > 0.99 * kept["resampler"]


def test_each_pair_has_the_maps_of_its_picture(minilm, dinov2, forget):
    s = recipe.ON_SENTENCES | {"count": FEW}
    data = recipe.data(s, "test")
    table, part, _ = recipe.asked("entailment", "test", 60)
    one, two = (part.rows.tolist().index(row) for row in (3, 4))
    for pair, row in ((one, 3), (two, 4)):
        given, wanted = data[pair]["experts"], data.maps[row]["experts"]
        ids = [each["obj_detection"]["label"]["ids"] for each in (given, wanted)]
        assert torch.equal(*ids)
        kinds = {item["kind"] for item in json.loads(table[row]["graph"])["objects"]}
        found = {KINDS[i] for i in ids[0].unique().tolist() if i != NOTHING}
        assert found and found <= kinds


def test_the_summary_follows_from_the_units(forget):
    s = recipe.ON_SIGNS | {"count": FEW, "seeds": [0], "ways": ["resampler", "prompts"]}
    _, part, kinds = recipe.asked("signs", "test", 60)
    words = "".join("01"[kind == "word"] for kind in kinds)
    unit = {"trainable": 5, "activations": 2.0, "validation": [0.1, 0.4], "lr": 0.1}
    unit |= {"seconds": 1.0, "data_wait_share": 0.25, "samples_per_second": 8.0}
    done = {
        "0-resampler": unit | {"hits": {"true": "1" * len(kinds), "other": words}},
        "0-prompts": unit | {"hits": {"true": words, "other": "0" * len(kinds)}},
    }
    found = recipe.summarise(s, done)
    results = {name: value["mean"] for name, value in found["results"].items()}
    assert results["resampler"] == results["prompts-word"] == 1
    assert results["prompts"] == results["resampler-other-maps"] == 0.5
    assert results["prompts-colour"] == 0 and results["resampler-new colour"] == 1
    assert results["prompts-rate"] == 8 and results["prompts-data-wait"] == 0.25
    assert list(found["comparisons"]) == ["prompts - resampler"]
    assert found["comparisons"]["prompts - resampler"]["difference"] == -0.5
    assert found["curves"]["prompts"]["mean"] == pytest.approx([0.1, 0.4])
    assert results["text alone, at best"] >= 1 / len(part.classes)
