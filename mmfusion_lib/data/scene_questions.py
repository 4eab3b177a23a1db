"""Questions about generated scenes, balanced so that the question alone gives nothing away."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from math import ceil

from ..errors import InputError
from .scene_facts import (
    Fact,
    Graph,
    checked,
    clear,
    facts,
    plural,
    present_words,
    spoken,
    with_article,
)

TYPES = ("exists", "count", "colour", "kind", "side", "near", "word")

# {0}, {1}: what the fact is about; {a0}: with its article; {p0}: its plural.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "exists": ("Is there {a0} {1}?", "Can you see {a0} {1}?", "Does the picture show {a0} {1}?"),
    "count_colour": ("How many {0} objects are there?", "How many of the objects are {0}?"),
    "count_texture": ("How many {0} objects are there?", "How many of the objects are {0}?"),
    "count_kind": ("How many {p0} are there?", "How many {p0} can you see?"),
    "count_left": ("How many objects are to the left of the {0}?",),
    "count_right": ("How many objects are to the right of the {0}?",),
    "colour": ("What colour is the {0}?", "Which colour does the {0} have?"),
    "colour_at": ("What colour is the {0} object?", "Which colour does the {0} object have?"),
    "kind": ("What is the {0} object?", "What kind of object is {0}?"),
    "kind_at": ("What is the {0} object?", "What kind of thing is the {0} object?"),
    "side": (
        "Is the {0} to the left or to the right of the {1}?",
        "On which side of the {1} is the {0}, left or right?",
    ),
    "side_half": ("Is the {0} in the left or the right half of the picture?",),
    "near": (
        "Is the {0} nearer or farther than the {1}?",
        "Compared with the {1}, is the {0} nearer or farther?",
    ),
    "word": ("What does the {0} say?", "Which word is on the {0}?", "What is written on the {0}?"),
}


def vqa(graphs: Iterable[Graph], seed: int = 0, limit: int | None = None) -> list[dict]:
    """Questions with balanced answers.

    Questions of the same wording form a group, and each answer of a group is drawn equally often: as
    often as its rarest answer occurs. A group must hold all of its type's answers if these are at
    most four, and 3/4 of them otherwise (training scenes lack two held-out colours of each kind);
    other groups are dropped. So a model that reads only the question is right ``1 / answers`` of the
    time: 1/2 for exists, side and near, 1/4 for count, 1/8 for colour (up to 1/6 for the groups with
    two colours held out), about 1 / kinds and 1 / words for the rest.

    Args:
        graphs: scene graphs, in the order of the data set's rows.
        seed: draws the subsample.
        limit: at most this many questions of each type; None keeps all.

    Returns:
        Rows ``{"scene", "index", "question", "answer", "type"}`` sorted by ``index``, the scene's
        row; answers are lower-case words, signs' words as written.

    Raises:
        InputError: no graphs, or too few to balance the answers of some type.
    """
    graphs, rng = checked(graphs, "question"), random.Random(f"vqa-{seed}")
    groups: dict[Fact, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, graph in enumerate(graphs):
        for fact, answer in facts(graph).items():
            groups[fact][answer].append(index)
    _add_zero_counts(graphs, groups)
    _add_exists(graphs, groups, rng)
    rows = []
    for kind in TYPES:
        chosen = {fact: g for fact, g in groups.items() if fact[0].split("_")[0] == kind}
        rounds = _rounds(chosen, rng)
        if not rounds:
            raise InputError(
                f"{len(graphs)} scenes are too few to balance the answers of {kind!r} questions: "
                f"use at least {max(100, 2 * len(graphs))} scenes."
            )
        rng.shuffle(rounds)
        size = 0
        for fact, turn, answers in rounds:
            if limit is not None and size + len(answers) > limit:
                continue
            size += len(answers)
            about = [spoken(word) for word in fact[1:]]
            patterns = QUESTIONS[fact[0]]
            text = patterns[turn % len(patterns)].format(
                *about, a0=with_article(about[0]), p0=plural(about[0])
            )
            rows += [
                {
                    "scene": graphs[index]["id"],
                    "index": index,
                    "question": text,
                    "answer": spoken(answer),
                    "type": kind,
                }
                for answer, index in answers
            ]
    return sorted(rows, key=lambda row: (row["index"], TYPES.index(row["type"]), row["question"]))


def _rounds(groups: dict[Fact, dict[str, list[int]]], rng: random.Random) -> list[tuple]:
    """Split groups into rounds ``(fact, number, [(answer, scene), ...])`` with each answer once."""
    answers = {answer for group in groups.values() for answer in group}
    least = max(2, len(answers) if len(answers) <= 4 else ceil(3 / 4 * len(answers)))
    rounds = []
    for fact, group in groups.items():
        if len(group) < least:
            continue
        common = sorted(group, key=lambda answer: (-len(group[answer]), answer))
        # keep the `size` commonest answers, as often as the rarest kept one: most rows win
        size = max(range(least, len(common) + 1), key=lambda n: n * len(group[common[n - 1]]))
        drawn = {}
        for answer in common[:size]:
            count = len(group[common[size - 1]])
            # "exists" lists its scenes by difficulty, hardest first; others are drawn at random
            pick = (
                group[answer][:count] if fact[0] == "exists" else rng.sample(group[answer], count)
            )
            drawn[answer] = pick
        for turn, scenes in enumerate(zip(*drawn.values())):
            rounds.append((fact, turn, list(zip(drawn, scenes))))
    return rounds


def _add_zero_counts(graphs: list[Graph], groups: dict) -> None:
    """Scenes without any red object answer "How many red objects?" with 0."""
    values = [fact for fact in groups if fact[0] in ("count_colour", "count_texture", "count_kind")]
    for index, graph in enumerate(graphs):
        present = present_words(graph)
        for fact in values:
            if fact[1] not in present:
                groups[fact]["0"].append(index)


def _add_exists(graphs: list[Graph], groups: dict, rng: random.Random) -> None:
    """Is there a red mug? The scenes that answer "no" have red things or mugs where possible."""
    pairs = [{(item["colour"], item["kind"]) for item in graph["objects"]} for graph in graphs]
    present = [present_words(graph) for graph in graphs]
    order = rng.sample(range(len(graphs)), len(graphs))
    for colour, kind in sorted(set().union(*pairs)):
        group = groups["exists", colour, kind]
        for index in order:
            if (colour, kind) not in pairs[index]:
                group["no"].append(index)
            elif any(
                (item["colour"], item["kind"]) == (colour, kind) and clear(graphs[index], item)
                for item in graphs[index]["objects"]
            ):
                group["yes"].append(index)
        group["no"].sort(key=lambda i: -((colour in present[i]) + (kind in present[i])))
