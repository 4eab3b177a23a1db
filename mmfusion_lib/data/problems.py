"""Classification problems in one form: pictures, texts, labels, groups.

The chapters ask the same questions of textbook figures and, where that set is absent, of
generated scenes. Both come out of here as a :class:`Problem`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import settings
from ..errors import InputError
from . import subsets


class Problem(NamedTuple):
    """N items of one split."""

    images: Sequence[Any]  # N pictures, as open_image takes them
    captions: Sequence[str]  # N whole captions; first_words cuts them
    labels: torch.Tensor  # (N,) class indices
    groups: Sequence[str]  # N names; items of one group are drawn together in a bootstrap
    classes: tuple[str, ...]

    def texts(self, words: int | None) -> list[str]:
        """The first ``words`` words of every caption; None keeps all."""
        from .figures import first_words

        return [first_words(caption, words) for caption in self.captions]

    def take(self, rows: Sequence[int]) -> Problem:
        """The given rows only."""
        return Problem(
            [self.images[i] for i in rows],
            [self.captions[i] for i in rows],
            self.labels[list(rows)],
            [self.groups[i] for i in rows],
            self.classes,
        )


def load(name: str, split: str, count: int | None = None, seed: int = 0) -> Problem:
    """One split of a problem.

    Args:
        name: ``figures`` (subject of a textbook figure, 11 classes), ``scenes`` (kind of the
            object nearest to the camera; the caption is the first reference), ``crops`` (kind of a
            single object cut out of a scene; no caption), or a set of your own: ``food101`` stands
            for ``<data root>/food101/food101.csv`` in the form of :mod:`mmfusion_lib.data.folder`.
        split: train, validation or test.
        count: stratified subset of this size; None takes all (scenes and crops: 2,000).
        seed: of the subset.

    Raises:
        InputError: unknown name or split, the set is absent, or it has fewer items.
    """
    if name == "scenes":
        return _scenes(split, count or 2000)
    if name == "crops":
        return _crops(split, count or 2000)
    problem = _figures(split) if name == "figures" else _own(name, split)
    if count is None:
        return problem
    return problem.take(subsets.stratified(problem.labels.tolist(), count, seed))


def _figures(split: str) -> Problem:
    from . import figures

    rows = figures.load(split)
    # Nine books have a section called "Introduction": a group needs the subject in its name.
    groups = [f"{a}/{b}" for a, b in zip(rows["subject"], rows["section"])]
    labels = torch.tensor(rows["subject"])
    return Problem(_encoded(rows), rows["caption"][:], labels, groups, figures.CLASSES)


def _own(name: str, split: str) -> Problem:
    from . import folder

    root = settings.data_root()
    path = root and root / name / f"{name}.csv"
    if path is None or not path.is_file():
        raise InputError(
            f"There is no problem {name!r}: use figures, scenes or crops, or put your own table "
            f"at {path or f'MMFUSION_DATA/{name}/{name}.csv'} (columns image, text, label, split)."
        )
    parts = folder.split(folder.load(path))
    if split not in parts:
        raise InputError(f"{name} has no split {split!r}: use {', '.join(parts)}.")
    rows = parts[split]
    captions = rows["text"][:] if "text" in rows.column_names else [""] * len(rows)
    classes = tuple(rows.features["label"].names)
    return Problem(_encoded(rows), captions, torch.tensor(rows["label"]), rows["id"][:], classes)


def _scenes(split: str, count: int) -> Problem:
    from . import scene_tasks, scenes

    rows = scenes.load(split, count)
    graphs = [json.loads(graph) for graph in rows["graph"]]
    nearest = [min(graph["objects"], key=lambda o: o["distance"])["kind"] for graph in graphs]
    labels = torch.tensor([scenes.KINDS.index(kind) for kind in nearest])
    captions = [scene_tasks.captions(graph)[0] for graph in graphs]
    return Problem(
        _encoded(rows), captions, labels, [graph["id"] for graph in graphs], tuple(scenes.KINDS)
    )


def _crops(split: str, count: int) -> Problem:
    from . import scene_tasks, scenes
    from .images import open_image

    rows = scenes.load(split, count)  # a scene has one or more objects in full view
    graphs = [json.loads(graph) for graph in rows["graph"]]
    found = scene_tasks.fewshot_kinds(graphs)[:count]
    pictures = _encoded(rows)
    crops = []
    for item in found:
        x0, y0, x1, y1 = item["box"]
        margin = max(x1 - x0, y1 - y0) // 8 + 1
        picture = open_image(pictures[item["index"]])
        box = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
        left, top = max(0, box[0]), max(0, box[1])
        crops.append(
            picture.crop((left, top, min(picture.width, box[2]), min(picture.height, box[3])))
        )
    labels = torch.tensor([scenes.KINDS.index(item["label"]) for item in found])
    return Problem(
        crops, [""] * len(found), labels, [item["scene"] for item in found], tuple(scenes.KINDS)
    )


def _encoded(rows: Any) -> list[dict[str, Any]]:
    """The encoded pictures of a `datasets.Dataset`, not decoded yet: a few KB each."""
    import datasets

    return rows.cast_column("image", datasets.Image(decode=False))["image"][:]
