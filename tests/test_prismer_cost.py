"""The recipe ``prismer-cost``: training steps, on a CPU with a model of a layer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmfusion_lib.encoders import EncoderConfig
from mmfusion_lib.experts import LabelMap, tensors
from mmfusion_lib.prismer import build_prismer
from mmfusion_lib.prismer_config import MODELS, PAPER_EXPERTS, PrismerConfig, named_prismer
from mmfusion_lib.prismer_training import IGNORED, objective
from mmfusion_lib.recipes import prismer_cost_steps
from mmfusion_lib.recipes.prismer_cost import RECIPE
from mmfusion_lib.recipes.prismer_cost_steps import Shape, measure, random_batch

IMAGE = EncoderConfig("image", 16, 1, 2, 24, image_size=28, patch_size=14, input_norm=True)
TEXT = EncoderConfig(
    "text", 8, 1, 2, 12, norm="post", vocab_size=40, max_positions=24, pad_id=1, position_offset=2
)
TINY = PrismerConfig(
    IMAGE, TEXT, image_size=28, num_latents=3, resampler_layers=1, resampler_heads=2
)
SHAPE = Shape("tiny", 28, 2, "lang_vision", False)
THREE = ("peak", "step", "rate")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)
    torch.manual_seed(0)


# ---------------------------------------------------------------- a step


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("freeze", "pixels"), [("lang_vision", 28), ("vision", 42)])
def test_a_step_has_peak_time_and_rate(freeze, pixels, recompute):
    shape = Shape("tiny", pixels, 2, freeze, recompute)
    found = measure(shape, 6, "cpu")
    name = f"tiny-{pixels}-2" + ("-recompute" if recompute else "")
    assert shape.name == name
    assert list(found) == [f"{name}-{what}" for what in THREE]
    assert found[f"{name}-peak"] == 0  # a CPU does not tell
    # 2 pictures in so many ms are 2000 / ms a second
    assert found[f"{name}-step"] * found[f"{name}-rate"] == pytest.approx(2000)
    assert found[f"{name}-step"] > 0


def test_every_step_is_the_same_work(monkeypatch):
    """Three steps to warm up and six that count, each with a new gradient of what trains alone."""
    models = []

    def seen(model, batch):
        models.append(model)
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        assert all(p.grad is None for p in model.parameters())
        assert not any(".block." in name for name in trains) and trains
        assert not model.encoder.layers[0].block.training
        assert model.encoder.stems["depth"].training
        assert torch.is_autocast_enabled("cpu")
        assert set(batch["experts"]) == {"rgb", *PAPER_EXPERTS}
        return objective(model, batch)

    monkeypatch.setattr(prismer_cost_steps.prismer_training, "objective", seen)
    torch.manual_seed(0)
    start = build_prismer(TINY).encoder.resampler.latents.detach().clone()
    measure(SHAPE, 6, "cpu")
    assert len(models) == 9
    assert all(model is models[0] for model in models)
    assert not torch.equal(models[0].encoder.resampler.latents, start)  # the optimizer stepped


def test_layers_are_computed_again_where_it_is_said(monkeypatch):
    counts = []

    def count(module, inputs, output):
        counts[-1] += 1

    for recompute in (False, True):
        made = []

        def build(config, made=made):
            made.append(build_prismer(config))
            made[0].encoder.layers[0].adaptor.register_forward_hook(count)
            return made[0]

        counts.append(0)
        monkeypatch.setattr(prismer_cost_steps, "build_prismer", build)
        measure(SHAPE._replace(recompute=recompute), 6, "cpu")
    assert counts == [9, 18]  # a step: once; and once more in the backward pass


def test_what_does_not_fit_is_left_out(monkeypatch):
    def full(model, batch):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(prismer_cost_steps.prismer_training, "objective", full)
    assert measure(SHAPE, 6, "cpu") == {}


# ---------------------------------------------------------------- the batch


def described(value):
    """Types and shapes, but for how many names a picture has."""
    if isinstance(value, dict):
        return {key: described(each) for key, each in value.items()}
    shape = list(value.shape)
    if shape[-1] == 64 and value.is_floating_point():
        shape[1] = "names"
    return value.dtype, shape


class Words:
    """Random vectors, as a ``LabelTable`` gives its own."""

    def vectors(self, names):
        return torch.randn(len(names), 64)


def test_the_batch_is_one_of_the_papers():
    plane = np.zeros((28, 28), np.uint8)
    names = {0: "a"}
    maps = {
        "depth": LabelMap("depth", plane),
        "normal": LabelMap("normal", np.zeros((28, 28, 3), np.uint8)),
        "seg_coco": LabelMap("seg_coco", plane, names=names),
        "edge": LabelMap("edge", plane),
        "obj_detection": LabelMap("obj_detection", plane, plane, names),
        "ocr_detection": LabelMap("ocr_detection", plane, names=names),
    }
    semantic = dict.fromkeys(("seg_coco", "obj_detection", "ocr_detection"), Words())
    expected = tensors.batch([maps] * 2, 28, semantic, PAPER_EXPERTS)
    found = random_batch(TINY, SHAPE, 6)
    assert described(found["experts"]) == {
        "rgb": (torch.float32, [2, 3, 28, 28]),
        **described(expected),
    }
    assert found["experts"]["seg_coco"]["table"].shape[1] == 133  # classes of COCO
    assert found["ids"].shape == found["labels"].shape == (2, 6)
    assert found["ids"].min() > TEXT.pad_id
    assert (found["labels"] == IGNORED).tolist() == [[True] + [False] * 5] * 2
    assert found["mask"].all() and found["weight"].tolist() == [1, 1]


def test_maps_beside_a_large_picture_stay_small():
    config = replace(TINY, image_size=238)
    experts = random_batch(config, Shape("tiny", 238, 1, "vision", False), 6)["experts"]
    assert experts["rgb"].shape[-1] == 238
    assert experts["depth"].shape[-1] == 224


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize("scale", list(RECIPE.scales))
def test_there_are_no_steps_without_a_gpu(scale, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not [unit for unit in RECIPE.units(RECIPE.scales[scale]) if "steps" in unit]


def test_steps_on_a_gpu_are_those_of_the_settings(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RECIPE.units(RECIPE.scales["smoke"]) == ["parameters"]
    lab = RECIPE.scales["lab"]
    assert json.loads(json.dumps(lab["steps"])) == lab["steps"]
    shapes = [Shape(*row) for row in lab["steps"]]
    assert RECIPE.units(lab)[2:] == [f"steps-{shape.name}" for shape in shapes]
    assert len({shape.name for shape in shapes}) == len(shapes)
    for shape in shapes:  # official: both sides are frozen at 224 pixels, only the image's later
        assert shape.freeze == ("lang_vision" if shape.pixels == 224 else "vision")
        config = named_prismer(shape.model, image_size=shape.pixels)
        assert config.experts == PAPER_EXPERTS
        assert lab["text_length"] <= config.text.max_positions


def test_the_record_holds_three_numbers_a_step(monkeypatch):
    from mmfusion_lib.recipes import prismer_cost

    def on_a_cpu(shape, length, device):
        assert (device, length) == ("cuda", 6)
        return measure(shape, length, "cpu")

    monkeypatch.setattr(prismer_cost, "measure", on_a_cpu)
    rows = [list(SHAPE), list(SHAPE._replace(recompute=True))]
    settings = RECIPE.scales["lab"] | {"steps": rows, "text_length": 6, "measured": []}
    done = {f"steps-{n}": None for n in ("tiny-28-2", "tiny-28-2-recompute")}
    done = {unit: RECIPE.run_unit(settings, unit) for unit in done}
    results = RECIPE.summarise(settings, done)["results"]
    assert {name: result["unit"] for name, result in results.items()} == {
        f"tiny-28-2{how}-{what}": unit
        for how in ("", "-recompute")
        for what, unit in zip(THREE, ("GiB", "ms", "pictures per second"))
    }


def test_units_of_what_is_counted_stay():
    numbers = {
        "prismer-base-own": 1.0, "prismer-large-finetuned": 1.0, "prismer-base-activations": 1.0,
        "prismer-base-frozen-over-free": 1.0, "prismer-base-predicted-over-measured": 1.0,
    }  # fmt: skip
    results = RECIPE.summarise({}, {"all": numbers})["results"]
    assert [result["unit"] for result in results.values()] == [
        "millions", "millions", "MiB per sample", "ratio", "ratio",
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_cuda():
    for recompute in (False, True):
        found = measure(SHAPE._replace(recompute=recompute), 6, "cuda")
        assert len(found) == 3 and min(found.values()) > 0
