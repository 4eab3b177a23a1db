"""Checkers of the exercises of chapter 5. Each takes the learner's function and says what is wrong.

Those whose answer is a test are in ``prismer_faults``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder import IGNORED, Decoder, loss
from ..encoders import EncoderConfig, build_encoder
from .result import checker

_TINY = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=20, max_positions=24)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_decoder() -> Decoder:
    """A small decoder with random weights, the same in every run; it reads vision tokens of width 6."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(build_encoder(_TINY), 6)
    for seed, parameter in enumerate(decoder.parameters()):
        parameter.add_(0.4 * draw(*parameter.shape, seed=seed))
    return decoder.eval()


def _close(found: Any, expected: Tensor) -> bool:
    right = isinstance(found, Tensor) and found.shape == expected.shape
    return right and torch.allclose(found.double(), expected.double(), atol=1e-4, rtol=0)


# ------------------------------------------------------------------ 1. the loss


@checker("1 the loss")
def check_loss(fn: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """``fn(logits (B, N, V), labels (B, N), smoothing)`` -> (B,); -100 in labels: not learnt."""
    logits, labels = 2 * draw(3, 5, 7), torch.tensor([[3, 1, 6, 2, 5]] * 3)
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


# ------------------------------------------------------------------ 3. the question beside it


@checker("3 the question beside it")
def check_first_logits(fn: Callable[[Decoder, Tensor, list[list[int]]], Tensor]) -> str:
    """``fn(decoder, latents (B, L, D_v), questions)`` -> logits (B, V) of each answer's first token."""
    decoder, latents = small_decoder(), draw(3, 4, 6, seed=90)
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


# ------------------------------------------------------------------ 5. scores of endings


@checker("5 scores of endings")
def check_scores(fn: Callable[[Tensor, list[list[int]], int], Tensor]) -> str:
    """``fn(logits (K, M, V), candidates, shortlist)`` -> (K,): mean log p; -inf outside the list.

    ``logits[k, m]`` predicts token m of candidate k; ``logits[:, 0]``, behind the prompt, are equal.
    """
    candidates = [[4, 2], [5, 6, 7, 2], [3, 2], [6, 3, 2], [7, 4, 4, 2]]
    logits = 1.5 * draw(5, 4, 8, seed=7)
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
    logits: Tensor,
    candidates: list[list[int]],
    shortlist: int,
    smoothing: float = 0.0,
    mean: bool = True,
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
