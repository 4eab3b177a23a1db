"""Checkers of the exercises of chapter 2. Each takes the learner's function and says what is wrong.

Expected values are small enough to be worked out by hand; the comments do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .result import checker


@checker("1 masked mean")
def check_masked_mean(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``fn(tokens (B, N, D), mask (B, N)) -> (B, D)``, the mean over the kept tokens."""

    # Text 1 keeps two tokens: (1 + 3) / 2 = 2. Text 2 keeps one: 5. Text 3 keeps none: 0.
    tokens = torch.tensor([[1.0, 3.0, 90.0], [5.0, 90.0, 90.0], [90.0, 90.0, 90.0]])[..., None]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = fn(tokens, mask)
    if found.shape != (3, 1):
        return f"for tokens (3, 3, 1) the result must be (3, 1), yours is {tuple(found.shape)}."
    if not found.isfinite().all():
        return "a text without a kept token gives no finite number: divide by at least 1."
    values = found[:, 0].tolist()
    if values[0] > 30:
        return "padding is counted: multiply the tokens by the mask before you sum."
    if abs(values[0] - 4 / 3) < 1e-4:
        return "the sum is right; divide by the number of kept tokens, not by N."
    if not torch.allclose(found[:, 0], torch.tensor([2.0, 5.0, 0.0])):
        return f"tokens 1, 3 and 5 must give 2, 5 and 0; yours gives {values}."
    wide = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    if not torch.allclose(fn(wide, torch.ones(4, 6)), wide.mean(1), atol=1e-6):
        return "with nothing masked, the result must be the plain mean over the tokens."
    return ""


@checker("2 an honest depth")
def check_choose_depth(fn: Callable[[dict, dict], tuple[int, float]]) -> str:
    """``fn({depth: validation accuracy}, {depth: test accuracy}) -> (depth, test accuracy)``."""

    validation, test = {4: 0.50, 8: 0.60, 12: 0.55}, {4: 0.40, 8: 0.52, 12: 0.58}
    found = fn(validation, test)
    if not isinstance(found, tuple) or len(found) != 2:
        return "give back two things: the depth, and the test accuracy at that depth."
    if found[0] == 12:
        return "you looked at the test part: depth 12 is best there, validation prefers 8."
    if found[0] != 8:
        return f"validation is best at depth 8; you chose {found[0]}."
    if found[1] != 0.52:
        return "report the test accuracy of the chosen depth, 0.52, whatever the others are."
    if (
        fn({2: 0.5, 6: 0.5}, {2: 0.1, 6: 0.9})[0] != 2
        or fn({6: 0.5, 2: 0.5}, test | {2: 0, 6: 1})[0] != 2
    ):
        return "of equally good depths take the shallowest: it is the cheapest to extract."
    return ""


@checker("3 the cache key")
def check_cache_key(fn: Callable[[str, int, str, Sequence[str]], str]) -> str:
    """``fn(weights, depth, transform, items) -> key``: equal for equal parts, else different."""

    parts = {"weights": "a1", "depth": 8, "transform": "224", "items": ("cat", "dog")}
    other = {"weights": "b2", "depth": 7, "transform": "112", "items": ("cat", "cow")}
    key = fn(**parts)
    if key != fn(**parts):
        return "the same parts must give the same key, call after call."
    for name, value in other.items():
        if fn(**{**parts, name: value}) == key:
            return f"two runs that differ in {name!r} get one key: stale features would be read."
    if fn(**{**parts, "items": ("dog", "cat")}) == key:
        return "the order of the items counts: row 0 must be item 0."
    if fn(**{**parts, "items": ("catd", "og")}) == key:
        return "('cat', 'dog') and ('catd', 'og') get one key: mark where an item ends."
    if fn(**{**parts, "depth": 1, "transform": "11"}) == fn(
        **{**parts, "depth": 11, "transform": "1"}
    ):
        return "depth 1 with '11' and depth 11 with '1' get one key: mark where a part ends."
    if fn(**{**parts, "weights": "a1", "depth": 1}) == fn(**{**parts, "weights": "a", "depth": 11}):
        return "weights 'a1' at depth 1 and 'a' at depth 11 get one key: mark where a part ends."
    return ""


@checker("4 resume")
def check_resume(fn: Callable[[Sequence[int], Sequence[int]], tuple[int, list[int]]]) -> str:
    """``fn(file sizes, bytes a row) -> (first row to compute, bytes to keep of each file)``."""

    # 100 / 10 = 10 whole rows and 87 / 20 = 4 whole rows and 7 bytes: row 4 is the first that
    # some file lacks; 4 * 10 = 40 and 4 * 20 = 80 bytes are kept.
    found = fn([100, 87], [10, 20])
    if not isinstance(found, tuple) or len(found) != 2:
        return "give back two things: the first row to compute, and the list of kept bytes."
    row, keep = found[0], list(found[1])
    if row == 10:
        return "row 4 of the second file is not there: the file with fewest rows decides."
    if row == 5 or row != int(row):
        return "a row that was cut in its middle must be computed again: round down."
    if row != 4:
        return f"the second file holds 4 whole rows, so row 4 comes next; yours is {row}."
    if keep == [100, 87] or keep == [100, 80]:
        return "cut every file back to the rows that all of them have, or rows get out of step."
    if keep != [40, 80]:
        return f"4 rows are 40 bytes of the first file and 80 of the second; yours: {keep}."
    for sizes, rows, right in (([0, 50], [10, 10], (0, [0, 0])), ([30], [10], (3, [30]))):
        row, keep = fn(sizes, rows)
        if (row, list(keep)) != right:
            return "try one empty file beside a full one, and a file of exactly 3 rows."
    return ""


@checker("5 standardise")
def check_standardise(fn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> str:
    """``fn(train (N, D), test (M, D)) -> both``, scaled by what the training part knows."""

    # Training column 0: 0 and 2, mean 1, spread 1. Column 1 never varies.
    train, test = torch.tensor([[0.0, 7.0], [2.0, 7.0]]), torch.tensor([[5.0, 7.0], [9.0, 8.0]])
    ours, theirs = fn(train, test)
    if ours.shape != train.shape or theirs.shape != test.shape:
        return "both results keep their shapes."
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        return "a feature that never varies in training divides by 0: use a spread of 1 there."
    if not torch.equal(fn(train, test + 100)[0], ours):
        return "the training part changes with the test part: test items leak into training."
    if torch.allclose(theirs[:, 0].mean(), torch.tensor(0.0), atol=1e-4):
        return "the test part is scaled by itself: use mean and spread of the training part."
    if not torch.allclose(ours[:, 0].mean(), torch.tensor(0.0), atol=1e-5):
        return "the training part must have mean 0."
    if not torch.allclose(ours[:, 0].std(correction=0), torch.tensor(1.0), atol=1e-3):
        return "the training part must have spread 1 (`std(0, correction=0)`)."
    if not torch.allclose(theirs[:, 0], torch.tensor([4.0, 8.0]), atol=1e-2):
        return f"test values 5 and 9 become 4 and 8; yours: {theirs[:, 0].tolist()}."
    if not torch.allclose(theirs[:, 1], torch.tensor([0.0, 1.0]), atol=1e-2):
        return (
            "a feature that never varies in training has spread 1: test values 7 and 8 become 0 and "
            f"1; yours: {theirs[:, 1].tolist()}."
        )
    return ""


@checker("6 paired interval")
def check_paired_interval(
    fn: Callable[[Tensor, Tensor, Sequence[str]], tuple[float, float]],
) -> str:
    """``fn(ours (N,), theirs (N,), groups) -> (low, high)``, 95 % bootstrap over whole groups."""

    generator = torch.Generator().manual_seed(0)
    hits = torch.randint(2, (300,), generator=generator).double()
    alone = [str(i) for i in range(300)]
    low, high = fn(hits, hits, alone)
    if low != 0 or high != 0:
        return (
            "a method against itself differs by exactly 0 in every draw: draw the same items "
            "for both."
        )
    low, high = fn(hits + 1, hits, alone)
    if abs(low - 1) > 1e-6 or abs(high - 1) > 1e-6:
        return "a method that is better by 1 on every item has the interval [1, 1]."
    ratios = []
    for _ in range(5):  # of widths; 0.84 for 90 %, 1.31 for 99 %
        noise = torch.randint(-1, 2, (300,), generator=generator).double()
        low, high = fn(hits + noise, hits, alone)
        spread = float(noise.std(correction=0)) / 300**0.5  # of the mean
        ratios.append((high - low) / (2 * 1.96 * spread))
    ratio = sum(ratios) / len(ratios)
    if not 0.9 < ratio < 1.15:
        return (
            f"the interval is {ratio:.2f} times as wide as it must be: take the 2.5 % and 97.5 % "
            "quantiles of the mean difference, over some hundred draws of as many items."
        )
    # Ten groups of 30 equal items are ten independent values, not 300.
    groups = [str(i // 30) for i in range(300)]
    steps = noise[:10].repeat_interleave(30)  # (10,) -> (300,)
    low, high = fn(hits + steps, hits, groups)
    if high - low < 0.5:
        return (
            "items of one group come and go together: draw groups with replacement, and take "
            "all items of each."
        )
    # 150 groups of 1 item, better by 1, and 50 of 3, no better: 150 / 300 = 0.5 is the mean of the
    # items, 150 / 200 = 0.75 that of the groups.
    groups = [str(i) for i in range(150)] + [str(150 + i // 3) for i in range(150)]
    low, high = fn(hits + (torch.arange(300) < 150), hits, groups)
    if not low < 0.5 < high:
        return "groups differ in size: the mean of a draw is over its items, not over its groups."
    return ""
