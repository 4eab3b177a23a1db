"""Words in and out of Prismer: how captions, questions and answers are written and packed.

Formats as in the official code: captions lose ``.!"()*#:;~`` and are cut at 30 words; a question gets
its mark; an answer follows with a space. ``capitalised`` is Python's ``str.capitalize``, which also
lower-cases all other letters ("NFL" becomes "nfl"); ours leaves them alone. Prompts are packed to the
left, so that every prompt ends at the same place and no answer is read off a padding position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError
from .tokenizer import Tokenizer

CAPTION_PROMPT = "A picture of"
CLASS_PROMPT = "A photo of a"
WORDS = 30  # of a caption or question
_DROPPED = re.compile(r'[.!"()*#:;~]')


def clean_caption(text: str) -> str:
    """A caption as it is trained on: marks dropped, spaces single, at most 30 words."""
    return capital(" ".join(_DROPPED.sub(" ", text).split()[:WORDS]))


def clean_question(text: str) -> str:
    """A question as it is asked: at most 30 words, first letter large, one question mark.

    Raises:
        InputError: there is no word in it.
    """
    words = _DROPPED.sub(" ", text).replace("?", " ").split()[:WORDS]
    if not words:
        raise InputError(f"The question {text!r} has no words: ask something.")
    return capital(" ".join(words)) + "?"


def capital(text: str) -> str:
    """First letter large, all else as it is."""
    return text[:1].upper() + text[1:]


def sentence(text: str, prompt: str = "") -> str:
    """Generated text without its prompt, with a capital and a full stop."""
    text = text.strip().removeprefix(prompt).strip().rstrip(".").strip()
    return f"{capital(text)}." if text else ""


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts without their end mark, packed to the left.

    Returns:
        ids (B, N) and mask (B, N), 1 = a token; padding comes first.
    """
    ids, mask = tokenizer(list(prompts))
    rows = [row[kept.bool()][:-1] for row, kept in zip(ids, mask)]  # without the last, the end mark
    return pack_left(rows, tokenizer.pad_id)


def pack_left(rows: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids (n_i,) -> ids (B, N), mask (B, N), padding first."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = row
        mask[number, longest - len(row) :] = 1
    return ids, mask


def answer_ids(tokenizer: Tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """Answers as they follow a prompt: a space, the words, the end mark.

    Raises:
        InputError: no answers, an empty one, or one that is no text.
    """
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"The answers {answers!r} must be a list of texts: put one into a list.")
    if not answers:
        raise InputError("There are no answers to choose from: give one or more.")
    for number, answer in enumerate(answers):
        if not answer.strip():
            raise InputError(f"Answer {number} is empty: drop it or fill it in.")
    ids, mask = tokenizer([" " + answer.strip() for answer in answers])
    return [row[kept.bool()][1:].tolist() for row, kept in zip(ids, mask)]  # without the begin mark


def end_id(tokenizer: Tokenizer) -> int:
    """The mark that ends a text: [SEP] or </s>."""
    return int(tokenizer(["a"])[0][0, -1])
