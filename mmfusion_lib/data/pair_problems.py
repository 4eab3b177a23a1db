"""Problems that need both modalities, by name, as :class:`mmfusion_lib.data.pairs.Pairs`.

====================  ============================================================================
``figures``           subject of a textbook figure, from the picture and the first words of its
                      caption (11 classes; real data)
``presence``          "there is a red mug": true or false of the picture? (2 classes; generated
                      scenes; sentences about a colour, a kind, or both)
``entailment``        is the sentence true of the picture, false, or open? (3 classes; generated
                      scenes; sentences about one object's colour, kind or pattern)
``food101-titles``    UPMC Food-101 with the titles of its pages (101 classes)
``food101-pages``     the same with the pages' text
``mmimdb``            MM-IMDB (23 genres, several a film)
``snli_ve``           SNLI-VE (3 classes)
====================  ============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from ..errors import InputError
from . import problems, subsets
from .pairs import Pairs

NAMES = (
    "figures", "presence", "entailment", "food101-titles", "food101-pages", "mmimdb", "snli_ve",
)  # fmt: skip
# Families of sentences that are used. Relations and counts are other questions: scene_entailment.
TYPES = {"presence": ("colour", "kind", "both"), "entailment": ("colour", "kind", "texture")}


def load(
    name: str,
    split: str,
    count: int | None = None,
    *,
    seed: int = 0,
    words: int | None = 5,
    types: Sequence[str] | None = None,
) -> Pairs:
    """One split of a problem.

    Args:
        name: one of ``NAMES``.
        split: train, validation or test.
        count: stratified subset of so many pairs, None for all; of ``presence`` and
            ``entailment`` the number of scenes (None: 2,000), each of which gives several pairs.
        seed: of the subset.
        words: of ``figures``: so many first words of the caption; None for all.
        types: of the same two: families of sentences; None takes those of ``TYPES``.

    Raises:
        InputError: unknown name, split or type; the set is absent, or has fewer items.
    """
    if name in TYPES:
        return _scenes(name, split, count or 2000, types or TYPES[name])
    if name == "figures":
        problem = problems.load("figures", split, count, seed)
        rows = torch.arange(len(problem.labels))  # a picture a pair
        texts = problem.texts(words)
        return Pairs(problem.images, rows, texts, problem.labels, problem.groups, problem.classes)
    pairs = _published(name, split)
    if count is None:
        return pairs
    labels = pairs.labels if not pairs.several else pairs.labels.argmax(1)
    return pairs.take(subsets.stratified(labels.tolist(), count, seed))


def _published(name: str, split: str) -> Pairs:
    from . import food101, mmimdb, snli_ve

    if name in ("food101-titles", "food101-pages"):
        return food101.load(split, text=name.removeprefix("food101-"))
    if name == "mmimdb":
        return mmimdb.load(split)
    if name == "snli_ve":
        return snli_ve.load(split)
    raise InputError(f"There is no problem {name!r}: use one of {', '.join(NAMES)}.")


def _scenes(name: str, split: str, count: int, types: Sequence[str]) -> Pairs:
    """Sentences about generated scenes, of the given families.

    In every family each sentence has each label equally often, so leaving families out keeps a
    model of the text alone at chance.
    """
    import datasets

    from . import scene_entailment, scene_presence, scenes

    if name == "presence":
        labels, make = scene_presence.LABELS, scene_presence.presence
    else:
        labels, make = scene_entailment.LABELS, scene_entailment.entailment
    table = scenes.load(split, count)
    rows = make([json.loads(graph) for graph in table["graph"]])
    known = {row["type"] for row in rows}
    if unknown := [kind for kind in types if kind not in known]:
        raise InputError(
            f"No sentence has the type {unknown[0]!r}: use some of {', '.join(sorted(known))}."
        )
    rows = [row for row in rows if row["type"] in types]
    pictures = table.cast_column("image", datasets.Image(decode=False))  # encoded: a few KB each
    return Pairs(
        pictures["image"][:],
        torch.tensor([row["index"] for row in rows]),
        [row["hypothesis"] for row in rows],
        torch.tensor([labels.index(row["label"]) for row in rows]),
        [row["scene"] for row in rows],
        labels,
    )
