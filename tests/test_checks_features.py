"""Checkers of chapter 2: every solution passes, every fault that a learner may ship is named."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from exercise_code import functions

from mmfusion_lib.checks import features as checks

PAIRS = {
    "masked_mean": checks.check_masked_mean,
    "choose_depth": checks.check_choose_depth,
    "cache_key": checks.check_cache_key,
    "resume": checks.check_resume,
    "standardise": checks.check_standardise,
    "paired_interval": checks.check_paired_interval,
}


@pytest.mark.parametrize("name", PAIRS)
def test_solution_passes(name):
    result = PAIRS[name](functions("02_solutions.ipynb")[name])
    assert result.passed, str(result)
    assert str(result).endswith(": passed")


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bootstrap(ours, theirs, groups, paired=True, grouped=True, level=0.025):
    """Our own interval, with faults to switch on."""
    groups = groups if grouped else list(range(len(groups)))
    names = list(dict.fromkeys(groups))
    rows = [[i for i, g in enumerate(groups) if g == name] for name in names]
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(400):
        draws = [torch.randint(len(names), (len(names),), generator=generator) for _ in range(2)]
        a, b = ([i for g in d for i in rows[g]] for d in (draws[0], draws[0 if paired else 1]))
        values.append(float(ours[a].mean() - theirs[b].mean()))
    ends = torch.tensor(values).double().quantile(torch.tensor([level, 1 - level]).double())
    return ends[0].item(), ends[1].item()


def group_means(values, groups):
    names = list(dict.fromkeys(groups))
    rows = [[i for i, g in enumerate(groups) if g == name] for name in names]
    return torch.stack([values[r].mean() for r in rows])


def one(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(tensor > 1e-6, tensor, torch.ones_like(tensor))


FAULTS = [
    (checks.check_masked_mean, lambda t, m: t.mean(1), "padding"),
    (checks.check_masked_mean, lambda t, m: (t * m[..., None]).mean(1), "not by N"),
    (checks.check_masked_mean, lambda t, m: (t * m[..., None]).sum(1) / m.sum(1)[:, None], "least 1"),
    (checks.check_masked_mean, lambda t, m: t[:, 0], "must give 2, 5 and 0"),
    (checks.check_masked_mean, lambda t, m: t, r"must be \(3, 1\)"),
    (checks.check_choose_depth, lambda v, t: (max(t, key=t.get), max(t.values())), "test part"),
    (checks.check_choose_depth, lambda v, t: (max(v), t[max(v)]), "test part"),
    (checks.check_choose_depth, lambda v, t: (min(v), t[min(v)]), "best at depth 8"),
    (checks.check_choose_depth, lambda v, t: (max(v, key=v.get), max(t.values())), "0.52"),
    (checks.check_choose_depth, lambda v, t: (m := max(v, key=v.get), t[m]), "shallowest"),
    (checks.check_choose_depth, lambda v, t: 8, "two things"),
    (checks.check_cache_key, lambda **p: hashed(json.dumps([p[k] for k in p if k != "transform"])),
     "'transform'"),
    (checks.check_cache_key, lambda **p: hashed(json.dumps([p[k] for k in p if k != "weights"])),
     "'weights'"),
    (checks.check_cache_key, lambda **p: hashed(json.dumps({**p, "items": sorted(p["items"])})),
     "order"),
    (checks.check_cache_key, lambda **p: hashed(json.dumps({**p, "items": "".join(p["items"])})),
     "an item ends"),
    (checks.check_cache_key, lambda weights, depth, transform, items:
     hashed(f"{weights}{depth}{transform}{json.dumps(items)}"), "a part ends"),
    (checks.check_cache_key, lambda weights, depth, transform, items:
     hashed(weights + str(depth) + json.dumps([transform, *items])), "weights 'a1' at depth 1"),
    (checks.check_cache_key, lambda **p: torch.rand(1).item(), "call after call"),
    (checks.check_resume, lambda s, r: (0, [0 for _ in s]), "row 4"),
    (checks.check_resume, lambda s, r: (s[0] // r[0], s), "fewest rows"),
    (checks.check_resume, lambda s, r: (5, [50, 100]), "round down"),
    (checks.check_resume, lambda s, r: (min(a // b for a, b in zip(s, r)), s), "out of step"),
    (checks.check_resume, lambda s, r: (4, [40, 80]), "empty file"),
    (checks.check_standardise, lambda a, b: (a, b), "mean 0"),
    (checks.check_standardise, lambda a, b: (
        (a - a.mean(0)) / a.std(0, correction=0), (b - a.mean(0)) / a.std(0, correction=0)),
     "divides by 0"),
    (checks.check_standardise, lambda a, b: (
        (a - torch.cat([a, b]).mean(0)) / one(a.std(0, correction=0)), b), "leak"),
    (checks.check_standardise, lambda a, b: tuple(
        (x - x.mean(0)) / one(x.std(0, correction=0)) for x in (a, b)), "by itself"),
    (checks.check_standardise, lambda a, b: tuple(
        (x - a.mean(0)) / one(a.std(0)) for x in (a, b)), "spread 1"),
    (checks.check_standardise, lambda a, b: (
        (a - a.mean(0)) / one(a.std(0, correction=0)), b), "4 and 8"),
    (checks.check_standardise, lambda a, b: tuple(
        (x - a.mean(0)) / (a.std(0, correction=0) + 1e-6) for x in (a, b)), "7 and 8 become 0 and 1"),
    (checks.check_paired_interval, lambda a, b, g: 2 * ((a - b).mean().item(),), "wide"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(a, b, g, paired=False), "same items"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(a, b, g, grouped=False), "groups"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(a, b, g, level=0.25), "wide"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(a, b, g, level=0.05), "wide"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(a, b, g, level=0.005), "wide"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(b, a, g), "better by 1"),
    (checks.check_paired_interval, lambda a, b, g: bootstrap(
        group_means(a, g), group_means(b, g), list(range(len(set(g))))), "differ in size"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(FAULTS)))
def test_fault_is_named(case):
    check, fault, words = FAULTS[case]
    result = check(fault)
    assert not result.passed
    assert str(result).split(": ")[1] == "not yet"
    assert re.search(words, result.hint), result.hint


@pytest.mark.parametrize("check", PAIRS.values())
def test_an_exception_becomes_a_hint(check):
    def broken(*args, **kwargs):
        raise RuntimeError("not written")

    result = check(broken)
    assert not result.passed and "RuntimeError: not written" in result.hint


def test_the_tested_interval_is_right_without_a_fault():
    assert checks.check_paired_interval(bootstrap).passed
