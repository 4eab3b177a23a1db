"""Checkers of the exercises of chapter 5. Each takes the learner's function and says what is wrong.

Three exercises ask for a *test*: the checker hands it sound code and code with a fault put in, and
wants to hear which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder import IGNORED, Decoder, loss
from ..encoders import EncoderConfig, build_encoder
from .result import checker

_TINY = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=20, max_positions=24)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _decoder() -> Decoder:
    """A small decoder with random weights, the same in every run; it reads vision tokens of width 6."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(build_encoder(_TINY), 6)
    for seed, parameter in enumerate(decoder.parameters()):
        parameter.add_(0.4 * _random(*parameter.shape, seed=seed))
    return decoder.eval()


def _close(found: Any, expected: Tensor) -> bool:
    right = isinstance(found, Tensor) and found.shape == expected.shape
    return right and torch.allclose(found.double(), expected.double(), atol=1e-4, rtol=0)


# ------------------------------------------------------------------ 1. the loss


@checker("1 the loss")
def check_loss(fn: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """``fn(logits (B, N, V), labels (B, N), smoothing)`` -> (B,); -100 in labels: not learnt."""
    logits, labels = 2 * _random(3, 5, 7), torch.tensor([[3, 1, 6, 2, 5]] * 3)
    labels[0, :2] = IGNORED  # a prompt
    labels[1, 3:] = IGNORED  # padding
    for smoothing in (0.0, 0.3):
        handed = labels.clone()
        found, right = fn(logits, handed, smoothing), loss(logits, labels, smoothing)
        if not torch.equal(handed, labels):
            return "what was given has changed: the labels are still needed."
        if _close(found, right):
            continue
        if isinstance(found, Tensor) and found.shape != right.shape:
            return f"one loss a text is wanted, (3,); yours is {tuple(found.shape)}."
        form = "without smoothing" if smoothing == 0 else "with smoothing 0.3"
        hint = next((h for h, s in _loss_slips(logits, labels, smoothing) if _close(found, s)), "")
        hint = hint or "shape right, values not: take one text and one token, and do it by hand."
        return f"{form}: {hint}"
    return ""


def _loss_slips(logits: Tensor, labels: Tensor, smoothing: float) -> list[tuple[str, Tensor]]:
    right, vocabulary = loss(logits, labels, smoothing), logits.shape[-1]

    learnt = (labels[:, 1:] != IGNORED).sum(1)
    itself = loss(F.pad(logits, (0, 0, 0, 1)), F.pad(labels, (1, 0), value=IGNORED), smoothing)
    logs, wanted = logits[:, :-1].log_softmax(-1), labels[:, 1:]
    real = -logs.gather(2, wanted.clamp(min=0)[..., None])[..., 0]  # (B, N - 1)
    others = (-logs.sum(-1) - real) / (vocabulary - 1)
    unequal = (1 - smoothing) * real + smoothing * others
    every = (1 - smoothing) * real - smoothing * logs.mean(-1)
    backwards = (
        "the logits at n speak of the token at n + 1: shift one of the two, by one, this way."
    )
    return [
        ("the logits at n speak of the token at n + 1: nothing predicts itself.", itself),
        (
            backwards,
            F.cross_entropy(
                logits[:, 1:].mT, labels[:, :-1], reduction="none", label_smoothing=smoothing
            ).sum(1),
        ),
        ("a text's loss is the sum over its tokens, not the mean.", right / learnt),
        ("a sum over the tokens of *one* text: you averaged over the batch.", right / len(right)),
        ("where the label is -100 nothing is learnt, so nothing is added.", every.sum(1)),
        ("the smoothing is missing.", loss(logits, labels, 0.0)),
        (
            "the right word gets its share of the smoothing, too: e / V each, of all V words.",
            (unequal * (wanted != IGNORED)).sum(1),
        ),
    ]


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
    "words hidden wherever they equal the first token of a prompt": _labels(_by_id),
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


# ------------------------------------------------------------------ 3. the question beside it


@checker("3 the question beside it")
def check_first_logits(fn: Callable[[Decoder, Tensor, list[list[int]]], Tensor]) -> str:
    """``fn(decoder, latents (B, L, D_v), questions)`` -> logits (B, V) of each answer's first token."""
    decoder, latents = _decoder(), _random(3, 4, 6, seed=90)
    questions = [[2, 9, 4, 7, 11], [2, 5], [2, 8, 3]]
    right = torch.stack(
        [decoder(torch.tensor([q]), latents[[i]])[0, -1] for i, q in enumerate(questions)]
    )
    found = fn(decoder, latents, [list(question) for question in questions])
    if _close(found, right):
        return ""
    if isinstance(found, Tensor) and found.shape != right.shape:
        return f"a row of logits for each question, (3, 20); yours is {tuple(found.shape)}."
    last = torch.tensor([len(question) for question in questions])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(q) for q in questions], batch_first=True)
    mask = torch.arange(ids.shape[1]) < last[:, None]
    left = torch.stack([row.roll(int(len(row) - n)) for row, n in zip(ids, last)])
    slips = {
        "as published: the last column is padding for all but the longest question, and that is "
        "where you read.": decoder(ids, latents, mask)[:, -1],
        "you read at padding, and padding is read like a word: give a mask too.": decoder(
            ids, latents
        )[:, -1],
        "packed to the left, but the padding in front is read like words: give a mask.": decoder(
            left, latents
        )[:, -1],
    }
    for hint, slip in slips.items():
        if _close(found, slip):
            return hint
    wrong = [i for i, (a, b) in enumerate(zip(found, right)) if not _close(a, b)]
    return f"question {wrong[0]} alone in its batch gives other logits than with its neighbours."


# ------------------------------------------------------------------ 4. the cache that forgets


class Writer:
    """A decoder with a cache, about one picture. ``full`` computes without the cache and is sound."""

    def __init__(self) -> None:
        self.decoder, self.latents = _decoder(), _random(1, 4, 6, seed=91)
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


# ------------------------------------------------------------------ 5. scores of endings


@checker("5 scores of endings")
def check_scores(fn: Callable[[Tensor, list[list[int]], int], Tensor]) -> str:
    """``fn(logits (K, M, V), candidates, shortlist)`` -> (K,): mean log p; -inf outside the list.

    ``logits[k, m]`` predicts token m of candidate k; ``logits[:, 0]``, behind the prompt, are equal.
    """
    candidates = [[4, 2], [5, 6, 7, 2], [3, 2], [6, 3, 2], [7, 4, 4, 2]]
    logits = 1.5 * _random(5, 4, 8, seed=7)
    logits[:, 0] = torch.tensor([0.0, -1, -2, 1.5, 0.5, 2, -0.5, 1])  # first: 5, 3, 7, 4, 6
    for shortlist in (5, 3):
        found = fn(logits.clone(), [list(c) for c in candidates], shortlist)
        right = _scores(logits, candidates, shortlist)
        if _close(found, right):
            continue
        if isinstance(found, Tensor) and found.shape != right.shape:
            return f"one score a candidate, (5,); yours is {tuple(found.shape)}."
        form = "all five" if shortlist == 5 else "a shortlist of three"
        padded = [c + [0] * (4 - len(c)) for c in candidates]
        slips = {
            "the score is smoothed, as published: take log p alone.": _scores(
                logits, candidates, shortlist, smoothing=0.1
            ),
            "the mean over a candidate's tokens is wanted, else short ones win.": _scores(
                logits, candidates, shortlist, mean=False
            ),
            "the sign is turned: the best candidate has the highest score.": -right,
            "the end mark is a token, too: without it `red` and `red mug` begin alike.": _scores(
                logits, [c[:-1] for c in candidates], shortlist
            ),
            "what stands behind a shorter candidate is no token of it.": _scores(
                logits, padded, shortlist
            ),
            "none was left out: -inf for those whose first token is less probable.": _scores(
                logits, candidates, 5
            ),
            "the shortlist goes by the first token alone, not by the whole score.": _best(
                _scores(logits, candidates, 5), shortlist
            ),
        }
        hint = next((h for h, slip in slips.items() if _close(found, slip)), "")
        return f"{form}: {hint or 'values are off: do candidate 0, of two tokens, by hand.'}"
    return ""


def _scores(
    logits: Tensor, candidates: Rows, shortlist: int, smoothing: float = 0.0, mean: bool = True
) -> Tensor:
    logs = logits.log_softmax(-1)
    logs = (1 - smoothing) * logs + smoothing * logs.mean(-1, keepdim=True)
    found = []
    for row, candidate in zip(logs, candidates):
        each = row[range(len(candidate)), list(candidate)]
        found.append(each.mean() if mean else each.sum())
    first = logits[0, 0, [candidate[0] for candidate in candidates]]  # (K,)
    return torch.stack(found).masked_fill(_best(first, shortlist).isinf(), float("-inf"))


def _best(values: Tensor, count: int) -> Tensor:
    kept = values.topk(count).indices
    return torch.full_like(values, float("-inf")).scatter(0, kept, values[kept])


# ------------------------------------------------------------------ 6. chosen on the test set


Choose = Callable[[list[float], list[float]], tuple[int, float]]


def choose(validation: list[float], test: list[float]) -> tuple[int, float]:
    """Scores after each epoch -> the epoch that is kept, from 0, and the score that is reported."""
    epoch = max(range(len(validation)), key=lambda e: validation[e])
    return epoch, test[epoch]


def _by_test(validation: list[float], test: list[float]) -> tuple[int, float]:
    return choose(test, test)


def _never_first(validation: list[float], test: list[float]) -> tuple[int, float]:
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
