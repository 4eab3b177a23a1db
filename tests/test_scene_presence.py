"""Sentences about what a scene holds: balanced for the text alone and for the picture alone."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from scene_maker import graph, make_graphs, thing

from mmfusion_lib import InputError
from mmfusion_lib.data import scene_presence
from mmfusion_lib.data.scene_presence import presence


@pytest.fixture(scope="module")
def rows():
    return presence(make_graphs("train", 200), seed=1)


@pytest.mark.parametrize("key", ["hypothesis", "scene"])
def test_no_sentence_and_no_picture_tells_the_label(rows, key):
    counts = defaultdict(Counter)
    for row in rows:
        counts[row["type"], row[key]][row["label"]] += 1
    assert all(count["true"] == count["false"] for count in counts.values())


def test_labels_are_those_of_the_scene(rows):
    graphs = make_graphs("train", 200)
    for row in rows:
        said = row["hypothesis"].rstrip(".").replace("table lamp", "table_lamp").split()
        holds = [
            (row["type"] == "kind" or item["colour"] in said)
            and (row["type"] == "colour" or item["kind"] in said)
            for item in graphs[row["index"]]["objects"]
        ]
        assert any(holds) == (row["label"] == "true"), row


def test_every_family_is_used_and_many_false_sentences_mix_what_is_there(rows):
    graphs = make_graphs("train", 200)
    assert {row["type"] for row in rows} == set(scene_presence.FAMILIES)
    false = [r for r in rows if r["type"] == "both" and r["label"] == "false"]
    mixed = 0
    for row in false:
        words = row["hypothesis"].rstrip(".").split()
        objects = graphs[row["index"]]["objects"]
        mixed += any(o["colour"] in words for o in objects) and any(
            o["kind"] in words for o in objects
        )
    assert mixed > len(false) / 10


def test_two_scenes_worked_out():
    """a holds a red mug, b a blue house: each of the six claims is true of one and false of the other."""
    graphs = [graph(thing("mug", "red")), graph(thing("house", "blue"), name="test-000001")]
    rows = presence(graphs)
    assert len(rows) == 12  # 3 families x 2 claims x 2 scenes
    true = {row["hypothesis"] for row in rows if row["index"] == 0 and row["label"] == "true"}
    false = {row["hypothesis"] for row in rows if row["index"] == 1 and row["label"] == "false"}
    assert len(true) == 3 and true == false


def test_what_is_hardly_seen_is_never_called_present_or_absent():
    hidden = thing("car", "green", visible=0.1)
    graphs = [
        graph(thing("mug", "red"), hidden),
        graph(thing("house", "blue"), name="test-000001"),
    ]
    words = " ".join(row["hypothesis"] for row in presence(graphs))
    assert "car" not in words and "green" not in words


def test_same_seed_same_rows_other_seed_other_rows():
    graphs = make_graphs("train", 60)
    assert presence(graphs, seed=3) == presence(graphs, seed=3) != presence(graphs, seed=4)


def test_scenes_that_hold_the_same_are_refused():
    with pytest.raises(InputError, match="None of the 2 scenes differ"):
        presence([graph(thing()), graph(thing(), name="test-000001")])
