"""Checkers of the exercises of chapter 5 whose answer is a *test*.

Each hands the learner's test sound code, and code with a fault put in, and wants to hear which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder import IGNORED
from .prismer import draw, small_decoder
from .result import checker

# ------------------------------------------------------------------ 2. what is learnt


Rows = Sequence[Sequence[int]]
Pack = Callable[[Rows, Rows], tuple[Tensor, Tensor, Tensor]]


def pack(prompts: Rows, texts: Rows, pad: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts and the texts that follow, as ``objective`` takes them: ids, mask, labels, each (B, N).

    A label is the token *at* its place, -100 at the prompt and at padding, which stands behind.
    """
    longest = max(len(a) + len(b) for a, b in zip(prompts, texts))
    ids = torch.full((len(prompts), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, text) in enumerate(zip(prompts, texts)):
        both = torch.tensor([*prompt, *text])
        ids[row, : len(both)], mask[row, : len(both)] = both, 1
        labels[row, len(prompt) : len(both)] = both[len(prompt) :]
    return ids, mask, labels


def _labels(change: Callable[[Tensor, Tensor, Tensor, list[int], list[int]], None]) -> Pack:
    """``pack`` with a change to its labels, given ids, mask, labels, lengths of prompts and of both."""

    def fault(prompts: Rows, texts: Rows) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask, labels = pack(prompts, texts)
        starts = [len(prompt) for prompt in prompts]
        change(ids, mask, labels, starts, [n + len(text) for n, text in zip(starts, texts)])
        return ids, mask, labels

    return fault


def _padding(ids: Tensor, mask: Tensor, labels: Tensor, starts: list, ends: list) -> None:
    labels[mask == 0] = ids[mask == 0]


def _prompt(ids: Tensor, mask: Tensor, labels: Tensor, starts: list, ends: list) -> None:
    for row, start in enumerate(starts):
        labels[row, :start] = ids[row, :start]


def _longest_prompt(ids: Tensor, mask: Tensor, labels: Tensor, starts: list, ends: list) -> None:
    labels[:, : max(starts)] = IGNORED


def _no_end(ids: Tensor, mask: Tensor, labels: Tensor, starts: list, ends: list) -> None:
    for row, end in enumerate(ends):
        labels[row, end - 1] = IGNORED


def _shifted(ids: Tensor, mask: Tensor, labels: Tensor, starts: list, ends: list) -> None:
    labels.copy_(F.pad(labels, (0, 1), value=IGNORED)[:, 1:])


def _by_id(ids: Tensor, mask: Tensor, labels: Tensor, starts: list, ends: list) -> None:
    labels[ids == ids[0, 0]] = IGNORED


PACK_FAULTS: dict[str, Pack] = {
    "padding that is learnt": _labels(_padding),
    "a prompt that is learnt": _labels(_prompt),
    "one prompt length, the longest, for all texts: short prompts lose words": _labels(
        _longest_prompt
    ),
    "an end mark that is not learnt: such a model never stops": _labels(_no_end),
    "labels that are shifted already, though the loss shifts them": _labels(_shifted),
    "words hidden wherever they equal the first token of the first prompt": _labels(_by_id),
}


@checker("2 what is learnt")
def check_label_test(fn: Callable[[Pack], bool]) -> str:
    """``fn(pack) -> bool``: whether ``pack(prompts, texts)`` labels what is to be learnt, no more."""
    if not fn(pack):
        return "it calls a sound function faulty: text and end mark are learnt, nothing else."
    for name, fault in PACK_FAULTS.items():
        if fn(fault):
            return f"it does not see {name}."
    return ""


# ------------------------------------------------------------------ 4. the cache that forgets


class Writer:
    """A decoder with a cache, about one picture. ``full`` computes without the cache and is sound."""

    def __init__(self) -> None:
        self.decoder, self.latents = small_decoder(), draw(1, 4, 6, seed=91)
        self.start()

    def full(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Whole texts (R, N), 1 = a token in the mask -> logits (R, N, V)."""
        return self.decoder(ids, self.latents, mask)

    def start(self) -> None:
        """Forget all texts."""
        self.cache = self.decoder.start(self.latents)

    def step(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The next tokens (R, n) of the texts -> their logits (R, n, V); the mask is theirs alone."""
        return self.decoder.step(ids, self.cache, mask)

    def select(self, rows: Sequence[int]) -> None:
        """Text r goes on from what was text ``rows[r]``."""
        self.cache = self.cache.select(torch.tensor(rows))


class _Positions(Writer):
    def step(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        self.cache.words = None  # counting begins anew
        return super().step(ids, mask)


class _Padding(Writer):
    def step(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.cache.mask is not None:
            self.cache.mask = torch.ones_like(self.cache.mask)
        return super().step(ids, mask)


class _Order(Writer):
    def select(self, rows: Sequence[int]) -> None:
        count = len(self.cache.mask)
        super().select([row % count for row in range(len(rows))])


class _Window(Writer):
    def step(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        cache, kept = self.cache, 4
        if cache.mask is not None:
            cache.own = [(k[:, :, -kept:], v[:, :, -kept:]) for k, v in cache.own]
            cache.mask = cache.mask[:, -kept:]
        return super().step(ids, mask)


class _Future(Writer):
    def step(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        cache = self.cache
        if cache.mask is None:
            return super().step(ids, mask)
        new = torch.ones_like(ids).bool() if mask is None else mask.bool()
        cache.mask = torch.cat([cache.mask, new], 1)  # (R, T + n)
        count = (cache.words[:, None] + new.cumsum(1)) * new
        cache.words = cache.words + new.sum(1)
        keep = cache.mask[:, None, None].expand(-1, 1, ids.shape[1], -1)  # (R, 1, n, T + n)
        return self.decoder.logits(self.decoder.run(ids, count, keep, cache))


CACHE_FAULTS: dict[str, tuple[type[Writer], str]] = {
    "a cache that forgets positions": (_Positions, "take a second step."),
    "a cache in which padding becomes visible after the first step": (
        _Padding,
        "give texts of different lengths, with a mask, and go on.",
    ),
    "a cache whose texts are not put in order by `select`": (
        _Order,
        "let texts change places, and go on.",
    ),
    "a cache that keeps the last four tokens only": (_Window, "write longer texts."),
    "a step of several tokens in which each sees the next": (
        _Future,
        "give several tokens in a later step.",
    ),
}


@checker("4 the cache that forgets")
def check_cache_test(fn: Callable[[Writer], bool]) -> str:
    """``fn(writer) -> bool``: whether its cache changes nothing."""
    if not fn(Writer()):
        return "it calls a sound cache faulty: compare tokens only, not padding, and not exactly."
    for name, (fault, how) in CACHE_FAULTS.items():
        if fn(fault()):
            return f"it does not see {name}: {how}"
    return ""


# ------------------------------------------------------------------ 6. chosen on the test set


Choose = Callable[[list[float], list[float]], tuple[int, float]]


def choose(validation: list[float], test: list[float]) -> tuple[int, float]:
    """Scores after each epoch -> the epoch that is kept, from 0, and the score that is reported."""
    epoch = max(range(len(validation)), key=lambda e: validation[e])
    return epoch, test[epoch]


def _by_test(validation: list[float], test: list[float]) -> tuple[int, float]:
    return choose(test, test)


def _never_first(validation: list[float], test: list[float]) -> tuple[int, float]:
    if len(validation) < 2:
        return -1, float("nan")  # nothing was ever kept
    epoch, _ = choose(validation[1:], test[1:])
    return epoch + 1, test[epoch + 1]


def _validation_score(validation: list[float], test: list[float]) -> tuple[int, float]:
    epoch, _ = choose(validation, test)
    return epoch, validation[epoch]


def _best_of_test(validation: list[float], test: list[float]) -> tuple[int, float]:
    return choose(validation, test)[0], max(test)


def _last(validation: list[float], test: list[float]) -> tuple[int, float]:
    return len(test) - 1, test[-1]


def _ties(validation: list[float], test: list[float]) -> tuple[int, float]:
    epoch = max(range(len(validation)), key=lambda e: (validation[e], test[e]))
    return epoch, test[epoch]


CHOICE_FAULTS: dict[str, tuple[Choose, str]] = {
    "an epoch that is chosen by its test score, as published": (_by_test, ""),
    "that the first epoch is never kept, as published": (
        _never_first,
        " Let the first one be the best.",
    ),
    "a validation score that is reported as the result": (_validation_score, ""),
    "the best test score of all epochs beside an honest choice": (_best_of_test, ""),
    "that the last epoch is kept, whatever validation says": (_last, ""),
    "a tie in validation that is broken by the test": (
        _ties,
        " Let two epochs be equal on validation, and exchange their test scores.",
    ),
}


@checker("6 chosen on the test set")
def check_choice_test(fn: Callable[[Choose], bool]) -> str:
    """``fn(choose) -> bool``: whether it selects on validation alone and reports the test score."""
    if not fn(choose):
        return "it calls an honest choice faulty: which epoch has the best validation score?"
    for name, (fault, how) in CHOICE_FAULTS.items():
        if fn(fault):
            return f"it does not see {name}.{how}"
    return ""
