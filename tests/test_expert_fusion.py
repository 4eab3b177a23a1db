"""Expert tokens in PMF: by the resampler, by prompts, by both, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_pmf import averaging_block
from torch import nn

from mmfusion_lib.encoders import CONFIGS, EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.expert_fusion import (
    WAYS,
    ExpertFusionConfig,
    ExpertPMF,
    ExpertQuery,
    equalised,
    trained_parameters,
)
from mmfusion_lib.pmf import PMFConfig
from mmfusion_lib.train_config import TrainConfig, make_optimizer

IMAGE = EncoderConfig("image", 8, 3, 2, 12, image_size=28, patch_size=14)  # 1 + 4 tokens
TEXT = EncoderConfig("text", 8, 3, 4, 10, norm="post", vocab_size=20, max_positions=6)
EXPERTS = ("depth", "ocr_detection")
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def maps(names=EXPERTS, seed=1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    depth = torch.randint(0, 256, (2, 1, 28, 28), generator=generator, dtype=torch.uint8)
    ids = torch.randint(0, 2, (2, 28, 28), generator=generator, dtype=torch.uint8)
    words = {"ids": ids, "table": torch.randn(2, 2, 64, generator=generator)}
    found = {"depth": depth, "ocr_detection": words}
    found["obj_detection"] = {"label": words, "instance": ids[:, None]}
    return {name: found[name] for name in names}


def config(way, experts=EXPERTS, layers=2, **sizes) -> ExpertFusionConfig:
    pmf = PMFConfig(3, layers, 2, 1, 1, mapping_width=4)
    sizes = {"expert_prompts": 3, "latents": 2, "resampler_heads": 2} | sizes
    return ExpertFusionConfig(pmf, way, experts, **sizes)


def build(way, experts=EXPERTS, image=IMAGE, **sizes) -> ExpertPMF:
    model = ExpertPMF(build_encoder(image), build_encoder(TEXT), config(way, experts, **sizes))
    for value in model.parameters():  # weights of 0.02 would hardly be heard
        if value.ndim > 1 and value.numel():
            nn.init.normal_(value, std=0.5)
    return model.eval()


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def far(a, b) -> bool:
    return (a - b).abs().max() > 1e-4


# Prompts that ask


def test_a_query_by_hand():
    query = ExpertQuery(1, 1, prompts=1, hidden=1)
    for value, number in ((query.query, 2.0), (query.mapping.fc1.bias, 1.0)):
        nn.init.constant_(value, number)
    for value in (query.mapping.fc1.weight, query.mapping.fc2.weight):
        nn.init.constant_(value, 3.0)
    nn.init.zeros_(query.mapping.fc2.bias)
    tokens = torch.tensor([[[1.0], [3.0]]])
    # The layer adds the mean of all it sees, (1 + 3 + 2) / 3 = 2, to the prompt: 4.
    # The mapping: 3 * relu(3 * 4 + 1) = 39.
    torch.testing.assert_close(query(averaging_block(), tokens), torch.tensor([[[39.0]]]))


def test_a_query_is_what_the_whole_layer_says_at_the_prompts():
    layer = build_encoder(IMAGE).layers[0]
    query, tokens = ExpertQuery(8, 5, prompts=2, hidden=4), torch.randn(2, 3, 8)
    joined = torch.cat([tokens, query.query.expand(2, -1, -1)], dim=1)
    expected = query.mapping(layer(joined)[:, 3:])
    assert expected.shape == (2, 2, 5)
    torch.testing.assert_close(query(layer, tokens), expected)


# The model


@pytest.mark.parametrize("way", WAYS)
def test_shapes_and_parts(way):
    model = build(way)
    output = model(PIXELS, IDS, MASK, maps())
    assert [tuple(each.shape) for each in output] == [(2, 3)] * 3
    torch.testing.assert_close(output.logits, (output.image_logits + output.text_logits) / 2)
    assert len(model.stems) == (0 if way == "none" else 2)
    assert (model.resampler is not None) == (way in ("resampler", "both"))
    assert len(model.queries) == (2 if way in ("prompts", "both") else 0)


def test_expert_tokens_are_grids_with_positions():
    model = build("prompts", experts=("obj_detection", *EXPERTS))
    assert model.expert_tokens(maps(("obj_detection", *EXPERTS)), 2).shape == (
        2,
        12,
        8,
    )  # 3 x 2 x 2
    constant = {"depth": torch.zeros(1, 1, 280, 280, dtype=torch.uint8)}
    nn.init.zeros_(model.stems["depth"].network[-1].weight)
    with torch.no_grad():
        tokens = model.expert_tokens(constant, 1)  # (1, 400, 8): the stem is silent
        expected = model.pmf.image_encoder.resized_positions(20, 20)[:, 1:]
    torch.testing.assert_close(tokens, expected)


@pytest.mark.parametrize("way", WAYS)
def test_without_experts_it_is_pmf(way):
    for model, given in ((build(way, experts=()), maps()), (build(way), {}), (build(way), None)):
        found = model(PIXELS, IDS, MASK, given)
        for ours, plain in zip(found, model.pmf(PIXELS, IDS, MASK)):
            torch.testing.assert_close(ours, plain)
    without = {name for name, _ in build(way, experts=()).named_parameters()}
    assert all(name.startswith("pmf.") for name in without)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_maps_change(way):
    model = build(way)
    first, second = (model(PIXELS, IDS, MASK, maps(seed=seed)) for seed in (1, 2))
    assert far(first.text_logits, second.text_logits) == (way != "none")
    assert far(first.image_logits, second.image_logits) == (way != "none")


def test_the_order_of_experts_says_nothing():
    model, given = build("both"), maps()
    turned = dict(reversed(given.items()))
    torch.testing.assert_close(
        model(PIXELS, IDS, MASK, given).logits, model(PIXELS, IDS, MASK, turned).logits
    )


@pytest.mark.parametrize("way", WAYS)
def test_padding_cannot_be_seen(way):
    model = build(way)
    found = model(PIXELS, IDS, MASK, maps()).logits
    changed = IDS.masked_fill(MASK == 0, 9)
    longer = nn.functional.pad(IDS, (0, 2), value=9), nn.functional.pad(MASK, (0, 2))
    torch.testing.assert_close(model(PIXELS, changed, MASK, maps()).logits, found)
    torch.testing.assert_close(model(PIXELS, *longer, maps()).logits, found)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_all_that_trains_and_nothing_else_moves(way):
    # Stems of two channels: the scale of a single one would be taken out by the next batch norm.
    model = build(way, image=replace(IMAGE, width=16)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, TrainConfig(epochs=1, batch_size=2, lr=0.1))
    model(PIXELS, IDS, MASK, maps()).logits.square().sum().backward()
    for name, value in trained(model).items():
        # Adding one number to all keys changes no softmax; a batch norm takes out the same.
        if not name.endswith("key.bias"):
            assert value.grad is not None and value.grad.any(), name
    optimizer.step()
    for name, value in model.state_dict().items():
        if "_encoder." in name:
            assert torch.equal(value, before[name]), name
    parts = {name.split(".")[0] for name in trained(model)}
    assert (
        parts
        == {"pmf"}
        | {
            "none": set(),
            "resampler": {"stems", "resampler"},
            "prompts": {"stems", "queries"},
            "both": {"stems", "resampler", "queries"},
        }[way]
    )


def test_latents_are_not_read_out():
    """With a readout that averages, latents must not be among the averaged: the picture's rows are."""
    image = replace(IMAGE, readout="cls+mean")
    model = ExpertPMF(build_encoder(image), build_encoder(TEXT), config("resampler")).eval()
    asked = {}
    model.pmf.image_encoder.readout = lambda tokens: asked.setdefault("x", tokens)[:, 0].repeat(
        1, 2
    )
    model(PIXELS, IDS, MASK, maps())
    assert asked["x"].shape == (2, 5, 8)


def test_cached_base_features_give_the_same():
    model = build("both")
    base = model.pmf.base_features(PIXELS, IDS, MASK)
    torch.testing.assert_close(
        model.from_base_features(*base, MASK, maps()).logits,
        model(PIXELS, IDS, MASK, maps()).logits,
    )


# Equal parameters


@pytest.mark.parametrize("layers", [1, 2])
def test_all_ways_train_equally_many_parameters(layers):
    image, text = replace(CONFIGS["dinov2-small"], depth=10), CONFIGS["minilm-l6"]
    pmf = PMFConfig(2, layers, 4, 0, 0, mapping_width=192)
    like = ExpertFusionConfig(pmf, "resampler")
    counts = []
    for way in WAYS:
        chosen = equalised(ExpertFusionConfig(pmf, way, latents=8), like, image, text)
        counts.append(trained_parameters(chosen, image, text))
    assert max(counts) < 1.002 * trained_parameters(like, image, text) < 1.004 * min(counts)
    assert equalised(like, like, image, text) == like


def test_trained_parameters_by_hand():
    # A mapping of hidden width 4 between widths 8 and 8: 8 * 4 + 4 + 4 * 8 + 8 = 76.
    # PMF: 2 layers x 2 sides x (2 + 1 + 1 prompts x 8, and 76) = 432, 2 heads x (8 * 3 + 3) = 54.
    assert trained_parameters(config("none"), IMAGE, TEXT) == 432 + 54
    # Prompts: 2 layers x (3 x 8 + 76) = 200 more, and the stems.
    stems = sum(p.numel() for p in build("prompts").stems.parameters())
    assert trained_parameters(config("prompts"), IMAGE, TEXT) == 486 + 200 + stems
    model = build("prompts")
    assert sum(p.numel() for p in trained(model).values()) == 686 + stems


# Bad input


def test_bad_input():
    with pytest.raises(InputError, match="way='late'"):
        config("late")
    with pytest.raises(InputError, match="expert_prompts=0"):
        config("prompts", expert_prompts=0)
    with pytest.raises(InputError, match="mapping_width=None"):
        ExpertFusionConfig(PMFConfig(2), "both")
    with pytest.raises(InputError, match="norm='post'"):
        ExpertPMF(build_encoder(replace(IMAGE, norm="post")), build_encoder(TEXT), config("both"))
    with pytest.raises(InputError, match="obj_detection"):
        build("prompts")(PIXELS, IDS, MASK, maps(("obj_detection",)))
    with pytest.raises(InputError, match="1 maps"):
        build("prompts")(PIXELS, IDS, MASK, {"depth": maps()["depth"][:1]})
    with pytest.raises(InputError, match="1 images and 2 texts"):
        build("none")(PIXELS[:1], IDS, MASK)
