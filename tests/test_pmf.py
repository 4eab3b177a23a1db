"""PMF: a fusion layer by hand, both forms equal, gradients, frozen weights, padding, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmfusion_lib.blocks import Block
from mmfusion_lib.encoders import CONFIGS, EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.fusion import FusionLayer, Mapping, Side, Tokens, appended, prompt
from mmfusion_lib.pmf import PMF, PMFConfig
from mmfusion_lib.train_config import TrainConfig, make_optimizer

IMAGE = EncoderConfig("image", 8, 3, 2, 12, image_size=8, patch_size=4)  # 5 tokens
TEXT = EncoderConfig("text", 8, 3, 4, 10, norm="post", vocab_size=20, max_positions=6)
NARROW = replace(TEXT, width=4, heads=2, depth=2)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(image=IMAGE, text=TEXT, **sizes) -> PMF:
    """In float64, so that two ways to the same number agree to rounding."""
    model = PMF(build_encoder(image), build_encoder(text), PMFConfig(3, **sizes))
    for value in model.fusion.parameters():  # prompts of 0.02 would hardly be heard
        nn.init.normal_(value)
    return model.double()


def trained(model: PMF) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# One fusion layer by hand


class Average(nn.Module):
    """A layer that adds to each token the mean of the visible ones."""

    def forward(self, tokens, mask=None):
        weights = torch.ones(tokens.shape[:2]) if mask is None else mask.float()
        total = (tokens * weights[..., None]).sum(dim=1, keepdim=True)  # (B, 1, D)
        return tokens + total / weights.sum(dim=1)[:, None, None]


def averaging_block() -> Block:
    """The same as a block of one head and width 1: no norms, equal scores, a silent MLP."""
    block = Block(1, 1, 1)
    block.norm1 = block.norm2 = nn.Identity()
    for part in block.modules():
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    for linear in (block.attention.value, block.attention.out):
        nn.init.ones_(linear.weight)
    return block


def hand_made(query, query_context, fusion_context) -> Side:
    side = Side(1, 1, 1, 1, 1, mapping_width=0)
    nn.init.constant_(side.query, query)
    nn.init.constant_(side.query_context, query_context)
    nn.init.constant_(side.fusion_context, fusion_context)
    return side


@pytest.mark.parametrize(
    ("make", "shared", "fused"),
    [
        (Average, True, True),  # no block of ours, so the plain form
        (averaging_block, False, True),
        (averaging_block, True, True),
        (averaging_block, True, False),
    ],
)
def test_a_fusion_layer_by_hand(make, shared, fused):
    image_layer, text_layer = make(), make()
    if make is averaging_block:
        image_layer.attention.fused = text_layer.attention.fused = fused
    layer = FusionLayer(hand_made(2, 6, 3), hand_made(4, 1, 0), shared)
    image = Tokens(torch.tensor([[[1.0], [3.0]]]), None)
    text = Tokens(torch.tensor([[[10.0], [99.0]]]), torch.tensor([[1, 0]]))  # 99 is padding
    # querying: image (1 + 3 + 6 + 2) / 4 = 3, its message 2 + 3 = 5
    #           text  (10 + 1 + 4) / 3 = 5, its message 4 + 5 = 9
    # fusion:   image (1 + 3 + 3 + 9) / 4 = 4, so 1 + 4 and 3 + 4
    #           text  (10 + 0 + 5) / 3 = 5, so 10 + 5
    for rows in (None, 1):
        image_out, text_out = layer(image_layer, text_layer, image, text, rows, rows)
        torch.testing.assert_close(image_out, torch.tensor([[[5.0], [7.0]]])[:, :rows])
        torch.testing.assert_close(text_out[:, :1], torch.tensor([[[15.0]]]))
        assert text_out.shape[1] == (rows or 2)


def test_mapping_by_hand():
    mapping = Mapping(2, 2, 3)
    with torch.no_grad():
        mapping.fc1.weight.copy_(torch.tensor([[1.0, 0], [0, -1]]))
        mapping.fc1.bias.copy_(torch.tensor([1.0, 0]))
        mapping.fc2.weight.copy_(torch.tensor([[1.0, 1], [2, 0], [0, 3]]))
        mapping.fc2.bias.copy_(torch.tensor([0.0, 0, 1]))
    # u = (2, 3): W1 u + b1 = (3, -3), ReLU (3, 0), W2 (3, 0) + b2 = (3, 6, 0) + (0, 0, 1)
    torch.testing.assert_close(mapping(torch.tensor([2.0, 3])), torch.tensor([3.0, 6, 1]))


def test_appended_tokens_stand_behind_the_padding_and_are_visible():
    tokens = Tokens(torch.ones(2, 2, 1), torch.tensor([[1, 1], [1, 0]]))
    joined = appended(tokens, torch.full((1, 1), 2.0), torch.full((2, 1, 1), 3.0))
    assert joined.values[..., 0].tolist() == [[1, 1, 2, 3]] * 2
    assert joined.mask.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1]]
    assert appended(tokens._replace(mask=None), torch.ones(1, 1)).mask is None


def test_prompts_start_as_in_the_official_file():
    # N(0, 0.02^2): the standard deviation of 10,000 draws lies within 3 % of 0.02
    values = prompt(100, 100)
    assert values.requires_grad
    assert values.mean().abs() < 0.001
    assert values.std().item() == pytest.approx(0.02, rel=0.03)


# Both forms are equal


def both_forms(model: PMF, *batch) -> list[dict[str, torch.Tensor]]:
    """Logits and all gradients, plain and shared."""
    found = []
    for model.shared in (False, True):
        model.zero_grad()
        output = model(*batch)
        sum(logits.square().sum() for logits in output).backward()
        result = {name: p.grad for name, p in trained(model).items() if p.numel()}
        found.append(result | dict(zip(output._fields, (o.detach() for o in output))))
    return found


PRE = replace(TEXT, norm="pre", activation="quick_gelu")
CASES = {
    "pre and post": (IMAGE, TEXT, {}),
    "pre and pre": (IMAGE, PRE, {}),
    "post and post": (replace(IMAGE, norm="post", layer_scale=0.5), TEXT, {}),
    "unequal widths and depths": (IMAGE, NARROW, {}),
    "one layer": (IMAGE, NARROW, {"num_fusion_layers": 1}),
    "all layers": (IMAGE, TEXT, {"num_fusion_layers": 3}),
    "all of the shallower": (replace(IMAGE, depth=4), PRE, {"num_fusion_layers": 3}),
    "mean and cls": (replace(IMAGE, readout="mean"), TEXT, {}),
    "cls and mean": (IMAGE, replace(NARROW, readout="mean"), {}),
    "cls+mean and mean": (replace(IMAGE, readout="cls+mean"), replace(PRE, readout="mean"), {}),
    "cls+mean twice": (
        replace(IMAGE, readout="cls+mean", layer_scale=0.5),
        replace(TEXT, readout="cls+mean"),
        {},
    ),
    "no query": (IMAGE, NARROW, {"query_prompts": 0}),
    "no query context": (IMAGE, NARROW, {"query_context_prompts": 0}),
    "no fusion context": (IMAGE, NARROW, {"fusion_context_prompts": 0}),
    "query alone": (
        IMAGE,
        NARROW,
        {"query_prompts": 1, "query_context_prompts": 0, "fusion_context_prompts": 0},
    ),
    "no prompts": (IMAGE, NARROW, {"query_prompts": 0, "fusion_context_prompts": 0}),
    "no mapping": (IMAGE, TEXT, {"mapping_width": 0}),
    "frozen context": (IMAGE, NARROW, {"train_fusion_context": False}),
    "a length a layer": (
        IMAGE,
        replace(NARROW, depth=3),
        {
            "num_fusion_layers": 3,
            "query_prompts": (2, 0, 3),
            "query_context_prompts": (0, 2, 1),
            "fusion_context_prompts": (1, 0, 2),
        },
    ),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_shared_equals_plain_in_logits_and_gradients(case, fused):
    image, text, sizes = CASES[case]
    model = build(image, text, **sizes)
    for layer in [*model.image_encoder.layers, *model.text_encoder.layers]:
        layer.attention.fused = fused
    for mask in (MASK, None):
        plain, shared = both_forms(model, PIXELS, IDS, mask)
        assert plain.keys() == shared.keys()
        for name, value in plain.items():
            assert (value is None) == (shared[name] is None), name
            if value is not None:
                torch.testing.assert_close(shared[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_other_layers_run_in_the_plain_form():
    """An encoder's layers may be any module that takes tokens and mask."""

    class Wrapped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.calls = block, 0

        def forward(self, tokens, mask):
            self.calls += 1
            return self.block(tokens, mask)

    model = build()
    expected = model(PIXELS, IDS, MASK).logits
    wrapped = [Wrapped(layer) for layer in model.text_encoder.layers]
    model.text_encoder.layers = nn.ModuleList(wrapped)
    assert model.shared
    torch.testing.assert_close(model(PIXELS, IDS, MASK).logits, expected)
    assert [layer.calls for layer in wrapped] == [1, 2, 2]  # both fusion layers run twice


def test_shared_is_a_switch():
    model = build()
    assert model.shared
    model.shared = False
    assert not model.shared
    assert not any(layer.shared for layer in model.fusion)


# The model


def test_logits_are_the_mean_of_both_heads():
    output = build()(PIXELS, IDS, MASK)
    assert output.logits.shape == (2, 3)
    mean = (output.image_logits + output.text_logits) / 2
    torch.testing.assert_close(output.logits, mean)
    assert not torch.equal(output.image_logits, output.text_logits)


@pytest.mark.parametrize("shared", [True, False])
def test_silent_prompts_leave_the_encoders_as_they_are(shared):
    """Without any prompt the fusion layers are the encoders' own."""
    model = build(IMAGE, NARROW, query_prompts=0, fusion_context_prompts=0)
    model.shared = shared
    output = model(PIXELS, IDS, MASK)
    image, text = model.image_encoder, model.text_encoder
    seen = image.pool(image(PIXELS.double()))
    said = text.pool(text(IDS, MASK), MASK)
    torch.testing.assert_close(output.image_logits, model.image_head(seen))
    torch.testing.assert_close(output.text_logits, model.text_head(said))


@pytest.mark.parametrize("sizes", [{}, {"num_fusion_layers": 3}])
@pytest.mark.parametrize("mask", [MASK, None])
def test_cached_base_features_change_nothing(mask, sizes):
    model = build(**sizes).float()
    base = model.base_features(PIXELS, IDS, mask)
    assert not any(tokens.requires_grad for tokens in base)
    if sizes:  # everything fuses: the base is the embedding
        assert model.image_depth == model.text_depth == 0
        torch.testing.assert_close(base.text_tokens, model.text_encoder.embed(IDS))
    cached, whole = model.from_base_features(*base, mask), model(PIXELS, IDS, mask)
    for ours, expected in zip(cached, whole):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_padding_is_invisible(shared):
    model = build()
    model.shared = shared
    expected = model(PIXELS, IDS, MASK)
    other = IDS.clone()
    other[1, 2:] = torch.tensor([9, 10])
    for ours, value in zip(model(PIXELS, other, MASK), expected):
        assert torch.equal(ours, value)
    # nor does its length count: the second text alone, cut to its two tokens
    alone = model(PIXELS[1:], IDS[1:, :2])
    torch.testing.assert_close(alone.logits, expected.logits[1:])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("count", "same"), [(0, True), (2, False)])
def test_text_reaches_the_image_head_only_in_messages(count, same, shared):
    model = build(query_prompts=count)
    model.shared = shared
    first, second = model(PIXELS, IDS, MASK), model(PIXELS, IDS.flip(0), MASK.flip(0))
    assert torch.equal(first.image_logits, second.image_logits) is same
    assert not torch.equal(first.text_logits, second.text_logits)
    first, second = model(PIXELS, IDS, MASK), model(PIXELS.flip(0), IDS, MASK)
    assert torch.equal(first.text_logits, second.text_logits) is same


# What trains


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_reaches_all_that_trains_and_nothing_else(shared):
    model = build(IMAGE, NARROW)
    model.shared = shared
    model(PIXELS, IDS, MASK).logits.square().sum().backward()
    parts = {name.split(".")[0] for name in trained(model)}
    assert parts == {"fusion", "image_head", "text_head"}
    silent = [name for name, p in trained(model).items() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("train_context", [True, False])
def test_a_step_moves_what_trains_alone(train_context):
    model = build(train_fusion_context=train_context)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(epochs=1, lr=0.1, weight_decay=0.1))
    model(PIXELS, IDS, MASK).logits.square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained(model).keys()
    contexts = {name for name in before if name.endswith("fusion_context")}
    assert len(contexts) == 4
    assert contexts <= moved if train_context else not contexts & moved


def test_training_mode_leaves_the_frozen_encoders_in_evaluation():
    model = build(text=replace(TEXT, dropout=0.5)).train()
    assert model.training
    assert model.fusion.training
    assert not model.image_encoder.training
    assert not any(part.training for part in model.text_encoder.modules())
    for model.shared in (True, False):
        assert torch.equal(model(PIXELS, IDS).logits, model(PIXELS, IDS).logits)
    model.text_encoder.train()  # as the official file: dropout inside the frozen encoder
    for model.shared in (True, False):
        assert not torch.equal(model(PIXELS, IDS).logits, model(PIXELS, IDS).logits)


def test_trainable_count_of_the_official_file():
    with torch.device("meta"):
        encoders = build_encoder("vit-base"), build_encoder("bert-base")
        model = PMF(*encoders, PMFConfig(101, train_fusion_context=False))
    assert sum(p.numel() for p in trained(model).values()) == 2_543_818
    assert CONFIGS["vit-base"].readout == CONFIGS["bert-base"].readout == "cls"


def test_without_query_prompts_nothing_is_sent_and_nothing_of_it_trains():
    names = trained(build(query_prompts=0, query_context_prompts=3))
    assert not any("mapping" in name for name in names)
    sizes = {n: p.numel() for n, p in names.items() if n.endswith(("query", "query_context"))}
    assert set(sizes.values()) <= {0}


# Errors


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"num_fusion_layers": 0}, "num_fusion_layers=0 must be at least 1"),
        ({"query_prompts": -1}, "query_prompts=-1 must not be negative"),
        (
            {"query_context_prompts": (1, 2, 3)},
            r"query_context_prompts=\(1, 2, 3\) has 3 lengths for num_fusion_layers=2",
        ),
        ({"fusion_context_prompts": (4, -4)}, "must not be negative"),
        ({"mapping_width": -1}, "mapping_width=-1 must not be negative"),
    ],
)
def test_a_bad_config_names_its_fields(sizes, message):
    with pytest.raises(InputError, match=message):
        PMFConfig(**{"num_classes": 3, **sizes})


def test_sizes_that_do_not_fit_the_encoders_are_named():
    with pytest.raises(InputError, match="num_fusion_layers=3, but the text encoder has 2 layers"):
        build(IMAGE, NARROW, num_fusion_layers=3)
    with pytest.raises(InputError, match="num_fusion_layers=4, but the image encoder has 3 layers"):
        build(num_fusion_layers=4)
    with pytest.raises(InputError, match=r"mapping_width=0 sends .* 8 and 4 wide"):
        build(IMAGE, NARROW, mapping_width=0)


@pytest.mark.parametrize(
    ("pixels", "ids", "mask", "message"),
    [
        (PIXELS[:1], IDS, MASK, "There are 1 images and 2 texts"),
        (
            PIXELS,
            IDS,
            MASK[:, :3],
            r"attention_mask has shape \(2, 3\) for texts of shape \(2, 4\)",
        ),
        (PIXELS, IDS, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]), "Text 1 of the batch is all pad"),
        (PIXELS, torch.ones(2, 7, dtype=torch.long), None, "7 tokens long .* has 6 positions"),
        (PIXELS[..., :6], IDS, MASK, "8 x 6 pixels"),
    ],
)
def test_a_bad_batch_is_named(pixels, ids, mask, message):
    with pytest.raises(InputError, match=message):
        build()(pixels, ids, mask)


def test_a_bad_batch_of_cached_features_is_named():
    model = build()
    image, text = model.base_features(PIXELS, IDS, MASK)
    with pytest.raises(InputError, match="There are 2 images and 1 texts"):
        model.from_base_features(image, text[:1], MASK[:1])
    with pytest.raises(InputError, match="Text 0 of the batch is all padding"):
        model.from_base_features(image, text, torch.zeros(2, 4))
