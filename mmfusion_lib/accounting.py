"""What a model costs: predicted by formula, then measured. Parameters, memory, FLOPs, minutes.

Training memory is mostly *saved activations*: what autograd keeps of the forward pass until the
backward pass has used it. The formulas below list it operation by operation, and the list explains
PMF's main claim. A frozen linear map need not keep its input (that is for the weight's gradient),
and a layer below the lowest thing that trains keeps nothing at all.

Symbols: B batch, N tokens, T = B N, D width, F width of the MLP, H heads. A multiply-add is 2 FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import InputError

if TYPE_CHECKING:
    from .encoders import EncoderConfig

# ------------------------------------------------------------------ parameters


@dataclass(frozen=True)
class ParameterRow:
    """Parameters of one part of a model; a tensor that two parts share counts in the first."""

    name: str
    total: int
    trainable: int

    @property
    def share(self) -> float:
        """Trainable share, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0


def parameters(model: nn.Module) -> list[ParameterRow]:
    """One row for each top-level part of ``model``, and a last one, ``"all"``."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        count = counts.setdefault(name.partition(".")[0], [0, 0])
        count[0] += parameter.numel()
        count[1] += parameter.numel() * parameter.requires_grad
    rows = [ParameterRow(name, total, trains) for name, (total, trains) in counts.items()]
    return [*rows, ParameterRow("all", sum(r.total for r in rows), sum(r.trainable for r in rows))]


def parameter_table(model: nn.Module) -> str:
    """``parameters`` as text."""
    cells = [("part", "parameters", "trainable", "share")]
    for row in parameters(model):
        cells.append((row.name, f"{row.total:,}", f"{row.trainable:,}", f"{row.share:.2%}"))
    return _table(cells)


def block_parameters(config: EncoderConfig) -> int:
    """One block: four D x D maps, two of the MLP, two norms, and two layer scales if there are."""
    d, f = config.width, config.mlp_width
    scales = 2 * d if config.layer_scale is not None else 0
    return 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d + scales


def encoder_parameters(config: EncoderConfig) -> int:
    """A whole encoder: the tables that make tokens, the blocks, and the norms around them."""
    d = config.width
    blocks = config.depth * block_parameters(config)
    last_norm = 2 * d if config.norm == "pre" else 0
    if config.kind == "image":
        patch = config.channels * config.patch_size**2 * d + d * config.patch_bias
        positions = (1 + config.patches) * d
        return patch + d + positions + 2 * d * config.input_norm + blocks + last_norm
    rows = config.vocab_size + config.max_positions + config.position_offset + config.token_types
    return rows * d + 2 * d + blocks + last_norm


# ------------------------------------------------------------------ saved activations


def saved_activation_bytes(run: Callable[[], Any], modules: Iterable[nn.Module] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of ``run()``, which must not run it.

    Every storage counts once, whole, as it is. Gradients, optimizer state, passing buffers and the
    allocator's overhead are not in it, so a GPU shows more; ratios are what this is good for.

    Args:
        run: a forward pass.
        modules: their parameters and buffers are not counted, as they are there anyway.
    """
    own = {
        tensor.untyped_storage().data_ptr()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def block_activation_bytes(
    config: EncoderConfig,
    tokens: int,
    batch: int,
    *,
    trainable: bool = True,
    fused: bool = True,
    precision: str = "no",
    device: str = "cpu",
) -> int:
    """Saved activations of one block whose *input* needs a gradient.

    ============================  ======================  =====================================
    operation                     keeps, when trainable   keeps, when frozen
    ============================  ======================  =====================================
    2 LayerNorms                  2 TD inputs, 4 T stats  the same
    query, key, value             TD: their one input     nothing
    attention, written out        3 TD, B H N N weights   the same
    attention, fused              3 TD, TD out, B H N     the same
    out                           TD (fused: as above)    nothing
    fc1, fc2                      TD and TF               nothing
    activation                    TF (QuickGELU: 2 TF)    the same
    2 layer scales                2 TD                    nothing
    dropout p > 0                 2 TD, 2 B H N N         the same: masks, dropped weights
    bf16 autocast                 half-size copies        of weights, too; norms stay float32
    ============================  ======================  =====================================

    Where the norm stands changes nothing. Padding masks (T values) are left out.

    Args:
        config: of the encoder that the block is in.
        tokens: N, CLS and prompts included.
        batch: B.
        trainable: the weights train; False: they are frozen, and only the input needs a gradient.
        fused: ``Attention.fused``.
        precision: as in ``TrainConfig``: ``"no"``, or ``"bf16"`` for autocast.
        device: ``"cpu"`` or ``"cuda"``. On CUDA a dropout mask takes 1 byte a value, fused
            attention needs none, and autocast keeps a softmax in float32.

    Returns:
        Bytes.
    """
    if precision not in ("no", "bf16"):
        raise InputError(f"precision={precision!r} is unknown: use 'no' or 'bf16'.")
    half, cuda = precision == "bf16", device == "cuda"
    size = 2 if half else 4  # bytes of a value between the matrix products
    d, f, heads = config.width, config.mlp_width, config.heads
    t, maps = batch * tokens, batch * heads * tokens * tokens

    norms = 4 * (2 * t * d + 4 * t)
    # Autocast makes a half-size copy of the one float32 input for each of query, key and value.
    inputs = size * (t * d * (3 if half else 1) + t * d + t * f) if trainable else 0
    activation = size * t * f * (2 if config.activation == "quick_gelu" else 1)
    scales = size * 2 * t * d if trainable and config.layer_scale is not None else 0
    weights = size * (4 * d * d + 2 * d * f) if half else 0

    drops = config.dropout > 0
    mask = 1 if cuda else size
    if fused and (cuda or not drops):
        attention = size * 4 * t * d + 4 * batch * heads * tokens
    else:  # on a CPU, dropout sends fused attention the long way, and in float32
        inner = 4 if fused else size
        attention = inner * (3 * t * d + maps) + (4 * maps if cuda and half else 0)
        attention += ((1 if cuda else inner) + inner) * maps if drops else 0
        attention += size * t * d if trainable else 0
    dropout = mask * 2 * t * d if drops else 0
    return norms + inputs + activation + scales + weights + attention + dropout


def encoder_activation_bytes(
    config: EncoderConfig, tokens: int, batch: int, *, trainable: bool = True, **options: Any
) -> int:
    """Saved activations of a whole encoder: blocks, the norms around them, and the inputs.

    Args:
        config, tokens, batch, options: as for ``block_activation_bytes``.
        trainable: False: everything is frozen and the input needs no gradient: 0 bytes.
    """
    if not trainable:
        return 0
    t, d = batch * tokens, config.width
    norm = 4 * (t * d + 2 * t)
    norms = norm * ((config.norm == "pre") + (config.kind == "text" or config.input_norm))
    if config.kind == "text":
        inputs = 8 * t  # the ids
    else:
        size = 2 if options.get("precision") == "bf16" else 4
        inputs = size * batch * (tokens - 1) * config.channels * config.patch_size**2  # the pixels
    drops = 0
    if config.dropout > 0:
        drops = t * d * (1 if options.get("device") == "cuda" else 4)
    return (
        config.depth * block_activation_bytes(config, tokens, batch, **options)
        + norms
        + inputs
        + drops
    )


# ------------------------------------------------------------------ FLOPs


def block_flops(
    config: EncoderConfig, tokens: int, batch: int, *, backward: str | None = None
) -> int:
    """FLOPs of the matrix products in one block; norms, activations and sums are left out (~1 %).

    Forward: 2 T (4 D^2 + 2 D F) in the linear maps, 4 B N^2 D in attention.

    Args:
        backward: None: forward alone. ``"inputs"``: plus the backward pass through frozen weights,
            one more product for each linear map. ``"weights"``: the weights train, two more. Both
            of attention's products have two moving factors: two more each, in either case.
    """
    if backward not in (None, "inputs", "weights"):
        raise InputError(f"backward={backward!r} is unknown: use None, 'inputs' or 'weights'.")
    d, t = config.width, batch * tokens
    linear = 2 * t * (4 * d * d + 2 * d * config.mlp_width)
    attention = 4 * batch * tokens * tokens * d
    times = {None: (1, 1), "inputs": (2, 3), "weights": (3, 3)}[backward]
    return times[0] * linear + times[1] * attention


def encoder_flops(config: EncoderConfig, tokens: int, batch: int) -> dict[str, int]:
    """Forward FLOPs of the parts of an encoder: ``embed``, ``layers`` and their sum ``all``.

    Looking up word vectors is free; patches are one product of (C P^2) x D for each."""
    embed = 0
    if config.kind == "image":
        values = config.channels * config.patch_size**2
        embed = 2 * batch * (tokens - 1) * values * config.width
    layers = config.depth * block_flops(config, tokens, batch)
    return {"embed": embed, "layers": layers, "all": embed + layers}


def conv_flops(conv: nn.Conv2d, height: int, width: int, batch: int) -> int:
    """Forward FLOPs of a convolution whose *output* is ``height`` x ``width``."""
    kernel = conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels // conv.groups
    return 2 * batch * height * width * conv.out_channels * kernel


def measured_flops(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions that ``run()`` performs, by PyTorch's count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# ------------------------------------------------------------------ minutes


def measured_rate(run: Callable[[], Any], work: float, seconds: float = 1.0) -> float:
    """Work done per second on this machine, from a short probe: one run to warm up, then several.

    Args:
        run: does ``work`` units: FLOPs, samples or steps.
        work: units a run.
        seconds: the probe goes on for at least so long.
    """

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    run()
    wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        run()
        wait()
        count += 1
    return work * count / (time.perf_counter() - start)


def predicted_minutes(work: float, rate: float) -> float:
    """Minutes for ``work`` units at ``rate`` units a second."""
    return work / rate / 60


@dataclass(frozen=True)
class Cost:
    """What a run costs. None: not predicted, or not measured."""

    parameters: int | None = None
    trainable: int | None = None
    activation_bytes: int | None = None
    flops: float | None = None
    minutes: float | None = None


def cost_table(predicted: Cost, measured: Cost) -> str:
    """Text table: predicted, measured, and measured / predicted."""
    cells = [("cost", "predicted", "measured", "ratio")]
    for field in fields(Cost):
        p, m = getattr(predicted, field.name), getattr(measured, field.name)
        if p is None and m is None:
            continue
        ratio = f"{m / p:.3f}" if p and m is not None else "-"
        cells.append((field.name.replace("_", " "), _number(p), _number(m), ratio))
    return _table(cells)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 or float(value).is_integer() else f"{value:.3g}"


def _table(cells: list[tuple[str, ...]]) -> str:
    """First column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in cells
    )
