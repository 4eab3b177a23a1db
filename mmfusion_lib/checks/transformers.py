"""Checkers for the exercises of chapter 1.

Each takes the learner's function, tries it on small inputs whose answer the library knows, and
returns a ``Result``. A wrong answer, or an exception inside the function, becomes a hint and
is never raised: an unsolved notebook runs to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..accounting import encoder_parameters
from ..blocks import Block, attention_weights
from ..encoders import Encoder, EncoderConfig, ImageEncoder
from .result import checker

TOLERANCE = 1e-5
DIAGNOSES = ("right", "softmax axis", "no scale", "shifted mask")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE)  # False for NaN


def _shape(found: Any, expected: Tensor) -> str:
    """A hint when ``found`` is no tensor of the expected shape."""
    if not isinstance(found, Tensor):
        return f"it returned {type(found).__name__}; return a tensor."
    if found.shape != expected.shape:
        return f"it returned shape {tuple(found.shape)}; {tuple(expected.shape)} was expected."
    return ""


# ------------------------------------------------------------------ 1. find the bug


def attention_with(fault: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """An attention ``(query, key, value, keep) -> mixed`` that is right, or has one fault.

    Args:
        fault: one of ``DIAGNOSES``. Query, key and value are (B, H, N, d); keep is boolean (B, N).
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1)  # (B, H, N, N)
        if fault != "no scale":
            scores = scores / query.shape[-1] ** 0.5
        if fault == "shifted mask":
            keep = keep.roll(1, dims=-1)
        scores = scores.masked_fill(~keep[:, None, None], -1e9)  # (B, N) -> (B, 1, 1, N)
        return scores.softmax(-2 if fault == "softmax axis" else -1) @ value

    return attention


@checker("1 find the bug")
def check_diagnosis(diagnose: Callable[[Callable], str]) -> str:
    """``diagnose(attention)`` names the fault of ``attention``: one of ``DIAGNOSES``.

    The checker hands over a right attention and one with each fault, in two orders.
    """
    for fault in (*DIAGNOSES, *reversed(DIAGNOSES)):
        answer = diagnose(attention_with(fault))
        if answer not in DIAGNOSES:
            return f"it answered {answer!r}; answer with one of {', '.join(DIAGNOSES)}."
        if answer == fault:
            continue
        if fault == "right":
            return f"a right attention was called {answer!r}: compare with a tolerance, not ==."
        if fault == "softmax axis":
            return "one fault was missed: do the weights of each reader sum to 1? Values of 1 tell."
        if fault == "no scale":
            return "one fault was missed: are long vectors (large d) softened as they should be?"
        return "one fault was missed: change the value of a hidden token; does anything move?"
    return ""


# ------------------------------------------------------------------ 2. hide the future


@checker("2 hide the future")
def check_causal(causal_attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """``causal_attention(query, key, value)``: all (B, H, N, d); token i reads tokens 0..i only."""
    query, key, value = (_random(2, 2, 5, 4, seed=seed) for seed in range(3))
    past = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = attention_weights(query, key, past) @ value
    found = causal_attention(query, key, value)
    if hint := _shape(found, expected):
        return hint
    if found.isnan().any():
        return "there are NaNs: the first token must be allowed to read itself (hide j > i only)."
    later = value.clone()
    later[..., -1, :] += 1
    if not _close(causal_attention(query, key, later)[..., :-1, :], found[..., :-1, :]):
        return "a token changes when a later one does: hide the keys j > i from reader i."
    if not _close(found[..., 0, :], value[..., 0, :]):
        return "the first token can read itself alone: its output must be its own value."
    if not _close(causal_attention(query, key, torch.ones_like(value)), torch.ones_like(value)):
        return "the weights of a reader must sum to 1: mask the scores before the softmax."
    if not _close(found, expected):
        return "almost: divide the scores by the square root of d, and let i read all of 0..i."
    return ""


# ------------------------------------------------------------------ 3. positions


@checker("3a sinusoidal positions")
def check_sinusoidal(sinusoidal: Callable[[int, int], Tensor]) -> str:
    """``sinusoidal(count, width)`` -> (count, width): Vaswani et al. 2017, section 3.5."""
    expected = torch.tensor(
        [
            [
                torch.tensor(p / 10000 ** (2 * (i // 2) / 8), dtype=torch.float64)
                .add(torch.pi / 2 * (i % 2))  # cos x = sin(x + pi / 2)
                .sin()
                for i in range(8)
            ]
            for p in range(7)
        ],
        dtype=torch.float32,
    )
    found = sinusoidal(7, 8)
    if hint := _shape(found, expected):
        return hint
    if not _close(found[0], expected[0]):
        return "position 0 is sin 0, cos 0, sin 0, cos 0, ...: 0, 1, 0, 1 in turn, not in halves."
    if not _close(found[1, :2], expected[1, :2]):
        return "the first pair turns by 1 radian a position: sin p, cos p."
    if not _close(found, expected):
        return "the pair (2i, 2i + 1) turns by 10000 ** (-2i / width) radians a position."
    return ""


@checker("3b resized positions")
def check_resized(resize_positions: Callable[[Tensor, int, int], Tensor]) -> str:
    """``resize_positions(table, rows, columns)``: (1, 1 + s s, D) -> (1, 1 + rows columns, D)."""
    config = EncoderConfig("image", 8, 1, 1, 8, image_size=16, patch_size=4)
    encoder = ImageEncoder(config)
    table = encoder.positions.copy_(_random(1, 17, 8))
    expected = encoder.resized_positions(3, 6)
    found = resize_positions(table.clone(), 3, 6)
    if hint := _shape(found, expected):
        return hint
    if not _close(found[:, 0], table[:, 0]):
        return "the row of CLS has no place in the grid: keep it as it is, in front."
    if not _close(resize_positions(table.clone(), 4, 4), table):
        return "a grid of the same size must come back unchanged: mind the order of rows, columns."
    if not _close(found, expected):
        return "use torch.nn.functional.interpolate(..., mode='bicubic') on (1, D, s, s)."
    return ""


# ------------------------------------------------------------------ 4. where the norm stands


@checker("4 where the norm stands")
def check_block(run_block: Callable[[Block, Tensor, bool], Tensor]) -> str:
    """``run_block(block, tokens, pre_norm)``: (B, N, D) -> (B, N, D), from the block's parts."""
    tokens = _random(2, 3, 8, seed=1)
    for pre_norm in (True, False):
        block = Block(8, 2, 16, pre_norm=pre_norm).eval()
        for seed, parameter in enumerate(block.parameters()):
            parameter.copy_(_random(*parameter.shape, seed=seed))
        expected, found = block(tokens), run_block(block, tokens.clone(), pre_norm)
        if hint := _shape(found, expected):
            return hint
        name = "pre-norm" if pre_norm else "post-norm"
        if not pre_norm and _close(found, Block.forward(_as_pre_norm(block), tokens)):
            return "both cases give pre-norm: where pre_norm is False, normalise after the sum."
        if not _close(found, expected):
            where = "inside the branch, and add to x itself" if pre_norm else "the sum, twice"
            return f"the {name} block differs: normalise {where}; norm1 first, norm2 second."
    return ""


def _as_pre_norm(block: Block) -> Block:
    twin = Block(8, 2, 16, pre_norm=True).eval()
    twin.load_state_dict(block.state_dict())
    return twin


# ------------------------------------------------------------------ 5. readouts


@checker("5 readouts")
def check_readout(readout: Callable[[Tensor, Tensor, str], Tensor]) -> str:
    """``readout(tokens, mask, rule)``: (B, N, D), (B, N) -> (B, D), or (B, 2 D) for "cls+mean"."""
    tokens = _random(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    for rule in ("cls", "mean", "cls+mean"):
        config = EncoderConfig("image", 3, 1, 1, 3, readout=rule)
        expected = Encoder(config).pool(tokens, mask)
        found = readout(tokens.clone(), mask, rule)
        if hint := _shape(found, expected):
            return f"{rule}: {hint}"
        if rule != "cls" and _close(found, Encoder(config).pool(tokens)):
            return f"{rule}: padding counts: weigh the tokens with the mask."
        if rule == "cls+mean" and _close(found[:, 3:], readout(tokens.clone(), mask, "mean")):
            return "cls+mean: the mean is over patches, and token 0 is not a patch."
        if not _close(found, expected):
            share = "" if rule == "cls" else "; divide by the number of kept tokens, not by N"
            return f"{rule}: the values differ{share}."
    return ""


# ------------------------------------------------------------------ 6. count before you build


@checker("6 count before you build")
def check_count(count_parameters: Callable[[EncoderConfig], int]) -> str:
    """``count_parameters(config)``: parameters of a pre-norm image encoder, without building it."""
    base = {"kind": "image", "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
    small = {"kind": "image", "width": 12, "depth": 2, "heads": 3, "mlp_width": 20}
    for fields in ({**small, "image_size": 8, "patch_size": 4}, base):
        config = EncoderConfig(**fields)
        missing = encoder_parameters(config) - count_parameters(config)
        d, f, blocks = config.width, config.mlp_width, config.depth
        parts = {
            d: "the CLS token, its position, or the bias of the patch projection",
            2 * d: "the norm after the last block",
            (1 + config.patches) * d: "the position table",
            config.patches * d: "the position of every patch",
            4 * d * blocks: "the two norms (or the four attention biases) of each block",
            8 * d * blocks: "the two norms and the four attention biases of each block",
            (d + f) * blocks: "the two biases of each MLP",
            (d * d + d) * blocks: "attention's last linear map in each block",
        }
        if missing:
            part = parts.get(missing, "")
            about = f": is {part} in it?" if part else "; compare part by part with the hints."
            size = f"{abs(missing):,} too {'few' if missing > 0 else 'many'}"
            return f"for width {d} and depth {blocks} it is {size}{about}"
    return ""
