"""Costs by formula agree with what autograd keeps and what PyTorch counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from mmfusion_lib import accounting
from mmfusion_lib.accounting import Cost
from mmfusion_lib.blocks import Block
from mmfusion_lib.encoders import EncoderConfig, ImageEncoder, TextEncoder
from mmfusion_lib.errors import InputError

SMALL = EncoderConfig("image", width=16, depth=2, heads=4, mlp_width=48, image_size=8, patch_size=4)
BASE = EncoderConfig("image", width=768, depth=1, heads=12, mlp_width=3072)  # ViT-B/16
TEXT = EncoderConfig(
    "text", width=16, depth=2, heads=4, mlp_width=48, norm="post", vocab_size=11, max_positions=8
)


def block(config: EncoderConfig, fused: bool = True, trainable: bool = True) -> Block:
    result = Block(
        config.width,
        config.heads,
        config.mlp_width,
        pre_norm=config.norm == "pre",
        activation=config.activation,
        layer_scale=config.layer_scale,
        dropout=config.dropout,
    )
    result.attention.fused = fused
    return result.requires_grad_(trainable)


# ---------------------------------------------------------------- parameters


def test_parameters_by_part():
    # tower 3 x 4 + 4 = 16 frozen, head 4 x 2 + 2 = 10: 10 of 26 = 38.46 %
    model = nn.ModuleDict({"tower": nn.Linear(3, 4).requires_grad_(False), "head": nn.Linear(4, 2)})
    rows = accounting.parameters(model)
    assert [(r.name, r.total, r.trainable) for r in rows] == [
        ("tower", 16, 0),
        ("head", 10, 10),
        ("all", 26, 10),
    ]
    assert accounting.parameter_table(model).splitlines()[-1].split() == [
        "all",
        "26",
        "10",
        "38.46%",
    ]


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, layer_scale=0.1, patch_bias=False, input_norm=True),
        replace(SMALL, norm="post"),
        TEXT,
        replace(TEXT, pad_id=1, position_offset=2),
    ],
)
def test_parameter_formula_is_exact(config):
    encoder = (ImageEncoder if config.kind == "image" else TextEncoder)(config)
    assert accounting.encoder_parameters(config) == accounting.parameters(encoder)[-1].total


def test_vit_base_has_the_known_size():
    # ViT-B/16 without a head: 85,798,656 parameters
    assert accounting.encoder_parameters(replace(BASE, depth=12)) == 85_798_656


# ---------------------------------------------------------------- activations


def test_a_linear_map_keeps_its_input_only_for_its_weight():
    x = torch.zeros(5, 3, requires_grad=True)
    linear = nn.Linear(3, 2)
    assert accounting.saved_activation_bytes(lambda: linear(x), [linear]) == 5 * 3 * 4
    linear.requires_grad_(False)
    assert accounting.saved_activation_bytes(lambda: linear(x), [linear]) == 0


def test_a_storage_counts_once_and_whole():
    x = torch.zeros(4, 4, requires_grad=True)
    # exp keeps its result; the product of two views of it keeps the same storage again
    assert accounting.saved_activation_bytes(lambda: (y := x.exp())[0] * y[1]) == 4 * 4 * 4


@pytest.mark.parametrize(
    ("fused", "trainable", "norm", "dropout", "precision"),
    list(product([True, False], [True, False], ["pre", "post"], [0.0, 0.1], ["no", "bf16"])),
)
def test_small_block_is_predicted_exactly(fused, trainable, norm, dropout, precision):
    for extra in ({}, {"layer_scale": 0.1}, {"activation": "quick_gelu"}):
        config = replace(SMALL, norm=norm, dropout=dropout, **extra)
        layer = block(config, fused, trainable)
        x = torch.randn(3, 7, 16, requires_grad=True) + 0  # not a leaf, as inside an encoder

        def run(layer=layer, x=x):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return layer(x)

        predicted = accounting.block_activation_bytes(
            config, 7, 3, trainable=trainable, fused=fused, precision=precision
        )
        measured = accounting.saved_activation_bytes(run, [layer])
        assert measured == pytest.approx(predicted, rel=1e-9), extra


@pytest.mark.parametrize(("fused", "trainable"), list(product([True, False], [True, False])))
def test_vit_base_block(fused, trainable):
    layer = block(BASE, fused, trainable)
    x = torch.randn(1, 197, 768, requires_grad=True)
    predicted = accounting.block_activation_bytes(BASE, 197, 1, trainable=trainable, fused=fused)
    measured = accounting.saved_activation_bytes(lambda: layer(x), [layer])
    assert measured == pytest.approx(predicted, rel=0.02)


def test_padding_masks_hardly_count():
    layer = block(SMALL)
    x, mask = torch.randn(3, 40, 16, requires_grad=True), torch.ones(3, 40)
    predicted = accounting.block_activation_bytes(SMALL, 40, 3)
    measured = accounting.saved_activation_bytes(lambda: layer(x, mask), [layer])
    assert measured == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, input_norm=True, dropout=0.1), TEXT, replace(TEXT, dropout=0.1)],
)
def test_whole_encoder(config, precision):
    if config.kind == "image":
        encoder, inputs, tokens = ImageEncoder(config), torch.randn(2, 3, 8, 8), 5
    else:
        encoder, inputs, tokens = TextEncoder(config), torch.randint(0, 11, (2, 6)), 6

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return encoder(inputs)

    predicted = accounting.encoder_activation_bytes(config, tokens, 2, precision=precision)
    measured = accounting.saved_activation_bytes(run, [encoder])
    assert measured == pytest.approx(predicted, rel=0.1)
    encoder.requires_grad_(False)
    assert accounting.saved_activation_bytes(run, [encoder]) == 0
    assert accounting.encoder_activation_bytes(config, tokens, 2, trainable=False) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blocks_on_cuda():
    cases = product([True, False], [True, False], [0.0, 0.1], ["no", "bf16"])
    for fused, trainable, dropout, precision in cases:
        config = replace(BASE, dropout=dropout)
        layer = block(config, fused, trainable).cuda()
        x = torch.randn(4, 197, 768, device="cuda", requires_grad=True) + 0

        def run(layer=layer, x=x, precision=precision):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                return layer(x)

        predicted = accounting.block_activation_bytes(
            config, 197, 4, trainable=trainable, fused=fused, precision=precision, device="cuda"
        )
        measured = accounting.saved_activation_bytes(run, [layer])
        case = (fused, trainable, dropout, precision)
        assert measured == pytest.approx(predicted, rel=0.1), case


# ---------------------------------------------------------------- FLOPs and minutes


def test_block_flops_by_hand():
    # T = 6, D = 16, F = 48: 2 * 6 * (4 * 256 + 2 * 768) = 30,720; attention 4 * 2 * 9 * 16 = 1,152
    assert accounting.block_flops(SMALL, 3, 2) == 30_720 + 1_152


@pytest.mark.parametrize("backward", [None, "inputs", "weights"])
def test_block_flops_as_pytorch_counts(backward):
    layer = block(SMALL, fused=False, trainable=backward == "weights")
    x = torch.randn(2, 7, 16, requires_grad=True)

    def run():
        out = layer(x)
        if backward:
            out.sum().backward()

    assert accounting.measured_flops(run) == accounting.block_flops(SMALL, 7, 2, backward=backward)


def test_encoder_flops_as_pytorch_counts():
    encoder = ImageEncoder(SMALL)
    for layer in encoder.layers:
        layer.attention.fused = False
    predicted = accounting.encoder_flops(SMALL, 5, 2)
    measured = accounting.measured_flops(lambda: encoder(torch.randn(2, 3, 8, 8)))
    assert measured == predicted["all"] == predicted["embed"] + predicted["layers"]


def test_conv_flops_as_pytorch_counts():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    measured = accounting.measured_flops(lambda: conv(torch.randn(2, 4, 8, 10)))
    assert measured == accounting.conv_flops(conv, 4, 5, 2)


def test_minutes_from_a_probe():
    import time

    rate = accounting.measured_rate(lambda: time.sleep(0.01), work=5, seconds=0.1)
    assert 100 < rate <= 500  # 5 units in at least 10 ms
    assert accounting.predicted_minutes(6000, 100) == 1.0


def test_cost_table():
    table = accounting.cost_table(Cost(26, 10, 2000, minutes=0.5), Cost(26, 10, 2100))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["cost", "predicted", "measured", "ratio"]
    assert lines[1] == ["parameters", "26", "26", "1.000"]
    assert lines[3] == ["activation", "bytes", "2,000", "2,100", "1.050"]
    assert lines[4] == ["minutes", "0.5", "-", "-"]
    assert len(lines) == 5  # FLOPs: neither predicted nor measured


def test_unknown_options_are_named():
    with pytest.raises(InputError, match="precision='fp8' is unknown"):
        accounting.block_activation_bytes(SMALL, 3, 2, precision="fp8")
    with pytest.raises(InputError, match="backward='all' is unknown"):
        accounting.block_flops(SMALL, 3, 2, backward="all")
