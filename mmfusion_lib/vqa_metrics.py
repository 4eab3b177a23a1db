"""Accuracy of answers to questions, as the public VQA evaluation counts it.

Ten people answered each question. An answer is fully right when three of them gave it; to compare
people and machines alike, this is averaged over the ten ways to leave one person out, so that 1, 2,
3 and 4 agreeing people of ten give 0.3, 0.6, 0.9 and 1. Both sides are normalised first, always;
the public evaluation leaves a question as it is where all people wrote the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError

ENOUGH = 3  # people who make an answer right
_NUMBERS = "zero one two three four five six seven eight nine ten"
_NUMBER = {word: str(value) for value, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = (  # the common ones
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't o'clock "
    "oughtn't shan't should've shouldn't somebody's someone's something's that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's "
    "what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't "
    "would've wouldn't y'all you'd you'll you're you've"
)
_CONTRACTION = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def normalise(answer: str) -> str:
    """An answer as it is compared: ``"The two dogs."`` -> ``"2 dogs"``.

    Marks leave a space, or nothing where they stood beside one or the text holds a number like
    1,000. A full stop stays before a digit. Then lower case, number words as digits, no articles,
    and apostrophes put back into the usual contractions (``dont`` -> ``don't``).
    """
    text = " ".join(answer.split())
    whole = text
    for mark in _MARKS:
        beside = f"{mark} " in whole or f" {mark}" in whole
        text = text.replace(mark, "" if beside or _NUMBER_COMMA.search(whole) else " ")
    text = _PERIOD.sub("", text).lower()
    found = [_NUMBER.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTION.get(word, word) for word in found if word not in _ARTICLES)


def accuracy(answers: Sequence[str], human_answers: Sequence[Sequence[str]]) -> Tensor:
    """How right each answer is, 0 to 1.

    Args:
        answers: N answers.
        human_answers: for each the answers that people gave, ten in VQAv2, more than ``ENOUGH``.

    Returns:
        (N,) float64; its mean is the VQA accuracy, ``metrics.paired_bootstrap`` takes it as a row.

    Raises:
        InputError: no answers, unequal lengths, or too few people.
    """
    _same_length(answers, human_answers)
    scores = []
    for row, (answer, people) in enumerate(zip(answers, human_answers)):
        if isinstance(people, str) or len(people) <= ENOUGH:
            raise InputError(
                f"Question {row} has fewer than {ENOUGH + 1} human answers: give a list of them, "
                "or use exact, which takes one true answer."
            )
        agree = [normalise(person) == normalise(answer) for person in people]
        others = [sum(agree) - one for one in agree]  # who agree when this one is left out
        scores.append(sum(min(1.0, count / ENOUGH) for count in others) / len(people))
    return torch.tensor(scores, dtype=torch.double)


def exact(answers: Sequence[str], truths: Sequence[str]) -> Tensor:
    """1 where an answer equals the only true one after ``normalise``, else 0: (N,) float64.

    Raises:
        InputError: no answers, or unequal lengths.
    """
    _same_length(answers, truths)
    right = [normalise(answer) == normalise(truth) for answer, truth in zip(answers, truths)]
    return torch.tensor(right, dtype=torch.double)


def _same_length(answers: Sequence, truths: Sequence) -> None:
    if not len(answers) or len(answers) != len(truths):
        raise InputError(
            f"{len(answers)} answers were given for {len(truths)} questions: give one answer for "
            "each question, and at least one."
        )
