"""Recipes: units run once, survive an interruption, and go stale when the code changes."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from mmfusion_lib import InputError, records, runs, train
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


def test_a_setting_inside_train_is_replaced_alone(cache, toy):
    scales = {"smoke": {**toy.scales["smoke"], "train": {"epochs": 2, "lr": 0.1}}}
    toy = dataclasses.replace(toy, scales=scales)
    record = runs.run(toy, "smoke", **{"train.lr": 0.5, "train.shard": True})
    assert record.settings["train"] == {"epochs": 2, "lr": 0.5, "shard": True}
    assert scales["smoke"]["train"] == {"epochs": 2, "lr": 0.1}
    with pytest.raises(InputError, match=r"no setting 'train\.rate': .*train\.lr"):
        runs.run(toy, "smoke", **{"train.rate": 0.5})
    with pytest.raises(InputError, match=r"no setting 'step\.x'"):
        runs.run(toy, "smoke", **{"step.x": 0.5})


# --- processes of one launch ---------------------------------------------------------------------


def line(worked: list[str]) -> Recipe:
    """Two units; each trains a line, and notes that it was worked at."""

    def run_unit(settings, unit):
        torch.manual_seed(0)
        model = torch.nn.Linear(1, 1)
        data = [{"x": torch.tensor([float(i)])} for i in range(8)]
        config = train.TrainConfig(epochs=1, batch_size=4, lr=0.1, seed=int(unit))
        result = train.fit(
            model, data, lambda m, b: (m(b["x"]) - b["x"]).square().mean(), config, progress=False
        )
        worked.append(unit)
        return result.losses

    return Recipe(
        name="line",
        title="Line",
        chapter="00",
        scales={"smoke": {"seeds": [1, 2]}},
        minutes={"smoke": 0.0},
        units=lambda s: [str(seed) for seed in s["seeds"]],
        run_unit=run_unit,
        summarise=lambda s, done: {"curves": {name: {"y": y} for name, y in done.items()}},
    )


@pytest.mark.skipif(os.name == "nt", reason="gloo under accelerate was not run on Windows")
def test_processes_of_one_launch_are_together_at_each_unit(cache, tmp_path, monkeypatch):
    """Both train each unit, each with its share of a step; the record is that of one process."""
    command = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    command += " --main_process_port 0 --mixed_precision no --dynamo_backend no"
    given = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for again in (False, True):
        ran = subprocess.run(
            [sys.executable, *command.split(), __file__, str(tmp_path)],
            env=given, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in (0, 1)]
        assert seen[0] == seen[1]
        assert seen[0]["worked"] == ([] if again else ["1", "2"])  # the second finds them done
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "other"))
    for name, curve in runs.run(line([]), "smoke").curves.items():
        assert seen[0]["curves"][name]["y"] == pytest.approx(curve["y"], rel=1e-5)


if __name__ == "__main__":
    worked: list[str] = []
    seen = {"curves": runs.run(line(worked), "smoke").curves, "worked": worked}
    (Path(sys.argv[1]) / f"seen{os.environ['RANK']}.json").write_text(json.dumps(seen))
