"""The official file's weights in our model: equal logits, equal counts, and clear refusals.

The oracle below is PMF as its equations say (section 3 of the paper), computed with the layers of
transformers; nothing of it is ours.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmfusion_lib import checkpoints
from mmfusion_lib.encoders import build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.pmf import PMF, PMFConfig

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
    "max_position_embeddings": 8,
}
WIDE = BERT | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES = {"n_fusion_layers": 2, "n_qp": 2, "n_qcp": 3, "n_fcp": 1, "n_classes": 5}
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


class Reference(nn.Module):
    """The official model's parts under their official names, with random values in all of them."""

    def __init__(self, vit: dict, bert: dict, sizes: dict, hidden: int = 7) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.sizes = SimpleNamespace(**sizes)
        eager = {"attn_implementation": "eager"}
        self.vit_encoder = transformers.ViTModel(transformers.ViTConfig(**vit, **eager))
        self.bert_encoder = transformers.BertModel(transformers.BertConfig(**bert, **eager))
        image, text = vit["hidden_size"], bert["hidden_size"]
        self.vit_encoder.heads = nn.Linear(image, sizes["n_classes"])
        self.bert_encoder.heads = nn.Linear(text, sizes["n_classes"])
        for name, length, width in (
            ("v2t_qp", "n_qp", image),
            ("t2v_qp", "n_qp", text),
            ("v2t_qcp", "n_qcp", image),
            ("t2v_qcp", "n_qcp", text),
            ("vision_fcp", "n_fcp", image),
            ("text_fcp", "n_fcp", text),
        ):
            prompts = [
                torch.zeros(1, sizes[length], width) for _ in range(self.sizes.n_fusion_layers)
            ]
            setattr(self, name, nn.ParameterList(prompts))
        self.v2t_trans = nn.ModuleList(mapping(image, hidden, text) for _ in prompts)
        self.t2v_trans = nn.ModuleList(mapping(text, hidden, image) for _ in prompts)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():  # norms stay near 1
                parameter.add_(torch.randn_like(parameter) * 0.4)
        self.eval()

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Base layers, then querying stage and fusion stage of every fusion layer, then heads."""
        see, read = list(self.vit_encoder.layers), list(self.bert_encoder.encoder.layer)
        fused = self.sizes.n_fusion_layers
        z, x = self.vit_encoder.embeddings(pixels), self.bert_encoder.embeddings(input_ids=ids)
        for layer in see[: len(see) - fused]:
            z = layer(z)
        for layer in read[: len(read) - fused]:
            x = layer(x, hiding(mask))
        patches, words = z.shape[1], x.shape[1]
        for k, (trans_i, trans_t) in enumerate(zip(see[-fused:], read[-fused:])):
            asked = trans_i(self.joined(z, self.v2t_qcp[k], self.v2t_qp[k]))
            to_text = self.v2t_trans[k](asked[:, patches + self.sizes.n_qcp :])
            query = self.joined(x, self.t2v_qcp[k], self.t2v_qp[k])
            asked = trans_t(query, hiding(mask, query.shape[1] - words))
            to_image = self.t2v_trans[k](asked[:, words + self.sizes.n_qcp :])
            image = self.joined(z, self.vision_fcp[k], to_image)
            text = self.joined(x, self.text_fcp[k], to_text)
            z = trans_i(image)[:, :patches]
            x = trans_t(text, hiding(mask, text.shape[1] - words))[:, :words]
        seen = self.vit_encoder.heads(self.vit_encoder.layernorm(z)[:, 0])
        return (seen + self.bert_encoder.heads(x[:, 0])) / 2

    def joined(self, tokens: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokens, *(part.expand(len(tokens), -1, -1) for part in more)], dim=1)

    def official(self) -> dict[str, torch.Tensor]:
        """The state dict under the names that transformers 4 gives a ViT."""
        return {old_name(name): value.clone() for name, value in self.state_dict().items()}


def mapping(source: int, hidden: int, target: int) -> nn.Module:
    """W2 ReLU(W1 u + b1) + b2, with the names linear1 and linear2."""
    module = nn.Sequential()
    module.add_module("linear1", nn.Linear(source, hidden))
    module.add_module("relu", nn.ReLU())
    module.add_module("linear2", nn.Linear(hidden, target))
    return module


def hiding(mask: torch.Tensor, prompts: int = 0) -> torch.Tensor:
    """(B, N) -> (B, 1, 1, N + prompts), added to attention scores: prompts are always seen."""
    mask = nn.functional.pad(mask, (0, prompts), value=1)
    return (1.0 - mask[:, None, None].float()) * -10000.0


def old_name(name: str) -> str:
    if not name.startswith("vit_encoder."):
        return name
    for pattern, old in (
        (r"encoder\.layers\.", "encoder.encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ):
        name = re.sub(pattern, old, name)
    return name


def pixels() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, 8, 8)


def load(reference: Reference, vit: dict, bert: dict, **changes) -> PMF:
    return checkpoints.load_official_pmf(reference.official(), vit, bert, SIZES | changes)


# Logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("bert", "fused"),
    # 3 is all layers of both; 2 all of the shallower one where widths and depths differ
    [(BERT, 1), (BERT, 2), (BERT, 3), (WIDE, 1), (WIDE, 2)],
    ids=["equal-1", "equal-2", "equal-all", "unequal-1", "unequal-all"],
)
def test_logits_are_those_of_the_official_algorithm(bert, fused):
    reference = Reference(VIT, bert, SIZES | {"n_fusion_layers": fused})
    model = load(reference, VIT, bert, n_fusion_layers=fused)
    expected = reference(pixels(), IDS, MASK)
    for model.shared in (True, False):
        torch.testing.assert_close(model(pixels(), IDS, MASK).logits, expected, atol=1e-5, rtol=0)
    # Each kind of prompt counts in these numbers, so that none could be read from the wrong place.
    for name in ("v2t_qp", "t2v_qp", "v2t_qcp", "t2v_qcp", "vision_fcp", "text_fcp"):
        prompt = getattr(reference, name)[0]
        prompt.neg_()
        assert (reference(pixels(), IDS, MASK) - expected).abs().max() > 1e-3, name
        prompt.neg_()


@torch.no_grad()
@pytest.mark.parametrize("absent", ["n_qcp", "n_fcp"])
def test_prompts_of_length_zero_may_be_stored_or_left_out(absent):
    reference = Reference(VIT, BERT, SIZES | {absent: 0})
    expected = reference(pixels(), IDS, MASK)
    state = reference.official()
    for _ in range(2):
        model = checkpoints.load_official_pmf(state, VIT, BERT, SIZES | {absent: 0})
        torch.testing.assert_close(model(pixels(), IDS, MASK).logits, expected, atol=1e-5, rtol=0)
        state = {name: value for name, value in state.items() if value.numel()}


@torch.no_grad()
def test_fields_change_the_model_as_in_transformers():
    changes = {"hidden_act": "quick_gelu", "layer_norm_eps": 0.1}
    vit, bert = VIT | changes | {"qkv_bias": False}, BERT | changes | {"type_vocab_size": 3}
    reference = Reference(vit, bert, SIZES)
    assert not any("query.bias" in name for name in reference.official() if "vit" in name)
    model = load(reference, vit, bert)
    expected = reference(pixels(), IDS, MASK)
    torch.testing.assert_close(model(pixels(), IDS, MASK).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_may_lack_the_leading_one_and_old_buffers_are_skipped():
    reference = Reference(VIT, BERT, SIZES)
    state = reference.official()
    for name in state:
        if "_qp." in name or "_qcp." in name or "_fcp." in name:
            state[name] = state[name][0]  # (1, M, D) -> (M, D)
    state["bert_encoder.embeddings.position_ids"] = torch.arange(8)[None]
    model = checkpoints.load_official_pmf(state, VIT, BERT, SIZES)
    expected = reference(pixels(), IDS, MASK)
    torch.testing.assert_close(model(pixels(), IDS, MASK).logits, expected, atol=1e-5, rtol=0)


def test_what_trains_is_what_trains_there_and_the_caller_keeps_its_tensors():
    reference = Reference(VIT, BERT, SIZES)
    state = reference.official()
    model = checkpoints.load_official_pmf(state, VIT, BERT, SIZES)
    assert not model.training
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    assert not any("encoder" in name or "fusion_context" in name for name in trains)
    assert {"fusion.1.image.query", "fusion.0.text.mapping.fc2.bias", "text_head.bias"} <= trains
    model(pixels(), IDS, MASK).logits.sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for name, value in reference.official().items():
        assert torch.equal(state[name], value), name


# Counts, of models that take no memory


@lru_cache
def weightless(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_encoder(name)


def trainable(vit: str = "vit-base", bert: str = "bert-base", **fields) -> int:
    config = PMFConfig(**{"num_classes": 101, "train_fusion_context": False} | fields)
    with torch.device("meta"):
        model = PMF(weightless(vit), weightless(bert), config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        # Mapping: 2 x 768 x 384 + 384 + 768 = 590,976, two a layer; prompts: 4 x 4 x 768 = 12,288;
        # a layer 1,194,240. Heads: 2 x (768 C + C). 2 x 1,194,240 + 2 x 769 x 101 = 2,543,818.
        ({}, 2_543_818),
        ({"num_classes": 23}, 2_423_854),
        ({"num_classes": 3}, 2_393_094),
        ({"train_fusion_context": True}, 2_556_106),  # 2 x 2 x 4 x 768 = 12,288 more
        # 768 -> 512 -> 1024 has 919,040, the way back 918,784; prompts 8 x (768 + 1024) = 14,336:
        # 2 x 1,852,160 + (769 + 1025) x 101.
        ({"bert": "bert-large"}, 3_885_514),
        ({"vit": "vit-large"}, 3_885_514),
        # 2 x (2 x 1,050,112 + 16 x 1024) + 2 x 1025 x 101; fusion context 2 x 8 x 1024 = 16,384 more
        ({"vit": "vit-large", "bert": "bert-large"}, 4_440_266),
        ({"vit": "vit-large", "bert": "bert-large", "train_fusion_context": True}, 4_456_650),
    ],
)
def test_trainable_parameters_are_those_of_the_official_file(fields, count):
    assert trainable(**fields) == count


@pytest.mark.parametrize(
    ("layers", "millions"), [(1, 1.35), (3, 3.74), (4, 4.93), (6, 7.32), (9, 10.90), (11, 13.29)]
)
def test_trainable_parameters_by_fusion_layers(layers, millions):
    assert round(trainable(num_fusion_layers=layers) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("length", "millions"), [(1, 2.525), (2, 2.532), (8, 2.568), (16, 2.618), (32, 2.716)]
)
def test_trainable_parameters_by_prompt_length(length, millions):
    prompts = ("query_prompts", "query_context_prompts", "fusion_context_prompts")
    count = trainable(**dict.fromkeys(prompts, length))
    # 4 lists of M x 768 in each of 2 layers: 6,144 a prompt token.
    assert count == 2_543_818 + (length - 4) * 6_144
    assert round(count / 1e6, 3) == millions


# Refusals


@lru_cache
def stored() -> dict[str, torch.Tensor]:
    return Reference(VIT, BERT, SIZES).official()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t2v_qcp.1": None}, r"lacks t2v_qcp\.1: give"),
        (
            {"vit_encoder.encoder.layer.2.attention.attention.key.bias": None},
            r"lacks vit_encoder\.encoder\.layer\.2\.attention\.attention\.key\.bias",
        ),
        (
            {
                "bert_encoder.encoder.layer.0.output.LayerNorm.weight": None,
                "v2t_trans.0.linear1.bias": None,
            },
            r"lacks bert_encoder\.\S+LayerNorm\.weight, v2t_trans\.0\.linear1\.bias: give",
        ),
        ({"v2t_trans.0.linear1.weight": None}, r"lacks v2t_trans\.0\.linear1\.weight"),
        ({"v2t_qp.2": torch.zeros(1, 2, 16)}, r"has, too many, v2t_qp\.2"),
        ({"module.v2t_qp.0": torch.zeros(1)}, r"has, too many, module\.v2t_qp\.0"),
        ({"vit_encoder.classifier.weight": torch.zeros(1)}, r"too many, vit_encoder\.classifier"),
        ({"bert_encoder.cls.bias": torch.zeros(1)}, r"too many, bert_encoder\.cls\.bias"),
        (
            {"vit_encoder.layers.0.attention.q_proj.bias": torch.zeros(16)},  # stands twice
            r"too many, vit_encoder\.layers\.0\.attention\.q_proj\.bias",
        ),
        (
            {"text_fcp.0": torch.zeros(2, 1, 16)},
            r"text_fcp\.0 of shape \(2, 1, 16\) and not \(1, 16\)",
        ),
        ({"v2t_qp.0": torch.zeros(1, 3, 16)}, r"v2t_qp\.0 of shape \(3, 16\) and not \(2, 16\)"),
        ({"v2t_trans.0.linear1.weight": torch.zeros(())}, r"linear1\.weight of shape \(\)"),
        ({"vit_encoder.heads.bias": torch.zeros(4)}, r"heads\.bias of shape \(4,\) and not \(5,\)"),
        ({"optimizer": {"lr": 1}}, r"state_dict\['optimizer'\] is no tensor but dict"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, message):
    state = stored() | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(InputError, match=message):
        checkpoints.load_official_pmf(state, VIT, BERT, SIZES)


def test_all_that_is_wrong_is_said_at_once_and_long_lists_are_cut():
    state = stored()
    with pytest.raises(InputError) as error:
        checkpoints.load_official_pmf(
            state, VIT | {"num_hidden_layers": 4}, BERT, SIZES | {"n_fcp": 2}
        )
    # A layer has 8 pairs of weight and bias: 12 are named, 4 counted. Two layers of two sides.
    assert str(error.value).count("vit_encoder.encoder.layer.3.") == 12
    assert " and 4 more; it has " in str(error.value)
    assert str(error.value).count("(1, 16) and not (2, 16)") == 4


@pytest.mark.parametrize(
    ("vit", "bert", "pmf", "message"),
    [
        (
            {"hidden_size": 18},
            {},
            {},
            "vit: hidden_size=18 is not a multiple of num_attention_heads=4",
        ),
        ({}, {"num_attention_heads": 3}, {}, "bert: hidden_size=16 is not a multiple"),
        ({"patch_size": 3}, {}, {}, "image_size=8 is not a multiple of patch_size=3"),
        ({"hidden_act": "relu"}, {}, {}, "vit: hidden_act='relu' cannot be loaded"),
        ({}, {"hidden_act": "gelu_new"}, {}, "bert: hidden_act='gelu_new'"),
        (
            {},
            {"position_embedding_type": "relative_key"},
            {},
            "position_embedding_type='relative_key'",
        ),
        ({}, {"is_decoder": True}, {}, "is_decoder=True"),
        ({}, {"vocab_size": "20"}, {}, "bert: vocab_size='20' must be a whole number"),
        ({}, {}, {"n_fusion_layers": 4}, "num_fusion_layers=4, but the image encoder has 3"),
        ({}, {}, {"n_qp": 0}, "pmf: n_qp=0 must be a whole number of 1 or more"),
        ({}, {}, {"n_classes": None}, "pmf has no n_classes: give n_fusion_layers, n_qp"),
        ({"qkv_bias": False}, {}, {}, r"too many, vit_encoder\.encoder\.layer\.0\.\S+query\.bias"),
    ],
)
def test_fields_that_make_no_model_are_refused(vit, bert, pmf, message):
    state = stored()
    with pytest.raises(InputError, match=message):
        checkpoints.load_official_pmf(state, VIT | vit, BERT | bert, SIZES | pmf)
