"""Recipes: units run once, survive an interruption, and go stale when the code changes."""

import dataclasses

import pytest

from mmfusion_lib import InputError, records, runs
from mmfusion_lib.runs import Recipe


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def toy(calls) -> Recipe:
    def run_unit(settings, unit):
        calls.append(unit)
        return settings["step"] * int(unit)

    return Recipe(
        name="toy",
        title="Toy",
        chapter="00",
        scales={"smoke": {"seeds": [1, 2], "step": 10}},
        minutes={"smoke": 0.0},
        units=lambda s: [str(seed) for seed in s["seeds"]],
        run_unit=run_unit,
        summarise=lambda s, done: {"results": {"sum": records.spread(done.values())}},
    )


def test_a_finished_unit_is_not_run_again(cache, toy, calls):
    first = runs.run(toy, "smoke")
    assert first.results["sum"]["values"] == [10, 20]
    assert first.results["sum"]["mean"] == 15
    assert first.results["sum"]["std"] == pytest.approx(50**0.5)  # sample deviation of 10, 20
    second = runs.run(toy, "smoke")
    assert calls == ["1", "2"]
    assert second.results == first.results


def test_an_interrupted_run_goes_on_where_it_stopped(cache, toy, calls):
    def stop_at_two(settings, unit):
        if unit == "2" and calls.count("2") == 0:
            calls.append(unit)
            raise KeyboardInterrupt
        return toy.run_unit(settings, unit)

    stopping = dataclasses.replace(toy, run_unit=stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        runs.run(stopping, "smoke")
    runs.run(stopping, "smoke")
    assert calls == ["1", "2", "2"]


def test_other_settings_are_other_units(cache, toy, calls):
    runs.run(toy, "smoke")
    assert runs.run(toy, "smoke", step=1).results["sum"]["values"] == [1, 2]
    assert len(calls) == 4


def test_unknown_names_are_refused(cache, toy):
    with pytest.raises(InputError, match=r"Unknown recipe 'nothing'.*figures-probes"):
        runs.get("nothing")
    with pytest.raises(InputError, match="no scale 'lab': it has smoke"):
        runs.run(toy, "lab")
    with pytest.raises(InputError, match="no setting 'sede'"):
        runs.run(toy, "smoke", sede=[0])


def test_code_digest_ignores_comments_but_not_code(tmp_path, monkeypatch, toy):
    package = tmp_path / "mmfusion_lib"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    recipe = dataclasses.replace(toy, run_unit=_in_module("mmfusion_lib.recipes.toy"))
    (package / "recipes" / "toy.py").write_text("from .. import other\nfrom ..runs import Recipe\n")
    other = package / "other.py"
    other.write_text("x = 1\n")
    before = runs.code_digest(recipe)
    other.write_text('"""A docstring."""\n\nx = 1  # a comment\n')
    assert runs.code_digest(recipe) == before
    (package / "runs.py").write_text("bookkeeping = 1\n")
    assert runs.code_digest(recipe) == before
    other.write_text("x = 2\n")
    assert runs.code_digest(recipe) != before


def test_every_recipe_has_the_three_scales_and_unique_names():
    from mmfusion_lib.recipes import ALL

    assert len({recipe.name for recipe in ALL}) == len(ALL)
    for recipe in ALL:
        assert {"smoke", "lab", "paper"} == set(recipe.scales) == set(recipe.minutes)
        for settings in recipe.scales.values():
            units = recipe.units(settings)
            assert len(units) == len(set(units)) > 0
        assert len(recipe.scales["lab"]["seeds"]) >= 3 or not recipe.scales["lab"]["seeds"]


def _in_module(name):
    def run_unit(settings, unit):
        return None

    run_unit.__module__ = name
    return run_unit
