"""The paper's three experiments at full scale, as three recipes.

Published: encoders, optimizer (SGD, momentum 0.9, weight decay 1e-4), batch sizes, losses with inverse
class frequencies on Food-101 and MM-IMDB, prompts of 4, N_f = 2. Chosen by us, as the paper's own
values are not known to us: learning rate, schedule, epochs, text lengths, no augmentation, the choice
of the best epoch by validation accuracy (micro-F1).

The data are not distributed with this book: ``data_cards/`` says what to put where.
"""

from __future__ import annotations

from typing import Any

from .. import pair_training
from ..data import class_weights
from ..records import spread
from ..runs import Recipe, Settings
from . import fusion_baselines
from . import fusion_common as common


def units(s: Settings) -> list[str]:
    """A unit a method and seed."""
    return [f"{seed}-{name}" for seed in s["seeds"] for name in s["methods"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one method, test it."""
    seed, _, name = unit.partition("-")
    train, held_out, test = (common.pairs(s, x) for x in common.SPLITS)
    weights = None
    if s["weighted"]:
        several = train.several
        weights = (class_weights.pos_weight if several else class_weights.inverse_frequency)(train)
    model = fusion_baselines.build(s, name, int(seed), len(train.classes), train.several)
    data = [common.live(s, part, hold=False) for part in (train, held_out, test)]
    result = common.fit(s, model, data[0], data[1], int(seed), weights)
    scores = pair_training.score(pair_training.logits(model, data[2]), test.labels)
    cost = {"seconds": result.seconds, "peak_bytes": result.peak_bytes}
    return {"scores": scores, "validation": result.validations, **cost}


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, or both F1, of every method; peak memory and time of training."""
    results = {}
    for name in s["methods"]:
        runs = [done[f"{seed}-{name}"] for seed in s["seeds"]]
        for metric in runs[0]["scores"]:
            results[f"{name}-{metric}"] = spread([run["scores"][metric] for run in runs], metric)
        results[f"{name}-peak"] = spread([r["peak_bytes"] / 2**30 for r in runs], "GiB")
        results[f"{name}-seconds"] = spread([run["seconds"] for run in runs], "seconds")
    return {"results": results}


_PAPER = {
    "seeds": [0, 1, 2],
    "methods": list(fusion_baselines.METHODS),
    "words": None,
    "count": {"train": None, "validation": None, "test": None},
    "share": 1.0,
    **common.PAPER_ENCODERS,
    "weighted": True,
    "pmf": {"num_fusion_layers": 2},
    "train": {
        "epochs": 20,
        "batch_size": 32,
        "lr": 0.01,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "precision": "bf16",
        "workers": 4,
    },
}


# A rehearsal of the same code, in seconds, on scenes and the first layers of small encoders.
_REHEARSAL = {
    "seeds": [0],
    "methods": ["pmf", "linear"],
    "problem": "presence",
    "count": {"train": 48, "validation": 32, "test": 32},
    "image_encoder": "dinov2-small",
    "image_layers": 2,
    "image_size": 56,
    "text_encoder": "minilm-l6",
    "text_layers": 2,
}


def recipe(name: str, title: str, **changes: Any) -> Recipe:
    """One of the three, at paper scale, and its rehearsal."""
    paper = {**_PAPER, **changes}
    quick = {**paper["train"], "epochs": 1, "batch_size": 16, "precision": "no", "workers": 0}
    return Recipe(
        name=name,
        title=title,
        chapter="03",
        scales={"smoke": {**paper, **_REHEARSAL, "train": quick}, "paper": paper},
        minutes={"smoke": 0.3, "paper": 6000},
        units=units,
        run_unit=run_unit,
        summarise=summarise,
    )


FOOD101 = recipe(
    "pmf-food101", "PMF on UPMC Food-101, pages of text", problem="food101-pages", max_length=512
)
FOOD101_TITLES = recipe(
    "pmf-food101-titles", "PMF on UPMC Food-101, titles", problem="food101-titles", max_length=64
)
MMIMDB = recipe("pmf-mmimdb", "PMF on MM-IMDB", problem="mmimdb", max_length=512)
SNLI_VE = recipe(
    "pmf-snli-ve",
    "PMF on SNLI-VE",
    problem="snli_ve",
    max_length=64,
    weighted=False,
    train={**_PAPER["train"], "batch_size": 64},
)
