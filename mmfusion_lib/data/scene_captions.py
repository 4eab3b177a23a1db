"""Captions of generated scenes: several true references for each, varied in wording and content."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from .scene_facts import Graph, checked, near, plural, side, spoken, with_article

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
SEEN = 0.3  # objects with a smaller visible share go unmentioned
SURFACES = {
    "wood": "a wooden table",
    "tiles": "a tiled table",
    "cloth": "a tablecloth",
    "stone": "a marbled table",
}
WALLS = {
    "plaster": "a plain wall",
    "bricks": "a brick wall",
    "wallpaper": "a papered wall",
    "panels": "a panelled wall",
}


def captions(graph: Graph) -> list[str]:
    """Four or five different captions of one scene, the same for the same scene.

    They list the objects, single one out, relate two, and read the sign where there is one. All are
    true of the graph; objects that are mostly hidden go unmentioned.

    Raises:
        InputError: the graph holds no objects.
    """
    (graph,) = checked([graph], "caption")
    rng = random.Random(f"captions-{graph['id']}-{graph['seed']}")
    items = [item for item in graph["objects"] if item["visible"] >= SEEN and item["pixels"] > 0]
    items = items or graph["objects"]
    by_depth = sorted(items, key=lambda item: item["distance"])
    by_place = sorted(items, key=lambda item: item["box"][0] + item["box"][2])
    place = f"on {_surface(graph)}"
    if graph["wall"] in WALLS and rng.random() < 0.3:
        place += f" in front of {WALLS[graph['wall']]}"

    found = [
        rng.choice(("{} {}.", "A picture of {} {}.", "{} standing {}.", "We see {} {}.")).format(
            _list(by_depth, rng), place
        ),
        _count(items, by_place, place, rng),
    ]
    if relation := _relation(graph, items, rng):
        found.append(relation)
    if sign := _sign(graph, items, rng):
        found.append(sign)
    first, last = by_place[0], by_place[-1]
    if len(items) > 1 and side(graph, first, last):
        ends = "{} on the left and {} on the right."
        found.append(ends.format(_noun(first, rng), _noun(last, rng)))
    if len(items) > 1 and all(side(graph, *pair) for pair in pairwise(by_place)):
        row = rng.choice(("From left to right: {}.", "Seen from the left, {}."))
        found.append(row.format(_join([_noun(item, rng) for item in by_place])))
    front = by_depth[0]
    if len(items) > 1 and all(near(graph, front, item) for item in by_depth[1:]):
        found.append(
            rng.choice(
                (
                    "{front} in the foreground, with {rest} behind.",
                    "The object nearest to the camera is {front}.",
                    "{front} stands in front, with {rest} further back.",
                )
            ).format(front=_noun(front, rng), rest=_list(by_depth[1:], rng))
        )
    found.append(
        rng.choice(("{} stands {}.", "There is {} {}.", "One can see {} {}.")).format(
            _noun(rng.choice(items), rng), place
        )
    )
    found = [caption[0].upper() + caption[1:] for caption in dict.fromkeys(found)]
    return [found[0], *rng.sample(found[1:], min(4, len(found) - 1))]


def _surface(graph: Graph) -> str:
    return SURFACES.get(graph["surface"], "a table")


def _noun(item: dict, rng: random.Random, article: bool = True) -> str:
    """ "a small striped red mug": the colour always, size and pattern now and then."""
    words = [item["colour"], spoken(item["kind"])]
    if item["texture"] != "plain" and rng.random() < 0.7:
        words.insert(0, item["texture"])
    if rng.random() < 0.3:
        words.insert(0, item["size"])
    noun = " ".join(words)
    return with_article(noun) if article else noun


def _join(nouns: list[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _list(items: list[dict], rng: random.Random) -> str:
    """ "two red mugs, a bottle and a tree": in the order given, equal ones counted."""
    alike = Counter((item["colour"], item["kind"]) for item in items)
    nouns = []
    for item in items:
        count = alike.pop((item["colour"], item["kind"]), 0)
        if count == 1:
            nouns.append(_noun(item, rng))
        elif count > 1:
            nouns.append(f"{NUMBERS[count]} {item['colour']} {plural(spoken(item['kind']))}")
    return _join(nouns)


def _count(items: list[dict], by_place: list[dict], place: str, rng: random.Random) -> str:
    number = len(items)
    thing = rng.choice(("object", "thing"))
    start = f"{NUMBERS[number]} {thing if number == 1 else plural(thing)} {place}"
    if number > 1 and rng.random() < 0.5:
        return f"{start}, one of them {_noun(rng.choice(items), rng)}."
    return f"{start}: {_list(by_place, rng)}."


def _relation(graph: Graph, items: list[dict], rng: random.Random) -> str | None:
    """One object placed by another: left, right, in front or behind; None when nothing is clear."""
    options = []
    for one in items:
        for other in items:
            if one is other:
                continue
            apart = side(graph, one, other)
            depth = near(graph, one, other)
            if apart:
                options += [f"to the {apart} of", f"{apart} of"]
            if depth and not apart:  # one behind the other, as the camera sees them
                options += ["in front of" if depth == "nearer" else "behind"] * 2
            elif depth:
                options.append(
                    "nearer to the camera than" if depth == "nearer" else "farther away than"
                )
            options = [o if isinstance(o, tuple) else (one, o, other) for o in options]
    if not options:
        return None
    one, words, other = rng.choice(options)
    return rng.choice(("{} is {} {}.", "{} stands {} {}.", "there is {} {} {}.")).format(
        _noun(one, rng), words, _noun(other, rng)
    )


def _sign(graph: Graph, items: list[dict], rng: random.Random) -> str | None:
    """What a sign says, and beside which object it stands; None without a sign."""
    signs = [item for item in items if item["word"]]
    if not signs:
        return None
    sign = rng.choice(signs)
    others = [item for item in items if item is not sign and side(graph, sign, item)]
    text = rng.choice(
        ('{} that says "{}"', '{} with the word "{}" on it', '{} reading "{}"')
    ).format(_noun(sign, rng), sign["word"])
    if others and rng.random() < 0.6:
        other = rng.choice(others)
        return f"{text}, to the {side(graph, sign, other)} of {_noun(other, rng)}."
    return f"{text} stands on {_surface(graph)}."
