"""The recipes that exchange data sets, and the steps of PMF by layers and prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmfusion_lib import runs
from mmfusion_lib.encoders import build_encoder, named_config
from mmfusion_lib.recipes import (
    crossed,
    fusion_baselines,
    pmf_cost,
    pmf_cost_steps,
    pmf_variants,
    scenes_baselines,
)
from mmfusion_lib.recipes import fusion_common as common


@pytest.mark.parametrize("name", ["COMPONENTS", "LAYERS", "PROMPTS"])
def test_figures_take_the_variants_of_scenes_and_the_setting_of_the_main_table(name):
    ours = getattr(crossed, name).scales["lab"]
    assert ours["variants"] == getattr(pmf_variants, name).scales["lab"]["variants"]
    table = fusion_baselines.LAB
    assert {k: ours[k] for k in ("problem", "words", "count", "share", "pmf")} == {
        k: table[k] for k in ("problem", "words", "count", "share", "pmf")
    }
    assert ours["train"] == {**table["train"], "lr": ours["train"]["lr"]}
    assert ours["train"]["lr"] in table["lrs"]["prompts"]


def test_scenes_take_the_methods_of_the_main_table():
    recipe = scenes_baselines.RECIPE
    ours = recipe.scales["lab"]
    assert ours["methods"] == list(fusion_baselines.METHODS) and ours["types"] == ["colour"]
    assert {len(rates) for rates in ours["lrs"].values()} == {recipe.trials}


def test_every_encoder_is_another_one_where_fusion_begins(minilm, dinov2):
    lab, seen = crossed.MODULARITY.scales["lab"], []
    torch.manual_seed(0)
    pixels, ids = torch.randn(1, 3, 112, 112), torch.tensor([[101, 2158, 102]])
    for change in lab["variants"].values():
        image, text = common.encoders({**lab, **change["settings"]})
        with torch.no_grad():
            x, y = image.embed(pixels), text.embed(ids)
            for layer in image.layers[:-2]:
                x = layer(x)
            for layer in text.layers[:-2]:
                y = layer(y)
        seen.append((round(x.abs().sum().item(), 1), round(y.abs().sum().item(), 2)))
    assert len(set(seen)) == len(seen) == 4


def tiny(name):
    config = replace(named_config(name), depth=3)
    return build_encoder(replace(config, image_size=28) if config.kind == "image" else config)


def test_steps_are_measured_and_drawn_against_full_fine_tuning(cache, monkeypatch):
    monkeypatch.setattr(pmf_cost, "build_encoder", tiny)
    changes = {"encoders": ["dinov2-small", "minilm-l6"], "layers": [1, 2], "prompts": [4]}
    record = runs.run(pmf_cost_steps.RECIPE, "smoke", **changes)
    values = {name: value["mean"] for name, value in record.results.items()}
    assert all(value > 0 for value in values.values()) and len(values) == 8
    for form in ("plain", "shared"):
        whole = values[f"cpu-8-1-{form}-late-concat-step"]
        line = record.curves[f"layers-step-cpu-8-1-{form}"]
        assert line["x"] == [1, 2]
        assert line["mean"][1] == values[f"cpu-8-1-{form}-layers-2-step"] / whole


def test_what_does_not_fit_is_left_out_of_the_curves(monkeypatch):
    def too_large(model, *given):
        raise torch.cuda.OutOfMemoryError

    s = pmf_cost_steps.RECIPE.scales["smoke"] | {"encoders": ["dinov2-small", "minilm-l6"]}
    monkeypatch.setattr(pmf_cost_steps, "step_cost", too_large)
    unit = pmf_cost_steps.units(s)[0]
    done = pmf_cost_steps.run_unit(s, unit)
    assert done == {}
    assert pmf_cost_steps.summarise(s, {unit: done}) == {"results": {}, "curves": {}}
