"""State dicts of PMF's official file (``PMF.py`` of yaoweilee/PMF, MIT), read into our model.

The file keeps two models of transformers 4, to which it adds heads. It names prompts and mappings by
direction: ``v2t`` is asked of the image encoder and sent to the text, ``t2v`` the other way::

    vit_encoder.*, bert_encoder.*              ViTModel and BertModel, with poolers nothing uses
    vit_encoder.heads.*, bert_encoder.heads.*  the two heads
    v2t_qp.N, v2t_qcp.N, vision_fcp.N          prompts of the image side in fusion layer N, (1, M, D)
    v2t_trans.N.linear1.*, .linear2.*          the mapping of its message
    t2v_qp.N, t2v_qcp.N, text_fcp.N, ...       the same of the text side
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .convert import State, convert_hf_image, convert_hf_text
from .encoders import EncoderConfig, build_encoder
from .errors import InputError
from .pmf import PMF, PMFConfig

Fields = Mapping[str, Any]

# Names of transformers 4: beside the layers, and in each layer. A dot stands for weight and bias.
VIT = (
    "embeddings.cls_token embeddings.position_embeddings embeddings.patch_embeddings.projection. "
    "layernorm. heads.",
    "attention.attention.query. attention.attention.key. attention.attention.value. "
    "attention.output.dense. intermediate.dense. output.dense. layernorm_before. layernorm_after.",
)
BERT = (
    "embeddings.word_embeddings.weight embeddings.position_embeddings.weight "
    "embeddings.token_type_embeddings.weight embeddings.LayerNorm. heads.",
    "attention.self.query. attention.self.key. attention.self.value. attention.output.dense. "
    "attention.output.LayerNorm. intermediate.dense. output.dense. output.LayerNorm.",
)
UNUSED = (
    r"(vit|bert)_encoder\.pooler\.dense\.(weight|bias)",
    r"bert_encoder\.embeddings\.position_ids",  # 0, 1, 2, ...: old versions store them
)
PROMPTS = {"qp": "query", "qcp": "query_context", "fcp": "fusion_context"}
ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu"}
LEAST = {"n_fusion_layers": 1, "n_qp": 1, "n_qcp": 0, "n_fcp": 0, "n_classes": 1}
SHOWN = 12  # names of one kind that an error lists


def load(state_dict: State, vit: Fields, bert: Fields, pmf: Fields) -> PMF:
    """See :func:`mmfusion_lib.checkpoints.load_official_pmf`."""
    sizes = {name: _whole("pmf", pmf, name, least=least) for name, least in LEAST.items()}
    image, text = image_config(vit), text_config(bert)
    given, extra = _renamed(state_dict)
    _, mapping = given.get("fusion.0.image.mapping.fc1.weight", ("", torch.empty(1)))  # (h, D_i)
    config = PMFConfig(
        num_classes=sizes["n_classes"],
        num_fusion_layers=sizes["n_fusion_layers"],
        query_prompts=sizes["n_qp"],
        query_context_prompts=sizes["n_qcp"],
        fusion_context_prompts=sizes["n_fcp"],
        mapping_width=max(1, mapping.shape[0] if mapping.ndim else 1),
        train_fusion_context=False,  # as the file runs: it tests for a name that it never sets
    )
    with torch.device("meta"):
        model = PMF(build_encoder(image), build_encoder(text), config)
    state = {}  # what the file need not hold: biases left out, prompts of length 0
    for name, value in model.state_dict().items():
        bias = re.search(r"^image_encoder.*\.(query|key|value)\.bias$", name)
        if (bias and not vit.get("qkv_bias", True)) or (value.numel() == 0 and name not in given):
            state[name] = torch.zeros(value.shape)
    official = _official_names(image.depth, text.depth, config.num_fusion_layers)
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items() if n not in state}
    _compare(given, extra, shapes, official)
    for name, (_, value) in given.items():
        state[name] = value.detach().to(torch.float32, copy=True)  # the caller keeps its own
    model.load_state_dict(state, assign=True)
    return model.eval()


def image_config(vit: Fields) -> EncoderConfig:
    """Ours for the fields of a ``ViTConfig``; those left out are as in transformers (ViT-B/16).

    Raises:
        InputError: a field makes no model, or one that is not ours.
    """
    return EncoderConfig(
        kind="image",
        **_common("vit", vit),
        dropout=vit.get("hidden_dropout_prob", 0.0),
        image_size=_whole("vit", vit, "image_size", 224),
        patch_size=_whole("vit", vit, "patch_size", 16),
        channels=_whole("vit", vit, "num_channels", 3),
    )


def text_config(bert: Fields) -> EncoderConfig:
    """Ours for the fields of a ``BertConfig``; those left out are as in transformers (BERT-base).

    Raises:
        InputError: a field makes no model, or one that is not ours.
    """
    only = {"position_embedding_type": "absolute", "is_decoder": False}
    for name, value in only.items():
        if bert.get(name, value) != value:
            raise InputError(f"bert: {name}={bert[name]!r} cannot be loaded: only {value!r} can.")
    return EncoderConfig(
        kind="text",
        **_common("bert", bert),
        norm="post",
        dropout=bert.get("hidden_dropout_prob", 0.1),
        vocab_size=_whole("bert", bert, "vocab_size", 30522),
        max_positions=_whole("bert", bert, "max_position_embeddings", 512),
        token_types=_whole("bert", bert, "type_vocab_size", 2),
    )


def _common(which: str, fields: Fields) -> dict[str, Any]:
    activation = fields.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{which}: hidden_act={activation!r} cannot be loaded: use one of "
            f"{', '.join(ACTIVATIONS)}."
        )
    width = _whole(which, fields, "hidden_size", 768)
    heads = _whole(which, fields, "num_attention_heads", 12)
    if width % heads:
        raise InputError(
            f"{which}: hidden_size={width} is not a multiple of num_attention_heads={heads}: "
            "give the two values with which the encoder was built."
        )
    return {
        "width": width,
        "heads": heads,
        "depth": _whole(which, fields, "num_hidden_layers", 12),
        "mlp_width": _whole(which, fields, "intermediate_size", 3072),
        "activation": ACTIVATIONS[activation],
        "eps": fields.get("layer_norm_eps", 1e-12),
    }


def _whole(
    which: str, fields: Fields, name: str, default: int | None = None, least: int = 1
) -> int:
    value = fields.get(name, default)
    if value is None:
        raise InputError(f"{which} has no {name}: give {', '.join(LEAST)}.")
    if not isinstance(value, int) or value < least:
        raise InputError(f"{which}: {name}={value!r} must be a whole number of {least} or more.")
    return value


def _renamed(state_dict: State) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """{our name: (official name, tensor)}, and the official names that lead nowhere."""
    given: dict[str, tuple[str, Tensor]] = {}
    extra = []
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"state_dict[{name!r}] is no tensor but {type(value).__name__}: give what the "
                "official model's state_dict() returns."
            )
        ours = _ours(name)
        if ours in given or (ours is None and not any(re.fullmatch(u, name) for u in UNUSED)):
            extra.append(name)
        elif ours is not None:
            is_prompt = ours.endswith(tuple(PROMPTS.values())) and value.ndim == 3
            given[ours] = name, value[0] if is_prompt and len(value) == 1 else value  # -> (M, D)
    return given, extra


def _ours(name: str) -> str | None:
    """Our name for an official one; None where we have nothing like it."""
    encoders = (("vit", "image", convert_hf_image), ("bert", "text", convert_hf_text))
    for model, kind, converter in encoders:
        inner = name.removeprefix(f"{model}_encoder.")
        if inner.startswith("heads."):
            return inner.replace("heads", f"{kind}_head", 1)
        if inner != name:
            return next((f"{kind}_encoder.{ours}" for ours in converter({inner: None})), None)
    sides = {"v2t": "image", "vision": "image", "t2v": "text", "text": "text"}
    if found := re.fullmatch(r"(v2t|t2v)_(qp|qcp)\.(\d+)|(vision|text)_(fcp)\.(\d+)", name):
        direction, prompt, number = (part for part in found.groups() if part is not None)
        return f"fusion.{number}.{sides[direction]}.{PROMPTS[prompt]}"
    if found := re.fullmatch(r"(v2t|t2v)_trans\.(\d+)\.linear([12])\.(weight|bias)", name):
        direction, number, layer, end = found.groups()
        return f"fusion.{number}.{sides[direction]}.mapping.fc{layer}.{end}"
    return None


def _official_names(image_depth: int, text_depth: int, fusion_layers: int) -> dict[str, str]:
    """{our name: official name} of everything a model of these sizes has."""
    stems = []
    for model, (beside, inside), depth in (("vit", VIT, image_depth), ("bert", BERT, text_depth)):
        layers = [f"encoder.layer.{i}.{stem}" for i in range(depth) for stem in inside.split()]
        stems += [f"{model}_encoder.{stem}" for stem in [*beside.split(), *layers]]
    for i in range(fusion_layers):
        stems += [f"{side}_{p}.{i}" for side in ("v2t", "t2v") for p in ("qp", "qcp")]
        stems += [f"vision_fcp.{i}", f"text_fcp.{i}"]
        stems += [f"{side}_trans.{i}.linear{k}." for side in ("v2t", "t2v") for k in (1, 2)]
    ends = ("weight", "bias")
    names = [s + end for s in stems for end in (ends if s.endswith(".") else ("",))]
    return {_ours(name): name for name in names}


def _compare(
    given: dict[str, tuple[str, Tensor]],
    extra: list[str],
    shapes: dict[str, tuple[int, ...]],
    official: dict[str, str],
) -> None:
    """Refuse a state dict that is not exactly what the settings ask for."""
    missing = [official[name] for name in shapes if name not in given]
    wrong = []
    for name, (old, value) in given.items():
        if name not in shapes:
            extra = [*extra, old]
        elif tuple(value.shape) != shapes[name]:
            wrong.append(f"{old} of shape {tuple(value.shape)} and not {shapes[name]}")
    found = {"lacks": missing, "has, too many,": extra, "has": wrong}
    parts = []
    for what, names in found.items():
        more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
        parts += [f"{what} {', '.join(names[:SHOWN])}{more}"] if names else []
    if parts:
        raise InputError(
            f"The state dict {'; it '.join(parts)}: give the whole of it, and vit, bert and pmf as "
            "the model was built."
        )
