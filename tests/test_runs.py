"""Recipes: units run once, survive an interruption, and go stale when the code changes."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from mmfusion_lib import InputError, records, runs
from mmfusion_lib.files import write_json
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


def test_processes_share_the_units(cache, toy, calls):
    folder = runs.unit_folder(toy, "smoke", toy.scales["smoke"])
    folder.mkdir(parents=True)
    elsewhere = FileLock(folder / "1.lock")
    with ThreadPoolExecutor(1) as pool, elsewhere:  # another process is at unit 1
        record = pool.submit(runs.run, toy, "smoke")
        while not (folder / "2.json").exists():
            assert not record.done()
            time.sleep(0.01)
        write_json(folder / "1.json", {"result": 7, "seconds": 0, "peak_bytes": 0})
        elsewhere.release()
        assert record.result(60).results["sum"]["values"] == [7, 20]
    assert calls == ["2"]


def test_a_unit_that_another_process_gave_up_is_taken_over(cache, toy, calls):
    folder = runs.unit_folder(toy, "smoke", toy.scales["smoke"])
    folder.mkdir(parents=True)
    elsewhere = FileLock(folder / "1.lock")
    with ThreadPoolExecutor(1) as pool, elsewhere:
        record = pool.submit(runs.run, toy, "smoke")
        while not (folder / "2.json").exists():
            assert not record.done()
            time.sleep(0.01)
        elsewhere.release()  # without a result, as the system does when a process dies
        assert record.result(60).results["sum"]["values"] == [10, 20]
    assert calls == ["2", "1"]


def test_a_cache_that_cannot_be_written_is_found_out_before_the_work(cache, toy, calls):
    cache.mkdir(exist_ok=True)
    (cache / "runs").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"runs/toy.* cannot be written .*set MMFUSION_CACHE"):
        runs.run(toy, "smoke")
    assert calls == []


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


def test_code_digest_covers_the_modules_of_all_three_functions(tmp_path, monkeypatch, toy):
    package = tmp_path / "mmfusion_lib"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    recipe = dataclasses.replace(
        toy,
        run_unit=_in_module("mmfusion_lib.recipes.toy"),
        summarise=_in_module("mmfusion_lib.recipes.sums"),
    )
    toy_file, sums = package / "recipes" / "toy.py", package / "recipes" / "sums.py"
    toy_file.write_text("x = 1\n")
    sums.write_text("y = 1\n")
    before = runs.code_digest(recipe)
    toy_file.write_text("x = 1  # a comment\n")
    assert runs.code_digest(recipe) == before
    toy_file.write_text("x = 2\n")
    after = runs.code_digest(recipe)
    assert after != before
    sums.write_text("y = 2\n")
    assert runs.code_digest(recipe) not in (before, after)


def test_every_recipe_has_the_three_scales_and_unique_names():
    from mmfusion_lib.recipes import ALL

    assert len({recipe.name for recipe in ALL}) == len(ALL)
    for recipe in ALL:
        assert {"smoke", "paper"} <= set(recipe.scales) == set(recipe.minutes)
        # What needs data that nobody may pass on has a rehearsal, and no lab scale.
        assert ("lab" in recipe.scales) == (not recipe.run_unit.__module__.endswith("_paper"))
        for settings in recipe.scales.values():
            units = recipe.units(settings)
            assert len(units) == len(set(units)) > 0
        full = recipe.scales.get("lab", recipe.scales["paper"])
        # Nothing random has no seed, and of an encoder that is published there is one.
        enough = (
            len(full["seeds"]) >= 3
            or not full["seeds"]
            or recipe.name in ("scene-encoder", "prismer-pretrain")
        )
        assert enough, recipe.name


def _in_module(name):
    def run_unit(settings, unit):
        return None

    run_unit.__module__ = name
    return run_unit
