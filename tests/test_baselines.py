"""What each baseline trains, reads and computes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmfusion_lib.baselines import NAMES, build, counts, deep_prompts
from mmfusion_lib.baselines.mmbt import quarters
from mmfusion_lib.baselines.promptfuse import PROMPTS, blind, run_block
from mmfusion_lib.baselines.single import mean_sigmoid_logits, mean_softmax_logits
from mmfusion_lib.blocks import Block
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.fusion import Tokens
from mmfusion_lib.pmf import PMFOutput

IMAGE = EncoderConfig("image", 8, 3, 2, 16, image_size=8, patch_size=4)
TEXT = EncoderConfig(
    "text", 4, 2, 2, 8, norm="post", vocab_size=20, max_positions=12, readout="mean"
)
ROBERTA = replace(TEXT, pad_id=1, position_offset=2, token_types=1)
PAIRS = {
    "pre-post": (IMAGE, TEXT),  # widths 8 and 4, readouts 8 and 4
    "equal-width": (
        replace(IMAGE, width=4, depth=2, readout="cls+mean", layer_scale=0.5),
        replace(TEXT, depth=3, norm="pre", readout="cls"),
    ),
    "post-pre": (
        replace(IMAGE, norm="post", readout="mean", input_norm=True),
        replace(ROBERTA, norm="pre", readout="cls+mean"),
    ),
}
# Top-level parts that train. MBT's maps exist only where the widths differ, as does PromptFuse's.
TRAINS = {
    "linear": {"head"},
    "late-concat": {"image_encoder", "text_encoder", "head"},
    "image-only": {"classifier"},
    "text-only": {"classifier"},
    "vpt": {"prompts", "head"},
    "p-bert": {"prompts", "head"},
    "mmbt": {"image_encoder", "text_encoder", "project", "head"},
    "mbt": {
        "image_encoder",
        "text_encoder",
        "bottleneck",
        "to_text",
        "to_image",
        "image_head",
        "text_head",
    },
    "promptfuse": {"prompts", "project", "head"},
    "blindprompt": {"prompts", "project", "head"},
    "late-average": {"image", "text"},
}
READS_IMAGE = [n for n in NAMES if n not in ("text-only", "p-bert")]
READS_TEXT = [n for n in NAMES if n not in ("image-only", "vpt")]
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def spread(module: nn.Module) -> nn.Module:
    """Weights large enough for every path to be felt."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def make(name: str, image=IMAGE, text=TEXT, classes: int = 3, **more) -> nn.Module:
    """A baseline with random encoders, in evaluation mode."""
    torch.manual_seed(0)
    encoders = (spread(build_encoder(image)), spread(build_encoder(text)))
    return build(name, *encoders, classes, **more).eval()


def loss(output: PMFOutput) -> torch.Tensor:
    return F.cross_entropy(output.logits, torch.tensor([0, 1]))


# What trains


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", 155_237),  # (768 + 768) * 101 + 101
        ("vpt", 169_829),  # 12 * 10 * 768 = 92,160 and 769 * 101 = 77,669
        ("p-bert", 169_829),
        ("promptfuse", 93_029),  # 20 * 768 = 15,360 and 77,669
        ("blindprompt", 93_029),
    ],
)
def test_counts_at_paper_size(name, expected):
    with torch.device("meta"):
        encoders = build_encoder("vit-base"), build_encoder("bert-base")
    model = build(name, *encoders, 101)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", NAMES)
def test_counts_follow_from_shapes(name, pair):
    model = make(name, *PAIRS[pair])
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.trainable_parameters(name, *PAIRS[pair], 3) == counted


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_exactly_what_trains(name):
    model = make(name).train()
    loss(model(PIXELS, IDS, MASK)).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n.partition(".")[0] for n in reached} == TRAINS[name]
    assert reached == {n for n, p in model.named_parameters() if p.requires_grad}
    felt = {n.partition(".")[0] for n in reached if model.get_parameter(n).grad.abs().max() > 1e-6}
    assert felt == TRAINS[name]


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_stay_and_the_others_move(name):
    model = make(name).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    loss(model(PIXELS, IDS, MASK)).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_on_where_an_encoder_trains_and_off_where_it_is_frozen(name):
    dropped = {"image": replace(IMAGE, dropout=0.5), "text": replace(TEXT, dropout=0.5)}
    model = make(name, **dropped).train()
    same = torch.equal(model(PIXELS, IDS, MASK).logits, model(PIXELS, IDS, MASK).logits)
    assert same == (name in ("linear", "vpt", "p-bert", "promptfuse", "blindprompt"))
    model.eval()
    assert torch.equal(model(PIXELS, IDS, MASK).logits, model(PIXELS, IDS, MASK).logits)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_frozen_for_another_method_trains_again(name):
    frozen = (build_encoder(IMAGE).requires_grad_(False), build_encoder(TEXT).requires_grad_(False))
    model = build(name, *frozen, 3)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.trainable_parameters(name, IMAGE, TEXT, 3) == counted


# What comes out


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", NAMES)
def test_output(name, pair):
    output = make(name, *PAIRS[pair])(PIXELS, IDS, MASK)
    assert isinstance(output, PMFOutput)
    assert [tuple(each.shape) for each in output] == [(2, 3)] * 3
    two_heads = name in ("mbt", "late-average")
    assert torch.equal(output.image_logits, output.text_logits) != two_heads
    if not two_heads:
        assert torch.equal(output.logits, output.image_logits)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", NAMES)
def test_padding_is_invisible(name, pair):
    """Neither what stands in it, nor its length, nor the type of its mask."""
    pad = PAIRS[pair][1].pad_id
    model, ids = make(name, *PAIRS[pair]), torch.where(MASK.bool(), IDS, pad)
    expected = model(PIXELS, ids, MASK).logits
    changed = ids.clone()
    changed[1, 2:] = torch.tensor([11, 12])
    assert torch.equal(model(PIXELS, changed, MASK).logits, expected)
    longer, mask = F.pad(ids, (0, 2), value=pad), F.pad(MASK, (0, 2))
    for each in (mask, mask.bool()):
        torch.testing.assert_close(
            model(PIXELS, longer, each).logits, expected, atol=1e-5, rtol=1e-4
        )
    whole = ids[:1], MASK[:1]
    torch.testing.assert_close(model(PIXELS[:1], *whole).logits, model(PIXELS[:1], ids[:1]).logits)


@pytest.mark.parametrize("name", NAMES)
def test_each_method_reads_what_it_should(name):
    model = make(name)
    expected = model(PIXELS, IDS, MASK).logits
    other_image = model(PIXELS.flip(0), IDS, MASK).logits
    other_text = model(PIXELS, IDS + 5, MASK).logits
    assert torch.equal(other_image, expected) == (name not in READS_IMAGE)
    assert torch.equal(other_text, expected) == (name not in READS_TEXT)


@pytest.mark.parametrize("name", ["image-only", "vpt", "text-only", "p-bert"])
def test_a_method_of_one_modality_has_one_encoder_and_needs_one_input(name):
    model = make(name)
    kinds = {m.config.kind for m in model.modules() if hasattr(m, "config")}
    assert kinds == ({"text"} if name in READS_TEXT else {"image"})
    alone = (None, IDS, MASK) if name in READS_TEXT else (PIXELS,)
    assert torch.equal(model(*alone).logits, model(PIXELS, IDS, MASK).logits)


# Linear and LateConcat


def test_linear_takes_cached_features():
    model = make("linear")
    assert (model.image_depth, model.text_depth) == (3, 2)
    base = model.base_features(PIXELS, IDS, MASK)
    assert [tuple(each.shape) for each in base] == [(2, 5, 8), (2, 4, 4)]
    cached = model.from_base_features(*base, MASK).logits
    assert torch.equal(cached, model(PIXELS, IDS, MASK).logits)
    assert not any(each.requires_grad for each in model.train().base_features(PIXELS, IDS, MASK))


def test_linear_and_late_concat_are_one_wiring():
    linear, concat = make("linear"), make("late-concat")
    concat.load_state_dict(linear.state_dict())
    assert torch.equal(linear(PIXELS, IDS, MASK).logits, concat(PIXELS, IDS, MASK).logits)


# VPT and P-BERT


@pytest.mark.parametrize("name", ["vpt", "p-bert"])
def test_every_layer_reads_its_own_prompts(name):
    model = make(name)
    encoder = model.image_encoder if name == "vpt" else model.text_encoder
    entered = []
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entered.append(inputs))
    model(PIXELS, IDS, MASK)
    count = 5 if name == "vpt" else 4  # four patches and CLS, or four words
    for (tokens, mask), own in zip(entered, model.prompts, strict=True):
        assert tokens.shape[1] == count + deep_prompts.PROMPTS  # not ten more in every layer
        assert torch.equal(tokens[:, count:], own.expand(2, -1, -1))
        assert mask is None or bool(mask[:, count:].all())


def test_prompts_start_as_said():
    # v = sqrt(6 / (3 * 4^2 + 8)) = sqrt(6 / 56) = 0.327; 240 numbers come close to it
    start = make("vpt").prompts
    assert start.shape == (3, 10, 8)
    assert 0.95 * math.sqrt(6 / 56) < start.abs().max() <= math.sqrt(6 / 56)
    assert start.min() < 0
    start = make("p-bert", text=replace(TEXT, width=64)).prompts
    assert start.shape == (2, 10, 64)
    assert 0.018 < start.std() < 0.022
    model = make("promptfuse")
    rows = model.text_encoder.words.weight
    assert all((rows == vector).all(1).any() for vector in model.prompts)


# MMBT


def test_quarters_by_hand():
    # 0 1 | 2 3       (0 + 1 + 4 + 5) / 4 = 2.5, and 2 more to the right;
    # 4 5 | 6 7       8 more below: two rows of four numbers
    # ----+----
    # 8 9 | ...
    patches = torch.arange(16.0).view(1, 16, 1)
    expected = torch.tensor([2.5, 4.5, 10.5, 12.5]).view(1, 4, 1)
    torch.testing.assert_close(quarters(patches, 4, 4), expected)
    # A row of four: both halves of its height are the row, so (0 + 1) / 2 and (2 + 3) / 2 twice.
    row = torch.tensor([0.5, 2.5, 0.5, 2.5]).view(1, 4, 1)
    torch.testing.assert_close(quarters(patches[:, :4], 1, 4), row)


@pytest.mark.parametrize(("config", "segment"), [(TEXT, 1), (ROBERTA, 0)])
def test_mmbt_joins_image_and_text_by_hand(config, segment):
    model = make("mmbt", text=config)
    text = model.text_encoder
    text.input_norm = nn.Identity()
    entered = []
    text.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs))
    pad = config.pad_id
    model(PIXELS[:1], torch.tensor([[5, 7, 6, pad]]), torch.tensor([[1, 1, 1, 0]]))
    tokens, mask = entered[0]
    # CLS = 5, four image tokens, SEP = 6, then the text without its CLS: 7 6 and padding
    words = text.words.weight[[5, 5, 5, 5, 5, 6, 7, 6, pad]].clone()
    patches = model.image_encoder(PIXELS[:1])[0, 1:]  # two by two: a quarter is one patch
    words[1:5] = model.project(patches)
    first = config.position_offset  # RoBERTa counts words from 2, and padding has row 1
    places = [first + i for i in range(8)] + [pad if first else 8]
    types = text.types.weight[[0] * 6 + [segment] * 3]
    expected = words + text.positions.weight[places] + types
    torch.testing.assert_close(tokens, expected[None])
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 0]]


def test_mmbt_takes_any_grid_that_the_image_encoder_takes():
    model = make("mmbt")
    assert model(torch.randn(2, 3, 12, 4), IDS, MASK).logits.shape == (2, 3)


def test_mmbt_names_both_lengths():
    model = make("mmbt")
    fits = torch.full((2, 7), 3)  # 7 + 5 = 12 positions
    assert model(PIXELS, fits).logits.shape == (2, 3)
    with pytest.raises(InputError, match=r"8 tokens long and MMBT adds 5, .* 12 pos.*max_length=7"):
        model(PIXELS, torch.full((2, 8), 3))


# MBT


def test_the_bottleneck_carries_text_to_the_image_and_back():
    model = make("mbt")
    assert model.fusion_layers == 2  # of 3 and 2 layers

    def crosses() -> tuple[bool, bool]:
        base = model(PIXELS, IDS, MASK)
        other_text, other_image = model(PIXELS, IDS + 5, MASK), model(PIXELS.flip(0), IDS, MASK)
        return (
            not torch.equal(base.image_logits, other_text.image_logits),
            not torch.equal(base.text_logits, other_image.text_logits),
        )

    assert crosses() == (True, True)
    # A layer reads what the bottlenecks took in the layer before: one fusion layer carries nothing.
    model.fusion_layers = 1
    assert crosses() == (False, False)


def test_mbt_averages_the_bottlenecks_by_hand():
    """With silent pre-norm layers, a bottleneck leaves as it came: (b + b) / 2 = b."""
    pair = PAIRS["equal-width"][0], replace(PAIRS["equal-width"][1], depth=2)
    model = make("mbt", *pair)
    encoders = (model.image_encoder, model.text_encoder)
    for layer in (*encoders[0].layers, *encoders[1].layers):
        for linear in (layer.attention.out, layer.mlp.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
    # The first text layer adds 3 to all it reads, so the mean of the two sides is b + 1.5.
    nn.init.constant_(encoders[1].layers[0].mlp.fc2.bias, 3.0)
    entered = []
    for encoder in encoders:
        encoder.layers[1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(PIXELS, IDS, MASK)
    expected = (model.bottleneck + 1.5).expand(2, -1, -1)
    for tokens in entered:
        torch.testing.assert_close(tokens[:, -4:], expected)


def test_mbt_answers_with_the_mean_of_its_heads():
    output = make("mbt")(PIXELS, IDS, MASK)
    torch.testing.assert_close(output.logits, (output.image_logits + output.text_logits) / 2)


# PromptFuse and BlindPrompt


def test_prompts_see_the_context_unless_they_are_blind():
    for name, blinded in (("promptfuse", False), ("blindprompt", True)):
        model = make(name)
        first = model.tokens(PIXELS, IDS, MASK)[:, -PROMPTS:]
        other = model.tokens(PIXELS.flip(0), IDS + 5, MASK)[:, -PROMPTS:]
        assert torch.equal(first, other) == blinded


def test_one_layer_shows_the_content_the_same_prompts_blind_or_not():
    """Blindness changes what prompts become, and content reads that only one layer later."""
    for depth, equal in ((1, True), (2, False)):
        seeing, blinded = (
            make(name, text=replace(TEXT, depth=depth)) for name in ("promptfuse", "blindprompt")
        )
        blinded.load_state_dict(seeing.state_dict())
        outputs = [model(PIXELS, IDS, MASK).logits for model in (seeing, blinded)]
        assert torch.allclose(*outputs, atol=1e-6) == equal


def test_blind_mask_by_hand():
    joined = Tokens(torch.zeros(1, 4, 2), torch.tensor([[1, 0, 1, 1]]))
    # Columns: word, padding, prompt, prompt. Words read all that is kept; prompts read prompts.
    expected = [[1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert blind(joined, 2).int().tolist() == [[expected]]
    assert blind(joined._replace(mask=None), 2)[0, 0, 0].all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("change", [{}, {"pre_norm": False}, {"layer_scale": 0.5}])
def test_run_block_is_the_block_under_any_mask(fused, change):
    block = spread(Block(8, 2, 16, **change)).eval()
    block.attention.fused = fused
    tokens = torch.randn(2, 4, 8)
    everything = torch.ones(4, 4, dtype=torch.bool)
    torch.testing.assert_close(run_block(block, tokens, everything), block(tokens))
    keys = everything & MASK[:, None, None, :].bool()  # padding hidden from all rows
    torch.testing.assert_close(run_block(block, tokens, keys), block(tokens, MASK))
    # When each row sees itself alone, it comes out as if there were no other token.
    alone = torch.cat([block(tokens[:, i : i + 1]) for i in range(4)], dim=1)
    itself = torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(run_block(block, tokens, itself), alone, atol=1e-5, rtol=1e-5)


# Late average


def test_mean_probabilities_by_hand():
    first, second = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    # softmax: (3, 1) / 4 and (1, 1) / 2, mean (5, 3) / 8
    mean = mean_softmax_logits(first, second)
    torch.testing.assert_close(mean, torch.tensor([[5 / 8, 3 / 8]]).log())
    # sigmoid: 3 / 4 and 1 / 2, mean 5 / 8, odds 5 / 3; and 1 / 2 twice, odds 1
    mean = mean_sigmoid_logits(first, second)
    torch.testing.assert_close(mean, torch.tensor([[math.log(5 / 3), 0.0]]))
    # One certain yes and one certain no are even odds, not a number too large.
    far = torch.tensor([[200.0]])
    torch.testing.assert_close(mean_sigmoid_logits(far, -far), torch.zeros(1, 1))


@pytest.mark.parametrize("several", [False, True])
def test_late_average_is_two_models_that_never_meet(several):
    model = make("late-average", several=several)
    output = model(PIXELS, IDS, MASK)
    each = model.loss_logits(output)
    assert torch.equal(each[0], model.image(PIXELS).logits)
    assert torch.equal(each[1], model.text(None, IDS, MASK).logits)
    probability = torch.sigmoid if several else (lambda x: x.softmax(-1))
    torch.testing.assert_close(
        probability(output.logits), (probability(each[0]) + probability(each[1])) / 2
    )


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("vqt"), "Unknown baseline 'vqt': use one of linear, late-concat"),
        (lambda: make("linear", classes=0), "num_classes=0 must be at least 1"),
        (lambda: make("mbt", replace(IMAGE, depth=1)), "1 and 2 layers, and nothing crosses"),
        (lambda: counts.trainable_parameters("vqt", IMAGE, TEXT, 3), "Unknown baseline 'vqt'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("name", READS_TEXT)
def test_a_text_of_padding_alone_is_refused(name):
    mask = MASK * torch.tensor([[1], [0]])
    with pytest.raises(InputError, match="Text 1 of the batch is all padding"):
        make(name)(PIXELS, IDS, mask)


@pytest.mark.parametrize("name", [n for n in READS_TEXT if n in READS_IMAGE])
def test_batches_must_agree(name):
    with pytest.raises(InputError, match="1 images and 2 texts"):
        make(name)(PIXELS[:1], IDS, MASK)
