"""What Prismer costs, from shapes alone: parameters by part and freeze mode, saved activations.

Symbols: D width of the image encoder, H of the text encoder, h inside an adaptor, L tokens of the vision side,
M tokens of all experts, Q latents, B batch. Checked against models on the meta device (parameters)
and against what autograd keeps (activations).

Saved activations of the vision side, float32 on a CPU, beside those of its frozen blocks
(``accounting.block_activation_bytes``):

===================  ==================================================================
adaptor              4 LD (norm's input and output, and the two of width h = D), 2 L statistics
stem                 the map, and a stage: input of BatchNorm and output of ReLU
resampler layer      norms of latents, latents after attention and tokens; keys and values of Q + M
===================  ==================================================================

Freezing the blocks saves their gradients and the optimizer's numbers. It saves few activations: an
adaptor sits in every block, so gradients travel through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from .accounting import block_activation_bytes, block_parameters
from .errors import InputError
from .experts.label_map import kind_of
from .prismer_config import PrismerConfig
from .prismer_encoder import INSTANCES
from .stems import channels_of, stem_of

FROZEN = {  # parts that a mode freezes
    "lang_vision": ("image blocks", "text blocks"),
    "vision": ("image blocks",),
    "lang": ("text blocks",),
    "none": (),
}


def parameters(config: PrismerConfig) -> dict[str, int]:
    """Parameters by part; the word table, tied to the head, counts once."""
    image, text = config.image, config.text
    d, w = image.width, text.width
    patches = (config.image_size // image.patch_size) ** 2
    found = {
        "image blocks": image.depth * block_parameters(image),
        "patch projection": image.channels * image.patch_size**2 * d + d * image.patch_bias,
        "image positions": patches * d,
        "image norms": 2 * d * (1 + image.input_norm),
        "stems": sum(stem_parameters(stem, d) for stem in config.stems),
        "resampler": 0,
        "instance table": INSTANCES * d * ("obj_detection" in config.experts),
        "image adaptors": image.depth * adaptor_parameters(config, d),
        "text blocks": text.depth * block_parameters(text),
        "word table": text.vocab_size * w,
        "text positions": (text.max_positions + text.position_offset + text.token_types) * w
        + 2 * w,
        "cross-attention": text.depth * (2 * (w * w + w) + 2 * (d * w + w) + 2 * w),
        "text adaptors": text.depth * adaptor_parameters(config, w),
        "output layer": block_parameters(text),
        "head": w * w + w + 2 * w + text.vocab_size,
    }
    if config.experts:
        layer = 3 * 2 * d + 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
        found["resampler"] = config.num_latents * d + config.resampler_layers * layer
    return found


def stem_parameters(stem: str, width: int) -> int:
    """Four 3x3 convolutions, their BatchNorms, one 1x1 convolution."""
    widths = [channels_of(stem), width // 8, width // 4, width // 2, width]
    convolutions = sum(9 * before * after for before, after in pairwise(widths))
    return convolutions + 2 * sum(widths[1:]) + width * width


def adaptor_parameters(config: PrismerConfig, width: int) -> int:
    """Two maps and a norm."""
    h = width if config.adaptor_bottleneck is None else config.adaptor_bottleneck
    return (width * h + h) + (h * width + width) + 2 * width + config.adaptor_gate


def trainable_parameters(config: PrismerConfig, mode: str = "lang_vision") -> int:
    """Parameters that train in a freeze mode of ``Prismer.freeze``.

    Raises:
        InputError: unknown mode.
    """
    if mode not in FROZEN:
        raise InputError(f"mode={mode!r} is unknown: use one of {', '.join(FROZEN)}.")
    return sum(n for part, n in parameters(config).items() if part not in FROZEN[mode])


def tokens(config: PrismerConfig, experts: Iterable[str], map_size: int = 224) -> dict[str, int]:
    """How long the sequences are: ``patches``, ``experts`` (M), ``latents`` and ``vision`` (L)."""
    patches = (config.image_size // config.image.patch_size) ** 2
    side = grid_side(config, map_size)
    count = len(list(experts))
    latents = config.num_latents if count else 0
    found = {"patches": patches, "experts": count * side**2, "latents": latents}
    return {**found, "vision": patches + latents}


def grid_side(config: PrismerConfig, map_size: int) -> int:
    """Tokens a side of one expert's grid: four halvings of the resized map, rounded up."""
    side = int(map_size * (16 / config.image.patch_size))
    for _ in range(4):
        side = (side + 1) // 2
    return side


def activation_bytes(
    config: PrismerConfig,
    experts: Iterable[str],
    map_size: int,
    batch: int,
    *,
    frozen: bool = True,
) -> dict[str, int]:
    """Saved activations of one training step of the vision side, by part, float32 on a CPU.

    Args:
        experts: those that are given, in any order.
        map_size: pixels a side of their maps.
        batch: B.
        frozen: the pretrained blocks are frozen; False: they train.
    """
    experts = list(experts)
    size = tokens(config, experts, map_size)
    d, rows = config.image.width, batch * size["vision"]
    h = d if config.adaptor_bottleneck is None else config.adaptor_bottleneck
    block = block_activation_bytes(config.image, size["vision"], batch, trainable=not frozen)
    adaptor = 4 * rows * (2 * d + 2 * h + 2) + 4 * rows * d * config.adaptor_gate
    norm = 4 * rows * (d + 2)
    picture = 4 * batch * config.image.channels * config.image_size**2
    found = {
        "picture": picture,
        "blocks": config.image.depth * block,
        "adaptors": config.image.depth * adaptor,
        "norms": norm * (1 + config.image.input_norm),
        "stems": sum(_stem_bytes(config, expert, map_size, batch) for expert in experts),
        "resampler": _resampler_bytes(config, size["experts"], batch) if experts else 0,
    }
    return found


def _stem_bytes(config: PrismerConfig, expert: str, map_size: int, batch: int) -> int:
    """The resized map; a stage: input of BatchNorm with 2 statistics a channel, output of ReLU."""
    stem, d = stem_of(expert), config.image.width
    low = not kind_of(stem).semantic
    side = int(map_size * ((16 if low else 4) / config.image.patch_size))
    kept = batch * channels_of(stem) * side**2
    for width, stride in zip((d // 8, d // 4, d // 2, d), (2, 2, 2, 2) if low else (2, 2, 1, 1)):
        side = -(-side // stride)
        kept += 2 * batch * width * side**2 + 2 * width
    if stem == "obj_detection":
        kept += 2 * batch * side**2  # which row of the instance table: 8 bytes a cell
    return 4 * kept


def _resampler_bytes(config: PrismerConfig, count: int, batch: int) -> int:
    """All layers: each reads the same tokens, which are kept once."""
    d, q = config.image.width, config.num_latents
    latents, tokens, both = batch * q, batch * count, batch * (q + count)
    layer = 3 * latents * (d + 2)  # norm1, norm3: inputs and statistics; norm1's output
    layer += latents * d - 2 * latents  # norm3's output has no statistics of its own
    layer += tokens * 2  # norm2's statistics; its input is shared by all layers
    layer += both * d  # what keys and values are made of
    layer += latents * d + 2 * both * d  # query, keys, values
    layer += latents * d + batch * config.resampler_heads * q  # attention's output, log-sum-exp
    layer += 2 * latents * 4 * d  # hidden: ReLU's output, its square
    # The latents that enter the first layer are a parameter, which is there anyway.
    return 4 * (tokens * d - latents * d + config.resampler_layers * layer)
