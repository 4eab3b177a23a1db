"""Is it in the picture? The simplest sentences that need both modalities: "There is a red mug."

Three families, from easy to hard: a colour, a kind, and a kind in a colour. Scenes are drawn in pairs,
and each pair gets two sentences a family, each true of one scene and false of the other:

===========  ========  ========
sentence     scene a   scene b
===========  ========  ========
first        true      false
second       false     true
===========  ========  ========

So every sentence and every picture is true as often as false: any model of the text alone, or of the
picture alone, is right exactly half of the time. And any sum of a score of the sentence and a score
of the picture has an average margin of exactly 0, so that its cross-entropy cannot fall below log 2.
Of the sentences about a kind in a colour, about half are false of a scene that holds the kind *and*
the colour, on different objects (where the draw can find such a scene).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..errors import InputError
from .scene_facts import Graph, checked, clear, spoken, with_article

LABELS = ("true", "false")
FAMILIES = {
    "colour": ("There is a {0} object.", "Something is {0}."),
    "kind": ("There is {1}.", "The picture shows {1}."),
    "both": ("There is {2}.", "The picture shows {2}."),
}
TRIES = 40  # scenes that are looked at for a partner

Claim = tuple[str | None, str | None]  # colour and kind; None: not said


def presence(graphs: Iterable[Graph], seed: int = 0, rounds: int = 1) -> list[dict]:
    """Balanced true and false sentences about what scenes hold.

    Args:
        graphs: scene graphs, in the order of the data set's rows.
        seed: draws pairs, sentences and wordings.
        rounds: how many pairs of each family a scene joins at most; each gives it two sentences.

    Returns:
        Rows ``{"scene", "index", "hypothesis", "label", "type"}`` sorted by ``index``.

    Raises:
        InputError: no graphs, or no two that differ.
    """
    graphs = checked(graphs, "presence")
    rng = random.Random(f"presence-{seed}")
    held = [held_by(graph) for graph in graphs]
    sure = [held_by(graph, sure=True) for graph in graphs]
    rows = []
    for family in FAMILIES:
        for _ in range(rounds):
            waiting = rng.sample(range(len(graphs)), len(graphs))
            while len(waiting) >= 2:
                a = waiting.pop()
                near = waiting[-TRIES:][::-1]
                hard = family == "both" and rng.random() < 0.5
                for b, strict in [*((b, True) for b in near if hard), *((b, False) for b in near)]:
                    pair = claims(a, b, family, strict, held, sure, rng)
                    if pair:
                        waiting.remove(b)
                        rows += statements(a, b, pair, family, graphs, rng)
                        break
    if not rows:
        raise InputError(f"None of the {len(graphs)} scenes differ in what they hold: use more.")
    return sorted(rows, key=lambda row: row["index"])


def held_by(graph: Graph, sure: bool = False) -> dict[str, set[Claim]]:
    """What is in a scene, by family; ``sure``: of the objects that are clearly seen alone."""
    items = [item for item in graph["objects"] if not sure or clear(graph, item)]
    return {
        "colour": {(item["colour"], None) for item in items},
        "kind": {(None, item["kind"]) for item in items},
        "both": {(item["colour"], item["kind"]) for item in items},
    }


def claims(
    a: int,
    b: int,
    family: str,
    hard: bool,
    held: list[dict[str, set[Claim]]],
    sure: list[dict[str, set[Claim]]],
    rng: random.Random,
) -> tuple[Claim, Claim] | None:
    """One claim surely true of a and false of b, and one the other way; None where there is none."""
    found = []
    for true, false in ((a, b), (b, a)):
        options = sure[true][family] - held[false][family]
        if hard:  # the other scene holds both parts, apart
            options = {
                (colour, kind)
                for colour, kind in options
                if (colour, None) in held[false]["colour"] and (None, kind) in held[false]["kind"]
            }
        if not options:
            return None
        found.append(rng.choice(sorted(options, key=str)))
    return found[0], found[1]


def statements(
    a: int,
    b: int,
    pair: tuple[Claim, Claim],
    family: str,
    graphs: list[Graph],
    rng: random.Random,
) -> list[dict]:
    """Four rows: each claim in one wording, true of one scene and false of the other."""
    rows = []
    for claim, order in zip(pair, ((a, b), (b, a))):
        text = sentence(claim, family, rng)
        for index, label in zip(order, LABELS):
            rows.append(
                {
                    "scene": graphs[index]["id"],
                    "index": index,
                    "hypothesis": text,
                    "label": label,
                    "type": family,
                }
            )
    return rows


def sentence(claim: Claim, family: str, rng: random.Random) -> str:
    """The claim in English."""
    colour, kind = (spoken(word) if word else "" for word in claim)
    words = colour, with_article(kind or "thing"), with_article(f"{colour} {kind}")
    return rng.choice(FAMILIES[family]).format(*words)
