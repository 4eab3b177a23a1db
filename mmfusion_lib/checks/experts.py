"""Checkers of the exercises of chapter 4. Each takes the learner's function and says what is wrong.

Two exercises ask for a *test*: the checker hands it sound functions and functions with a fault put
in, and wants to hear which is which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adaptors import Adaptor
from ..experts import painting
from ..experts.geometry import Geometry, transform_labels
from ..experts.labels import NOTHING, LabelMap
from ..prismer_cost import stem_parameters
from ..resampler import ResamplerLayer
from .result import checker


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _filled(module: nn.Module) -> nn.Module:
    """The module with random values that are the same in every run."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.copy_(0.4 * _random(*parameter.shape, seed=seed))
    return module.eval()


def _close(found: Any, expected: Tensor) -> bool:
    right = isinstance(found, Tensor) and found.shape == expected.shape
    return right and bool((found - expected).abs().max() <= 1e-5)


# ------------------------------------------------------------------ 1. paint a map


@checker("1 paint a map")
def check_paint(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``fn(ids (B, h, w) uint8, table (K, 64) or (B, K, 64))`` -> (B, 64, h, w); 255 = nothing."""
    ids = torch.tensor([[[0, 2, 255], [1, 1, 0]], [[255, 0, 0], [2, 1, 2]]], dtype=torch.uint8)
    for table, form in ((_random(3, 64), "one table"), (_random(2, 3, 64, seed=1), "two tables")):
        handed = ids.clone(), table.clone()
        found, right = fn(*handed), painting.paint({"ids": ids, "table": table})
        if not (torch.equal(handed[0], ids) and torch.equal(handed[1], table)):
            return f"{form}: what was given has changed: the map is still needed."
        if _close(found, right):
            continue
        if tuple(found.shape) != tuple(right.shape):
            where = "(B, 64, h, w): the width comes before the pixels"
            return (
                f"{form}: yours is {tuple(found.shape)}, it must be {tuple(right.shape)}, {where}."
            )
        here = (ids != NOTHING)[:, None].expand_as(right)
        if _close(found[here], right[here]):
            return (
                f"{form}: a pixel of id 255 has a vector: 255 stands for nothing, and gets zeros."
            )
        if _close(found[0], right[0]):
            return f"{form}: the first picture is right, the second is not: whose table is it?"
        off = (ids != NOTHING) & ~((found - right).abs().amax(1) <= 1e-5)  # (B, h, w)
        b, y, x = off.nonzero()[0].tolist()
        return (
            f"{form}: shape right, values not: pixel ({y}, {x}) of picture {b} has id {ids[b, y, x]}, "
            f"so it gets row {ids[b, y, x]} of its table."
        )
    return ""


# ------------------------------------------------------------------ 2. read


@checker("2 read")
def check_read(fn: Callable[..., Tensor]) -> str:
    """``fn(layer, latents (B, N_q, D), tokens (B, N_e, D))`` -> (B, N_q, D), what is added to them.

    ``layer`` is a ``ResamplerLayer`` whose own ``read`` is taken away.
    """
    layer = _filled(ResamplerLayer(8, 2))
    latents, tokens = _random(2, 3, 8, seed=50), 2 * _random(2, 5, 8, seed=51)
    a, q, x = layer.attention, layer.norm1(latents), layer.norm2(tokens)

    def attend(q: Tensor, source: Tensor, *, heads: int = 2, scale: float = 2.0, axis: int = -1):
        def split(values: Tensor) -> Tensor:
            return values.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, D/H)

        query, key, value = split(a.query(q)), split(a.key(source)), split(a.value(source))
        weights = (query @ key.transpose(-1, -2) / scale).softmax(axis)
        return (weights @ value).transpose(1, 2).flatten(2)  # (B, H, N_q, D/H) -> (B, N_q, D)

    both = torch.cat([q, x], dim=1)  # (B, N_q + N_e, D)
    right = layer.read(q, x)
    found = fn(_parts(layer), latents, tokens)
    if _close(found, right):
        return ""
    if tuple(found.shape) != tuple(right.shape):
        return f"the result must be {tuple(right.shape)}, a row a latent; yours is {tuple(found.shape)}."
    raw = torch.cat([latents, tokens], dim=1)
    slips = {
        "the latents do not read each other: who is among the keys and values?": a.out(
            attend(q, x)
        ),
        "the tokens are not read: they belong behind the latents.": a.out(attend(q, q)),
        "both are normalised before they are read, each by its own norm.": a.out(
            attend(latents, raw)
        ),
        "tokens have a norm of their own, norm2.": a.out(
            attend(q, torch.cat([q, layer.norm1(tokens)], 1))
        ),
        "scores are divided by the root of the width of a head.": a.out(attend(q, both, scale=1.0)),
        "by the root of the width of a head, not of the whole width.": a.out(
            attend(q, both, scale=8**0.5)
        ),
        "the weights of each latent sum to 1: over which axis is the softmax?": a.out(
            attend(q, both, axis=-2)
        ),
        "the layer has two heads: cut the width before scores are made.": a.out(
            attend(q, both, heads=1, scale=8**0.5)
        ),
        "the heads' results go through attention.out.": attend(q, both),
        "give back what is to be added; the residual is the layer's own.": latents + right,
    }
    for hint, slip in slips.items():
        if _close(found, slip):
            return hint
    return "shape right, values not: compare with the five steps of the chapter."


def _parts(layer: ResamplerLayer) -> ResamplerLayer:
    """The same layer without ``read`` and ``forward``, which are what is asked for."""

    class Parts(ResamplerLayer):
        def read(self, *inputs: Tensor) -> Tensor:
            raise RuntimeError("read is what you are to write: use attention.query and the others.")

        forward = read

    parts = Parts(8, 2).eval()
    parts.load_state_dict(layer.state_dict())
    return parts


# ------------------------------------------------------------------ 3. labels left behind


Move = Callable[[Geometry, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def move(geometry: Geometry, picture: np.ndarray, labels: np.ndarray) -> tuple:
    """A picture (H, W) and its map (h, w), both uint8, moved alike: what exercise 3 tests.

    Outside pixels are 255 in both. The picture of a test may be anything, also a drawn map.
    """
    return _moved(geometry, picture), _moved(geometry, labels)


def _moved(geometry: Geometry, values: np.ndarray) -> np.ndarray:
    return transform_labels(geometry, LabelMap("seg", values)).map


def _in_pixels(geometry: Geometry, picture: np.ndarray, labels: np.ndarray) -> tuple:
    """The published fault: the shift is in pixels of the picture, for the map too."""
    x, y = geometry.shift
    x, y = x * picture.shape[1] / labels.shape[1], y * picture.shape[0] / labels.shape[0]
    limit = 1 - 1e-6
    wrong = replace(geometry, shift=(max(-limit, min(x, limit)), max(-limit, min(y, limit))))
    return _moved(geometry, picture), _moved(wrong, labels)


def _with(**changes: Any) -> Move:
    """The map is moved by another geometry than the picture."""

    def fault(geometry: Geometry, picture: np.ndarray, labels: np.ndarray) -> tuple:
        other = replace(geometry, **{k: v(getattr(geometry, k)) for k, v in changes.items()})
        return _moved(geometry, picture), _moved(other, labels)

    return fault


FAULTS: dict[str, Move] = {
    "a map that is shifted by as many pixels as the picture": _in_pixels,
    "a map that is never mirrored": _with(flip=lambda flip: False),
    "a map that is not cropped": _with(box=lambda box: (0.0, 0.0, 1.0, 1.0)),
    "a map that is shifted the other way": _with(shift=lambda s: (-s[0], -s[1])),
    "a map that is not shifted down": _with(shift=lambda s: (s[0], 0.0)),
}


@checker("3 labels left behind")
def check_alignment_test(fn: Callable[[Move], bool]) -> str:
    """``fn(move) -> bool``: whether a picture and its map stay aligned under ``move``."""
    if not fn(move):
        return "it calls a sound function faulty: sizes differ, so compare loosely at the borders."
    for name, fault in FAULTS.items():
        if fn(fault):
            extra = " Is your map of another size than the picture?" if fault is _in_pixels else ""
            return f"it does not see {name}.{extra}"
    return ""


# ------------------------------------------------------------------ 4. the parameters of a stem


@checker("4 the parameters of a stem")
def check_stem_count(fn: Callable[[int, int], int]) -> str:
    """``fn(channels, width)`` -> parameters of a stem (channels 1, 3 or 64)."""
    for channels, width in ((64, 768), (1, 768), (3, 32)):
        name = {1: "depth", 3: "normal", 64: "seg"}[channels]
        right, found = stem_parameters(name, width), fn(channels, width)
        if found == right:
            continue
        hidden = width // 8 + width // 4 + width // 2 + width
        slips = {
            "convolutions have no bias: the norm behind them has one.": right + hidden,
            "no convolution of a stem has a bias, the last one neither.": right + hidden + width,
            "the last one has no bias either.": right + width,
            "a BatchNorm has a weight and a bias a channel.": right - 2 * hidden,
            "a BatchNorm has two numbers a channel that train.": right - hidden,
            "means and variances are kept, but they are no parameters.": right + 2 * hidden,
            "behind the four 3 x 3 convolutions stands one of 1 x 1.": right - width**2,
            "the last convolution is 1 x 1.": right + 8 * width**2,
            "no norm stands behind the last convolution.": right + 2 * width,
            "the first convolution reads the map: how many channels has it?": right
            - 9 * (channels - 1) * (width // 8),
        }
        hint = next((h for h, n in slips.items() if n == found), "")
        hint = hint or "four 3 x 3 convolutions, widths D/8, D/4, D/2, D, norms, and one of 1 x 1."
        return f"{channels} channels, width {width}: it is {right:,}, yours is {found:,}; {hint}"
    return ""


# ------------------------------------------------------------------ 5. the gate that never opens


@checker("5 the gate that never opens")
def check_stuck(fn: Callable[[Adaptor], set[str]]) -> str:
    """``fn(adaptor)`` -> names of its parameters that training does not move; some have faults."""
    for kind, (build, right) in _ADAPTORS.items():
        torch.manual_seed(0)
        adaptor = build()
        with torch.enable_grad():
            found = set(fn(adaptor))
        if found == right:
            continue
        if kind == "gate" and found:
            return (
                f"a sound adaptor with a gate: you call {', '.join(sorted(found))} stuck. At the "
                "first step only the gate can move: look later."
            )
        missed, extra = sorted(right - found), sorted(found - right)
        said = [f"{', '.join(missed)} never moves, and you miss it"] if missed else []
        said += [f"{', '.join(extra)} does move"] if extra else []
        return f"{kind}: {'; '.join(said)}."
    return ""


def _adaptor(**options: Any) -> Adaptor:
    return Adaptor(8, **options).requires_grad_(True)


def _dead() -> Adaptor:
    """Gate 0 and ``up`` 0: each waits for the other."""
    adaptor = _adaptor(gate=True)
    for parameter in adaptor.up.parameters():
        parameter.zero_()
    return adaptor


def _frozen_gate() -> Adaptor:
    adaptor = _adaptor(gate=True)
    adaptor.gate.requires_grad_(False)
    return adaptor


def _detached() -> Adaptor:
    adaptor = _adaptor()
    adaptor.down.register_forward_hook(lambda module, inputs, output: output.detach())
    return adaptor


_DOWN = {"norm.weight", "norm.bias", "down.weight", "down.bias"}
_UP = {"up.weight", "up.bias"}
_ADAPTORS: dict[str, tuple[Callable[[], Adaptor], set[str]]] = {
    "default": (_adaptor, set()),
    "near zero": (lambda: _adaptor(near_zero=True), set()),
    "gate": (lambda: _adaptor(gate=True), set()),
    "gate that does not train": (_frozen_gate, {"gate"} | _DOWN | _UP),
    "branch cut off behind `down`": (_detached, _DOWN),
    "gate 0 in front of `up` 0": (_dead, {"gate"} | _DOWN | _UP),
}


# ------------------------------------------------------------------ 6. which expert helps


class _Reader(nn.Module):
    """Answers from the experts it is given; each votes with its own map."""

    def __init__(self):
        super().__init__()
        self.seen: list[set[str]] = []
        self.modes: list[bool] = []

    def forward(self, experts: dict[str, Tensor]) -> Tensor:
        """Maps (B, C) -> logits (B, C)."""
        self.seen.append(set(experts))
        self.modes.append(self.training)
        if "rgb" not in experts:
            raise ValueError("the picture is missing: only experts are left out")
        return sum(experts.values())


@checker("6 which expert helps")
def check_drops(fn: Callable[..., dict[str, float]]) -> str:
    """``fn(model, experts, labels)`` -> for each expert by how much accuracy falls without it."""
    # Classes 0, 1, 0, 1. The picture alone: right on 1 of 4. With depth: on 3; with words on all.
    labels = torch.tensor([0, 1, 0, 1])
    experts = {
        "rgb": torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]]),
        "depth": torch.tensor([[0.0, 0], [0, 2], [2, 0], [0, 0]]),
        "edge": torch.zeros(4, 2),
        "ocr_detection": torch.tensor([[0.0, 0], [0, 0], [0, 0], [0, 3]]),
        "normal": torch.tensor([[0.0, 1.5], [0, 0], [0, 0], [0, 0]]),
    }
    # All: rows 1, 2, 3 right, row 0 wrong (normal misleads): 3/4. Without depth: row 3 alone: 1/4.
    right = {"depth": 0.5, "edge": 0.0, "ocr_detection": 0.25, "normal": -0.25}
    model, handed = _Reader().train(), dict(experts)
    found = fn(model, handed, labels)
    if set(handed) != set(experts):
        return "your function took experts out of the batch for good: make a new dict each time."
    if "rgb" in found:
        return "the picture is no expert, and the model cannot do without: leave it in."
    if set(found) != set(right):
        return f"name {', '.join(right)}; yours has {', '.join(found) or 'nothing'}."
    if any(model.modes):
        return "the model ran in training mode: dropout and BatchNorm must be off when one tests."
    alone = {name: float(_accuracy([name, "rgb"], experts, labels)) for name in right}
    without = {
        name: float(_accuracy([n for n in experts if n != name], experts, labels)) for name in right
    }
    if _same(found, right):
        return ""
    if _same(found, without):
        return "these are accuracies without each expert: give how far they fall from that of all."
    if _same(found, {name: -drop for name, drop in right.items()}):
        return "the sign is turned: an expert that helps has a positive drop."
    if _same(found, alone):
        return "these are accuracies of each expert alone: leave one out instead."
    wrong = next(name for name in right if not _same({name: found[name]}, {name: right[name]}))
    return (
        f"{wrong}: accuracy is 0.75 with all and {without[wrong]:.2f} without it, so it falls by "
        f"{right[wrong]:.2f}; yours says {float(found[wrong]):.2f}."
    )


def _accuracy(names: list[str], experts: dict[str, Tensor], labels: Tensor) -> Tensor:
    scores = sum(experts[name] for name in names)  # (B, C)
    return (scores.argmax(1) == labels).float().mean()


def _same(found: dict[str, Any], expected: dict[str, float]) -> bool:
    return all(abs(float(found[name]) - expected[name]) < 1e-6 for name in expected)
