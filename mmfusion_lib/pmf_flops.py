"""FLOPs of a training step of PMF, in both forms of its fusion layer, from shapes alone.

Symbols as in ``pmf_cost``. Counted are matrix products: one for the forward pass, and in the backward
pass one more for each factor that needs a gradient. A frozen linear map has one such factor.
"""

from __future__ import annotations

from .accounting import block_flops, encoder_flops
from .encoder_config import EncoderConfig
from .pmf import PMFConfig
from .pmf_cost import FusionShape, fusion_shapes, mapping_width


def step_flops(
    image: EncoderConfig,
    text: EncoderConfig,
    pmf: PMFConfig,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    *,
    shared: bool = True,
    cached: bool = False,
) -> int:
    """FLOPs of the matrix products in one training step, forward and backward.

    Args:
        cached: base features are read, not computed.
        others: as for ``pmf_cost.activation_bytes``.
    """
    hidden, total = mapping_width(image, text, pmf), 0
    for s, other, n in ((image, text, image_tokens), (text, image, text_tokens)):
        if not cached:
            total += encoder_flops(s, n, batch)["embed"]
            total += (s.depth - pmf.num_fusion_layers) * block_flops(s, n, batch)
        layers = fusion_shapes(pmf, s)
        for layer in layers:
            total += (_shared_flops if shared else _plain_flops)(s, layer, n, batch)
            total += 3 * 2 * batch * layer.query * hidden * (s.width + other.width)
        reached = layers[-1].moving or layers[-1].trains
        total += (2 + reached) * 2 * batch * s.readout_width * pmf.num_classes
    return total


def _plain_flops(s: EncoderConfig, layer: FusionShape, n: int, b: int) -> int:
    total = 0
    if layer.query:
        total += block_flops(s, n + layer.query_extra, b, backward="inputs")
    backward = "inputs" if layer.moving or layer.trains else None
    return total + block_flops(s, n + layer.fusion_extra, b, backward=backward)


def _shared_flops(s: EncoderConfig, layer: FusionShape, n: int, b: int) -> int:
    d, q, e, moving = s.width, layer.query, layer.fusion_extra, layer.moving
    rows = layer.rows or n
    back = moving or layer.trains  # a gradient passes

    def attention(rows: int, keys: int, times: int) -> int:
        """``times``: one for the product, one for each factor that needs a gradient."""
        return times * b * rows * keys * d

    total = (1 + moving) * 2 * b * n * d * d  # keys and values of the tokens
    if q:
        total += 2 * 2 * layer.query_extra * d * d  # keys and values of the prompts
        total += 2 * b * q * d * d  # queries
        total += 2 * attention(q, n, 2 + moving) + 2 * attention(q, layer.query_extra, 3)
        total += 2 * b * q * (d * d + 2 * d * s.mlp_width)
    total += (1 + layer.trains) * 2 * b * e * d * d
    total += (1 + moving) * b * rows * d * d
    if layer.rows:
        total += attention(rows, n, 1 + 2 * moving) + attention(rows, n, 1 + back + moving)
        total += attention(rows, e, 1 + moving + layer.trains)
        total += attention(rows, e, 1 + back + layer.trains)
    else:  # keys of tokens and prompts are one tensor
        total += attention(rows, n + e, 1 + moving + back) + attention(rows, n + e, 1 + 2 * back)
    total += (1 + back) * b * rows * (d * d + 2 * d * s.mlp_width)
    return 2 * total
