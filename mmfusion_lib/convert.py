"""State dicts of the reference libraries, renamed into ours.

Each converter is a table of rewrites, applied in order to every name. Two libraries keep query,
key and value in one matrix; that is cut in three. Names that are left over are reported by
``checkpoints.load_weights``, so a table that forgets something fails loudly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

State = dict[str, Tensor]

# transformers, ViTModel and Dinov2Model: names of version 4 and of version 5.
HF_IMAGE = (
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.cls_token", "cls"),
    (r"^embeddings\.position_embeddings", "positions"),
    (r"^embeddings\.patch_embeddings\.projection", "patch"),
    (r"^(encoder\.)?layers?\.", "layers."),
    (r"\.attention\.(attention\.)?(query|key|value)\b", r".attention.\2"),
    (r"\.attention\.q_proj", ".attention.query"),
    (r"\.attention\.k_proj", ".attention.key"),
    (r"\.attention\.v_proj", ".attention.value"),
    (r"\.attention\.(output\.dense|o_proj)", ".attention.out"),
    (r"\.layernorm_before", ".norm1"),
    (r"\.layernorm_after", ".norm2"),
    (r"\.intermediate\.dense", ".mlp.fc1"),
    (r"(layers\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"\.layer_scale([12])\.lambda1", r".scale\1.factor"),
    (r"^layernorm\.", "norm."),
)

# transformers, BertModel and RobertaModel; older files call a norm's weights gamma and beta.
HF_TEXT = (
    (r"^(bert|roberta)\.", ""),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^embeddings\.word_embeddings", "words"),
    (r"^embeddings\.position_embeddings", "positions"),
    (r"^embeddings\.token_type_embeddings", "types"),
    (r"^embeddings\.LayerNorm", "input_norm"),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense", ".attention.out"),
    (r"\.attention\.output\.LayerNorm", ".norm1"),
    (r"\.intermediate\.dense", ".mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
    (r"\.output\.LayerNorm", ".norm2"),
)

# timm, VisionTransformer.
TIMM = (
    (r"^cls_token", "cls"),
    (r"^pos_embed", "positions"),
    (r"^patch_embed\.proj", "patch"),
    (r"^norm_pre", "input_norm"),
    (r"^blocks\.", "layers."),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.proj\.", ".attention.out."),
    (r"\.ls([12])\.gamma", r".scale\1.factor"),
)

# open_clip, VisionTransformer (the image tower), and OpenAI's own files.
OPEN_CLIP = (
    (r"^visual\.", ""),
    (r"^class_embedding", "cls"),
    (r"^positional_embedding", "positions"),
    (r"^conv1\.", "patch."),
    (r"^ln_pre", "input_norm"),
    (r"^ln_post", "norm"),
    (r"^transformer\.resblocks\.", "layers."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attention.qkv."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def convert_hf_image(state: State) -> State:
    """``transformers.ViTModel`` or ``Dinov2Model`` -> ``ImageEncoder``."""
    return rename(state, HF_IMAGE, drop=("pooler.", "classifier.", "embeddings.mask_token"))


def convert_hf_text(state: State) -> State:
    """``transformers.BertModel`` or ``RobertaModel``, bare or inside a task model -> ``TextEncoder``."""
    return rename(state, HF_TEXT, drop=("pooler.", "cls.", "lm_head.", "embeddings.position_ids"))


def convert_timm(state: State) -> State:
    """``timm`` ``VisionTransformer`` -> ``ImageEncoder``."""
    return split_qkv(rename(state, TIMM, drop=("head.",)))


def convert_open_clip(state: State) -> State:
    """Image tower of ``open_clip``, alone or inside the whole model -> ``ImageEncoder``."""
    if any(name.startswith("visual.") for name in state):  # leave the text tower behind
        state = {name: value for name, value in state.items() if name.startswith("visual.")}
    state = split_qkv(rename(state, OPEN_CLIP, drop=("proj",)))
    state["cls"] = state["cls"][None, None]  # (D) -> (1, 1, D)
    state["positions"] = state["positions"][None]  # (1 + N, D) -> (1, 1 + N, D)
    return state


CONVERTERS = {
    "hf_image": convert_hf_image,
    "hf_text": convert_hf_text,
    "timm": convert_timm,
    "open_clip": convert_open_clip,
}


def rename(state: State, table: Iterable[tuple[str, str]], drop: tuple[str, ...] = ()) -> State:
    """Apply every rewrite of ``table``, in order, to every name of ``state``.

    Args:
        state: name -> tensor.
        table: (pattern, replacement) pairs for ``re.sub``. Patterns that strip the name of a
            whole model come first.
        drop: entries whose name starts so, after the first rewrite, are left out.
    """
    (prefix, nothing), *rules = table
    renamed = {}
    for name, value in state.items():
        name = re.sub(prefix, nothing, name)
        if name.startswith(drop):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def split_qkv(state: State) -> State:
    """``*.qkv.*`` of shape (3D, ...) -> ``*.query.*``, ``*.key.*``, ``*.value.*`` of (D, ...)."""
    split = {}
    for name, value in state.items():
        if ".qkv." not in name:
            split[name] = value
            continue
        for part, piece in zip(("query", "key", "value"), value.chunk(3)):
            split[name.replace(".qkv.", f".{part}.")] = piece
    return split
