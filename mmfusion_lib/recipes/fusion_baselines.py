"""The main table: PMF beside every baseline of the paper, in one setting and with one recipe.

Most of these methods run, or train, whole encoders, so nothing can be cached and pictures are kept
small. All see the same training items and epochs, and have the same number of trials: a method trains at
three rates and keeps the one that is best on validation. What trains from pretrained values moves slowly,
prompts and new layers fast, so the three rates are by kind of method.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import accounting, baselines, metrics, pair_training, pmf_cost
from ..baselines import counts
from ..data import subsets
from ..pmf import PMFConfig
from ..records import spread
from ..runs import Recipe, Settings
from . import fusion_common as common

METHODS = ("linear", "pmf", *(name for name in baselines.NAMES if name != "linear"))
WHOLE = (
    "late-concat",
    "image-only",
    "text-only",
    "mmbt",
    "mbt",
    "late-average",
)  # train all weights
MIB = 2**20


def units(s: Settings) -> list[str]:
    """A unit a method and seed, all methods for one seed before the next."""
    return [f"{seed}-{name}" for seed in s["seeds"] for name in s["methods"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one method at each rate; test hits of the best on validation, and what one training cost."""
    seed, _, name = unit.partition("-")
    train, held_out, test = (common.pairs(s, x) for x in common.SPLITS)
    size = round(s["share"] * len(train.labels))
    items = subsets.stratified(train.labels.tolist(), size, int(seed))
    data = {
        "train": torch.utils.data.Subset(common.live(s, train), items),
        "validation": common.live(s, held_out),
        "test": common.live(s, test),
    }
    trials = []
    for lr in s["lrs"]["whole" if name in WHOLE else "prompts"]:
        model = build(s, name, int(seed), len(train.classes))
        settings = {**s, "train": {**s["train"], "lr": lr}}
        result = common.fit(settings, model, data["train"], data["validation"], int(seed))
        trials.append((result.best["accuracy"], -lr, model, result.seconds))
    validation, rate, model, seconds = max(trials, key=lambda trial: trial[:2])
    scores = pair_training.logits(model, data["test"])
    return {
        "hits": common.right(scores, test.labels),
        "validation": validation,
        "lr": -rate,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "activations": common.kept(model, data["train"]),
        "activations-predicted": kept_by_formula(s, name, len(data["train"][0]["input_ids"])),
        "seconds": seconds,
    }


def build(
    s: Settings, name: str, seed: int, classes: int, several: bool = False
) -> torch.nn.Module:
    """One method on the pretrained encoders; what is new in it is drawn from ``seed``."""
    if name == "pmf":
        return common.pmf(s, seed, classes)
    image, text = common.encoders(s)
    torch.manual_seed(seed)
    return baselines.build(name, image, text, classes, several)


def trained_by_formula(s: Settings, name: str) -> int:
    """Parameters that train."""
    image, text = (encoder.config for encoder in common.encoders(s))
    classes = len(common.pairs(s, "train").classes)
    if name == "pmf":
        return pmf_cost.trainable_parameters(image, text, PMFConfig(classes, **s["pmf"]))
    return counts.trainable_parameters(name, image, text, classes)


def kept_by_formula(s: Settings, name: str, text_tokens: int) -> float | None:
    """Saved activations of one pair in MiB; None for the methods that have no formula."""
    image, text = (encoder.config for encoder in common.encoders(s))
    config = PMFConfig(len(common.pairs(s, "train").classes), **s["pmf"])
    sizes = (s["image_size"] // image.patch_size) ** 2 + 1, text_tokens
    if name in pmf_cost.METHODS:
        dropout = name in WHOLE  # what is frozen drops nothing
        kept = pmf_cost.activation_bytes(
            image, text, config, *sizes, 1, method=name, dropout=dropout
        )
        return kept / MIB
    sides = {"image-only": (0,), "text-only": (1,), "late-average": (0, 1)}.get(name)
    if sides is None:
        return None
    kept = 0
    for side in sides:
        encoder = (image, text)[side]
        kept += accounting.encoder_activation_bytes(encoder, sizes[side], 1)
        kept += 4 * encoder.readout_width  # what the head reads
    return kept / MIB


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and cost of every method; paired intervals of PMF against each."""
    groups = list(common.pairs(s, "test").groups)
    results, hits = {}, {}
    for name in s["methods"]:
        runs = [done[f"{seed}-{name}"] for seed in s["seeds"]]
        hits[name] = common.hits([run["hits"] for run in runs])
        results[name] = spread(hits[name].double().mean(1).tolist())
        results[f"{name}-trainable"] = spread([runs[0]["trainable"]], "parameters")
        results[f"{name}-trainable-predicted"] = spread([trained_by_formula(s, name)], "parameters")
        for kept in ("activations", "activations-predicted"):
            if runs[0][kept] is not None:
                results[f"{name}-{kept}"] = spread([runs[0][kept]], "MiB per sample")
        results[f"{name}-lr"] = spread([run["lr"] for run in runs], "learning rate")
        results[f"{name}-seconds"] = spread([run["seconds"] for run in runs], "seconds")
    comparisons = {
        f"pmf - {name}": metrics.paired_bootstrap(hits["pmf"], rows, groups)._asdict()
        for name, rows in hits.items()
        if name != "pmf"
    }
    return {"results": results, "comparisons": comparisons}


LAB = {
    "seeds": [0, 1, 2],
    "methods": list(METHODS),
    "problem": "figures",
    "words": 5,
    "count": {"train": 1100, "validation": 330, "test": None},
    "share": 0.9,  # of the training items that each seed draws
    "image_encoder": "dinov2-small",
    "image_layers": 8,
    "image_size": 112,
    "image_readout": None,
    "text_encoder": "minilm-l6",
    "text_layers": 6,
    "text_readout": None,
    "max_length": 32,
    "pmf": {"num_fusion_layers": 2},
    "train": {"epochs": 6, "batch_size": 32, "weight_decay": 0.01, "warmup": 0.1},
    "lrs": {"whole": [3e-5, 1e-4, 3e-4], "prompts": [3e-4, 1e-3, 3e-3]},
}

RECIPE = Recipe(
    name="fusion-baselines",
    title="Main table: PMF and its baselines on figures with five words, trained alike",
    chapter="03",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "methods": ["linear", "pmf", "late-concat"],
            "count": {"train": 110, "validation": 33, "test": 66},
            "image_layers": 2,
            "image_size": 56,
            "text_layers": 2,
            "train": {**LAB["train"], "epochs": 1},
            "lrs": {"whole": [1e-4], "prompts": [1e-3]},
        },
        "lab": LAB,
        "paper": {
            **LAB,
            **common.PAPER_ENCODERS,
            "count": {"train": None, "validation": None, "test": None},
        },
    },
    minutes={"smoke": 0.4, "lab": 900, "paper": 1800},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=3,
)
