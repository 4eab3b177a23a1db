"""Checkers of chapter 4: every solution passes, every fault that a learner may ship is named."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from exercise_code import functions
from torch.nn import functional as F

from mmfusion_lib.checks import experts as checks
from mmfusion_lib.experts.geometry import Geometry

ROOT = Path(__file__).resolve().parents[1]
PAIRS = {
    "paint": checks.check_paint,
    "read": checks.check_read,
    "is_aligned": checks.check_alignment_test,
    "stem_parameters": checks.check_stem_count,
    "stuck": checks.check_stuck,
    "drops": checks.check_drops,
}


@pytest.mark.parametrize("name", PAIRS)
def test_solution_passes(name):
    result = PAIRS[name](functions("04_solutions.ipynb")[name])
    assert result.passed, str(result)
    assert str(result).endswith(": passed")


STUBS = {
    "paint": "values not",
    "read": "values not",
    "is_aligned": "as many pixels as the picture. Is your map of another size",
    "stem_parameters": "it is 4,131,648, yours is 589,824",
    "stuck": "gate that does not train: .* never moves, and you miss it",
    "drops": "leave it in",
}


@pytest.mark.parametrize("name", STUBS)
def test_what_the_exercise_hands_out_does_not_pass(name):
    result = PAIRS[name](functions("04_exercises.ipynb")[name])
    assert not result.passed and re.search(STUBS[name], result.hint), result.hint


# --- 1: paint a map -----------------------------------------------------------------------------


def paint(ids, table, *, shared=False, nothing=0.0, last=False, spoil=False):
    """Our own, with faults to switch on."""
    if spoil:
        ids[ids == 255] = 0
    tables = table.expand(len(ids), *table.shape[-2:])
    tables = tables[:1].expand_as(tables) if shared else tables
    rows = F.pad(tables, (0, 0, 0, 1), value=nothing)
    index = ids.long().masked_fill(ids == 255, tables.shape[1])
    painted = torch.stack([row[number] for row, number in zip(rows, index)])
    return painted if last else painted.permute(0, 3, 1, 2)


PAINT = [
    (partial(paint, nothing=1.0), "one table: a pixel of id 255 has a vector"),
    (partial(paint, shared=True), "two tables: the first picture is right, the second is not"),
    (partial(paint, last=True), r"yours is \(2, 2, 3, 64\), it must be \(2, 64, 2, 3\)"),
    (partial(paint, spoil=True), "one table: what was given has changed"),
    (
        lambda ids, table: paint(ids, table.flip(-2)),
        r"pixel \(0, 0\) of picture 0 has id 0, .* row 0",
    ),
    (
        lambda ids, table: paint(0 * ids, table),
        r"one table: .* pixel \(0, 1\) of picture 0 has id 2, so it gets row 2",
    ),
    (lambda ids, table: table[ids], "IndexError"),
]


# --- 2: read ------------------------------------------------------------------------------------


def read(
    layer, latents, tokens, *, own=True, others=True, norms="both", scale=None, axis=-1, heads=2,
    out=True, residual=False,
):  # fmt: skip
    """Our own, written out, with faults to switch on."""
    a = layer.attention
    q = latents if norms == "none" else layer.norm1(latents)
    x = {"both": layer.norm2, "one": layer.norm1, "none": lambda t: t}[norms](tokens)
    source = torch.cat([q] * own + [x] * others, 1)

    def split(v):
        return v.unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key, value = split(a.query(q)), split(a.key(source)), split(a.value(source))
    scores = query @ key.transpose(-1, -2) / (scale or query.shape[-1] ** 0.5)
    mixed = (scores.softmax(axis) @ value).transpose(1, 2).flatten(2)
    found = a.out(mixed) if out else mixed
    return latents + found if residual else found


READ = [
    (partial(read, own=False), "the latents do not read each other"),
    (partial(read, others=False), "the tokens are not read"),
    (partial(read, norms="none"), "both are normalised"),
    (partial(read, norms="one"), "norm2"),
    (partial(read, scale=1.0), "divided by the root of the width of a head"),
    (partial(read, scale=8**0.5), "not of the whole width"),
    (partial(read, axis=-2), "over which axis"),
    (partial(read, heads=1), "two heads"),
    (partial(read, out=False), r"attention\.out"),
    (partial(read, residual=True), "the residual is the layer's own"),
    (lambda layer, latents, tokens: tokens, r"must be \(2, 3, 8\), .* yours is \(2, 5, 8\)"),
    (lambda layer, latents, tokens: layer.read(latents, tokens), "read is what you are to write"),
    (lambda layer, latents, tokens: layer(latents, tokens), "read is what you are to write"),
    (lambda layer, latents, tokens: 2 * read(layer, latents, tokens), "values not"),
]


# --- 3: labels left behind ----------------------------------------------------------------------


def is_aligned(
    move, *, factor=2, box=(0.1, 0.0, 0.9, 0.8), flip=True, shift=(0.2, -0.3), exact=False
):
    """Our own, with blind spots to switch on."""
    labels = np.random.default_rng(3).integers(0, 9, (6, 6), dtype=np.uint8)
    labels = np.kron(labels, np.ones((8, 8), np.uint8))
    larger = np.ones((factor, factor), np.uint8)
    picture, labels = move(Geometry(box, flip, shift), np.kron(labels, larger), labels)
    same = (picture == np.kron(labels, larger)).mean()
    return same == 1 if exact else same > 0.8


ALIGNED = [
    (partial(is_aligned, factor=1), "as many pixels as the picture. Is your map of another size"),
    (partial(is_aligned, flip=False), "never mirrored"),
    (partial(is_aligned, box=(0.0, 0.0, 1.0, 1.0)), "not cropped"),
    (partial(is_aligned, shift=(0.2, 0.0)), "not shifted down"),
    (partial(is_aligned, exact=True), "calls a sound function faulty"),
    (lambda move: True, "as many pixels as the picture"),
    (lambda move: False, "calls a sound function faulty"),
]


# --- 4: the parameters of a stem ----------------------------------------------------------------


def stem_parameters(c, d, *, bias=0, last_bias=0, norm=2, last_norm=0, first=None, last=1):
    widths = [c if first is None else first, d // 8, d // 4, d // 2, d]
    found = sum(9 * a * b + bias * b for a, b in pairwise(widths))
    return found + norm * sum(widths[1:]) + last * d * d + (last_bias + last_norm) * d


STEM = [
    (partial(stem_parameters, bias=1), "convolutions have no bias"),
    (partial(stem_parameters, bias=1, last_bias=1), "the last one neither"),
    (partial(stem_parameters, last_bias=1), "the last one has no bias either"),
    (partial(stem_parameters, norm=0), "weight and a bias a channel"),
    (partial(stem_parameters, norm=1), "two numbers a channel"),
    (partial(stem_parameters, norm=4), "they are no parameters"),
    (partial(stem_parameters, last=0), "stands one of 1 x 1"),
    (partial(stem_parameters, last=9), "the last convolution is 1 x 1"),
    (partial(stem_parameters, last_norm=2), "no norm stands behind"),
    (partial(stem_parameters, first=1), "how many channels"),
    (lambda channels, width: 7, "yours is 7; four 3 x 3"),
]


# --- 5: the gate that never opens ---------------------------------------------------------------


def stuck(adaptor, *, steps=4, decay=0.0, by_gradient=False, only=None):
    x, wanted = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in adaptor.named_parameters()}
    trained = [p for p in adaptor.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        (adaptor(x) - wanted).square().mean().backward()
        optimizer.step()
    if by_gradient:
        return {name for name, p in adaptor.named_parameters() if p.grad is None}
    now = dict(adaptor.named_parameters())
    found = {name for name, p in before.items() if torch.equal(p, now[name])}
    return found if only is None else found & only


STUCK = [
    (partial(stuck, steps=1), "look later"),
    (partial(stuck, decay=0.1), "gate that does not train: .* never moves, and you miss it"),
    (partial(stuck, by_gradient=True), "you miss it"),
    (partial(stuck, only={"gate"}), "you miss it"),
    (lambda adaptor: {"up.bias"}, r"default: up\.bias does move"),
    (lambda adaptor: set(), "gate that does not train"),
]


# --- 6: which expert helps ----------------------------------------------------------------------


def drops(model, experts, labels, *, sign=1, base=True, alone=False, pop=False, mode="eval"):
    def accuracy(given):
        return (model(given).argmax(1) == labels).float().mean().item()

    model.train(mode == "train")
    everything, found = accuracy(experts) if base else 0.0, {}
    for name in [name for name in experts if name != "rgb"]:
        rest = {k: v for k, v in experts.items() if (k in (name, "rgb")) == alone or k == "rgb"}
        if pop:
            experts.pop(name)
            rest = experts
        found[name] = sign * (everything - accuracy(rest)) if base else accuracy(rest)
    return found


DROPS = [
    (partial(drops, sign=-1), "the sign is turned"),
    (partial(drops, base=False), "accuracies without each expert"),
    (partial(drops, base=False, alone=True), "of each expert alone"),
    (partial(drops, pop=True), "took experts out"),
    (partial(drops, mode="train"), "training mode"),
    (lambda model, experts, labels: {"depth": 0.5}, "yours has depth"),
    (lambda model, experts, labels: drops(model, experts, labels) | {"rgb": 0.0}, "no expert"),
    (lambda model, experts, labels: {n: model({n: experts[n]}) for n in experts}, "is missing"),
    (
        lambda model, experts, labels: dict.fromkeys(drops(model, experts, labels), 0.1),
        "depth: accuracy is 0.75 with all and 0.25 without it, so it falls by 0.50; yours says 0.10",
    ),
    (
        lambda model, experts, labels: {
            name: max(0.0, drop) for name, drop in drops(model, experts, labels).items()
        },
        "normal: .* falls by -0.25; yours says 0.00",
    ),
]


# --- all ----------------------------------------------------------------------------------------

FAULTS = {
    "paint": PAINT,
    "read": READ,
    "is_aligned": ALIGNED,
    "stem_parameters": STEM,
    "stuck": STUCK,
    "drops": DROPS,
}
OURS = {
    "paint": paint,
    "read": read,
    "is_aligned": is_aligned,
    "stem_parameters": stem_parameters,
    "stuck": stuck,
    "drops": drops,
}
CASES = [(name, number) for name, faults in FAULTS.items() for number in range(len(faults))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_fault_is_named(name, number):
    fault, words = FAULTS[name][number]
    result = PAIRS[name](fault)
    assert not result.passed
    assert ": not yet:" in str(result)
    assert re.search(words, result.hint), result.hint


@pytest.mark.parametrize("name", OURS)
def test_without_a_fault_ours_passes(name):
    result = PAIRS[name](OURS[name])
    assert result.passed, str(result)


@pytest.mark.parametrize("name", PAIRS)
def test_an_exception_becomes_a_hint(name):
    def broken(*args, **kwargs):
        raise RuntimeError("not written")

    result = PAIRS[name](broken)
    assert not result.passed and "RuntimeError: not written" in result.hint


def test_the_published_fault_cannot_be_seen_at_equal_sizes():
    values = np.random.default_rng(0).integers(0, 9, (8, 8), dtype=np.uint8)
    geometry = Geometry(shift=(0.25, 0.0))
    pair = checks.move(geometry, values, values)
    wrong = checks.FAULTS["a map that is shifted by as many pixels as the picture"]
    for right, found in zip(pair, wrong(geometry, values, values)):
        assert np.array_equal(right, found)
    # A map of half the size is shifted by half of its width: 2 of 8 pixels are 2 of 4.
    _, labels = wrong(geometry, values, values[:4, :4])
    assert (labels[:, :2] == 255).all() and (labels[:, 2:] != 255).all()


def test_tests_that_the_chapter_names_are_there():
    chapter = (ROOT / "book/04_experts_and_resampler.ipynb").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", chapter))
    written = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    assert len(named) > 8
    assert sorted(name for name in named if f"def {name}(" not in written) == []
