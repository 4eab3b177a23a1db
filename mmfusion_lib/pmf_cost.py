"""What PMF costs beside its baselines, by formula: saved activations, parameters, memory.

Built on ``accounting``, whose symbols hold here: B batch, N tokens, T = B N, D width, F width of the
MLP, H heads. Besides, q, c, f are the lengths M_qp, M_qcp, M_fcp, and h is the width of a mapping.

PMF keeps nothing for its base layers: nothing trains there or below. A fusion layer in the *plain*
form is, on each side, two frozen blocks whose input needs a gradient, one over N + c + q tokens and
one over N + f + q: ``accounting.block_activation_bytes`` twice. In the *shared* form one side keeps,
in values of 4 bytes:

======================  ========================================================================
operation               keeps
======================  ========================================================================
norm1 of the tokens     T (D + 2), if pre-norm and not in the first fusion layer
querying, few rows q    TD keys and TD values of the tokens; 2 B (c + q) D of the prompts;
                        B q D queries; B H q (N + c + q) weights
fusion, all rows        TD queries; keys and values again, beside the prompts', B (N + f + q) D
                        each; and fused: TD output, B H N; written out: B H N (N + f + q) weights
fusion, few rows r      2 B (f + q) D of the prompts; B r D queries; B H r (N + f + q) weights;
                        keys and values of the tokens are those of querying
norm1 of the prompts    if pre-norm, (c + q) (D + 2) and, with the message, B (f + q) (D + 2)
rest of the block       norms (two; pre-norm: one) R (D + 2), the activation R F, for R = B q rows
                        and for R = B N (or B r)
mapping                 B q D input, B q h hidden
dropout p > 0           masks 2 R D; a mask as large as the weights, and the dropped weights
======================  ========================================================================

In the first fusion layer the tokens need no gradient. So norm1 keeps nothing there, nor does the
fusion stage keep keys when attention is written out or rows are few.

A shared layer keeps about (8 D + F) T in place of 2 (6 D + F) T, and a last layer that is read at CLS
alone about 2 TD, or 3 TD if pre-norm. Padding masks (T bytes) are left out. All is float32, as on a CPU: there a dropout
mask takes 4 bytes a value, on CUDA 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from .accounting import (
    block_activation_bytes,
    encoder_activation_bytes,
    encoder_parameters,
)
from .baselines.deep_prompts import PROMPTS
from .encoder_config import EncoderConfig
from .errors import InputError
from .pmf import PMFConfig

METHODS = ("pmf", "late-concat", "vpt+p-bert", "linear")
STATES = {"sgd": 1, "adamw": 2}  # optimizer's numbers for each that trains; sgd has momentum


# ------------------------------------------------------------------ parameters


def trainable_parameters(
    image: EncoderConfig, text: EncoderConfig, pmf: PMFConfig, *, method: str = "pmf"
) -> int:
    """Numbers that train.

    Args:
        image, text: the encoders.
        pmf: sizes of PMF; the other methods use its ``num_classes`` alone.
        method: ``"pmf"``; ``"late-concat"`` (both encoders, and a head on their two summaries);
            ``"vpt+p-bert"`` (the same, frozen, with prompts in every layer); ``"linear"`` (the
            same, frozen: the head).

    Raises:
        InputError: unknown method.
    """
    both, hidden = image.width + text.width, mapping_width(image, text, pmf)
    if method != "pmf":
        head = (image.readout_width + text.readout_width + 1) * pmf.num_classes
        whole = encoder_parameters(image) + encoder_parameters(text)
        deep = PROMPTS * (image.depth * image.width + text.depth * text.width)
        return head + {"late-concat": whole, "vpt+p-bert": deep, "linear": 0}[_known(method)]
    total = (image.readout_width + text.readout_width + 2) * pmf.num_classes
    for layer in fusion_shapes(pmf, image):
        context = layer.fusion_extra - layer.query
        total += (layer.query_extra + context * pmf.train_fusion_context) * both
        if layer.query and hidden:
            total += 2 * hidden * (both + 1) + both
    return total


def mapping_width(image: EncoderConfig, text: EncoderConfig, pmf: PMFConfig) -> int:
    """h, which follows from the widths where ``pmf`` leaves it open."""
    hidden = pmf.mapping_width
    return max(image.width, text.width) // 2 if hidden is None else hidden


class FusionShape(NamedTuple):
    """One fusion layer, as one side sees it."""

    query: int  # q
    query_extra: int  # c + q
    fusion_extra: int  # f + q
    moving: bool  # its tokens need a gradient, as something trains below
    trains: bool  # something trains in it
    rows: int | None  # of its output that are needed; None: all
    last: bool


def fusion_shapes(pmf: PMFConfig, side: EncoderConfig) -> list[FusionShape]:
    """All fusion layers, as the encoder ``side`` sees them."""
    names = ("query_prompts", "query_context_prompts", "fusion_context_prompts")
    found, moving = [], False
    for number, (q, c, f) in enumerate(zip(*(pmf.lengths(name) for name in names)), start=1):
        trains = q > 0 or (f > 0 and pmf.train_fusion_context)
        last = number == pmf.num_fusion_layers
        rows = 1 if last and side.readout == "cls" else None
        found.append(FusionShape(q, c + q if q else 0, f + q, moving, trains, rows, last))
        moving = moving or trains
    return found


def _known(method: str) -> str:
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}.")
    return method


# ------------------------------------------------------------------ saved activations


def activation_bytes(
    image: EncoderConfig,
    text: EncoderConfig,
    pmf: PMFConfig,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    *,
    method: str = "pmf",
    shared: bool = True,
    fused: bool = True,
    dropout: bool = False,
) -> int:
    """Saved activations of one training step.

    Args:
        image, text, pmf, method: as for ``trainable_parameters``.
        image_tokens, text_tokens: N of each side, CLS and padding included, prompts not.
        batch: B.
        shared: ``PMF.shared``.
        fused: ``Attention.fused``.
        dropout: the encoders' own dropout is on, as in the official file.

    Returns:
        Bytes.

    Raises:
        InputError: unknown method.
    """
    total = 0
    for side, tokens in ((image, image_tokens), (text, text_tokens)):
        side = side if dropout else replace(side, dropout=0.0)
        if _known(method) != "pmf":
            total += 4 * batch * side.readout_width  # what the head reads
        if method == "late-concat":
            total += encoder_activation_bytes(side, tokens, batch, fused=fused)
        elif method == "vpt+p-bert":
            total += _frozen(side, tokens + PROMPTS, batch, fused) * side.depth
            total += 4 * batch * (tokens + PROMPTS) * side.width * (side.norm == "pre")
            total += 4 * batch * tokens * 2 * (side.norm == "pre")
        elif method == "pmf":
            hidden = mapping_width(image, text, pmf)
            form = _shared if shared else _plain
            for layer in fusion_shapes(pmf, side):
                total += form(side, layer, tokens, batch, fused, hidden)
    return total


def _frozen(side: EncoderConfig, tokens: int, batch: int, fused: bool) -> int:
    return block_activation_bytes(side, tokens, batch, trainable=False, fused=fused)


def _plain(s: EncoderConfig, layer: FusionShape, n: int, b: int, fused: bool, hidden: int) -> int:
    """Bytes of one side of one layer in the plain form, and of the readout behind the last one."""
    d, q, pre = s.width, layer.query, s.norm == "pre"
    asked, joined = n + layer.query_extra, n + layer.fusion_extra
    reached = layer.moving or layer.trains
    kept = 0
    if q:
        kept += _frozen(s, asked, b, fused)
        # The message is a slice of all rows; where a view will do, all of them stay.
        kept += 4 * b * ((asked if b == 1 or q == 1 else q) * d + q * hidden) * (hidden > 0)
    if reached:
        kept += _frozen(s, joined, b, fused)
    if layer.last:
        kept += 4 * b * (joined * d + 2 * (layer.rows or n)) * (pre and reached)
        sliced = not pre and s.readout == "cls"  # the head reads a slice, too
        kept += 4 * b * (joined * d if sliced else s.readout_width)
    return kept


def _shared(s: EncoderConfig, layer: FusionShape, n: int, b: int, fused: bool, hidden: int) -> int:
    """Bytes of one side of one layer in the shared form, line by line as in the table."""
    d, heads, t, pre = s.width, s.heads, b * n, s.norm == "pre"
    q, moving = layer.query, layer.moving
    reached = moving or layer.trains
    maps = 3 if s.dropout > 0 else 1

    def few(rows: int, extra: int, keys: bool) -> int:
        prompts = b * extra * d * (1 + keys)
        return prompts + b * rows * d + maps * b * heads * rows * (n + extra)

    def rest(rows: int) -> int:
        norms = (1 if pre else 2) * (d + 2)
        activation = s.mlp_width * (2 if s.activation == "quick_gelu" else 1)
        return b * rows * (norms + activation + 2 * d * (s.dropout > 0))

    kept = t * (d + 2) * (pre and moving)
    if q:
        kept += 2 * t * d
        kept += layer.query_extra * (d + 2) * pre
        kept += few(q, layer.query_extra, True) + rest(q)
        kept += b * q * (d + hidden) * (hidden > 0)
    if reached:
        extra = layer.fusion_extra
        kept += b * extra * (d + 2) * (pre and layer.trains)
        if layer.rows:
            kept += few(layer.rows, extra, moving) + (0 if q else (1 + moving) * t * d)
        elif fused and s.dropout == 0:
            kept += 2 * t * d + 2 * b * (n + extra) * d + t * heads
        else:
            kept += t * d + (1 + moving) * b * (n + extra) * d + maps * t * heads * (n + extra)
        kept += rest(layer.rows or n)
    if layer.last:
        kept += b * (layer.rows or n) * (d + 2) * (pre and reached) + b * s.readout_width
    return 4 * kept


# ------------------------------------------------------------------ training memory


class TrainingMemory(NamedTuple):
    """Bytes that a training step needs at once, without passing buffers and the allocator's own."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


def training_memory(
    image: EncoderConfig,
    text: EncoderConfig,
    pmf: PMFConfig,
    image_tokens: int,
    text_tokens: int,
    batch: int,
    *,
    method: str = "pmf",
    optimizer: str = "sgd",
    **options: bool,
) -> TrainingMemory:
    """What fills the memory of a training step, in float32.

    Args:
        optimizer: ``"sgd"`` (with momentum: one number for each that trains) or ``"adamw"`` (two).
        options: ``shared``, ``fused``, ``dropout`` of ``activation_bytes``.
        others: as there.

    Raises:
        InputError: unknown method or optimizer.
    """
    if optimizer not in STATES:
        raise InputError(f"optimizer={optimizer!r} is unknown: use one of {', '.join(STATES)}.")
    trains = trainable_parameters(image, text, pmf, method=method)
    whole = replace(pmf, train_fusion_context=True)  # its weights are there, trained or not
    weights = trainable_parameters(image, text, whole, method=method)
    if method != "late-concat":
        weights += encoder_parameters(image) + encoder_parameters(text)
    sizes = (image, text, pmf, image_tokens, text_tokens, batch)
    activations = activation_bytes(*sizes, method=method, **options)
    return TrainingMemory(4 * weights, 4 * trains, 4 * STATES[optimizer] * trains, activations)


def saving(*sizes: object, **options: object) -> float:
    """Share of full fine-tuning's memory that PMF does not need: 1 - PMF / late concatenation.

    Arguments as for ``training_memory``, without ``method``.
    """
    whole = training_memory(*sizes, method="late-concat", **options)
    return 1 - training_memory(*sizes, method="pmf", **options).total / whole.total
