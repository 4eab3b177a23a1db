"""Names of the published Prismer checkpoints: all of them, and what they are called in our model."""

from __future__ import annotations

import re

from .convert import State, rename, split_qkv
from .prismer_config import PrismerConfig

POSITIONS = "expert_encoder.positional_embedding"
TIED = {  # second name -> first
    "text_decoder.lm_head.decoder.weight": (
        "text_decoder.roberta.embeddings.word_embeddings.weight"
    ),
    "text_decoder.lm_head.decoder.bias": "text_decoder.lm_head.bias",
}
UNUSED = "text_decoder.roberta.embeddings.position_ids"  # 0, 1, 2, ...: newer versions leave it out
RULES = (
    (r"^expert_encoder\.", "encoder."),
    (r"\.positional_embedding$", ".positions"),
    (r"\.instance_embedding$", ".instances"),
    (r"\.conv1\.rgb\.", ".patch."),
    (r"\.conv1\.", ".stems."),
    (r"\.ln_pre\.", ".input_norm."),
    (r"\.ln_post\.", ".norm."),
    (r"\.transformer\.resblocks\.(\d+)\.0\.", r".layers.\1.block."),
    (r"\.transformer\.resblocks\.(\d+)\.1\.", r".layers.\1."),
    (r"\.perceiver_blocks\.(\d+)\.(mlp\.)?", r".layers.\1."),
    (r"\.attn\.in_proj_", ".attention.qkv."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ln_ff\.", ".norm3."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
    (r"\.adaptor\.(down|up)_proj\.", r".adaptor.\1."),
    (r"\.adaptor_ln\.", ".adaptor.norm."),
    (r"^text_decoder\.(roberta\.)?(embeddings\.|encoder\.)?", "decoder."),
    (r"\.word_embeddings\.", ".words."),
    (r"\.position_embeddings\.", ".positions."),
    (r"\.token_type_embeddings\.", ".types."),
    (r"^decoder\.LayerNorm\.", "decoder.input_norm."),
    (r"^decoder\.layer\.(\d+)\.0\.", r"decoder.layers.\1.block."),
    (r"^decoder\.layer\.(\d+)\.1\.(self\.)?", r"decoder.layers.\1.cross."),
    (r"^decoder\.layer\.(\d+)\.2\.", r"decoder.layers.\1."),
    (r"\.cross\.output\.dense\.", ".cross.out."),
    (r"\.cross\.output\.LayerNorm\.", ".cross.norm."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
    (r"\.lm_head\.layer_norm\.", ".head.norm."),
    (r"\.lm_head\.", ".head."),
)
# Parts of the file; a dot at the end stands for weight and bias.
_NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
STEM = " ".join(
    [f"{n}.weight" for n in (1, 4, 7, 10, 13)] + [f"{n}.{s}" for n in (2, 5, 8, 11) for s in _NORM]
)
BLOCK = "attn.in_proj_weight attn.in_proj_bias attn.out_proj. mlp.c_fc. mlp.c_proj. ln_1. ln_2."
ADAPTOR = "adaptor.down_proj. adaptor.up_proj. adaptor_ln."
TABLES = "word_embeddings.weight position_embeddings.weight token_type_embeddings.weight LayerNorm."
READ = "self.query. self.key. self.value. output.dense. output.LayerNorm."
LAYER = "intermediate.dense. output.dense. output.LayerNorm."


def official_names(config: PrismerConfig) -> list[str]:
    """Every entry of the published file of such a model, ties once."""
    vision, text = "expert_encoder", "text_decoder.roberta.encoder"
    parts = [(vision, "positional_embedding conv1.rgb.weight ln_pre. ln_post.")]
    parts += [(f"{vision}.conv1.{name}", STEM) for name in config.stems]
    if "obj_detection" in config.experts:
        parts += [(vision, "instance_embedding")]
    if config.experts:
        parts += [(f"{vision}.resampler", "latents")]
        blocks = f"{vision}.resampler.perceiver_blocks"
        parts += [(f"{blocks}.{i}", f"{BLOCK} ln_ff.") for i in range(config.resampler_layers)]
    for i in range(config.image.depth):
        blocks = f"{vision}.transformer.resblocks.{i}"
        parts += [(f"{blocks}.0", BLOCK), (f"{blocks}.1", ADAPTOR)]
    parts += [("text_decoder.roberta.embeddings", TABLES)]
    for i in range(config.text.depth):
        layer = f"{text}.layer.{i}"
        parts += [(f"{layer}.0.attention", READ), (f"{layer}.0", LAYER)]
        parts += [(f"{layer}.1", READ), (f"{layer}.2", ADAPTOR)]
    parts += [(f"{text}.output_layer.attention", READ), (f"{text}.output_layer", LAYER)]
    parts += [("text_decoder.lm_head", "bias dense. layer_norm.")]
    stems = [f"{part}.{end}" for part, ends in parts for end in ends.split()]
    ends = ("weight", "bias")  # what a dot at the end stands for
    return [s + end for s in stems for end in (ends if s.endswith(".") else ("",))]


def to_ours(state: State) -> State:
    """Official names to ours; query, key and value apart."""
    state = rename(state, RULES)
    # Layer 0 of an official stem resizes; ours does not count it.
    return split_qkv(
        {
            re.sub(r"(stems\.\w+)\.(\d+)", lambda m: f"{m[1]}.network.{int(m[2]) - 1}", name): value
            for name, value in state.items()
        }
    )
