"""What may be said about a generated scene: facts, read off its graph.

A **fact** is a question about one scene that has exactly one answer: ``("colour", "mug") -> "red"``
where the scene holds a single mug, clearly visible, and ``("side", "mug", "house") -> "left"``
where the mug is left of the house by a clear margin. What a careful person could argue about (two
mugs, an object mostly hidden, two objects at about the same depth) is no fact, and no task asks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import permutations
from typing import Any

from ..errors import InputError

Graph = dict[str, Any]  # as written by data.scenes
Fact = tuple[str, ...]  # the fact's name, then what it is about

MIN_VISIBLE = 0.5  # share of an object that must be seen before anything is said about it
MIN_PIXELS = 0.006  # and its area, as a share of the picture's
MARGIN = 0.1  # least difference in position, as a share of the picture's width


def spoken(name: str) -> str:
    """A name as one says it: ``table_lamp`` -> ``table lamp``."""
    return name.replace("_", " ")


def with_article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of a kind's name."""
    if noun.endswith("man"):
        return noun[:-3] + "men"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def checked(graphs: Iterable[Graph], task: str) -> list[Graph]:
    """The graphs as a list.

    Raises:
        InputError: there are none, or one is not a decoded graph.
    """
    graphs = list(graphs)
    if not graphs:
        raise InputError(f"The {task} task was given no scene graphs: pass at least one.")
    for row, graph in enumerate(graphs):
        if not isinstance(graph, dict) or not graph.get("objects"):
            raise InputError(
                f"Row {row} given to the {task} task is not a scene graph with objects: decode the "
                "JSON of the data set's `graph` column."
            )
    return graphs


def clear(graph: Graph, item: dict) -> bool:
    """Whether an object is seen well enough to be spoken of."""
    return item["visible"] >= MIN_VISIBLE and item["pixels"] >= MIN_PIXELS * graph["size"] ** 2


def side(graph: Graph, one: dict, other: dict) -> str | None:
    """``"left"`` or ``"right"``: where ``one`` is, seen from ``other``; None without a margin."""
    (x0, _, x1, _), (u0, _, u1, _) = one["box"], other["box"]
    gap = (x0 + x1 - u0 - u1) / 2
    if abs(gap) < MARGIN * graph["size"] or (x0 - u0) * gap <= 0 or (x1 - u1) * gap <= 0:
        return None
    return "left" if gap < 0 else "right"


def near(graph: Graph, one: dict, other: dict) -> str | None:
    """``"nearer"`` or ``"farther"``: ``one`` against ``other``; None when a person could not tell.

    The distances must differ by a tenth, and the nearer object must stand lower in the picture.
    """
    ratio = one["distance"] / other["distance"]
    drop = (one["box"][3] - other["box"][3]) / graph["size"]
    if ratio < 1 / 1.1 and drop > MARGIN / 2:
        return "nearer"
    return "farther" if ratio > 1.1 and drop < -MARGIN / 2 else None


def facts(graph: Graph) -> dict[Fact, str]:
    """Every question about this scene that has one undisputed answer (but see ``exists``)."""
    items, found = graph["objects"], {}
    seen = [item for item in items if clear(graph, item)]
    single = {}  # kind -> its only object
    for field, name in (("kind", "colour"), ("colour", "kind")):
        counts = Counter(item[field] for item in items)
        for item in seen:
            if counts[item[field]] == 1:
                found[name, item[field]] = item[name]
                if field == "kind":
                    single[item["kind"]] = item
    for kind, item in single.items():
        found["texture", kind] = item["texture"]
        if kind == "sign":
            found["word", kind] = item["word"]
        left, right = item["box"][0], item["box"][2]
        if abs((left + right) / graph["size"] - 1) > 2 * MARGIN:
            found["side_half", kind] = "left" if left + right < graph["size"] else "right"
    for (kind, item), (kind2, item2) in permutations(single.items(), 2):
        if place := side(graph, item, item2):
            found["side", kind, kind2] = place
        if depth := near(graph, item, item2):
            found["near", kind, kind2] = depth
        if kind < kind2:
            found["same", kind, kind2] = (
                "same" if item["colour"] == item2["colour"] else "different"
            )
    if len(seen) == len(items):  # counting and superlatives need everything in plain view
        _add_counts(graph, found, single)
    return found


def _add_counts(graph: Graph, found: dict[Fact, str], single: dict[str, dict]) -> None:
    items = graph["objects"]
    for kind, item in single.items():
        places = [side(graph, other, item) for other in items if other is not item]
        if None not in places and len(places) <= 3:
            found["count_left", kind] = str(places.count("left"))
            found["count_right", kind] = str(places.count("right"))
    for field in ("colour", "texture", "kind"):
        for value, count in Counter(item[field] for item in items).items():
            if count <= 3:
                found[f"count_{field}", value] = str(count)
    for item in items:
        others = [other for other in items if other is not item]
        for name, relation, wanted in (
            ("leftmost", side, "left"),
            ("rightmost", side, "right"),
            ("nearest", near, "nearer"),
        ):
            first = all(relation(graph, item, other) == wanted for other in others)
            if first:
                found["colour_at", name] = item["colour"]
                found["kind_at", name] = item["kind"]
            if item is single.get(item["kind"]) and (
                first or any(relation(graph, other, item) == wanted for other in others)
            ):
                found[name, item["kind"]] = "yes" if first else "no"


def present_words(graph: Graph) -> set[str]:
    """Every kind, colour, texture and word of the scene, clearly seen or not."""
    return {item[f] for item in graph["objects"] for f in ("kind", "colour", "texture", "word")}
