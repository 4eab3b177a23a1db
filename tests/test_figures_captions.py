"""Alternative texts of figures as captions: cutting, exchanging pictures, the numbers of the record."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mmfusion_lib import prismer_training, runs, scene_captioner
from mmfusion_lib.recipes import figures_captions as recipe
from mmfusion_lib.recipes import figures_captions_data as data
from mmfusion_lib.recipes.figures_captions_data import Part

TEXTS = ["A dog sits on grass.", "Two red lines cross here."]


def word_tokens(texts, max_length=None):
    """One token a word and a mark at both ends."""
    size = len(texts[0].split()) + 2
    return torch.zeros(1, size, dtype=torch.long), torch.ones(1, size, dtype=torch.long)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("A dog  sits.", 3, "A dog sits."),  # whole, though it has under 5 words
        ("A dog sits on grass. It sleeps. All is well.", 7, "A dog sits on grass. It sleeps."),
        ("A dog sits on grass. It sleeps. All is well.", 6, "A dog sits on grass."),
        ("A dog. It sits, as ever, on grass.", 5, "A dog. It sits, as"),  # "A dog." is a label
        ("A dog sits, on grass that is wet.", 3, "A dog sits"),  # no comma is left behind
        ("Photo of Dr. Smith. He is old.", 6, "Photo of Dr. Smith. He is"),  # "Dr." ends nothing
    ],
)
def test_texts_are_cut_at_a_sentence_or_a_word(text, most, expected):
    assert data.cut(text, word_tokens, most) == expected


@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_item_keeps_its_own_picture(count):
    for seed in range(20):
        givers = data.exchange(count, seed)
        assert sorted(givers) == list(range(count))  # every picture is given once
        assert all(giver != item for item, giver in enumerate(givers))
    assert data.exchange(8, 0) != data.exchange(8, 1)


def test_items_have_the_texts_and_pictures_of_the_chosen(monkeypatch):
    texts = [f"text {letter}" for letter in "abcd"]
    pixels = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2)  # picture i is full of i
    rows = [{"section": f"s{i}"} for i in range(4)]
    monkeypatch.setattr(data, "part", lambda s, split: Part([], texts, rows))
    monkeypatch.setattr(data, "_pixels", lambda *of: pixels)
    s = {"count": {"train": None}, "tokens": 8, "image_size": 2}
    chosen = [3, 0, 2]
    found = data.items(s, "train", chosen)
    assert found.texts == [[texts[3]], [texts[0]], [texts[2]]]
    assert found.groups == ["s3", "s0", "s2"]
    assert [int(found[i]["experts"]["rgb"][0, 0, 0]) for i in range(3)] == chosen


def test_near_and_medoid():
    words = data.bag("one two three four five")
    assert data.near(words, [data.bag("One, two, three, four.")])  # 4 of 5 words
    assert not data.near(words, [data.bag("one two three"), data.bag("one two three four six")])
    # Shares with the others: 2/4 and 0; 2/4 and 1/5; 0 and 1/5.
    assert data.medoid(["a b c", "b c d", "d e f"]) == "b c d"


def made(monkeypatch) -> tuple[dict, dict]:
    """Settings and units: one way says the truth, the others say the first text of both figures."""
    row = {"credit": "credit: X", "subject": 3, "alt": "longer"}
    rows = [row | {"section": name, "source": f"id-{name}"} for name in "ab"]
    monkeypatch.setattr(recipe, "part", lambda s, split: Part([], TEXTS, rows))
    s = {"seeds": [0, 1], "ways": ["prismerz", "nearest"], "every": 25}
    more = {"trainable": 7, "seconds": 2.0, "samples_per_second": 3.0, "data_wait_share": 0.1}
    more |= {"losses": [9.0, 5.0], "validation": [4.0, 2.0, 3.0]}
    units = {"zero-shot": {"texts": [TEXTS[0]] * 2}}
    for seed in s["seeds"]:
        units[f"{seed}-prismerz"] = {"texts": TEXTS, **more}
        units[f"{seed}-nearest"] = units["zero-shot"]
    return s, units


def test_zero_shot_shows_the_captioner_of_scenes_the_picture_alone(monkeypatch):
    model = torch.nn.Module()
    model.config = SimpleNamespace(image_size=2)
    monkeypatch.setattr(scene_captioner, "load", lambda: model)
    sizes, written = [], []

    def pixels(split, count, most, size):
        sizes.append(size)
        return torch.zeros(2, 3, size, size)

    def captions(model, items, batch_size, **options):
        written.append((items.prompts, list(items.pictures.experts), options))
        return TEXTS

    monkeypatch.setattr(recipe, "part", data.part)
    monkeypatch.setattr(data, "_part", lambda *of: Part([], TEXTS, [{"section": "s"}] * 2))
    monkeypatch.setattr(data, "_pixels", pixels)
    monkeypatch.setattr(prismer_training, "captions", captions)
    s = {"count": {"test": 2}, "tokens": 8, "image_size": 4, "beams": 3, "seeds": [], "ways": []}
    assert recipe.units(s) == ["zero-shot"]
    assert recipe.run_unit(s, "zero-shot") == {"texts": TEXTS}
    # At its own size, with its own prompt and lengths.
    assert sizes == [2] and written == [(["A picture of"] * 2, ["rgb"], {"num_beams": 3})]


def test_the_summary_follows_from_the_units(monkeypatch):
    found = recipe.summarise(*made(monkeypatch))
    means = {name: result["mean"] for name, result in found["results"].items()}
    # The two texts share no word and have 5 each: what is right has CIDEr-D 10, all else 0.
    assert means["prismerz-cider"] == pytest.approx(10) and means["nearest-cider"] == pytest.approx(
        5
    )
    assert means["prismerz-rouge"] == pytest.approx(1) and means["nearest-rouge"] == pytest.approx(
        0.5
    )
    # Half of all n-grams are right at every length: BLEU-4 0.5.
    assert means["prismerz-bleu4"] == pytest.approx(1) and means["nearest-bleu4"] == pytest.approx(
        0.5
    )
    assert means["exchanged-cider"] == 0  # each has the other's text
    assert means["prismerz-different"] == 1 and means["nearest-different"] == 0.5
    assert means["prismerz-validation"] == 2 and means["prismerz-trainable"] == 7
    assert "nearest-seconds" not in means
    assert found["results"]["zero-shot-cider"]["values"] == pytest.approx([5])
    # Sections a and b differ by 0 and 10: draws of two have means from 0 to 10.
    for other in ("nearest", "zero-shot"):
        compared = found["comparisons"][f"prismerz - {other}"]
        assert [compared[k] for k in ("difference", "low", "high")] == pytest.approx([5, 0, 10])
    assert found["curves"]["prismerz losses"] == {"x": [1, 26], "mean": [9, 5], "std": [0, 0]}
    assert found["curves"]["prismerz validation"]["x"] == [1, 2, 3]


def test_examples_are_chosen_by_their_score(monkeypatch):
    s, done = made(monkeypatch)
    done["0-prismerz"]["texts"] = [TEXTS[1], TEXTS[1]]  # the first is wrong, the second right
    found = recipe.examples(s, done, each=1)
    best, worst = found["best"][0], found["worst"][0]
    assert best["id"] == "id-b" and best["cider"] == pytest.approx(10)
    assert worst["id"] == "id-a" and worst["cider"] == 0
    assert worst["alt"] == worst["nearest"] == TEXTS[0] and worst["written"] == TEXTS[1]
    assert worst["credit"] == "OpenStax, Astronomy, CC BY 4.0; credit: X"


def test_it_runs(cache, data_root, tmp_path):
    record = runs.run(recipe.RECIPE, "smoke")
    assert {"prismerz-cider", "exchanged-bleu4", "nearest-rouge", "common-cider"} <= set(
        record.results
    )
    assert set(record.comparisons) == {
        f"prismerz - {x}" for x in ("exchanged", "nearest", "common", "zero-shot")
    }
    assert record.results["nearest-different"]["mean"] > record.results["common-different"]["mean"]
    path = recipe.write_examples("smoke", tmp_path / "examples.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(written) == ["best", "median", "worst"]
    assert [len(rows) for rows in written.values()] == [3, 3, 3]  # of 4 test figures: some twice
