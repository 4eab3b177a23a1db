"""Is a caption of a generated scene true? It is read back into claims and held against the graph.

``claims`` reads the language of ``data.scene_captions`` by rules, so a model's broken sentences are
read as far as they can be. A claim is true when it holds for the picture, be it of an object that
is mostly hidden; relations hold only where they are clear (``scene_facts.side`` and ``near``). What
a caption could have said, the denominator of recall, is what holds among the objects that captions
mention (visible share ``SEEN`` or more): the distinct kinds, the distinct colour-kind pairs, the
number of all objects and of equal ones, every clear relation, the words of signs. **So a caption
that mentions one object can only have low recall**, and no caption has much recall of relations:
of these, read the precision. Hallucinations are stated objects that are not in the picture.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor

from .data.scene_captions import NUMBERS, SEEN, SURFACES
from .data.scene_facts import Graph, checked, near, plural, side, with_article
from .data.scene_objects import COLOURS, KINDS, SIZES, TEXTURES
from .errors import InputError

NAMED = ("objects", "colours")  # the categories of the object-and-colour F1

Claim = tuple[str | int | None, ...]  # None: not said

_KIND = {kind: kind for kind in KINDS} | {plural(kind): kind for kind in KINDS}
_COLOUR = "|".join(COLOURS)
_ADJECTIVE = "|".join((*COLOURS, *TEXTURES, *SIZES))
_NUMBER = "|".join(NUMBERS)
_SMALL_WORDS = "a|an|the|and|or|on|in|with|of|to|is|are|stands?|standing|behind|left|right"
_NOUN = re.compile(
    rf"\b(?:({_NUMBER}|[0-9]{{1,3}}) |(?:an?|the) )?"
    rf"(?:((?:(?:{_ADJECTIVE}),? ){{,6}})({'|'.join(_KIND)}|objects?|things?)"
    rf"|((?:(?:{_ADJECTIVE}),? ){{,5}}(?:{_COLOUR}) )"
    rf"(?!(?:{_ADJECTIVE}|{_NUMBER}|{_SMALL_WORDS})\b)([a-z]+))\b"
)
_WORD = re.compile(r"\b(says|reads|reading|word) (?!on it\b)(\w+)")
_RELATION = re.compile(
    r"\b(left of|right of|in front of|behind|nearer to the camera than|f[au]rther away than)"
    r" <(\d+)>"
)
_ENDS = re.compile(r"<(\d+)> on the left,? and <(\d+)> on the right\b")
_ROW = re.compile(r"\b(?:from left to right|seen from the left)\b(.*)")
_FRONT = re.compile(
    r"<(\d+)> (?:in the foreground|stands in front),? with (.*?)\b(?:behind|further back)\b"
)
_NEAREST = re.compile(r"\bnearest to the camera is <(\d+)>")


class Claims(NamedTuple):
    """What a caption says.

    Args:
        objects: ``(kind,)``; a noun after a colour that is no kind counts as well.
        colours: ``(colour, kind)``.
        counts: ``(number, colour or None, kind or None)``.
        relations: ``("left", colour, kind, colour, kind)``: the first left of the second;
            ``("nearer", ...)`` likewise; ``("nearest", colour, kind)``. A colour may be None.
        words: ``(word,)``.
    """

    objects: set[Claim]
    colours: set[Claim]
    counts: set[Claim]
    relations: set[Claim]
    words: set[Claim]


class Tally(NamedTuple):
    """Of one category: true claims, all claims, facts that true claims state, all facts."""

    true: int
    stated: int
    found: int
    possible: int

    @property
    def precision(self) -> float:
        """Share of the claims that are true; 1 when nothing was claimed."""
        return self.true / self.stated if self.stated else 1.0

    @property
    def recall(self) -> float:
        """Share of the facts that were stated; 1 when there are none."""
        return self.found / self.possible if self.possible else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


class Truth(NamedTuple):
    """How true one caption is."""

    objects: Tally
    colours: Tally
    counts: Tally
    relations: Tally
    words: Tally

    @property
    def hallucinated(self) -> int:
        """Number of stated kinds that are not in the picture."""
        return self.objects.stated - self.objects.true


def claims(caption: str) -> Claims:
    """Everything a caption says that can be checked; of any text, nothing is ever raised."""
    found = Claims(set(), set(), set(), set(), set())
    for sentence in re.split(r"[.!?]+", caption.lower()):
        text = re.sub(r"[^\w,]+", " ", re.sub(r"[:;]", ",", sentence)).replace(" ,", ",").strip()
        found.words.update((word,) for _, word in _WORD.findall(text))
        nouns: list[Claim] = []  # (number, colour, kind) of each
        text = _NOUN.sub(partial(_read_noun, found, nouns), _WORD.sub(r"\1", text))
        for name, *things in _relations(text):
            found.relations.add((name, *(part for thing in things for part in nouns[thing][1:])))
        for front, rest in _FRONT.findall(text):  # "a mug in front, with two mugs behind": three
            for number in map(int, re.findall(r"<(\d+)>", rest)):
                count, *name = nouns[number]
                if count is not None and tuple(name) == nouns[int(front)][1:]:
                    nouns[number] = (count + 1, *name)
        found.counts.update(noun for noun in nouns if noun[0] is not None)
    return found


def judge(caption: str, graph: Graph) -> Truth:
    """Hold a caption against the graph of its scene.

    Raises:
        InputError: the graph holds no objects.
    """
    (graph,) = checked([graph], "truth")
    pictured = [item for item in graph["objects"] if item["pixels"] > 0] or graph["objects"]
    seen = _mentioned(graph)
    said, facts, more = claims(caption), _facts(graph, seen), _facts(graph, pictured)
    tallies = []
    for category, stated, possible, also in zip(Claims._fields, said, facts, more):
        if category == "counts":
            true = {c for c in stated if _counted(c, seen) or _counted(c, pictured)}
        else:
            true = {c for c in stated if any(_fits(c, fact) for fact in possible | also)}
        known = sum(any(_fits(claim, fact) for claim in true) for fact in possible)
        tallies.append(Tally(len(true), len(stated), known, len(possible)))
    return Truth(*tallies)


def truths(captions: Sequence[str], graphs: Sequence[Graph]) -> list[Truth]:
    """``judge`` of every caption with its graph.

    Raises:
        InputError: none were given, their numbers differ, or a graph holds no objects.
    """
    if not len(captions) or len(captions) != len(graphs):
        raise InputError(
            f"{len(captions)} captions were given for {len(graphs)} scene graphs: give one caption "
            "for each graph, and at least one."
        )
    return [judge(caption, graph) for caption, graph in zip(captions, graphs)]


def f1(judged: Sequence[Truth], categories: Sequence[str] = NAMED) -> Tensor:
    """F1 of each caption over the categories together, (N,) float64: a row of paired_bootstrap."""
    scores = [_sum(getattr(truth, name) for name in categories).f1 for truth in judged]
    return torch.tensor(scores, dtype=torch.double)


def score(captions: Sequence[str], graphs: Sequence[Graph]) -> dict[str, float]:
    """Truth of a corpus.

    Returns:
        ``<category>_precision``, ``_recall``, ``_f1`` over all claims of all captions (micro), and
        ``_stated``, their number, for the fields of ``Truth``; ``named_f1``, objects and colours
        together, micro; ``named_f1_mean``, the mean of ``f1``, for which intervals are given;
        ``hallucination``, the share of stated objects that are not there; ``hallucinating``, the
        share of captions with such an object.

    Raises:
        InputError: as ``truths``.
    """
    judged, found = truths(captions, graphs), {}
    for name in Truth._fields:
        tally = _sum(getattr(truth, name) for truth in judged)
        for value in ("precision", "recall", "f1", "stated"):
            found[f"{name}_{value}"] = getattr(tally, value)
    found["named_f1"] = _sum(getattr(truth, name) for truth in judged for name in NAMED).f1
    found["named_f1_mean"] = f1(judged).mean().item()
    found["hallucination"] = 1 - found["objects_precision"]
    found["hallucinating"] = sum(truth.hallucinated > 0 for truth in judged) / len(judged)
    return found


def pair_recall(
    captions: Sequence[str], graphs: Sequence[Graph], pairs: Collection[Claim]
) -> float:
    """Share stated of the colour-kind pairs that captions mention and that are among ``pairs``.

    With ``data.scenes.HELD_OUT`` it tells whether what was never seen together can be named. 1 where
    there are none.
    """
    wanted = [_facts(graph, _mentioned(graph)).colours & set(pairs) for graph in graphs]
    possible = sum(map(len, wanted))
    stated = (claims(caption).colours for caption in captions)
    found = sum(len(facts & said) for facts, said in zip(wanted, stated, strict=True))
    return found / possible if possible else 1.0


def template(graph: Graph, corrupt: float = 0.0, seed: int = 0) -> str:
    """Baseline that sees the graph: "A red ball, two green hats and a blue mug on a wooden table."

    All objects that captions mention, nearest first; each kind and each colour is replaced by
    another one, at random, with probability ``corrupt``.

    Raises:
        InputError: ``corrupt`` is no probability, or the graph holds no objects.
    """
    if not 0 <= corrupt <= 1:
        raise InputError(f"corrupt is {corrupt}: give a probability, 0 to 1.")
    (graph,) = checked([graph], "truth")
    rng = random.Random(f"template-{seed}-{graph['id']}-{graph['seed']}")

    def told(value: str, values: Sequence[str]) -> str:
        lie = rng.choice([other for other in values if other != value])
        return lie if rng.random() < corrupt else value

    items = sorted(_mentioned(graph), key=lambda item: item["distance"])
    pairs = Counter((told(i["colour"], tuple(COLOURS)), told(i["kind"], KINDS)) for i in items)
    nouns = [
        with_article(f"{colour} {kind}") if n == 1 else f"{NUMBERS[n]} {colour} {plural(kind)}"
        for (colour, kind), n in pairs.items()
    ]
    text = f"{', '.join(nouns[:-1])} and {nouns[-1]}" if len(nouns) > 1 else nouns[0]
    return f"{text[0].upper()}{text[1:]} on {SURFACES.get(graph['surface'], 'a table')}."


def _mentioned(graph: Graph) -> list[dict]:
    """The objects that ``scene_captions`` speaks of."""
    seen = [i for i in graph["objects"] if i["visible"] >= SEEN and i["pixels"] > 0]
    return seen or graph["objects"]


def _read_noun(found: Claims, nouns: list[Claim], match: re.Match) -> str:
    """Note what a noun says, and leave its place in ``nouns`` in the text for the relations."""
    number, adjectives, known, adjectives2, unknown = match.groups()
    colours = re.findall(_COLOUR, adjectives or adjectives2 or "")
    kind = _KIND.get(known, unknown)  # None: "an object", "a thing"
    count = NUMBERS.index(number) if number in NUMBERS else int(number) if number else None
    nouns.append((count, colours[-1] if colours else None, kind))
    if kind is None or count == 0:
        return "it"
    found.objects.add((kind,))
    found.colours.update((colour, kind) for colour in colours)
    return f"<{len(nouns) - 1}>"


def _relations(text: str) -> Iterator[tuple]:
    """``(relation, thing, thing)`` with the numbers of nouns, of a text read by ``_read_noun``."""
    for match in _RELATION.finditer(text):
        subject = text.rfind("<", 0, match.start())
        if subject < 0:
            continue
        one, other = int(text[subject + 1 : text.index(">", subject)]), int(match[2])
        if match[1] in ("right of", "behind") or match[1].endswith("away than"):
            one, other = other, one
        yield "left" if match[1] in ("left of", "right of") else "nearer", one, other
    for match in _ENDS.finditer(text):
        yield "left", int(match[1]), int(match[2])
    for match in _ROW.finditer(text):
        row = [int(number) for number in re.findall(r"<(\d+)>", match[1])]
        yield from (("left", one, other) for one, other in combinations(row, 2))
    for match in _FRONT.finditer(text):
        for number in re.findall(r"<(\d+)>", match[2]):
            yield "nearer", int(match[1]), int(number)
    for match in _NEAREST.finditer(text):
        yield "nearest", int(match[1])


def _facts(graph: Graph, items: Sequence[dict]) -> Claims:
    """What could be said of these objects."""
    named = [(item["colour"], item["kind"]) for item in items]
    relations: set[Claim] = set()
    for (one, name), (other, name2) in permutations(zip(items, named), 2):
        if side(graph, one, other) == "left":
            relations.add(("left", *name, *name2))
        if near(graph, one, other) == "nearer":
            relations.add(("nearer", *name, *name2))
    for one, name in zip(items, named):
        others = [other for other in items if other is not one]
        if others and all(near(graph, one, other) == "nearer" for other in others):
            relations.add(("nearest", *name))
    alike = {(count, *name) for name, count in Counter(named).items() if count > 1}
    words = {(item["word"],) for item in items if item["word"]}
    kinds = {(kind,) for _, kind in named}
    return Claims(kinds, set(named), {(len(items), None, None), *alike}, relations, words)


def _fits(claim: Claim, fact: Claim) -> bool:
    return len(claim) == len(fact) and all(c is None or c == f for c, f in zip(claim, fact))


def _counted(claim: Claim, items: Sequence[dict]) -> bool:
    number, colour, kind = claim
    right = [i for i in items if colour in (None, i["colour"]) and kind in (None, i["kind"])]
    return len(right) == number


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*(sum(column) for column in zip(*tallies)))
