"""Few shots on scenes: the crops, their maps, what each way reads, and the recipe's summary."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmfusion_lib import metrics
from mmfusion_lib.data import scene_tasks, scenes
from mmfusion_lib.data.scene_objects import KINDS
from mmfusion_lib.experts.label_map import NOTHING
from mmfusion_lib.recipes import scenes_fewshot as recipe

SMALL = recipe.RECIPE.scales["smoke"] | {
    "count": {"train": 60, "validation": 20, "test": 20},
    "named": {"validation": 20, "test": 20},
}


@pytest.fixture
def forget():
    """Nothing that was cut out for one test is left for another."""
    yield
    recipe.objects.cache_clear()
    recipe.cut.cache_clear()


def test_a_crop_is_a_square_around_its_thing():
    crop = recipe.around([40, 50, 60, 60], 100, None)
    assert crop.box == pytest.approx((0.38, 0.43, 0.62, 0.67)) and not crop.flip


@pytest.mark.parametrize("box", [[0, 0, 12, 30], [80, 70, 112, 112], [0, 10, 112, 20]])
def test_a_crop_stays_inside_the_picture(box):
    for seed in (None, *"abcdefgh"):
        left, top, right, bottom = recipe.around(box, 112, seed).box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert right - left == pytest.approx(bottom - top)


def test_views_differ_and_come_again():
    views = [recipe.around([40, 50, 60, 60], 100, f"7-{number}") for number in range(12)]
    assert len({view.box for view in views}) == 12
    assert {view.flip for view in views} == {False, True}
    assert views[3] == recipe.around([40, 50, 60, 60], 100, "7-3")
    for view in views:  # most of the thing is in it
        shared = min(view.box[2], 0.6) - max(view.box[0], 0.4)
        assert shared > 0.12


def test_maps_are_cut_as_their_picture_is(minilm, forget):
    """In the middle of a thing's crop, most of what is named is the thing."""
    _, rows = recipe.objects("train", 60)
    chosen = tuple((number, view) for number in range(8) for view in (0, 1))
    items = recipe.cut("train", 60, chosen, 56)
    kinds = items.pictures.experts["seg_scenes"]["ids"]
    boxes = items.pictures.experts["obj_detection"]["label"]["ids"]
    for place, (number, _) in enumerate(chosen):
        label = KINDS.index(rows[number]["label"])
        for ids in (kinds, boxes):
            middle = ids[place, 14:42, 14:42]
            assert middle[middle != NOTHING].mode().values == label
        assert items.texts[place] == [rows[number]["label"].replace("_", " ")]
    # View 0 shows the very pixels of the scene.
    table, row = scenes.load("train", 60), rows[0]
    left, top, right, bottom = recipe.around(row["box"], 112, None).box
    whole = scenes.decode(table[row["index"]]).classes
    cut = whole[round(top * 112) : round(bottom * 112), round(left * 112) : round(right * 112)]
    share = np.mean(cut == KINDS.index(row["label"]))
    assert float((kinds[0] == KINDS.index(row["label"])).float().mean()) == pytest.approx(
        share, abs=0.08
    )


def test_what_each_way_reads(minilm, forget):
    read = {}
    for way in recipe.WAYS:
        items, labels = recipe.shown(SMALL, "validation", way)
        read[way] = items.pictures.experts
        assert len(items) == len(labels) == 20
    assert set(read["prismerz"]) == {"rgb"}
    assert set(read["prismer-low"]) == {"rgb", "depth", "normal", "edge"}
    assert set(read["prismer"]) == set(read["prismer-blank"]) == {"rgb", *recipe.SCENE_EXPERTS}
    for other in read.values():
        assert torch.equal(other["rgb"], read["prismer"]["rgb"])
    depths = {way: read[way]["depth"].flatten(1) for way in ("prismer", "prismer-blank")}
    assert len(depths["prismer"].unique(dim=0)) == 20
    assert len(depths["prismer-blank"].unique(dim=0)) == 1


@pytest.mark.parametrize("shots", [1, 4])
def test_a_kind_is_learnt_from_as_many_pictures_whatever_the_shots(shots, forget, monkeypatch):
    class Kept:
        def __init__(self, split, count, chosen, size):
            self.chosen = chosen

        def without(self, experts):
            return self

    monkeypatch.setattr(recipe, "cut", Kept)
    s = SMALL | {"views": 16, "count": {"train": 300}}
    items, labels = recipe.shown(s, "train", "prismer", shots, 1)
    drawn = scene_tasks.shots(recipe.objects("train", 300)[1], shots, 1)
    assert len(items.chosen) == len(labels) == 16 * len(KINDS)
    assert {row for row, _ in items.chosen} == set(drawn)
    assert {view for _, view in items.chosen} == set(range(16 // shots))


def test_the_summary_follows_from_the_units(monkeypatch):
    s = recipe.LAB | {"seeds": [0, 1], "ways": ["prismer", "prismerz"], "shots": [4, 1]}

    items = SimpleNamespace(groups=list("aabb"))
    monkeypatch.setattr(recipe, "shown", lambda *given: (items, []))

    def unit(name):  # prismer gets 3 of 4, PrismerZ 1
        hits = "1101" if name.endswith("prismer") else "1000"
        return {"hits": hits, "validation": 0.5, "trainable": 7, "seconds": 1.0}

    found = recipe.summarise(s, {name: unit(name) for name in recipe.units(s)})
    assert found["results"]["prismer-1"]["mean"] == 0.75
    assert found["results"]["prismerz-4-validation"]["mean"] == 0.5
    assert found["curves"]["prismer"] == {"x": [1, 4], "mean": [0.75, 0.75], "std": [0.0, 0.0]}
    assert set(found["comparisons"]) == {"prismer-1 - prismerz-1", "prismer-4 - prismerz-4"}
    difference = found["comparisons"]["prismer-1 - prismerz-1"]
    assert difference == metrics.Interval(0.5, 0.5, 0.5)._asdict()


def test_smoke_scale_runs_whole(minilm, dinov2, forget, monkeypatch, tmp_path):
    from mmfusion_lib import runs

    monkeypatch.setattr(runs, "unit_folder", lambda *given: tmp_path)  # run it, whatever is cached
    record = runs.run(recipe.RECIPE, "smoke", **{k: SMALL[k] for k in ("count", "named")})
    assert set(record.curves) == {"prismer", "prismerz"}
    assert 0 <= record.results["prismer-1"]["mean"] <= 1
    assert (
        record.results["prismer-trainable"]["mean"] > record.results["prismerz-trainable"]["mean"]
    )
    assert set(record.comparisons) == {"prismer-1 - prismerz-1"}
