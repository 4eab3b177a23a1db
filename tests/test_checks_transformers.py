"""The checkers of chapter 1: right answers pass, every fault that a learner may ship is caught."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmfusion_lib.accounting import encoder_parameters
from mmfusion_lib.checks import transformers as checks
from mmfusion_lib.encoders import masked_mean


def diagnose(attention, tolerance=1e-4):
    """A right answer to exercise 1: ask each fault's question."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 16)
    keep = torch.tensor([[True, True, True, False]])
    ones = attention(query, key, torch.ones_like(value), keep)
    if (ones - 1).abs().max() > tolerance:
        return "softmax axis"
    moved = value.clone()
    moved[:, :, 3] += 1
    if (attention(query, key, moved, keep) - attention(query, key, value, keep)).abs().max() > 0:
        return "shifted mask"
    expected = F.scaled_dot_product_attention(query, key, value, keep[:, None, None])
    wrong = (attention(query, key, value, keep) - expected).abs().max() > tolerance
    return "no scale" if wrong else "right"


def causal(query, key, value, diagonal=1, scale=True, before=True):
    scores = query @ key.transpose(-2, -1) / (query.shape[-1] ** 0.5 if scale else 1)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal)
    if before:
        return scores.masked_fill(future, float("-inf")).softmax(-1) @ value
    return scores.softmax(-1).masked_fill(future, 0) @ value


def sinusoidal(count, width, base=10000.0, halves=False, swap=False):
    angle = torch.arange(count)[:, None] / base ** (torch.arange(0, width, 2) / width)
    pair = [angle.cos(), angle.sin()] if swap else [angle.sin(), angle.cos()]
    return torch.cat(pair, 1) if halves else torch.stack(pair, 2).flatten(1)


def resize(table, rows, columns, mode="bicubic", order=(0, 3, 1, 2), with_cls=True):
    side = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].unflatten(1, (side, side)).permute(*order)
    grid = F.interpolate(grid, (rows, columns), mode=mode).flatten(2).transpose(1, 2)
    cls = table[:, :1] if with_cls else table.mean(1, keepdim=True)
    return torch.cat([cls, grid], 1)


def run_block(block, x, pre_norm, always=False, from_normed=False, one_norm=False):
    if pre_norm or always:
        y = block.norm1(x)
        x = (y if from_normed else x) + block.attention(y)
        return x + block.mlp((block.norm1 if one_norm else block.norm2)(x))
    x = block.norm1(x + block.attention(x))
    return block.norm2(x + block.mlp(x))


def readout(tokens, mask, rule, padded=False, over_n=False, cls_in_mean=False):
    def mean(tokens, mask):
        if over_n:
            return (tokens * mask[..., None]).mean(1)
        return tokens.mean(1) if padded else masked_mean(tokens, mask)

    if rule == "cls":
        return tokens[:, 0]
    if rule == "mean":
        return mean(tokens, mask)
    patches = mean(tokens, mask) if cls_in_mean else mean(tokens[:, 1:], mask[:, 1:])
    return torch.cat([tokens[:, 0], patches], 1)


def faulty(function, **fault):
    return lambda *arguments: function(*arguments, **fault)


SOLUTIONS = [
    (checks.check_diagnosis, diagnose),
    (checks.check_causal, causal),
    (checks.check_sinusoidal, sinusoidal),
    (checks.check_resized, resize),
    (checks.check_block, run_block),
    (checks.check_readout, readout),
    (checks.check_count, encoder_parameters),
]
FAULTS = [
    (checks.check_diagnosis, lambda attention: "right", "one fault was missed"),
    (checks.check_diagnosis, lambda attention: "no scale", "a right attention was called"),
    (checks.check_diagnosis, lambda attention: "dropout", "answer with one of"),
    (checks.check_diagnosis, faulty(diagnose, tolerance=-1), "a right attention was called"),
    (checks.check_diagnosis, faulty(diagnose, tolerance=1e9), "weights of each reader"),
    (checks.check_causal, faulty(causal, diagonal=0), "NaNs"),
    (checks.check_causal, faulty(causal, diagonal=2), "later one does"),
    (checks.check_causal, faulty(causal, before=False), "first token can read itself alone"),
    (checks.check_causal, faulty(causal, scale=False), "square root of d"),
    (checks.check_causal, lambda q, k, v: v[..., 0], "shape"),
    (checks.check_sinusoidal, faulty(sinusoidal, halves=True), "not in halves"),
    (checks.check_sinusoidal, faulty(sinusoidal, swap=True), "position 0"),
    (checks.check_sinusoidal, faulty(sinusoidal, base=1000.0), "10000"),
    (checks.check_resized, faulty(resize, with_cls=False), "row of CLS"),
    (checks.check_resized, faulty(resize, order=(0, 3, 2, 1)), "same size"),
    (checks.check_resized, faulty(resize, mode="bilinear"), "bicubic"),
    (checks.check_block, faulty(run_block, always=True), "both cases give pre-norm"),
    (checks.check_block, faulty(run_block, from_normed=True), "the pre-norm block differs"),
    (checks.check_block, faulty(run_block, one_norm=True), "the pre-norm block differs"),
    (checks.check_readout, faulty(readout, padded=True), "padding counts"),
    (checks.check_readout, faulty(readout, over_n=True), "not by N"),
    (checks.check_readout, faulty(readout, cls_in_mean=True), "token 0 is not a patch"),
    (checks.check_count, lambda c: encoder_parameters(c) - c.width, "CLS token, its position"),
    (checks.check_count, lambda c: encoder_parameters(c) + 24, "it is 24 too many; compare"),
    (checks.check_count, lambda c: encoder_parameters(c) - 4 * c.width * c.depth, "norms"),
    (checks.check_count, lambda c: 0, "part by part"),
]


@pytest.mark.parametrize(("check", "function"), SOLUTIONS)
def test_right_answers_pass(check, function):
    result = check(function)
    assert result.passed and str(result).endswith("passed"), result


@pytest.mark.parametrize(("check", "function", "words"), FAULTS)
def test_faults_are_caught_with_a_hint_that_fits(check, function, words):
    result = check(function)
    assert not result.passed and words in result.hint, result
    assert "not yet" in str(result)


@pytest.mark.parametrize("check", [check for check, _ in SOLUTIONS])
def test_whatever_a_function_does_is_a_hint(check):
    def broken(*arguments):
        raise ZeroDivisionError("half-written")

    assert "ZeroDivisionError: half-written" in check(broken).hint
    assert not check(lambda *arguments: None).passed


@pytest.mark.parametrize("fault", checks.DIAGNOSES[1:])
def test_injected_faults_change_the_result(fault):
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(3))
    keep = torch.tensor([[True, True, False, False]])
    right = F.scaled_dot_product_attention(query, key, value, keep[:, None, None])
    assert torch.allclose(checks.attention_with("right")(query, key, value, keep), right, atol=1e-6)
    assert not torch.allclose(checks.attention_with(fault)(query, key, value, keep), right)
