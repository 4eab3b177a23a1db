"""Visual entailment on generated scenes: is the sentence true of the picture, false, or open?

Each picture shows a part of a table. A hypothesis is about definite things ("the mug", "the red
object"). It is an **entailment** where the picture shows it to be true, and a **contradiction** where
the picture shows it to be false. Where one of these things is not in the picture at all, the
picture can neither affirm nor deny the sentence (there may be a mug elsewhere on the table, of any
colour): **neutral**. So neutrality is a state of the picture, never a matter of vocabulary: the
same sentence is true of one scene, false of a second and open for a third.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

from ..errors import InputError
from .scene_facts import Fact, Graph, checked, facts, present_words, spoken, with_article

LABELS = ("entailment", "neutral", "contradiction")

# {0}, {1}: what the fact is about; {answer}: its value, worded by ANSWERS. Only facts about something
# definite, which a picture may lack, make hypotheses.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "colour": ("The {0} is {answer}.", "The colour of the {0} is {answer}."),
    "texture": ("The {0} is {answer}.", "The {0} has {pattern}."),
    "kind": ("The {0} object is {answer}.", "The {0} thing is {answer}."),
    "word": ('The {0} says "{answer}".', 'The word on the {0} is "{answer}".'),
    "same": ("The {0} and the {1} have {answer}.", "The {1} and the {0} have {answer}."),
    "side": ("The {0} is to the {answer} of the {1}.", "The {0} stands {answer} of the {1}."),
    "side_half": ("The {0} is in the {answer} half of the picture.",),
    "near": ("The {0} is {answer} the camera than the {1}.",),
    "leftmost": ("The {0} is {answer} object furthest to the left.",),
    "rightmost": ("The {0} is {answer} object furthest to the right.",),
    "nearest": ("The {0} is {answer} object nearest to the camera.",),
    "count_left": ("{answer} to the left of the {0}.",),
    "count_right": ("{answer} to the right of the {0}.",),
}
NEGATION = {"yes": "the", "no": "not the"}
NUMBERS = {
    "0": "None of the other objects is",
    "1": "Exactly one other object is",
    "2": "Exactly two other objects are",
    "3": "Exactly three other objects are",
}
ANSWERS = {
    "near": {"nearer": "nearer to", "farther": "farther from"},
    "same": {"same": "the same colour", "different": "different colours"},
    "leftmost": NEGATION,
    "rightmost": NEGATION,
    "nearest": NEGATION,
    "count_left": NUMBERS,
    "count_right": NUMBERS,
}
PATTERNS = {"plain": "no pattern", "striped": "stripes", "checked": "checks"}
MOST = 3  # no family is used more than this many times as often as the average one

Claim = tuple[Fact, str]  # a fact and the value that is asserted


def entailment(graphs: Iterable[Graph], seed: int = 0, rounds: int = 3) -> list[dict]:
    """Three-way visual entailment in blocks of three scenes and three hypotheses.

    A block is a Latin square: each hypothesis has each label once, and so has each scene.

    ===========  =============  =============  =============
    hypothesis   scene a        scene b        scene c
    ===========  =============  =============  =============
    first        entailment     contradiction  neutral
    second       neutral        entailment     contradiction
    third        contradiction  neutral        entailment
    ===========  =============  =============  =============

    So every sentence (hence every word and pair of words) and every picture has each label equally
    often: any model of the text alone, or of the picture alone, is right exactly 1/3 of the time.
    Families of hypotheses (colour, side, word, ...) are drawn in inverse proportion to their use so
    far, and none more than ``MOST`` times as often as the average: attributes are far easier to
    match than relations between two given kinds.

    Args:
        graphs: scene graphs, in the order of the data set's rows.
        seed: draws blocks, hypotheses and wordings.
        rounds: how many blocks a scene joins at most; each gives it three hypotheses.

    Returns:
        Rows ``{"scene", "index", "hypothesis", "label", "type"}`` sorted by ``index``. Scenes for
        which no partners are left have no rows.

    Raises:
        InputError: no graphs, or no block of three can be made of them.
    """
    graphs, rng = checked(graphs, "entailment"), random.Random(f"entailment-{seed}")
    search = _Search(graphs, rng)
    rows = []
    for _ in range(rounds):
        pool = dict.fromkeys(rng.sample(range(len(graphs)), len(graphs)))
        while len(pool) >= 3:
            scenes = [next(iter(pool))]
            block = search.block(scenes[0], pool)
            for order, claim in block:
                scenes = order
                text = _sentence(claim, rng)
                for index, label in zip(order, ("entailment", "contradiction", "neutral")):
                    search.used.add((index, *claim))
                    search.uses[claim[0][0]] += 1
                    rows.append(
                        {
                            "scene": graphs[index]["id"],
                            "index": index,
                            "hypothesis": text,
                            "label": label,
                            "type": claim[0][0].split("_")[0],
                        }
                    )
            for index in scenes:
                del pool[index]
    if not rows:
        raise InputError(
            f"No three of the {len(graphs)} scenes share hypotheses that are true of one, false of "
            "another and open in the third: use at least 50 scenes."
        )
    return sorted(rows, key=lambda row: row["index"])


class _Search:
    """Finds blocks: three scenes, and a claim for each of three orders (true, false, open)."""

    def __init__(self, graphs: list[Graph], rng: random.Random) -> None:
        self.rng = rng
        self.present = [present_words(graph) for graph in graphs]
        self.known = [{f: v for f, v in facts(g).items() if f[0] in STATEMENTS} for g in graphs]
        self.scenes: dict[Fact, list[int]] = defaultdict(list)  # fact -> scenes that decide it
        for index, known in enumerate(self.known):
            for fact in known:
                self.scenes[fact].append(index)
        self.used: set[tuple] = set()  # (scene, fact, value): nothing is asked twice
        self.uses = Counter()  # of each family

    def block(self, a: int, pool: dict[int, None], tries: int = 30) -> list[tuple]:
        """``[((true, false, open), claim), ...]`` with scene ``a`` and two of the pool, or ``[]``."""
        for _ in range(tries):
            first = self.rival(a, pool)
            second = first and self.rival(first[0], pool)
            if not second:
                continue
            (b, claim_b), (c, claim_c) = first, second
            if c == a or not self.open(c, claim_b) or not self.open(a, claim_c):
                continue
            if claim_a := self.any_claim(c, a, b):
                return [((a, b, c), claim_b), ((b, c, a), claim_c), ((c, a, b), claim_a)]
        return []

    def rival(self, true: int, pool: dict[int, None]) -> tuple[int, Claim] | None:
        """A claim true of a scene, and another scene that denies it."""
        claim = self.choose([claim for claim in self.known[true].items() if self.new(true, claim)])
        if claim is None:
            return None
        scenes = self.scenes[claim[0]]
        for index in self.rng.sample(scenes, min(len(scenes), 40)):
            if index in pool and self.denies(index, claim):
                return index, claim
        return None

    def any_claim(self, true: int, false: int, without: int) -> Claim | None:
        """A claim for three given scenes."""
        return self.choose(
            [
                claim
                for claim in self.known[true].items()
                if self.new(true, claim) and self.denies(false, claim) and self.open(without, claim)
            ]
        )

    def choose(self, claims: list[Claim]) -> Claim | None:
        """One of the claims, of a family that has been little used."""
        most = MOST * (1 + sum(self.uses.values()) / len(STATEMENTS))
        claims = [claim for claim in claims if self.uses[claim[0][0]] < most]
        if not claims:
            return None
        families = list(dict.fromkeys(claim[0][0] for claim in claims))
        weights = [1 / (1 + self.uses[family]) for family in families]
        (family,) = self.rng.choices(families, weights)
        return self.rng.choice([claim for claim in claims if claim[0][0] == family])

    def denies(self, index: int, claim: Claim) -> bool:
        fact, value = claim
        return self.known[index].get(fact, value) != value and self.new(index, claim)

    def open(self, index: int, claim: Claim) -> bool:
        return not self.present[index].issuperset(claim[0][1:]) and self.new(index, claim)

    def new(self, index: int, claim: Claim) -> bool:
        return (index, *claim) not in self.used


def _sentence(claim: Claim, rng: random.Random) -> str:
    """The claim in English, in one of its family's wordings."""
    (name, *about), value = claim
    answer = ANSWERS.get(name, {}).get(value, spoken(value))
    if name == "kind":
        answer = with_article(answer)
    words = {"answer": answer, "pattern": PATTERNS.get(value)}
    return rng.choice(STATEMENTS[name]).format(*map(spoken, about), **words)
