"""Where to cut: probe accuracy on the mean-pooled tokens behind every layer of both encoders."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from .. import checkpoints, features, metrics, probes
from ..data import problems, subsets
from ..records import spread
from ..runs import Recipe, Settings

SPLITS = ("train", "validation", "test")
_load = lru_cache(maxsize=3)(problems.load)  # one entry a split


def by_depth(s: Settings, split: str, kind: str) -> dict[int, torch.Tensor]:
    """{depth: (N, D)} for kind "image" or "text"; one pass over the data serves all depths."""
    problem = _load(s["problem"], split, s["count"][split])
    name = s[f"{kind}_encoder"]
    if kind == "image":
        encoder = checkpoints.load_image_encoder(name, depth=s["image_layers"])
        transform = checkpoints.image_transform(name, size=s["image_size"])
        data = features.Images(problem.images, transform)
    else:
        encoder = checkpoints.load_text_encoder(name, depth=s["text_layers"])
        tokenizer = checkpoints.load_tokenizer(name)
        data = features.Texts(problem.texts(s["words"]), tokenizer, max_length=64)
    depths = range(len(encoder.layers) + 1)
    found = features.extract(encoder, data, depths=depths, pool="mean")
    return {depth: f.values.float() for depth, f in found.items()}


def units(s: Settings) -> list[str]:
    """One unit a modality and seed."""
    return [f"{kind}-seed-{seed}" for kind in ("image", "text") for seed in s["seeds"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Probes at every depth: {depth: validation accuracy, test hits as a string of 0 and 1}."""
    kind, seed = unit.split("-seed-")
    labels = {x: _load(s["problem"], x, s["count"][x]).labels for x in SPLITS}
    classes = len(_load(s["problem"], "test", s["count"]["test"]).classes)
    size = round(s["share"] * len(labels["train"]))
    rows = subsets.stratified(labels["train"].tolist(), size, int(seed))
    parts = {x: by_depth(s, x, kind) for x in SPLITS}
    found = {}
    for depth in parts["train"]:
        probe = probes.fit_probe(
            parts["train"][depth][rows], labels["train"][rows],
            parts["validation"][depth], labels["validation"], num_classes=classes,
        )  # fmt: skip
        hits = probe.predict(parts["test"][depth]) == labels["test"]
        found[str(depth)] = {
            "validation": probe.validation,
            "hits": "".join("01"[int(hit)] for hit in hits),
        }
    return found


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Test accuracy by depth, the depth that validation would choose, two paired intervals."""
    groups = list(_load(s["problem"], "test", s["count"]["test"]).groups)
    results, curves, hits = {}, {}, {}
    for kind in ("image", "text"):
        runs = [done[f"{kind}-seed-{seed}"] for seed in s["seeds"]]
        depths = list(runs[0])
        for d in depths:
            rows = [[int(c) for c in run[d]["hits"]] for run in runs]
            hits[f"{kind}-{d}"] = torch.tensor(rows)  # (S, N)
            results[f"{kind}-{d}"] = spread(hits[f"{kind}-{d}"].double().mean(1).tolist())
        best = [max(depths, key=lambda d: run[d]["validation"]) for run in runs]
        results[f"{kind}-chosen-depth"] = spread([int(d) for d in best], unit="layers")
        curves[kind] = {
            "x": [int(d) for d in depths],
            "mean": [results[f"{kind}-{d}"]["mean"] for d in depths],
            "std": [results[f"{kind}-{d}"]["std"] for d in depths],
        }
    comparisons = {}
    for a, b in (("image-8", "image-12"), ("text-6", "text-0")):
        if a in hits and b in hits:
            comparisons[f"{a} - {b}"] = metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
    return {"results": results, "comparisons": comparisons, "curves": curves}


_LAB = {
    "seeds": [0, 1, 2],
    "problem": "figures",
    "count": {"train": None, "validation": None, "test": None},
    "share": 0.9,  # of the training items that each seed draws
    "image_encoder": "dinov2-small",
    "image_layers": 12,
    "image_size": 224,
    "text_encoder": "minilm-l6",
    "text_layers": 6,
    "words": 5,
}

RECIPE = Recipe(
    name="figures-depth",
    title="Probe accuracy by depth, image and text encoder",
    chapter="02",
    scales={
        "smoke": {
            **_LAB,
            "seeds": [0],
            "count": {"train": 330, "validation": 110, "test": 220},
            "image_layers": 4,
            "image_size": 112,
            "text_layers": 3,
        },
        "lab": _LAB,
        "paper": {  # PMF's encoders and, where a table is there, its data
            **_LAB,
            "problem": "food101",
            "share": 1.0,
            "image_encoder": "vit-base",
            "text_encoder": "bert-base",
            "text_layers": 12,
        },
    },
    minutes={"smoke": 0.3, "lab": 10, "paper": 60},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=len(probes.DECAYS),
)
