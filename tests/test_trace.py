"""The trace finds the line at which two models part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmfusion_lib import checkpoints, convert
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.trace import Pair, trace

IMAGE = EncoderConfig(
    "image", width=8, depth=2, heads=2, mlp_width=16, image_size=8, patch_size=4, layer_scale=0.5
)
TEXT = EncoderConfig(
    "text", 8, 2, 2, 16, norm="post", eps=1e-12, vocab_size=20, max_positions=8, dropout=0.1
)
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS, MASK = torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])


LAST = Pair("last", "layers.1", "layers.1")


def twins(config: EncoderConfig, changed: EncoderConfig | None = None):
    """Two encoders with the same weights; the second may be wired differently."""
    torch.manual_seed(0)
    first, second = build_encoder(config), build_encoder(changed or config)
    second.load_state_dict(first.state_dict(), strict=False)
    return first, second


def test_equal_models_never_part():
    result = trace(*twins(IMAGE), PIXELS)
    assert result.parts_at is None
    assert [row.layer for row in result.rows] == [
        "embeddings",
        "layers.0.attention",
        "layers.0.mlp",
        "layers.0",
        "layers.1.attention",
        "layers.1.mlp",
        "layers.1",
        "norm",
    ]
    assert all(row.max_difference == 0 for row in result.rows)


def test_dropout_is_off_while_tracing_and_on_again_after():
    ours, reference = twins(TEXT)
    assert trace(ours.train(), reference.train(), IDS, MASK, pairs=[LAST]).parts_at is None
    assert ours.training and reference.training


def test_a_missing_layer_scale_is_found_where_it_acts():
    """Without the factor 0.5 both branches give the same numbers, but their sum does not."""
    result = trace(*twins(IMAGE, replace(IMAGE, layer_scale=None)), PIXELS)
    # The attention of block 0 reads the same tokens; the MLP after it no longer does.
    assert result.parts_at == "layers.0.mlp"
    assert [row.verdict for row in result.rows[:4]] == ["same", "same", "parts here", "differs"]


def test_post_norm_instead_of_pre_norm_parts_in_the_first_attention():
    ours, reference = twins(IMAGE)
    for layer in reference.layers:
        layer.pre_norm = False
    assert trace(ours, reference, PIXELS).parts_at == "layers.0.attention"


def test_one_changed_weight_parts_in_its_own_layer():
    ours, reference = twins(IMAGE)
    with torch.no_grad():
        reference.layers[1].mlp.fc2.bias[0] += 0.01
    result = trace(ours, reference, PIXELS)
    assert result.parts_at == "layers.1.mlp"
    assert result.rows[5].max_difference == pytest.approx(0.01, rel=1e-3)


def test_the_table_is_readable():
    text = str(trace(*twins(IMAGE), PIXELS))
    assert text.splitlines()[0].split("  ")[0].strip() == "layer"
    assert "layers.1.attention" in text and "same" in text
    assert len({line.index("same") for line in text.splitlines()[1:]}) == 1  # one column


def test_nan_counts_as_parting():
    ours, reference = twins(IMAGE)
    with torch.no_grad():
        reference.norm.weight[0] = float("nan")
    assert trace(ours, reference, PIXELS).parts_at == "norm"


def test_unknown_modules_are_named():
    ours, reference = twins(IMAGE)
    with pytest.raises(InputError, match=r"has no module 'layers\.7'"):
        trace(ours, reference, PIXELS, pairs=[Pair("x", "layers.0", "layers.7")])
    with pytest.raises(InputError, match="No module pairs are known for Linear"):
        trace(ours, torch.nn.Linear(2, 2), PIXELS)


SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


KINDS = ["timm", "open_clip", "ViTModel", "Dinov2Model", "BertModel", "RobertaModel"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_supported_reference_traces_the_same(kind):
    torch.manual_seed(0)
    inputs = (PIXELS,)
    if kind == "timm":
        timm = pytest.importorskip("timm")
        reference = timm.models.VisionTransformer(
            8, 4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2, init_values=0.5
        )
        config, converter = IMAGE, convert.convert_timm
    elif kind == "open_clip":
        pytest.importorskip("open_clip")
        from open_clip.transformer import VisionTransformer

        reference = VisionTransformer(8, 4, 8, 2, 2, 2.0, output_dim=4)
        config = replace(IMAGE, layer_scale=None, eps=1e-5, patch_bias=False, input_norm=True)
        converter = convert.convert_open_clip
    else:
        transformers = pytest.importorskip("transformers")
        sizes = {**SIZES, "image_size": 8, "patch_size": 4, "intermediate_size": 16}
        text = {**SIZES, "intermediate_size": 16, "vocab_size": 20, "max_position_embeddings": 8}
        hf, config, converter = {
            "ViTModel": (
                transformers.ViTConfig(**sizes),
                replace(IMAGE, layer_scale=None, eps=1e-12),
                convert.convert_hf_image,
            ),
            "Dinov2Model": (
                transformers.Dinov2Config(**sizes, mlp_ratio=2),
                IMAGE,
                convert.convert_hf_image,
            ),
            "BertModel": (transformers.BertConfig(**text), TEXT, convert.convert_hf_text),
            "RobertaModel": (
                transformers.RobertaConfig(**text, pad_token_id=0, layer_norm_eps=1e-12),
                replace(TEXT, max_positions=7, position_offset=1),
                convert.convert_hf_text,
            ),
        }[kind]
        reference = getattr(transformers, kind)(hf)
        inputs = (PIXELS,) if config.kind == "image" else (IDS, MASK)
    ours = build_encoder(config)
    checkpoints.load_weights(ours, converter(reference.state_dict()), kind)
    result = trace(ours, reference, *inputs)
    assert result.parts_at is None, str(result)
    assert len(result.rows) == (8 if config.norm == "pre" else 7)
