"""What the recipe figures-captions learns from: cut alternative texts and pictures of textbook figures.

An alternative text has 45 words in the middle and up to 1,721, so it is cut to 32 tokens of the decoder:
to the whole sentences from its beginning that fit, or to the words that fit where the first sentence is
longer or those sentences have under 5 words. Of 3,656 training texts 1,150 stay whole, 2,188 end at a
sentence and 318 at a word; of 1,261 test texts 395, 759 and 107. None is empty. 18 training figures are
left out: their whole text shares 0.8 of its words with a validation or test text. Texts that are the same
only after the cut stay (50 in training; 17 of the test texts are also training texts).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .. import caption_metrics, checkpoints
from ..data import figures, subsets
from ..data.figures import _SENTENCE_END
from ..features import Images
from ..prismer_config import ENCODERS
from ..prismer_training import PrismerItems
from ..runs import Settings
from ..tokenizer import Tokenizer
from .scene_encoder import encoded

IMAGE, TEXT = ENCODERS["small"]
LABEL = 5  # a text with fewer words is a label, see figures.caption_target
NEAR = 0.8  # share of common words from which on two texts are one


class Part(NamedTuple):
    """Figures of a split: encoded pictures, cut texts, and a list of rows without the pictures."""

    pictures: list[Any]
    texts: list[str]
    rows: list[dict[str, Any]]

    @property
    def sections(self) -> list[str]:
        """What a bootstrap draws."""
        return [row["section"] for row in self.rows]


def cut(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The beginning of a text, of at most ``most`` tokens without the marks at both ends.

    Whole sentences where they have at least ``LABEL`` words, else as many words as fit.
    """
    whole = " ".join(text.split())
    begun = [whole[: match.end()] for match in _SENTENCE_END.finditer(whole)]
    for part in reversed([*begun, whole]):
        if _fits(part, tokenizer, most):
            if part == whole or len(part.split()) >= LABEL:
                return part
            break
    words = whole.split()[:most]  # a word has a token or more
    while len(words) > 1 and not _fits(" ".join(words), tokenizer, most):
        words.pop()
    return " ".join(words).rstrip(",;:“(")


def _fits(text: str, tokenizer: Tokenizer, most: int) -> bool:
    return len(text.split()) <= most and int(tokenizer([text])[1].sum()) - 2 <= most


def overlap(one: set[str], other: set[str]) -> float:
    """Words that two texts share, of all that they have."""
    return len(one & other) / max(1, len(one | other))


def bag(text: str) -> set[str]:
    """The different words of a text."""
    return set(caption_metrics.words(text))


@lru_cache(maxsize=3)
def _split(split: str) -> tuple[list[dict[str, Any]], list[Any]]:
    table = figures.load(split)
    return table.remove_columns("image").to_list(), encoded(table)


@lru_cache(maxsize=6)
def _part(split: str, count: int | None, most: int) -> Part:
    rows, pictures = _split(split)
    chosen = list(range(len(rows)))
    if count is not None:
        chosen = subsets.stratified([0] * len(rows), count)
    if split == "train":
        others = [bag(row["alt"]) for name in ("validation", "test") for row in _split(name)[0]]
        chosen = [row for row in chosen if not near(bag(rows[row]["alt"]), others)]
    tokenizer = checkpoints.load_tokenizer(TEXT)
    texts = [cut(rows[row]["alt"], tokenizer, most) for row in chosen]
    return Part([pictures[row] for row in chosen], texts, [rows[row] for row in chosen])


def near(words: set[str], others: list[set[str]]) -> bool:
    """Whether a text is nearly one of the others."""
    size = len(words)
    likely = (other for other in others if NEAR * size <= len(other) <= size / NEAR)
    return any(overlap(words, other) >= NEAR for other in likely)


def part(s: Settings, split: str) -> Part:
    """Figures of a split by settings."""
    return _part(split, s["count"][split], s["tokens"])


@lru_cache(maxsize=3)
def _pixels(split: str, count: int | None, most: int, size: int) -> torch.Tensor:
    sources = _images(split, count, most, size)
    return sources.batch(0, len(sources)).inputs  # (N, 3, H, W)


def _images(split: str, count: int | None, most: int, size: int) -> Images:
    sources = _part(split, count, most).pictures
    return Images(sources, checkpoints.image_transform(IMAGE, size=size))


def images(s: Settings, split: str) -> Images:
    """Pictures of ``part`` for ``features.extract``."""
    return _images(split, s["count"][split], s["tokens"], s["image_size"])


def exchange(count: int, seed: int) -> list[int]:
    """Whose picture each item gets, at random: each is given once, and none to its own."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    giver = dict(zip(order, order[1:] + order[:1]))  # one circle through all
    return [giver[item] for item in range(count)]


def items(s: Settings, split: str, chosen: list[int], prompt: str = "") -> PrismerItems:
    """Pictures and texts of some figures; alternative texts begin as they like, without a prompt."""
    found = part(s, split)
    pixels = _pixels(split, s["count"][split], s["tokens"], s["image_size"])
    return PrismerItems(
        {"rgb": pixels},
        [prompt] * len(chosen),
        [[found.texts[row]] for row in chosen],
        checkpoints.load_tokenizer(TEXT),
        [found.sections[row] for row in chosen],
        rows=chosen,
    )


def medoid(texts: list[str], against: int = 200) -> str:
    """The text with the highest mean ``overlap`` with so many others."""
    bags = [bag(text) for text in texts]
    others = subsets.stratified([0] * len(texts), min(against, len(texts)))
    means = [
        sum(overlap(bags[row], bags[other]) for other in others if other != row)
        / max(1, sum(other != row for other in others))
        for row in range(len(texts))
    ]
    return texts[means.index(max(means))]
