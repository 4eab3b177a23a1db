"""Tasks on scene graphs, on scenes small enough to work out by hand."""

from __future__ import annotations

import re

import pytest
from scene_maker import COLOURS, graph, make_graphs, thing

from mmfusion_lib import InputError
from mmfusion_lib.data import scene_tasks
from mmfusion_lib.data.scene_facts import near, plural, side, with_article
from mmfusion_lib.data.scenes import HELD_OUT

# A red mug far left, a blue striped house in the middle and farther back, a green sign right.
MUG = thing("mug", "red", x=0.2, distance=1.0)
HOUSE = thing("house", "blue", x=0.5, distance=1.5, texture="striped")
SIGN = thing("sign", "green", x=0.8, distance=1.0, word="open")


def test_facts_of_a_scene_worked_out_by_hand():
    facts = scene_tasks.facts(graph(MUG, HOUSE, SIGN))
    assert facts["colour", "mug"] == "red"
    assert facts["kind", "blue"] == "house"
    assert facts["texture", "house"] == "striped"
    assert facts["word", "sign"] == "open"
    assert facts["side", "mug", "house"] == "left" and facts["side", "sign", "mug"] == "right"
    assert facts["near", "mug", "house"] == "nearer" and facts["near", "house", "sign"] == "farther"
    assert ("near", "mug", "sign") not in facts  # the same distance
    assert facts["side_half", "mug"] == "left" and ("side_half", "house") not in facts
    assert facts["same", "house", "mug"] == "different"
    assert facts["count_left", "sign"] == "2" and facts["count_right", "sign"] == "0"
    assert facts["count_texture", "plain"] == "2"  # mug and sign
    assert facts["kind_at", "leftmost"] == "mug" and facts["colour_at", "rightmost"] == "green"
    assert facts["leftmost", "mug"] == "yes" and facts["leftmost", "house"] == "no"
    assert facts["nearest", "house"] == "no"
    assert ("kind_at", "nearest") not in facts  # mug and sign share the first place


def test_what_is_ambiguous_is_no_fact():
    twice = scene_tasks.facts(graph(MUG, {**MUG, "colour": "blue"}, HOUSE))
    assert not [fact for fact in twice if "mug" in fact and fact[0] != "count_kind"]
    assert twice["count_kind", "mug"] == "2"
    hidden = scene_tasks.facts(graph({**MUG, "visible": 0.3}, HOUSE))
    assert not [fact for fact in hidden if "mug" in fact or fact[0].startswith("count")]
    tiny = scene_tasks.facts(graph({**MUG, "pixels": 20}, HOUSE))  # of 112 * 112
    assert ("colour", "mug") not in tiny and ("colour", "house") in tiny


def test_side_and_near_need_a_margin():
    scene = graph(MUG, HOUSE)  # 112 pixels wide: 0.1 is 11 pixels
    assert side(scene, thing(x=0.40), thing(x=0.55)) == "left"
    assert side(scene, thing(x=0.50), thing(x=0.55)) is None
    assert near(scene, thing(distance=1.0), thing(distance=1.3)) == "nearer"
    assert near(scene, thing(distance=1.3), thing(distance=1.0)) == "farther"
    assert near(scene, thing(distance=1.00), thing(distance=1.05)) is None
    high = {**thing(distance=1.0), "box": [0, 0, 20, 20]}  # nearer, but higher in the picture
    assert near(scene, high, thing(distance=1.3)) is None


def test_captions_are_several_true_and_repeatable():
    scene = graph(MUG, HOUSE, SIGN)
    captions = scene_tasks.captions(scene)
    assert captions == scene_tasks.captions(scene)
    assert len(set(captions)) == len(captions) >= 3
    assert all(re.fullmatch(r"[A-Z].*[^.]\.", caption) for caption in captions)
    # a mostly hidden mug goes unmentioned, and nothing is said that is not there
    words = " ".join(scene_tasks.captions(graph({**MUG, "visible": 0.1}, HOUSE, SIGN))).lower()
    assert "mug" not in words and "red " not in words
    assert "house" in words and "wooden" in words


def test_every_caption_of_many_scenes_names_only_what_is_there():
    graphs = make_graphs("train", 150)
    every = [caption for scene in graphs for caption in scene_tasks.captions(scene)]
    assert len(set(every)) > 0.85 * len(every)
    for scene in graphs:
        there = {(item["colour"], item["kind"]) for item in scene["objects"]}
        captions = scene_tasks.captions(scene)
        assert len(captions) >= 3
        named = re.findall(rf"\b({'|'.join(COLOURS)}) (\w+)", " ".join(captions))
        plurals = {(colour, plural(kind)) for colour, kind in there}
        assert set(named) <= there | plurals


def test_caption_relations_hold():
    """'A ... to the left of B': some such pair of the scene stands so."""
    colour = f"({'|'.join(COLOURS)})"
    place = r"(?:is |stands )?(?:to the )?(left|right) of an? (?:\w+ )*?"
    pattern = rf"{colour} (\w+) {place}{colour} (\w+)\."
    found = 0
    for scene in make_graphs("train", 150):
        for caption in scene_tasks.captions(scene):
            for colour1, kind, where, colour2, kind2 in re.findall(pattern, caption):
                ones = [o for o in scene["objects"] if (o["colour"], o["kind"]) == (colour1, kind)]
                others = [
                    o for o in scene["objects"] if (o["colour"], o["kind"]) == (colour2, kind2)
                ]
                assert any(side(scene, a, b) == where for a in ones for b in others), caption
                found += 1
    assert found > 20


@pytest.mark.parametrize("task", [scene_tasks.vqa, scene_tasks.entailment])
def test_rows_are_repeatable_and_depend_on_the_seed(task):
    graphs = make_graphs("train", 300)
    rows = task(graphs, seed=1)
    assert rows == task(graphs, seed=1) != task(graphs, seed=2)
    assert [row["index"] for row in rows] == sorted(row["index"] for row in rows)
    assert all(graphs[row["index"]]["id"] == row["scene"] for row in rows)


def test_no_scene_is_asked_the_same_hypothesis_twice():
    rows = scene_tasks.entailment(make_graphs("train", 300))
    assert len({(row["index"], row["hypothesis"]) for row in rows}) == len(rows)


def test_limit_caps_every_type_and_keeps_the_balance():
    rows = scene_tasks.vqa(make_graphs("train", 400), limit=40)
    for kind in scene_tasks.TYPES:
        answers = [row["answer"] for row in rows if row["type"] == kind]
        assert 0 < len(answers) <= 40
    exists = [row["answer"] for row in rows if row["type"] == "exists"]
    assert exists.count("yes") == exists.count("no") == 20


def test_entailment_of_three_scenes_worked_out_by_hand():
    """Mug, house and tree: each scene has two of them, and shares one with each other scene."""
    first = graph(thing("mug", "red", 0.2), thing("house", "blue", 0.8, 1.5))
    second = graph(
        thing("mug", "green", 0.8, texture="striped"),
        thing("tree", "pink", 0.2, 1.5),
        name="test-000001",
    )
    third = graph(
        thing("tree", "black", 0.8, 1.1, texture="striped"),
        thing("house", "white", 0.2, 1.6, texture="checked"),
        name="test-000002",
    )
    rows = scene_tasks.entailment([first, second, third], seed=0, rounds=1)
    assert len(rows) == 9
    truth = {  # hypothesis -> label in each scene, for the wordings of colour
        "mug is red": ("entailment", "contradiction", "neutral"),
        "mug is green": ("contradiction", "entailment", "neutral"),
        "house is blue": ("entailment", "neutral", "contradiction"),
        "house is white": ("contradiction", "neutral", "entailment"),
        "tree is pink": ("neutral", "entailment", "contradiction"),
        "tree is black": ("neutral", "contradiction", "entailment"),
    }
    for row in rows:
        text = row["hypothesis"].replace("colour of the ", "").removeprefix("The ").rstrip(".")
        if text in truth:
            assert truth[text][row["index"]] == row["label"]
    for index in range(3):
        assert sorted(row["label"] for row in rows if row["index"] == index) == sorted(
            scene_tasks.LABELS
        )


def test_held_out_pairs_are_asked_about_in_test_scenes_only():
    def asked(split):
        rows = scene_tasks.vqa(make_graphs(split, 400))
        return {
            tuple(re.search(r"an? (\w+) (\w+)\?|show an? (\w+) (\w+)\?", row["question"]).groups())[
                :2
            ]
            for row in rows
            if row["type"] == "exists"
        }

    assert asked("test") & HELD_OUT
    assert not asked("train") & HELD_OUT


def test_single_objects_and_shots():
    hidden = {**HOUSE, "visible": 0.6}
    graphs = [graph(MUG, hidden), graph(MUG, HOUSE), graph({**MUG, "colour": "pink"}, MUG, HOUSE)]
    rows = scene_tasks.fewshot_kinds(graphs)
    # the hidden house is left out: mugs in scenes 0, 1, 2, 2 and houses in 1, 2
    assert [(row["index"], row["label"]) for row in rows] == [
        *((0, "mug"), (1, "mug"), (1, "house"), (2, "mug"), (2, "mug"), (2, "house"))
    ]
    assert rows[0]["box"] == MUG["box"] and rows[3]["colour"] == "pink"
    chosen = scene_tasks.shots(rows, 2, seed=4)
    assert chosen == scene_tasks.shots(rows, 2, seed=4)
    assert sorted(rows[i]["label"] for i in chosen) == ["house", "house", "mug", "mug"]
    mugs = [rows[i]["index"] for i in chosen if rows[i]["label"] == "mug"]
    assert len(set(mugs)) == 2  # from two scenes
    with pytest.raises(InputError, match="'house' has 2 objects but 3 were asked for"):
        scene_tasks.shots(rows, 3)
    with pytest.raises(InputError, match="per_class is 0"):
        scene_tasks.shots(rows, 0)


@pytest.mark.parametrize(
    "task", [scene_tasks.vqa, scene_tasks.entailment, scene_tasks.fewshot_kinds]
)
def test_bad_graphs_are_named(task):
    with pytest.raises(InputError, match="no scene graphs"):
        task([])
    with pytest.raises(InputError, match=r"Row 1 .* is not a scene graph"):
        task([graph(MUG, HOUSE), "{}"])


def test_too_few_scenes_say_how_many_are_needed():
    with pytest.raises(InputError, match="use at least 100 scenes"):
        scene_tasks.vqa([graph(MUG, HOUSE)])
    with pytest.raises(InputError, match="use at least 50 scenes"):
        scene_tasks.entailment([graph(MUG, HOUSE), graph(MUG, SIGN)])
    with pytest.raises(InputError, match="not a scene graph"):
        scene_tasks.captions({"objects": []})


def test_english():
    assert plural("snowman") == "snowmen" and plural("cactus") == "cactuses"
    assert with_article("orange mug") == "an orange mug"


def test_tasks_on_rendered_scenes():
    """Real graphs carry every field, and every question about them has its answer in the graph."""
    pytest.importorskip("embreex", reason="the ray tracer is not installed")
    pytest.importorskip("trimesh", reason="the ray tracer is not installed")
    from test_scene_controls import Oracle

    from mmfusion_lib.data.scenes import make_scene

    graphs = [make_scene("test", index).graph for index in range(60)]
    oracles = [Oracle(scene) for scene in graphs]
    hypotheses, questions = scene_tasks.entailment(graphs), scene_tasks.vqa(graphs)
    assert len(hypotheses) >= 90 and len(questions) >= 300
    for row in hypotheses:
        assert oracles[row["index"]].label(row["hypothesis"]) == row["label"], row
    for row in questions:
        assert oracles[row["index"]].answer(row["question"], row["type"]) == row["answer"], row
    assert all(len(scene_tasks.captions(scene)) >= 3 for scene in graphs)
    assert {row["label"] for row in scene_tasks.fewshot_kinds(graphs)} <= set(_kinds())


def _kinds():
    from mmfusion_lib.data.scenes import KINDS

    return KINDS
