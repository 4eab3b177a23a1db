"""Where do two models part? Run both on the same input and compare them layer by layer.

Two implementations that agree at the end agree everywhere, but two that disagree tell nothing at
the end about the cause. Forward hooks record what every layer gives out; the first row of the
table that is not the same is the line of code to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import InputError


class Pair(NamedTuple):
    """Two modules whose outputs should be equal."""

    layer: str  # what the table calls it
    ours: str  # path of the module in our model
    reference: str  # path of the module in the reference
    enters: bool = False  # compare what enters the two modules instead


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    layer: str
    max_difference: float
    mean_difference: float
    verdict: str  # "same", "parts here" (the first that differs), "differs"


@dataclass(frozen=True)
class Trace:
    """The comparison; ``print`` shows it as a table."""

    rows: tuple[Row, ...]

    @property
    def parts_at(self) -> str | None:
        """The first layer that differs, or None when the two models are the same."""
        return next((row.layer for row in self.rows if row.verdict != "same"), None)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(row.layer) for row in self.rows))
        lines = [f"{'layer':<{width}}  max |difference|  mean |difference|  verdict"]
        for row in self.rows:
            lines.append(
                f"{row.layer:<{width}}  {row.max_difference:16.1e}  {row.mean_difference:17.1e}  "
                f"{row.verdict}"
            )
        return "\n".join(lines)


# class name of the reference -> path of a block, its attention branch, its MLP branch, last norm
_PATHS: dict[str, tuple[str, str, str, str]] = {
    "VisionTransformer (timm)": ("blocks.{}", "attn", "mlp", "norm"),
    "VisionTransformer (open_clip)": ("transformer.resblocks.{}", "attn", "mlp", "ln_post"),
    "ViTModel (transformers)": ("layers.{}", "attention", "mlp", "layernorm"),
    "Dinov2Model (transformers)": ("encoder.layer.{}", "attention", "mlp", "layernorm"),
    "BertModel (transformers)": ("encoder.layer.{}", "attention.output.dense", "output.dense", ""),
    "RobertaModel (transformers)": (
        "encoder.layer.{}",
        "attention.output.dense",
        "output.dense",
        "",
    ),
}


def pairs_for(ours: nn.Module, reference: nn.Module) -> list[Pair]:
    """Which of our modules stands for which of the reference's.

    Args:
        ours: an ``Encoder``, or anything with ``layers`` of blocks that have ``attention`` and
            ``mlp``, and a last ``norm``.
        reference: a model of timm, open_clip or transformers 5; another encoder like ours.

    Raises:
        InputError: the reference is of another kind.
    """
    library = type(reference).__module__.split(".")[0]
    name = f"{type(reference).__name__} ({library})"
    if hasattr(reference, "layers") and hasattr(reference, "readout"):
        block, attention, mlp, norm = "layers.{}", "attention", "mlp", "norm"
    elif name in _PATHS:
        block, attention, mlp, norm = _PATHS[name]
    else:
        raise InputError(
            f"No module pairs are known for {name}: use one of {', '.join(_PATHS)}, or give pairs."
        )
    pairs = [Pair("embeddings", "layers.0", block.format(0), enters=True)]
    for index in range(len(ours.layers)):
        layer, theirs = f"layers.{index}", block.format(index)
        pairs.append(Pair(f"{layer}.attention", f"{layer}.attention", f"{theirs}.{attention}"))
        pairs.append(Pair(f"{layer}.mlp", f"{layer}.mlp", f"{theirs}.{mlp}"))
        pairs.append(Pair(layer, layer, theirs))
    if norm:
        pairs.append(Pair("norm", "norm", norm))
    return pairs


@torch.no_grad()
def trace(
    ours: nn.Module,
    reference: nn.Module,
    *inputs: Tensor,
    pairs: Sequence[Pair] | None = None,
    tolerance: float = 1e-5,
) -> Trace:
    """Run both models on ``inputs``, without dropout, and compare them layer by layer.

    Args:
        ours: our model.
        reference: the other one, with the same weights.
        inputs: given to both in this order: pixels, or ids and mask.
        pairs: what to compare; None: ``pairs_for(ours, reference)``.
        tolerance: largest difference that counts as the same, relative to the largest value of
            the reference where that is above 1.

    Raises:
        InputError: no pairs are known, or a pair names a module that is not there or did not run.
    """
    pairs = pairs_for(ours, reference) if pairs is None else pairs
    mine = _record(ours, [(pair.ours, pair.enters) for pair in pairs], inputs)
    theirs = _record(reference, [(pair.reference, pair.enters) for pair in pairs], inputs)
    rows: list[Row] = []
    parted = False
    for pair, a, b in zip(pairs, mine, theirs):
        if a.shape != b.shape:
            largest = mean = float("inf")
        else:
            difference = (a.float() - b.float()).abs()
            largest, mean = difference.max().item(), difference.mean().item()
        same = largest <= tolerance * max(1.0, b.abs().max().item())  # False for NaN
        verdict = "same" if same else "differs" if parted else "parts here"
        parted = parted or not same
        rows.append(Row(pair.layer, largest, mean, verdict))
    return Trace(tuple(rows))


def _record(
    model: nn.Module, wanted: Sequence[tuple[str, bool]], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    """What leaves (or enters) each wanted module in one evaluation-mode forward pass."""
    found: dict[int, Tensor] = {}
    modules = dict(model.named_modules())
    hooks = []
    training = model.training
    try:
        for index, (path, enters) in enumerate(wanted):
            if path not in modules:
                raise InputError(
                    f"{type(model).__name__} has no module {path!r}: check the pairs, and that "
                    "both models have as many layers."
                )
            hook = _keeper(found, index, enters)
            hooks.append(modules[path].register_forward_hook(hook, with_kwargs=True))
        model.eval()
        model(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    for index, (path, _) in enumerate(wanted):
        if index not in found:
            raise InputError(
                f"{path!r} of {type(model).__name__} did not run: leave it out of the pairs."
            )
    return [found[index] for index in range(len(wanted))]


def _keeper(found: dict[int, Tensor], index: int, enters: bool) -> Callable[..., None]:
    """A hook that stores the tensor under ``index``; of a tuple, the first."""

    def keep(module: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> None:
        value = (arguments or tuple(keywords.values()))[0] if enters else output
        found[index] = (value[0] if isinstance(value, tuple) else value).detach().clone()

    return keep
