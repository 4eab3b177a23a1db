"""What one modality knows, what both know: linear probes on frozen features.

Image features: mean of the tokens behind a block of the image encoder. Text features: mean of the
text encoder's tokens for the first words of the caption. Both: the two side by side. The probe of
"both" is PMF's baseline "Linear" (with mean-pooled tokens instead of CLS).

Controls: pairs shuffled at test time (the text of another item), and encoders with random weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from .. import checkpoints, features, metrics, probes
from ..data import problems, subsets
from ..encoders import build_encoder
from ..records import spread
from ..runs import Recipe, Settings

SPLITS = ("train", "validation", "test")
_load = lru_cache(maxsize=3)(problems.load)  # one entry a split


def columns(s: Settings, split: str, words: int | None, kind: str) -> torch.Tensor:
    """Mean-pooled features of one split: kind "image" or "text", "random-" in front for control."""
    random = kind.startswith("random-")
    problem = _load(s["problem"], split, s["count"][split])
    name = s[kind.removeprefix("random-") + "_encoder"]
    if kind.endswith("image"):
        encoder, depth = checkpoints.load_image_encoder(name), s["image_depth"]
        transform = checkpoints.image_transform(name, size=s["image_size"])
        data = features.Images(problem.images, transform)
    else:
        encoder, depth = checkpoints.load_text_encoder(name), s["text_depth"]
        tokenizer = checkpoints.load_tokenizer(name)
        data = features.Texts(problem.texts(words), tokenizer, max_length=64)
    if random:
        torch.manual_seed(0)
        encoder = build_encoder(name)
    return features.extract(encoder, data, depths=[depth], pool="mean")[depth].values.float()


def units(s: Settings) -> list[str]:
    """One unit a seed."""
    return [f"seed-{seed}" for seed in s["seeds"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Probes of one seed, which draws the training subset: {method: right or wrong per item}."""
    seed = int(unit.removeprefix("seed-"))
    labels = {x: _load(s["problem"], x, s["count"][x]).labels for x in SPLITS}
    size = round(s["share"] * len(labels["train"]))
    rows = subsets.stratified(labels["train"].tolist(), size, seed)
    classes = len(_load(s["problem"], "test", s["count"]["test"]).classes)
    found: dict[str, Any] = {}

    def probe(name: str, parts: dict[str, torch.Tensor]) -> probes.Probe:
        fitted = probes.fit_probe(
            parts["train"][rows], labels["train"][rows], parts["validation"], labels["validation"],
            num_classes=classes,
        )  # fmt: skip
        found[name] = right(fitted.predict(parts["test"]))
        return fitted

    def right(predictions: torch.Tensor) -> str:
        return "".join("01"[int(hit)] for hit in predictions == labels["test"])

    image = {x: columns(s, x, None, "image") for x in SPLITS}
    probe("image", image)
    for words in s["words"]:
        text = {x: columns(s, x, words, "text") for x in SPLITS}
        both = {x: torch.cat([image[x], text[x]], dim=1) for x in SPLITS}  # (N, D_i + D_t)
        probe(f"text-{words or 'all'}", text)
        fitted = probe(f"both-{words or 'all'}", both)
        if words == s["central_words"]:
            order = torch.randperm(
                len(labels["test"]), generator=torch.Generator().manual_seed(seed)
            )
            shuffled = torch.cat([image["test"], text["test"][order]], dim=1)
            found["both-shuffled"] = right(fitted.predict(shuffled))
    for kind in ("random-image", "random-text"):
        probe(kind, {x: columns(s, x, s["central_words"], kind) for x in SPLITS})
    found["majority"] = right(torch.full_like(labels["test"], int(labels["train"].mode().values)))
    return found


def summarise(s: Settings, done: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Accuracies, the dial's curves, and paired intervals over sections and seeds."""
    runs = [done[unit] for unit in units(s)]
    hits = {m: torch.tensor([[int(c) for c in run[m]] for run in runs]) for m in runs[0]}  # (S, N)
    results = {m: spread(h.double().mean(1).tolist()) for m, h in hits.items()}
    groups = list(_load(s["problem"], "test", s["count"]["test"]).groups)
    both, text = f"both-{s['central_words']}", f"text-{s['central_words']}"
    pairs = {
        f"{both} - image": (both, "image"),
        f"{both} - {text}": (both, text),
        f"{both} - both-shuffled": (both, "both-shuffled"),
        f"{text} - random-text": (text, "random-text"),
        "image - random-image": ("image", "random-image"),
    }
    comparisons = {
        name: metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
        for name, (a, b) in pairs.items()
    }
    names = [str(words or "all") for words in s["words"]]
    curves = {
        kind: {
            "x": names,
            "mean": [results[f"{kind}-{n}"]["mean"] for n in names],
            "std": [results[f"{kind}-{n}"]["std"] for n in names],
        }
        for kind in ("text", "both")
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


_LAB = {
    "seeds": [0, 1, 2],
    "problem": "figures",
    "count": {"train": None, "validation": None, "test": None},
    "share": 0.9,  # of the training items that each seed draws
    "image_encoder": "dinov2-small",
    "image_size": 224,
    "image_depth": 8,
    "text_encoder": "minilm-l6",
    "text_depth": 6,
    "words": [1, 2, 3, 5, 10, 20, None],
    "central_words": 5,
}

RECIPE = Recipe(
    name="figures-probes",
    title="Linear probes on frozen features: image, text, both, by caption length",
    chapter="02",
    scales={
        "smoke": {
            **_LAB,
            "seeds": [0],
            "count": {"train": 330, "validation": 110, "test": 220},
            "image_size": 112,
            "image_depth": 4,
            "text_depth": 2,
            "words": [1, 5, None],
        },
        "lab": _LAB,
        "paper": {  # PMF's encoders and, where a table is there, its data
            **_LAB,
            "problem": "food101",
            "share": 1.0,
            "image_encoder": "vit-base",
            "image_depth": 12,
            "text_encoder": "bert-base",
            "text_depth": 12,
        },
    },
    minutes={"smoke": 0.5, "lab": 8, "paper": 60},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=len(probes.DECAYS),
)
