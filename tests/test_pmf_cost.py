"""PMF's cost by formula agrees with what autograd keeps, what PyTorch counts, and known figures."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from mmfusion_lib import accounting, pmf_cost
from mmfusion_lib.baselines import counts
from mmfusion_lib.baselines.concat import LateConcat, LinearProbe
from mmfusion_lib.baselines.deep_prompts import PROMPTS, prompted
from mmfusion_lib.blocks import Attention
from mmfusion_lib.encoders import CONFIGS, EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.pmf import PMF, PMFConfig
from mmfusion_lib.pmf_flops import step_flops
from mmfusion_lib.recipes.pmf_cost import RECIPE

# 10 image tokens of width 12, 7 text tokens of width 8
IMAGE = EncoderConfig("image", 12, 3, 2, 20, image_size=12, patch_size=4)
TEXT = EncoderConfig("text", 8, 3, 4, 14, norm="post", vocab_size=20, max_positions=8, dropout=0.1)
POST = replace(IMAGE, norm="post", activation="quick_gelu", readout="mean")
SCALED = replace(IMAGE, layer_scale=0.1, readout="cls+mean", dropout=0.2)
SIDES = {
    "pre-cls, post-cls": (IMAGE, TEXT),
    "post-mean, pre-cls": (POST, replace(TEXT, norm="pre")),
    "pre-cls+mean, post-mean": (SCALED, replace(TEXT, readout="mean")),
    "pre-cls, pre-mean": (IMAGE, replace(TEXT, norm="pre", readout="mean")),
}
SIZES = {
    "one layer": PMFConfig(5, 1),
    "three layers": PMFConfig(5, 3, query_prompts=1, query_context_prompts=3),
    "frozen context": PMFConfig(5, 2, mapping_width=5, train_fusion_context=False),
    "a length a layer": PMFConfig(
        5, 3, query_prompts=(0, 2, 3), query_context_prompts=(1, 2, 0), fusion_context_prompts=1
    ),
    "no query": PMFConfig(5, 2, query_prompts=0),
    "nothing but heads": PMFConfig(5, 2, query_prompts=0, fusion_context_prompts=0),
}
PAIRED = [  # every size with two kinds of sides
    (sides, sizes)
    for at, sizes in enumerate(SIZES)
    for sides in (list(SIDES)[at % 4], list(SIDES)[(at + 1 + at // 4) % 4])
]
BASE = CONFIGS["vit-base"], CONFIGS["bert-base"]
MIB = 2**20


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(sides, config, fused=True) -> PMF:
    model = PMF(*(build_encoder(side) for side in sides), config)
    for layer in [*model.image_encoder.layers, *model.text_encoder.layers]:
        layer.attention.fused = fused
    return model


def kept(model, *batch) -> int:
    return accounting.saved_activation_bytes(lambda: model(*batch), [model])


def inputs(sides, batch, length=7):
    size, words = sides[0].image_size, sides[1].vocab_size
    return torch.randn(batch, 3, size, size), torch.randint(words, (batch, length))


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("sides", SIDES)
def test_trainable_parameters_are_counted(sides, sizes):
    model = build(SIDES[sides], SIZES[sizes])
    expected = accounting.parameters(model)[-1].trainable
    assert pmf_cost.trainable_parameters(*SIDES[sides], SIZES[sizes]) == expected


@pytest.mark.parametrize(
    ("image", "text", "change", "expected"),
    [  # the facts of the official file: FCP frozen, 101 classes unless said
        ("vit-base", "bert-base", {}, 2_543_818),
        ("vit-base", "bert-base", {"train_fusion_context": True}, 2_556_106),
        ("vit-base", "bert-base", {"num_classes": 23}, 2_423_854),
        ("vit-base", "bert-base", {"num_classes": 3}, 2_393_094),
        ("vit-base", "bert-large", {}, 3_885_514),
        ("vit-large", "bert-base", {}, 3_885_514),
        ("vit-large", "bert-large", {}, 4_440_266),
    ],
)
def test_trainable_parameters_of_the_official_file(image, text, change, expected):
    config = replace(PMFConfig(101, train_fusion_context=False), **change)
    assert pmf_cost.trainable_parameters(CONFIGS[image], CONFIGS[text], config) == expected


@pytest.mark.parametrize("text", ["bert-base", "bert-large", "minilm-l6"])
@pytest.mark.parametrize("image", ["vit-base", "vit-large", "clip-b16", "dinov2-small"])
def test_less_than_three_per_cent_trains(image, text):
    sides = CONFIGS[image], CONFIGS[text]
    trains = pmf_cost.trainable_parameters(*sides, PMFConfig(101))
    assert trains < 0.03 * (sum(map(accounting.encoder_parameters, sides)) + trains)


def test_baselines_agree_with_their_own_counts():
    for method in ("linear", "late-concat"):
        ours = pmf_cost.trainable_parameters(*BASE, PMFConfig(101), method=method)
        assert ours == counts.trainable_parameters(method, *BASE, 101)
    # 2 encoders x 12 layers x 10 prompts x 768, and the head of "linear", 155,237
    deep = pmf_cost.trainable_parameters(*BASE, PMFConfig(101), method="vpt+p-bert")
    assert deep == 184_320 + 155_237


# ---------------------------------------------------------------- saved activations


@pytest.mark.parametrize(("sides", "sizes"), PAIRED)
def test_small_models_are_predicted_exactly(sides, sizes):
    model = build(SIDES[sides], SIZES[sizes])
    for shared, fused, dropout in product([True, False], repeat=3):
        model.shared = shared
        for encoder in (model.image_encoder, model.text_encoder):
            encoder.train(dropout)
            for layer in encoder.layers:
                layer.attention.fused = fused
        for batch in (1, 3):
            measured = kept(model, *inputs(SIDES[sides], batch))
            options = {"shared": shared, "fused": fused, "dropout": dropout}
            predicted = pmf_cost.activation_bytes(
                *SIDES[sides], SIZES[sizes], 10, 7, batch, **options
            )
            assert predicted == measured, (options, batch)


@pytest.mark.parametrize("fused", [True, False])
def test_shared_keeps_less_than_half_of_plain_at_a_middle_shape(fused):
    """ViT-Ti's shape and a BERT of the same width, with padding, which hardly counts."""
    image = EncoderConfig("image", 192, 3, 3, 768)  # 197 tokens
    text = replace(image, kind="text", norm="post", vocab_size=20)
    model = build((image, text), PMFConfig(5), fused)
    mask = torch.ones(2, 40)
    mask[0, 20:] = 0
    found = {}
    for model.shared in (True, False):
        found[model.shared] = kept(model, *inputs((image, text), 2, 40), mask)
        predicted = pmf_cost.activation_bytes(
            image, text, PMFConfig(5), 197, 40, 2, shared=model.shared, fused=fused
        )
        assert predicted == pytest.approx(found[model.shared], rel=0.01)
    assert found[True] <= 0.45 * found[False]


@pytest.mark.parametrize("length", [40, 128, 512])
def test_shared_keeps_less_than_half_of_plain_at_the_papers_shape(length):
    plain, shared = (
        pmf_cost.activation_bytes(*BASE, PMFConfig(101), 197, length, 32, shared=shared)
        for shared in (False, True)
    )
    assert shared <= 0.45 * plain


# MiB a sample, measured with the official file and its libraries: attention written out, BERT's
# dropout on, two samples in a batch.
OFFICIAL = {
    40: {1: 19.7, 2: 38.2, 4: 75.0, 6: 111.9, 9: 167.2, 11: 204.0},
    128: {1: 30.1, 2: 58.7, 4: 115.8, 6: 172.9, 9: 258.5, 11: 315.6},
    512: {1: 127.3, 2: 251.9},
}


def predicted(config: PMFConfig, length: int, method: str = "pmf") -> float:
    options = {"method": method, "shared": False, "fused": False, "dropout": True}
    return pmf_cost.activation_bytes(*BASE, config, 197, length, 2, **options) / 2 / MIB


@pytest.mark.parametrize(
    ("length", "layers", "value"),
    [(length, n, value) for length, row in OFFICIAL.items() for n, value in row.items()],
)
def test_official_file_by_number_of_layers(length, layers, value):
    config = PMFConfig(101, layers, train_fusion_context=False)
    assert predicted(config, length) == pytest.approx(value, rel=0.04)


@pytest.mark.parametrize(
    ("length", "prompts", "value"),
    [(40, 1, 37.3), (40, 4, 38.2), (40, 16, 47.6), (40, 32, 61.6), (512, 16, 274.0)],
)
def test_official_file_by_prompt_length(length, prompts, value):
    config = PMFConfig(101, 2, prompts, prompts, prompts, train_fusion_context=False)
    assert predicted(config, length) == pytest.approx(value, rel=0.04)


@pytest.mark.parametrize(
    ("method", "values"),
    [("late-concat", (162.2, 243.1, 894.5)), ("vpt+p-bert", (113.2, 174.5, 740.7))],
)
def test_baselines_at_the_papers_shape(method, values):
    for length, value in zip((40, 128, 512), values):
        assert predicted(PMFConfig(101), length, method) == pytest.approx(value, rel=0.04)


class DeepPrompts(nn.Module):
    """VPT and P-BERT side by side, with one head on both summaries."""

    def __init__(self, sides):
        super().__init__()
        self.encoders = nn.ModuleList(build_encoder(side).requires_grad_(False) for side in sides)
        prompts = (torch.randn(side.depth, PROMPTS, side.width) for side in sides)
        self.prompts = nn.ParameterList(nn.Parameter(each) for each in prompts)
        self.head = nn.Linear(sum(side.readout_width for side in sides), 5)

    def forward(self, *batch):
        tokens = [prompted(*each, None) for each in zip(self.encoders, self.prompts, batch)]
        summaries = [e.readout(t) for e, t in zip(self.encoders, tokens)]
        return self.head(torch.cat(summaries, dim=1))


@pytest.mark.parametrize(("fused", "dropout"), list(product([True, False], repeat=2)))
@pytest.mark.parametrize("sides", ["pre-cls, post-cls", "pre-cls+mean, post-mean"])
def test_baselines_as_measured(sides, fused, dropout):
    sides = SIDES[sides]
    models = {
        "late-concat": LateConcat(*map(build_encoder, sides), 5),
        "linear": LinearProbe(*map(build_encoder, sides), 5),
        "vpt+p-bert": DeepPrompts(sides),
    }
    for method, model in models.items():
        model.train(dropout)
        for part in model.modules():
            if isinstance(part, Attention):
                part.fused = fused
        expected = pmf_cost.activation_bytes(
            *sides, PMFConfig(5), 10, 7, 3, method=method, fused=fused, dropout=dropout
        )
        measured = kept(model, *inputs(sides, 3))
        assert measured == pytest.approx(expected, rel=0.01), method


# ---------------------------------------------------------------- FLOPs


@pytest.mark.parametrize(("sides", "sizes"), PAIRED[::2])
def test_step_flops_as_pytorch_counts(sides, sizes):
    model = build(SIDES[sides], SIZES[sizes], fused=False)
    batch = inputs(SIDES[sides], 2)
    base = model.base_features(*batch)
    for shared, cached in ((True, True), (True, False), (False, False)):
        model.shared = shared

        def run(cached=cached):
            output = model.from_base_features(*base) if cached else model(*batch)
            output.logits.sum().backward()

        expected = step_flops(*SIDES[sides], SIZES[sizes], 10, 7, 2, shared=shared, cached=cached)
        assert accounting.measured_flops(run) == expected, (shared, cached)


# ---------------------------------------------------------------- training memory


def test_training_memory_is_a_sum():
    config = PMFConfig(5, train_fusion_context=False)
    model = build((IMAGE, TEXT), config)
    rows = accounting.parameters(model)[-1]
    activations = pmf_cost.activation_bytes(IMAGE, TEXT, config, 10, 7, 2, shared=False)
    for optimizer, states in (("sgd", 1), ("adamw", 2)):
        memory = pmf_cost.training_memory(
            IMAGE, TEXT, config, 10, 7, 2, optimizer=optimizer, shared=False
        )
        assert memory == (
            4 * rows.total,
            4 * rows.trainable,
            4 * states * rows.trainable,
            activations,
        )
        assert memory.total == sum(memory)
    whole = pmf_cost.training_memory(IMAGE, TEXT, config, 10, 7, 2, method="late-concat")
    # everything trains: weights, gradients and one momentum are of one size
    assert whole.weights == whole.gradients == whole.optimizer
    share = 1 - pmf_cost.training_memory(IMAGE, TEXT, config, 10, 7, 2).total / whole.total
    assert pmf_cost.saving(IMAGE, TEXT, config, 10, 7, 2) == pytest.approx(share)


def test_saving_without_activations_is_what_the_optimizer_leaves():
    # With a batch of 0 only weights, gradients and states count: PMF's weights alone are 1 of 3
    # parts (SGD) or 1 of 4 (AdamW), and 2.56 M numbers, 1.3 %, train.
    for optimizer, parts in (("sgd", 3), ("adamw", 4)):
        saving = pmf_cost.saving(*BASE, PMFConfig(101), 197, 40, 0, optimizer=optimizer)
        assert saving == pytest.approx(1 - 1 / parts, abs=0.02)


def test_unknown_options_are_named():
    sizes = (IMAGE, TEXT, PMFConfig(5), 10, 7, 2)
    with pytest.raises(InputError, match="method='vpt' is unknown: use one of pmf"):
        pmf_cost.activation_bytes(*sizes, method="vpt")
    with pytest.raises(InputError, match="method='vpt' is unknown"):
        pmf_cost.trainable_parameters(*sizes[:3], method="vpt")
    with pytest.raises(InputError, match="optimizer='adam' is unknown: use one of sgd, adamw"):
        pmf_cost.training_memory(*sizes, optimizer="adam")


# ---------------------------------------------------------------- the recipe


@pytest.fixture
def tiny(monkeypatch):
    """Settings of the recipe with encoders that take no time."""
    for name, side in (("tiny-image", IMAGE), ("tiny-text", TEXT)):
        monkeypatch.setitem(CONFIGS, name, side)
    names = ["tiny-image", "tiny-text"]
    return RECIPE.scales["lab"] | {
        "encoders": names,
        "large_encoders": names,
        "text_lengths": [7],
        "large_lengths": [4],
        "curve_lengths": [7],
        "layers": [1, 2, 3],
        "prompts": [1, 2],
        "steps": [[4, 3]],
    }


def test_recipe(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    units = RECIPE.units(tiny)
    assert units == ["parameters", "methods-7", "layers-7", "prompts-7", "large-4"]
    record = RECIPE.summarise(tiny, {unit: RECIPE.run_unit(tiny, unit) for unit in units})
    results, curves = record["results"], record["curves"]
    agreed = {k: v["mean"] for k, v in results.items() if k.endswith("predicted-over-measured")}
    assert len(agreed) == 2 * (3 + 2) * 2  # attention x (baselines + forms) x (methods, large)
    assert agreed == pytest.approx(dict.fromkeys(agreed, 1), rel=0.01)
    # of one sample, 12 + 8 values of 4 bytes reach the head
    assert results["linear-sdpa-7"]["mean"] == pytest.approx(4 * 20 / MIB)
    assert results["pmf-trainable"]["unit"] == "parameters"
    assert results["linear-trainable"]["mean"] == (12 + 8 + 1) * 101
    assert set(curves) == {
        f"{kind}-{form}-7"
        for kind in ("layers", "prompts")
        for form in ("plain-manual", "shared-sdpa")
    }
    curve = curves["layers-plain-manual-7"]
    assert curve["x"] == [1, 2, 3]
    assert curve["mean"] == sorted(curve["mean"])
    assert curve["predicted"] == pytest.approx(curve["mean"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RECIPE.units(tiny)[-1] == "steps-4-3"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recipe_on_cuda(tiny):
    found = RECIPE.run_unit(tiny, "steps-4-3")
    assert len(found) == 2 * 3 * 3  # attention x methods x (peak, its prediction, time)
    assert min(found.values()) > 0
