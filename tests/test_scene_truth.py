"""Captions of scenes held against the truth: by hand, on all reference captions, on nonsense."""

from __future__ import annotations

import json
import random

import pytest
from scene_maker import graph, make_graphs, thing

from mmfusion_lib import metrics
from mmfusion_lib.data import scene_tasks, scenes
from mmfusion_lib.errors import InputError
from mmfusion_lib.scene_truth import Tally, claims, f1, judge, pair_recall, score, template, truths

# A red mug far left, a blue house in the middle and farther back, a green sign right.
MUG = thing("mug", "red", x=0.2, distance=1.0)
HOUSE = thing("house", "blue", x=0.5, distance=1.5)
SIGN = thing("sign", "green", x=0.8, distance=1.0, word="open")
SCENE = graph(MUG, HOUSE, SIGN)
R, B, G = ("red", "mug"), ("blue", "house"), ("green", "sign")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small striped red mug is to the left of a blue house.", {("left", *R, *B)}),
        ("there is a red mug right of a large blue house", {("left", *B, *R)}),
        ("A red mug stands in front of a blue house.", {("nearer", *R, *B)}),
        ("A red mug is behind a blue house.", {("nearer", *B, *R)}),
        ("A red mug is nearer to the camera than a blue house.", {("nearer", *R, *B)}),
        ("A red mug stands farther away than a blue house.", {("nearer", *B, *R)}),
        ("A red mug on the left and a blue house on the right.", {("left", *R, *B)}),
        (
            "From left to right: a red mug, a blue house and a green sign.",
            {("left", *R, *B), ("left", *B, *G), ("left", *R, *G)},
        ),
        (
            "A red mug in the foreground, with a blue house and a green sign behind.",
            {("nearer", *R, *B), ("nearer", *R, *G)},
        ),
        ("The object nearest to the camera is a red mug.", {("nearest", *R)}),
        ('A green sign that says "open", to the left of a red mug.', {("left", *G, *R)}),
        ("The mug is left of the house", {("left", None, "mug", None, "house")}),
        ("A red mug on a wooden table in front of a plain wall.", set()),
        ("left of a red mug behind", set()),  # a relation of nothing
    ],
)
def test_relations_that_a_caption_states(text, expected):
    assert claims(text).relations == expected
    assert claims(text.replace(":", "").replace('"', "").rstrip(".")).relations == expected


def test_other_claims():
    found = claims('Four things: two red mugs, no house, a sign with the word "open" on it.')
    assert found.counts == {(4, None, None), (2, "red", "mug"), (0, None, "house")}
    assert found.objects == {("mug",), ("sign",)} and found.colours == {("red", "mug")}
    assert found.words == {("open",)}
    assert claims("Two objects, one of them a pink snowman.").counts == {(2, None, None)}
    assert claims("two snowmen").objects == {("snowman",)}
    # with the mug in front there are three red mugs
    front = claims("A red mug in the foreground, with two red mugs and two blue hats behind.")
    assert front.counts == {(3, "red", "mug"), (2, "blue", "hat")}
    # what is no kind is still stated, after a colour; a sign's word is no object
    assert claims("a red dragon and a blue").objects == {("dragon",)}
    assert claims("a sign reading hat").objects == {("sign",)}


def test_a_caption_judged_by_hand():
    truth = judge("Three things: a red mug, a green house and a pink cat, left of a sign.", SCENE)
    # of mug, house, cat, sign the cat is invented; of four pairs only (red, mug) and none of the
    # green house and the pink cat; three things is right, and all counts there are
    assert truth.objects == Tally(3, 4, 3, 3) and truth.hallucinated == 1
    assert truth.colours == Tally(1, 3, 1, 3)
    assert truth.counts == Tally(1, 1, 1, 1)
    # clear: left MUG HOUSE, MUG SIGN, HOUSE SIGN; nearer MUG HOUSE, SIGN HOUSE. The cat is none.
    assert truth.relations == Tally(0, 1, 0, 5)
    assert truth.words == Tally(0, 0, 0, 1)
    assert truth.objects.precision == 3 / 4 and truth.objects.recall == 1
    assert truth.colours.f1 == pytest.approx(1 / 3)
    right = judge('A sign reading "open", right of a mug.', SCENE)
    assert right.relations == Tally(1, 1, 1, 5) and right.words == Tally(1, 1, 1, 1)
    assert judge('A sign that says "exit".', SCENE).words == Tally(0, 1, 0, 1)


def test_equal_things_and_their_number():
    twins = graph(MUG, thing("mug", "red", x=0.5), thing("mug", "blue", x=0.8))
    # facts: three objects, two red mugs
    assert judge("Two red mugs.", twins).counts == Tally(1, 1, 1, 2)
    assert judge("Three red mugs.", twins).counts == Tally(0, 1, 0, 2)
    assert judge("Two mugs.", twins).counts == Tally(0, 1, 0, 2)
    assert judge("Three mugs, no houses.", twins).counts == Tally(2, 2, 0, 2)
    assert judge("Two red mugs.", twins).objects == Tally(1, 1, 1, 1)  # kinds, not things


def test_what_is_mostly_hidden_is_true_but_not_asked_for():
    scene = graph({**MUG, "visible": 0.1}, HOUSE, {**SIGN, "pixels": 0, "visible": 0.0})
    assert judge("A red mug and a blue house.", scene).objects == Tally(2, 2, 1, 1)
    assert judge("A green sign.", scene).hallucinated == 1  # not in the picture at all


def test_one_object_alone_has_low_recall():
    truth = judge("A red mug stands on a wooden table.", SCENE)
    assert (truth.objects.precision, truth.objects.recall) == (1, 1 / 3)


def test_every_reference_caption_is_true():
    pytest.importorskip("trimesh", reason="scenes need mmfusion_lib[scenes]")
    rows = scenes.load("validation", 40)["graph"]
    for scene in [*map(json.loads, rows), *make_graphs("train", 60)]:
        for caption in scene_tasks.captions(scene):
            for name, tally in judge(caption, scene)._asdict().items():
                assert tally.precision == 1, (caption, name)


def test_reference_captions_state_something_of_every_category():
    graphs = make_graphs("train", 60)
    every = [truths(scene_tasks.captions(g), [g] * len(scene_tasks.captions(g))) for g in graphs]
    for place in range(5):
        assert sum(truth[place].stated for found in every for truth in found) > 5
    first = [scene_tasks.captions(g)[0] for g in graphs]  # it lists what there is
    numbers = score(first, graphs)
    assert numbers["named_f1"] == numbers["objects_recall"] == 1 and numbers["hallucinating"] == 0
    other = score(first, graphs[1:] + graphs[:1])
    assert other["named_f1"] < 0.5 < other["hallucinating"] and other["hallucination"] > 0.3


def test_any_text_can_be_read():
    rng = random.Random(0)
    parts = ["a red mug", "left of", "<3>", "<", "no", "99999999999", "two", "\U0001f600", '"says"']
    parts += ["on the left and", "behind", "red red red", "from left to right", "in the foreground"]
    parts += [
        "with",
        "word",
        ".",
        "",
        "\u00e9t\u00e9 \u0663 mugs",
        "nearest to the camera is",
        "\n",
    ]
    for _ in range(500):
        judge(" ".join(rng.choices(parts, k=rng.randint(0, 12))), SCENE)
    judge("red " * 5000 + "mug " * 200, SCENE)
    assert judge("", SCENE).objects == Tally(0, 0, 0, 3)


def test_template_tells_the_truth_but_for_what_is_corrupted():
    graphs = make_graphs("train", 150)
    assert template(SCENE) == "A red mug, a green sign and a blue house on a wooden table."
    assert template(graph(MUG, MUG)) == "Two red mugs on a wooden table."
    assert score([template(g) for g in graphs], graphs)["named_f1"] == 1
    assert template(SCENE, 0.5, seed=1) == template(SCENE, 0.5, seed=1)
    assert len({template(SCENE, 0.5, seed) for seed in range(8)}) > 4
    # a pair stays true when neither fact changes: 0.9 * 0.9 = 0.81, and a bit by chance
    some = score([template(g, 0.1) for g in graphs], graphs)
    assert 0.75 < some["colours_precision"] < 0.87
    assert all(" red " not in template(graph(MUG), 1.0, seed) for seed in range(30))
    assert all(" mug " not in template(graph(MUG), 1.0, seed) for seed in range(60))


def test_f1_of_items_can_be_compared_in_pairs():
    graphs = make_graphs("train", 60)
    good = truths([template(g, 0.1) for g in graphs], graphs)
    bad = truths([template(g, 0.6) for g in graphs], graphs)
    assert f1(good).shape == (60,)
    assert metrics.paired_bootstrap(f1(good)[None], f1(bad)[None], draws=200).beats
    numbers = score([template(g, 0.1) for g in graphs], graphs)
    assert numbers["named_f1_mean"] == pytest.approx(f1(good).mean().item())
    # of one item: objects (3, 4, 3, 3) and colours (1, 3, 1, 3) together: 4 of 7, 4 of 6
    one = truths(["A red mug, a green house and a pink cat, left of a sign."], [SCENE])
    assert f1(one).item() == pytest.approx(2 * (4 / 7) * (4 / 6) / (4 / 7 + 4 / 6))
    assert f1(one, ["objects"]).item() == pytest.approx(2 * 0.75 / 1.75)


def test_recall_of_chosen_pairs():
    both = graph(thing("mug", "red"), thing("ball", "blue", x=0.2))
    said = ["A red mug and a green ball.", "A blue ball. A blue mug."]
    assert pair_recall(said, [both, both], {("red", "mug")}) == 0.5
    assert pair_recall(said, [both, both], {("red", "mug"), ("blue", "ball")}) == 0.5
    assert pair_recall(said, [both, both], {("blue", "ball"), ("pink", "car")}) == 0.5
    assert pair_recall(said[:1], [both], {("blue", "ball")}) == 0
    assert pair_recall(said, [both, both], {("pink", "car")}) == 1


def test_bad_input_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r"1 captions .* 2 scene graphs: give one"):
        score(["a"], [SCENE, SCENE])
    with pytest.raises(InputError, match=r"0 captions"):
        truths([], [])
    with pytest.raises(InputError, match=r"corrupt is 1\.5: give a probability"):
        template(SCENE, 1.5)
    with pytest.raises(InputError, match="not a scene graph with objects"):
        judge("a mug", {})
