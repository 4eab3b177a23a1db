"""Steps of the recipe ``pmf-search`` that choose a design. Nothing here loads test data.

For each seed one supernet is trained on a part of the training pairs. Designs are scored by the
accuracy of the weights that they inherit on the rest, the *slice*; validation chooses among the
best few. ``folder`` holds what is half done: a killed step goes on from the supernet's last epoch,
or from the last generation of a search.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import pair_training, train
from ..data.pairs import Pairs
from ..files import read_json, write_json
from ..pmf import PMF, PMFConfig
from ..pmf_cost import activation_bytes, trainable_parameters
from ..runs import Settings
from ..search import Found, SearchConfig, at_random, choose, search
from ..supernet import SearchSpace, Supernet, objective
from . import fusion_common as common


def by_hand(s: Settings) -> PMFConfig:
    """The design that search must beat."""
    return PMFConfig(len(common.pairs(s, "train").classes), **s["pmf"])


def halves(s: Settings, part: Pairs, seed: int) -> tuple[list[int], list[int]]:
    """The training pairs of a seed: those of the supernet, and a slice that scores designs.

    Whole groups (textbook sections, scenes) go to the slice, since their pairs resemble each other.
    """
    rows = common.drawn(s, part, seed)
    sizes = Counter(part.groups[i] for i in rows)
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    held: set[str] = set()
    while names and sum(sizes[name] for name in held) < s["slice"]:
        held.add(names.pop())
    inside = [part.groups[i] in held for i in rows]
    return [i for i, x in zip(rows, inside) if not x], [i for i, x in zip(rows, inside) if x]


def shared_weights(s: Settings, seed: int, folder: Path) -> tuple[Supernet, dict[str, Any]]:
    """The supernet of a seed, trained by the first call and read from its checkpoint by others.

    Returns:
        It, and its training loss by epoch.
    """
    part = common.pairs(s, "train")
    choices = {k: tuple(v) if isinstance(v, list) else v for k, v in s["space"].items()}
    image, text = common.encoders(s)
    torch.manual_seed(seed)
    supernet = Supernet(image, text, SearchSpace(len(part.classes), **choices))
    data = common.cached(s, supernet.largest, part, halves(s, part, seed)[0])
    config = train.TrainConfig(seed=seed, **s["supernet"])
    result = train.fit(supernet, data, objective(), config, folder=folder / f"supernet-{seed}")
    epochs = torch.tensor(result.losses).view(config.epochs, -1)  # (epochs, steps)
    return supernet, {"loss": epochs.mean(1).tolist()}


def chosen(s: Settings, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Search, then choose on validation; the second call reads the answer of the first.

    Args:
        name: ``evolution`` or ``random``, a hyphen, and the limit in multiples of what the
            hand-chosen design costs.
    """
    path = folder / f"{name}-{seed}-chosen.json"
    if path.exists():
        return read_json(path)
    way, limit = name.split("-")
    supernet, _ = shared_weights(s, seed, folder)
    part = common.pairs(s, "train")
    on_slice = scorer(s, supernet, part.take(halves(s, part, seed)[1]))
    on_validation = scorer(s, supernet, common.pairs(s, "validation"))
    data = common.cached(s, supernet.largest, part)
    cost = costs(s, supernet.largest, data)[s["limit"]]
    config = SearchConfig(seed=seed, **s["search"])
    config = at_random(config) if way == "random" else config
    most = float(limit) * cost(by_hand(s))
    rows = search(supernet.space, on_slice, cost, most, config, folder / f"{name}-{seed}.json")
    choice, validation = choose(rows, on_validation, s["finalists"])
    answer = {
        "design": asdict(choice.design),
        "slice": choice.score,
        "validation": validation,
        "validation-hand": on_validation(by_hand(s)),
        "evaluations": len(rows),
        "progress": progress(rows, config.generations),
    }
    write_json(path, answer)
    return read_json(path)  # the same on every call: tuples have become lists


def scorer(s: Settings, supernet: Supernet, part: Pairs) -> Callable[[PMFConfig], float]:
    """Accuracy on pairs of a design with the weights that it inherits."""
    data: dict[int, pair_training.CachedPairs] = {}  # by number of fusion layers

    def score(design: PMFConfig) -> float:
        model, layers = supernet.extract(design), design.num_fusion_layers
        if layers not in data:
            data[layers] = common.cached(s, model, part)
        scores = pair_training.logits(model, data[layers])
        return pair_training.score(scores, part.labels)["accuracy"]

    return score


def costs(
    s: Settings, model: PMF, data: pair_training.CachedPairs
) -> dict[str, Callable[[PMFConfig], float]]:
    """What may be limited: ``memory`` (saved activations, bytes a sample) and ``parameters``."""
    image, text = model.image_encoder.config, model.text_encoder.config
    tokens = data.views[0].values.shape[1], data.text.values.shape[1]
    batch = s["train"]["batch_size"]
    return {
        "memory": lambda design: activation_bytes(image, text, design, *tokens, batch) / batch,
        "parameters": lambda design: trainable_parameters(image, text, design),
    }


def progress(rows: list[Found], generations: int) -> list[float]:
    """The best score after each generation."""
    return [max(f.score for f in rows if f.generation <= g) for g in range(generations)]
