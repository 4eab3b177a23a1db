"""PMF with a searched fusion structure, against random search and the design chosen by hand.

For each seed one supernet is trained. For each limit on the memory of training, a multiple of what
the hand-chosen design needs, evolution and random search make as many evaluations: accuracy of
inherited weights on a slice of the training data that the supernet has not seen. Validation
chooses among the best few. The chosen designs, and the hand-chosen one, are then trained from
scratch in the same way, and only these see the test data, once, in ``retrained``.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .. import metrics, runs, settings
from ..files import digest
from ..pmf import PMF, PMFConfig
from ..records import spread
from ..runs import Recipe, Settings
from ..search import SearchConfig, design_from
from . import fusion_common as common
from . import pmf_search_steps as steps

WAYS = {"evolution": "searched", "random": "random"}  # units, and what results call them


def units(s: Settings) -> list[str]:
    """Supernets, searches by way and limit, trainings from scratch; each for every seed."""
    searches = [f"{way}-{limit}" for limit in s["limits"] for way in WAYS]
    kinds = ["supernet", *searches, *(f"trained-{x}" for x in searches), "trained-hand"]
    return [f"{kind}-{seed}" for kind in kinds for seed in s["seeds"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """One of ``units``."""
    kind, _, number = unit.rpartition("-")
    seed, folder = int(number), state(s)
    if kind == "supernet":
        return steps.shared_weights(s, seed, folder)[1]
    if not kind.startswith("trained-"):
        return steps.chosen(s, kind, seed, folder)
    name = kind.removeprefix("trained-")
    if name == "hand":
        return retrained(s, steps.by_hand(s), seed)
    return retrained(s, design_from(steps.chosen(s, name, seed, folder)["design"]), seed)


def state(s: Settings) -> Path:
    """Where half-done units of these settings and this code are kept."""
    return settings.cache_root() / "runs" / RECIPE.name / "state" / digest(s, _code())


@lru_cache(maxsize=1)
def _code() -> str:
    return runs.code_digest(RECIPE)


def retrained(s: Settings, design: PMFConfig, seed: int) -> dict[str, Any]:
    """Train a design from scratch on all training pairs of the seed, and test it."""
    torch.manual_seed(seed)
    model = PMF(*common.encoders(s), design)
    part = common.pairs(s, "train")
    data = common.cached(s, model, part, common.drawn(s, part, seed))
    held_out = common.cached(s, model, common.pairs(s, "validation"))
    result = common.fit(s, model, data, held_out, seed)
    test = common.pairs(s, "test")
    return {
        "design": asdict(design),
        "hits": common.right(common.test_logits(s, model, test), test.labels),
        "validation": result.best["accuracy"],
        **{name: cost(design) for name, cost in steps.costs(s, model, data).items()},
    }


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, cost and intervals at the main limit, and the frontier over all limits."""
    groups = list(common.pairs(s, "test").groups)
    results, curves, hits = {}, {}, {}

    def table(name: str, unit: str) -> None:
        """Test accuracy, memory and parameters of one design a seed, under ``name``."""
        trained = [done[f"trained-{unit}-{seed}"] for seed in s["seeds"]]
        hits[name] = common.hits([t["hits"] for t in trained])  # (S, N)
        results[name] = spread(hits[name].double().mean(1).tolist())
        results[f"{name}-memory"] = spread((t["memory"] / 2**20 for t in trained), "MiB a sample")
        results[f"{name}-parameters"] = spread((t["parameters"] for t in trained), "parameters")

    def curve(names: list[str]) -> dict[str, list[float]]:
        return {
            "x": [results[f"{name}-memory"]["mean"] for name in names],
            "mean": [results[name]["mean"] for name in names],
            "std": [results[name]["std"] for name in names],
        }

    table("hand-chosen", "hand")
    curves["hand-chosen"] = curve(["hand-chosen"])
    for way, label in WAYS.items():
        names = [f"{label}-{limit}" for limit in s["limits"]]
        for limit, name in zip(s["limits"], names):
            table(name, f"{way}-{limit}")
        curves[f"frontier-{label}"] = curve(names) | {
            "designs": [
                [done[f"{way}-{limit}-{seed}"]["design"] for seed in s["seeds"]]
                for limit in s["limits"]
            ]
        }
        main, name = f"{way}-{s['main_limit']}", f"{label}-{s['main_limit']}"
        table(label, main)
        searches = [done[f"{main}-{seed}"] for seed in s["seeds"]]
        results[f"{label}-inherited"] = spread(x["validation"] for x in searches)
        results[f"{label}-evaluations"] = spread((x["evaluations"] for x in searches), "designs")
        best = torch.tensor([x["progress"] for x in searches])  # (S, generations)
        curves[f"progress-{label}"] = {
            "x": [s["search"]["population"] * (g + 1) for g in range(best.shape[1])],
            "mean": best.mean(0).tolist(),
            "std": best.std(0, correction=0).tolist(),
        }
    inherited = (done[f"evolution-{s['main_limit']}-{seed}"] for seed in s["seeds"])
    results["hand-chosen-inherited"] = spread(x["validation-hand"] for x in inherited)
    pairs = [("searched", "hand-chosen"), ("searched", "random")]
    pairs += [(f"searched-{limit}", f"random-{limit}") for limit in s["limits"]]
    comparisons = {
        f"{a} - {b}": metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict() for a, b in pairs
    }
    losses = torch.tensor([done[f"supernet-{seed}"]["loss"] for seed in s["seeds"]])  # (S, epochs)
    curves["supernet-loss"] = {
        "x": list(range(1, losses.shape[1] + 1)),
        "mean": losses.mean(0).tolist(),
        "std": losses.std(0, correction=0).tolist(),
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


_LAB = {
    "seeds": [0, 1, 2],
    "problem": "figures",
    "words": 5,
    "count": {"train": 1100, "validation": 220, "test": None},
    "share": 0.9,  # of the training pairs that each seed draws
    "slice": 200,  # of those, for scoring designs; the supernet trains on the rest
    "image_encoder": "dinov2-small",
    "image_layers": 8,
    "image_size": 112,
    "image_readout": "mean",
    "text_encoder": "minilm-l6",
    "text_layers": 6,
    "text_readout": None,
    "max_length": 32,
    "pmf": {},  # the hand-chosen design: the defaults of the official file
    "space": {
        "max_fusion_layers": 3,
        "query_prompts": [1, 2, 4, 8],
        "query_context_prompts": [0, 1, 2, 4, 8],
        "fusion_context_prompts": [0, 1, 2, 4, 8],
        "mapping_widths": [48, 96, 192],
    },
    "limit": "memory",
    "limits": [0.6, 1.0, 1.6],  # times the cost of the hand-chosen design
    "main_limit": 1.0,
    "search": {  # AutoFormer: 50, 20, 10, 25, 25; its 1,000 evaluations are 32 here
        "population": 8, "generations": 4, "parents": 4, "mutants": 4, "crossings": 4,
        "layer_chance": 0.2, "whole_chance": 0.4, "tries": 250,
    },
    "finalists": 3,
    "supernet": {"epochs": 6, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1},
    "train": {"epochs": 4, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1},
}  # fmt: skip

RECIPE = Recipe(
    name="pmf-search",
    title="PMF with a searched fusion structure, against random search and the hand-chosen one",
    chapter="03",
    scales={
        "smoke": {
            **_LAB,
            "seeds": [0],
            "problem": "entailment",
            "count": {"train": 96, "validation": 64, "test": 64},  # scenes
            "slice": 30,
            "image_layers": 3,
            "text_layers": 3,
            "image_size": 56,
            "space": {**_LAB["space"], "max_fusion_layers": 2},
            "limits": [1.0],
            "search": {**_LAB["search"], "population": 4, "generations": 2, "parents": 2,
                       "mutants": 2, "crossings": 1},
            "finalists": 2,
            "supernet": {**_LAB["supernet"], "epochs": 1},
            "train": {**_LAB["train"], "epochs": 1},
        },
        "lab": _LAB,
        # PMF's encoders, AutoFormer's search; all else is chosen. The base features of four depths
        # take 0.8 TB.
        "paper": {
            **_LAB,
            "problem": "food101-pages",
            "count": {"train": None, "validation": 2000, "test": None},
            "share": 1.0,
            "slice": 5000,
            "image_encoder": "vit-base",
            "image_layers": 12,
            "image_size": 224,
            "image_readout": None,
            "text_encoder": "bert-base",
            "text_layers": 12,
            "max_length": 512,
            "space": {**_LAB["space"], "max_fusion_layers": 4, "mapping_widths": [96, 192, 384]},
            "limits": [0.6, 1.0, 1.6, 2.0],
            "search": {k: v for k, v in asdict(SearchConfig()).items() if k != "seed"},
            "supernet": {**_LAB["supernet"], "epochs": 20},
            "train": {"epochs": 20, "batch_size": 32, "optimizer": "sgd", "momentum": 0.9,
                      "lr": 0.01, "weight_decay": 1e-4, "warmup": 0.1},
        },
    },
    minutes={"smoke": 0.5, "lab": 40, "paper": 600_000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=1,  # of training; of a search, `finalists` more looks at validation
)  # fmt: skip
