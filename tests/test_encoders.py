"""Shapes, masks, readouts, attention and errors of the encoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmfusion_lib.blocks import Attention, Block, attention_weights
from mmfusion_lib.encoders import (
    CONFIGS,
    EncoderConfig,
    ImageEncoder,
    TextEncoder,
    attention_maps,
    build_encoder,
    masked_mean,
)
from mmfusion_lib.errors import InputError

IMAGE = EncoderConfig("image", 8, 2, 2, 16, image_size=8, patch_size=4)
TEXT = EncoderConfig(
    "text", 8, 2, 2, 16, norm="post", vocab_size=20, max_positions=6, readout="mean"
)
ROBERTA = replace(TEXT, pad_id=1, position_offset=2, token_types=1)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Attention


def test_attention_weights_by_hand():
    # One head, width 4: Q K^T / sqrt(4) with q = (2, 0, 0, 0) and keys that score 0 and log 3.
    query = torch.tensor([[[[2.0, 0, 0, 0]]]])
    key = torch.tensor([[[[0.0, 0, 0, 0], [torch.tensor(3.0).log(), 0, 0, 0]]]])
    # softmax(0, log 3) = (1, 3) / 4
    weights = attention_weights(query, key, None)
    torch.testing.assert_close(weights, torch.tensor([[[[0.25, 0.75]]]]))
    hidden = attention_weights(query, key, torch.tensor([[[[True, False]]]]))
    torch.testing.assert_close(hidden, torch.tensor([[[[1.0, 0.0]]]]))


@pytest.mark.parametrize("mask", [None, MASK])
def test_fused_and_readable_attention_are_equal_with_gradients(mask):
    attention = Attention(8, 2).eval()
    results = []
    for fused in (True, False):
        attention.fused = fused
        tokens = torch.ones(2, 4, 8).cumsum(1).div(3).sin().requires_grad_()
        output = attention(tokens, mask)
        output.square().sum().backward()
        results.append((output.detach(), tokens.grad))
    for fused, readable in zip(*results):
        torch.testing.assert_close(fused, readable, atol=1e-6, rtol=1e-5)


def test_dropout_acts_on_both_paths_in_training_only():
    attention = Attention(8, 2, dropout=0.5)
    tokens = torch.randn(1, 4, 8)
    for attention.fused in (True, False):
        attention.train()
        assert not torch.equal(attention(tokens), attention(tokens))
        attention.eval()
        assert torch.equal(attention(tokens), attention(tokens))


def test_attention_maps_rows_sum_to_one_and_hide_padding():
    encoder = build_encoder(TEXT).eval()
    maps = attention_maps(encoder, IDS, MASK)
    assert [tuple(each.shape) for each in maps] == [(2, 2, 4, 4)] * 2
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(2, 2, 4))
        assert each[1, :, :, 2:].max() == 0  # nobody reads the padding of the second text
    assert not encoder.layers[0].attention._forward_pre_hooks  # hooks are gone


def test_prompt_tokens_can_be_appended():
    """As PMF does: more tokens than were embedded, and the mask grows with them."""
    encoder = build_encoder(TEXT).eval()
    tokens = torch.cat([encoder.embed(IDS), torch.randn(2, 3, 8)], dim=1)
    mask = torch.cat([MASK, torch.ones(2, 3, dtype=MASK.dtype)], dim=1)
    assert encoder.layers[0](tokens, mask).shape == (2, 7, 8)


# Blocks


def test_pre_and_post_norm_by_hand():
    """With both branches silenced, pre-norm is the identity and post-norm normalises twice."""
    tokens = torch.tensor([[[1.0, 3.0]]])
    for pre_norm, expected in ((True, [1.0, 3.0]), (False, [-1.0, 1.0])):
        block = Block(2, 1, 4, pre_norm=pre_norm, eps=0.0)
        for linear in (block.attention.out, block.mlp.fc2):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
        # mean 2, standard deviation 1: (1, 3) -> (-1, 1), and again (-1, 1)
        torch.testing.assert_close(block(tokens), torch.tensor([[expected]]))


def test_layer_scale_zero_silences_both_branches():
    tokens = torch.randn(1, 3, 8)
    torch.testing.assert_close(Block(8, 2, 16, layer_scale=0.0)(tokens), tokens)


# Encoders


@pytest.mark.parametrize(
    ("config", "inputs"),
    [(IMAGE, (torch.randn(2, 3, 8, 8),)), (TEXT, (IDS, MASK)), (ROBERTA, (IDS, MASK))],
)
def test_forward_is_embed_layers_norm_and_readout_ends_it(config, inputs):
    encoder = build_encoder(config).eval()
    tokens = encoder.embed(inputs[0])
    mask = inputs[1] if len(inputs) > 1 else None
    for layer in encoder.layers:
        tokens = layer(tokens, mask)
    final = encoder(*inputs)
    torch.testing.assert_close(encoder.norm(tokens), final)
    torch.testing.assert_close(encoder.readout(tokens, mask), encoder.pool(final, mask))
    assert encoder.readout(tokens, mask).shape == (2, config.readout_width)


def test_readouts_by_hand():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    small = replace(IMAGE, width=2, heads=1)
    for readout, expected in (
        ("cls", [1.0, 2.0]),
        ("mean", [2.0, 3.0]),  # ((1, 2) + (3, 4)) / 2
        ("cls+mean", [1.0, 2.0, 3.0, 4.0]),  # the one kept token after CLS
    ):
        encoder = build_encoder(replace(small, readout=readout))
        torch.testing.assert_close(encoder.pool(tokens, mask), torch.tensor([expected]))
    torch.testing.assert_close(masked_mean(tokens, None), torch.tensor([[13 / 3, 5.0]]))


@pytest.mark.parametrize("config", [TEXT, ROBERTA])
def test_padding_is_invisible(config):
    """Neither the content of the padding nor its length changes what is kept."""
    encoder = build_encoder(config).eval()
    pad = config.pad_id
    alone = encoder(torch.tensor([[7, 8]]))
    ids = torch.tensor([[7, 8, pad, pad, pad]])
    mask = torch.tensor([[1, 1, 0, 0, 0]])
    padded = encoder(ids, mask)
    torch.testing.assert_close(padded[:, :2], alone, atol=1e-6, rtol=1e-5)
    ids[0, 2:] = torch.tensor([9, 10, 11])
    assert torch.equal(encoder(ids, mask)[:, :2], padded[:, :2])
    # The summary of the masked mean is that of the text alone.
    torch.testing.assert_close(
        encoder.pool(padded, mask), encoder.pool(alone), atol=1e-6, rtol=1e-5
    )


def test_roberta_positions_count_words_from_after_the_padding_id():
    encoder = build_encoder(ROBERTA)
    ids = torch.tensor([[7, 8, 9, 1], [7, 1, 1, 1]])
    # Words take rows 2, 3, 4; padding takes row pad_id = 1.
    assert encoder._position_ids(ids).tolist() == [[2, 3, 4, 1], [2, 1, 1, 1]]
    assert encoder.positions.num_embeddings == 8  # 6 positions + 2


def test_positions_are_resized_for_other_grids():
    encoder = build_encoder(IMAGE).eval()
    assert encoder.resized_positions(2, 2) is encoder.positions
    with torch.no_grad():
        encoder.positions[:, 1:] = 5.0  # a constant table stays constant
    table = encoder.resized_positions(3, 1)
    torch.testing.assert_close(table[:, 1:], torch.full((1, 3, 8), 5.0))
    assert torch.equal(table[:, :1], encoder.positions[:, :1])
    assert encoder(torch.randn(1, 3, 12, 4)).shape == (1, 4, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    image, text = build_encoder(IMAGE).to(dtype).eval(), build_encoder(TEXT).to(dtype).eval()
    assert image(torch.randn(1, 3, 12, 8)).dtype == dtype  # float32 pixels are converted
    tokens = text(IDS, MASK)
    assert tokens.dtype == text.pool(tokens, MASK).dtype == dtype


def test_gradient_reaches_every_parameter():
    for config, inputs in ((IMAGE, (torch.randn(2, 3, 8, 8),)), (TEXT, (IDS, MASK))):
        encoder = build_encoder(replace(config, layer_scale=1.0))
        encoder(*inputs).square().sum().backward()
        silent = [n for n, p in encoder.named_parameters() if p.grad is None]
        assert silent == []


@pytest.mark.parametrize("name", CONFIGS)
def test_named_encoders_build_on_the_meta_device(name):
    with torch.device("meta"):
        encoder = build_encoder(name)
    assert isinstance(encoder, ImageEncoder if CONFIGS[name].kind == "image" else TextEncoder)
    assert len(encoder.layers) == CONFIGS[name].depth


def test_parameter_counts_of_the_default_encoders():
    # facts of the packaged files: 22 056 192 in DINOv2-small; MiniLM's 22 713 216 less its
    # pooler, which is 384 * 384 + 384 = 147 840.
    for name, expected in (("dinov2-small", 22_056_192), ("minilm-l6", 22_713_216 - 147_840)):
        with torch.device("meta"):
            encoder = build_encoder(name)
        assert sum(p.numel() for p in encoder.parameters()) == expected


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, "width=9 is not a multiple of heads=2"),
        ({"patch_size": 3}, "image_size=8 is not a multiple of patch_size=3"),
        ({"kind": "sound"}, "kind='sound' is unknown"),
        ({"activation": "tanh"}, "activation='tanh' is unknown"),
        ({"readout": "max"}, "readout='max' is unknown"),
        ({"depth": 0}, "depth=0 must be 1 or more"),
        ({"kind": "text", "position_offset": 2}, "position_offset=2 does not go with pad_id=0"),
    ],
)
def test_a_bad_config_names_its_fields(change, message):
    with pytest.raises(InputError, match=message):
        replace(IMAGE, **change)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 8, 8), r"shape \(1, 4, 8, 8\): give a batch \(B, 3, H, W\)"),
        ((3, 8, 8), r"shape \(3, 8, 8\)"),
        ((1, 3, 8, 10), "8 x 10 pixels: resize both sides to a multiple of the patch size 4"),
        ((1, 3, 0, 8), "0 x 8 pixels"),
    ],
)
def test_bad_pixels(shape, message):
    with pytest.raises(InputError, match=message):
        build_encoder(IMAGE)(torch.zeros(shape))


def test_integer_pixels_are_refused():
    with pytest.raises(InputError, match=r"type torch\.uint8"):
        build_encoder(IMAGE)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, 20]], "holds 20, outside the vocabulary of 20"),
        ([[3, -1]], "holds -1"),
        ([[1] * 7], "7 tokens long and this encoder has 6 positions"),
        ([[1.0]], r"type torch\.float32: give integers"),
        ([1, 2], r"shape \(2,\)"),
    ],
)
def test_bad_ids(ids, message):
    with pytest.raises(InputError, match=message):
        build_encoder(TEXT)(torch.tensor(ids))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"mask has shape \(2, 3\) but there are \(2, 4\)"):
        build_encoder(TEXT)(IDS, MASK[:, :3])


def test_unknown_names_and_kinds():
    with pytest.raises(InputError, match="Unknown encoder 'vit-huge'"):
        build_encoder("vit-huge")
    with pytest.raises(InputError, match="use build_encoder"):
        TextEncoder(IMAGE)
