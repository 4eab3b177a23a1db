"""The tasks on generated scenes, one call each, all read off scene graphs.

Questions *ask* a fact of a scene (`scene_facts`), hypotheses *assert* one. Both are balanced by
construction, so that a model that looks at one modality gains nothing:

================  =====================================  ========================================
task              text alone                             image alone
================  =====================================  ========================================
`entailment`      exactly 1/3                            exactly 1/3
`vqa`             1 / answers of the type: 1/2 for       the same prior, as the picture does not
                  exists, side and near, 1/4 for count,  say what is asked
                  about 1/8 for colour, 1 / kinds, 1 /
                  words seen
`captions`        a prior over captions                  the task
`fewshot_kinds`   no text                                the task
================  =====================================  ========================================
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..errors import InputError
from .scene_captions import captions
from .scene_entailment import LABELS, entailment
from .scene_facts import Graph, checked, clear, facts
from .scene_questions import TYPES, vqa

__all__ = [
    "LABELS",
    "TYPES",
    "captions",
    "entailment",
    "facts",
    "fewshot_kinds",
    "shots",
    "vqa",
]


def fewshot_kinds(graphs: Iterable[Graph], min_visible: float = 0.7) -> list[dict]:
    """Single objects to be cut out and named, for few-shot classification.

    Args:
        graphs: scene graphs, in the order of the data set's rows.
        min_visible: least share of the object that must be seen.

    Returns:
        Rows ``{"scene", "index", "box", "label", "colour"}``: ``index`` is the scene's row, ``box``
        the visible pixels ``[x0, y0, x1, y1]``, ``label`` the kind.

    Raises:
        InputError: no graphs.
    """
    return [
        {
            "scene": graph["id"],
            "index": index,
            "box": list(item["box"]),
            "label": item["kind"],
            "colour": item["colour"],
        }
        for index, graph in enumerate(checked(graphs, "few-shot"))
        for item in graph["objects"]
        if clear(graph, item) and item["visible"] >= min_visible
    ]


def shots(rows: Sequence[dict], per_class: int, seed: int = 0) -> list[int]:
    """Draw ``per_class`` rows of each label, from different scenes where there are enough.

    Returns:
        Row numbers, sorted; the same for the same rows and seed.

    Raises:
        InputError: a label has fewer rows than asked for, or ``per_class`` is below 1.
    """
    if per_class < 1:
        raise InputError(f"per_class is {per_class}: ask for at least 1 example of each kind.")
    by_label = defaultdict(list)
    for number, row in enumerate(rows):
        by_label[row["label"]].append(number)
    chosen = []
    for label in sorted(by_label):
        numbers = by_label[label]
        if len(numbers) < per_class:
            raise InputError(
                f"Kind {label!r} has {len(numbers)} objects but {per_class} were asked for: use "
                "more scenes or fewer shots."
            )
        rng = random.Random(f"shots-{seed}-{label}")
        rng.shuffle(numbers)
        seen: set[int] = set()
        fresh, again = [], []
        for number in numbers:
            index = rows[number]["index"]
            (again if index in seen else fresh).append(number)
            seen.add(index)
        chosen += (fresh + again)[:per_class]
    return sorted(chosen)
