"""CIDEr-D, BLEU and ROUGE-L of captions, without Java; METEOR and SPICE where Java is.

Every function takes N candidates and, for each, one reference or more. Sources: CIDEr-D, Vedantam
et al. 2015; BLEU, Papineni et al. 2002; ROUGE-L, Lin 2004; constants and ties as in the public COCO
evaluation (pycocoevalcap), which a test compares. The one difference is ``words``: there a Java
program cuts sentences into words, so the scores of texts with unusual marks can differ a little.

Intervals: ``metrics.paired_bootstrap(ours.items[None], theirs.items[None])`` for CIDEr-D and
ROUGE-L, whose corpus score is the mean of the items. BLEU of a corpus is not the mean of its items.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError

ORDERS = (1, 2, 3, 4)  # lengths of the n-grams of CIDEr-D and BLEU
SIGMA = 6.0  # words: CIDEr-D's tolerance for another length
BETA = 1.2  # ROUGE-L: weight of recall against precision
_TINY, _SMALL = 1e-15, 1e-9  # keep BLEU's fractions defined, as in the public evaluation

_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,]\d+)+|\w+(?:-\w+)*")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")

Items = list[tuple[list[str], list[list[str]]]]  # (words of the candidate, of each reference)


class Scores(NamedTuple):
    """A metric of a corpus, and of each of its items (N,), double."""

    corpus: float
    items: Tensor


def words(text: str) -> list[str]:
    """A caption's words: lower case, no marks, ``don't`` -> ``do n't``, ``it's`` -> ``it 's``.

    Close to the Penn Treebank's rules; decimal numbers and words with hyphens stay whole. Unlike
    the Java tokeniser it leaves ``cannot`` whole and drops every symbol (``$``, brackets).
    """
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return _WORD.findall(_CLITIC.sub(r" \1", text))


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """CIDEr-D, times 10: likeness of n-grams, weighted by how rare they are among the references.

    An n-gram's weight is log(N / items whose references hold it), so one item alone scores 0, and
    scores of different corpora cannot be compared.

    Raises:
        InputError: no items, unequal lengths, or an item without references.
    """
    items = _tokenised(candidates, references)
    holders: Counter[tuple[str, ...]] = Counter()
    for _, refs in items:
        holders.update({gram for ref in refs for n in ORDERS for gram in _grams(ref, n)})

    def vector(text: list[str], n: int) -> tuple[dict[tuple[str, ...], float], float]:
        weights = {
            gram: count * math.log(len(items) / max(1, holders[gram]))
            for gram, count in _grams(text, n).items()
        }
        return weights, math.sqrt(sum(weight**2 for weight in weights.values()))

    scores = []
    for candidate, refs in items:
        total = 0.0
        mine = [vector(candidate, n) for n in ORDERS]
        for ref in refs:
            longer = max(0, len(candidate) - 1) - max(0, len(ref) - 1)  # in bigrams
            closeness = math.exp(-(longer**2) / (2 * SIGMA**2))
            for n, (ours, norm) in zip(ORDERS, mine):
                theirs, norm2 = vector(ref, n)
                shared = ((weight, theirs.get(gram, 0.0)) for gram, weight in ours.items())
                overlap = sum(min(weight, weight2) * weight2 for weight, weight2 in shared)
                total += closeness * overlap / (norm * norm2 or 1.0)
        scores.append(10 * total / (len(ORDERS) * len(refs)))
    return _mean(scores)


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Scores, ...]:
    """BLEU-1, -2, -3 and -4, with the length of the closest reference (the shorter of two).

    Raises:
        InputError: as ``cider``.
    """
    rows = []  # of an item: right and all n-grams of each order, its length, its reference's length
    for candidate, refs in _tokenised(candidates, references):
        row: list[int] = []
        for n in ORDERS:
            most: Counter[tuple[str, ...]] = Counter()
            for ref in refs:
                most |= _grams(ref, n)
            row += [(_grams(candidate, n) & most).total(), max(0, len(candidate) - n + 1)]
        closest = min((abs(len(ref) - len(candidate)), len(ref)) for ref in refs)[1]
        rows.append([*row, len(candidate), closest])
    counts = torch.tensor(rows, dtype=torch.double)  # (N, 10)
    counts = torch.cat([counts.sum(0, keepdim=True), counts])  # (1 + N, 10): the corpus first
    precision = (counts[:, 0:8:2] + _TINY) / (counts[:, 1:8:2] + _SMALL)  # (1 + N, 4)
    ratio = (counts[:, 8] + _TINY) / (counts[:, 9] + _SMALL)  # (1 + N,)
    brevity = torch.where(ratio < 1, torch.exp(1 - 1 / ratio), torch.ones_like(ratio))
    orders = torch.tensor(ORDERS, dtype=torch.double)
    scores = precision.log().cumsum(1).div(orders).exp() * brevity[:, None]  # (1 + N, 4)
    return tuple(Scores(column[0].item(), column[1:]) for column in scores.T)


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """ROUGE-L: the longest common subsequence, its best precision and best recall over references.

    Raises:
        InputError: as ``cider``.
    """
    scores = []
    for candidate, refs in _tokenised(candidates, references):
        common = [_common(candidate, ref) for ref in refs]
        precision = max(common) / max(1, len(candidate))
        recall = max(c / max(1, len(ref)) for c, ref in zip(common, refs))
        below = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / below if below else 0.0)
    return _mean(scores)


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """METEOR 1.5 by pycocoevalcap and Java; the corpus score is not the mean of the items.

    Raises:
        InputError: as ``cider``, or Java or pycocoevalcap is missing or fails.
    """
    return _by_java("meteor", candidates, references)


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """SPICE by pycocoevalcap and Java 8; the first call downloads Stanford CoreNLP.

    Raises:
        InputError: as ``meteor``.
    """
    return _by_java("spice", candidates, references)


def _by_java(name: str, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    items = _tokenised(candidates, references)
    try:
        if shutil.which("java") is None:
            raise OSError("java is not on the path")
        module = __import__(f"pycocoevalcap.{name}.{name}", fromlist=[name])
        truth = {row: [" ".join(ref) for ref in refs] for row, (_, refs) in enumerate(items)}
        ours = {row: [" ".join(text) or "."] for row, (text, _) in enumerate(items)}
        corpus, scores = getattr(module, name.capitalize())().compute_score(truth, ours)
    except Exception as error:  # whatever a Java program and its wrapper can do
        raise InputError(
            f"{name.upper()} cannot be computed ({error}): install Java 8 and pycocoevalcap, or "
            "use cider, bleu and rouge_l, which need neither."
        ) from error
    if name == "spice":
        scores = [score["All"]["f"] for score in scores]
    return Scores(float(corpus), torch.tensor(scores, dtype=torch.double))


def _tokenised(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Items:
    if not len(candidates) or len(candidates) != len(references):
        raise InputError(
            f"{len(candidates)} candidates were given with references for {len(references)} items: "
            "give one caption and a list of references for each item, and at least one item."
        )
    for row, refs in enumerate(references):
        if isinstance(refs, str) or not len(refs):
            raise InputError(f"Item {row} has no list of references: give one reference or more.")
    return [
        (words(text), [words(ref) for ref in refs]) for text, refs in zip(candidates, references)
    ]


def _grams(text: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[start:] for start in range(n))))


def _common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        last = row
        row = [0]
        for place, word2 in enumerate(other):
            row.append(last[place] + 1 if word == word2 else max(row[place], last[place + 1]))
    return row[-1]


def _mean(scores: list[float]) -> Scores:
    items = torch.tensor(scores, dtype=torch.double)
    return Scores(items.mean().item(), items)
