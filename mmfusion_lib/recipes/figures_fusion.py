"""Textbook figures with five words of caption: is PMF better than a linear probe on both?

The set is small, and each modality alone is already useful, so that trained prompts can overfit.
Three ways are compared at several training-set sizes: the probe ("linear"), PMF as published
("pmf-untuned": random heads and messages), and PMF that starts as the probe ("pmf"). Trained, the
last is also tested with one side exchanged or missing.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import metrics, pair_training, pmf_start, probes
from ..data import subsets
from ..records import spread
from ..runs import Recipe, Settings
from . import fusion_common as common
from .entailment import controls


def units(s: Settings) -> list[str]:
    """A unit a training-set share and seed; then the untuned PMF."""
    sizes = [f"started-{share}-{seed}" for share in s["shares"] for seed in s["seeds"]]
    return [*sizes, *(f"untuned-{s['share']}-{seed}" for seed in s["seeds"])]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Test hits by name, validation accuracy by epoch."""
    way, share, seed = unit.split("-")
    train, held_out, test = (common.pairs(s, x) for x in common.SPLITS)
    size = round(float(share) * len(train.labels))
    items = subsets.stratified(train.labels.tolist(), size, int(seed))
    changes = s["untuned"]["pmf"] if way == "untuned" else {}
    model = common.pmf(s, int(seed), len(train.classes), **changes)
    data = common.cached(s, model, train, items)
    others = {
        "validation": common.cached(s, model, held_out),
        "test": common.cached(s, model, test),
    }
    hits = {}
    if way == "started":
        probe = pmf_start.start_from_probe(model, data, others["validation"])
        before = pair_training.logits(model, others["test"])
        hits = single(model, data, others) | {"linear": common.right(before, test.labels)}
        start = {"decay": probe.decay, "start": probe.validation}
    else:
        s = {**s, "train": s["untuned"]["train"]}
        start = {}
    result = common.fit(s, model, data, others["validation"], int(seed))
    scores = pair_training.logits(model, others["test"])
    hits["pmf" if way == "started" else "pmf-untuned"] = common.right(scores, test.labels)
    if way == "started":
        for name, part in controls(test, int(seed)).items():
            hits[name] = common.right(common.test_logits(s, model, part), part.labels)
    curve = [row["accuracy"] for row in result.validations]
    losses = [row["loss"] for row in result.validations]
    return {"hits": hits, "validation": curve, "loss": losses, "seconds": result.seconds, **start}


def single(model: Any, data: Any, others: dict[str, Any]) -> dict[str, str]:
    """Probes on one side of what the untrained model reads, and the mean of their probabilities."""
    rows = {"train": pmf_start.read(model, data)}
    rows |= {name: pmf_start.read(model, part) for name, part in others.items()}
    cut = model.image_head.in_features
    hits, shares = {}, []
    for name, columns in (("image", slice(0, cut)), ("text", slice(cut, None))):
        probe = probes.fit_probe(
            rows["train"][:, columns], data.labels,
            rows["validation"][:, columns], others["validation"].labels,
            num_classes=model.config.num_classes,
        )  # fmt: skip
        scores = probe.logits(rows["test"][:, columns])
        hits[name] = common.right(scores, others["test"].labels)
        shares.append(scores.softmax(-1))
    hits["late-average"] = common.right(sum(shares), others["test"].labels)
    return hits


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracies at the largest size, curves over sizes, paired intervals."""
    groups = list(common.pairs(s, "test").groups)
    count = len(common.pairs(s, "train").labels)
    by_size: dict[str, dict[str, torch.Tensor]] = {}
    for share in s["shares"]:
        runs = [done[f"started-{share}-{seed}"]["hits"] for seed in s["seeds"]]
        for name in runs[0]:
            rows = common.hits([run[name] for run in runs])  # (S, N)
            by_size.setdefault(name, {})[share] = rows
    hits = {name: rows[max(s["shares"])] for name, rows in by_size.items()}
    untuned = [done[f"untuned-{s['share']}-{seed}"]["hits"] for seed in s["seeds"]]
    hits["pmf-untuned"] = common.hits([run["pmf-untuned"] for run in untuned])
    results = {name: spread(rows.double().mean(1).tolist()) for name, rows in hits.items()}
    curves = {}
    for name, sizes in by_size.items():
        values = torch.stack([rows.double().mean(1) for rows in sizes.values()])  # (sizes, S)
        curves[name] = {
            "x": [round(share * count) for share in sizes],
            "mean": values.mean(1).tolist(),
            "std": values.std(1, correction=0).tolist(),
        }
    rivals = ("image", "text", "linear", "late-average", "pmf-untuned")
    exchanged = ("pmf-shuffled-image", "pmf-shuffled-text")
    compared = [("pmf", name) for name in (*rivals, *exchanged)]
    compared += [("text", "pmf-no-image"), ("image", "pmf-no-text")]  # one side is all there is
    comparisons = {
        f"{a} - {b}": metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
        for a, b in compared
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


LAB = {
    "seeds": [0, 1, 2],
    "problem": "figures",
    "words": 5,
    "count": {"train": None, "validation": None, "test": None},
    "shares": [0.1, 0.3, 0.9],  # of the training items that each seed draws
    "share": 0.9,
    "image_encoder": "dinov2-small",
    "image_layers": 8,
    "image_size": 112,
    "image_readout": "mean",
    "text_encoder": "minilm-l6",
    "text_layers": 6,
    "text_readout": None,
    "max_length": 32,
    "pmf": {"num_fusion_layers": 2},
    "train": {"epochs": 3, "batch_size": 32, "lr": 3e-4, "weight_decay": 0.01, "warmup": 0.1},
    "untuned": {
        "pmf": {},
        "train": {"epochs": 5, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1},
    },
}

RECIPE = Recipe(
    name="figures-fusion",
    title="PMF on textbook figures with five words, against linear probes, by training-set size",
    chapter="03",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "count": {"train": 220, "validation": 66, "test": 110},
            "shares": [0.9],
            "image_layers": 3,
            "image_size": 56,
            "text_layers": 3,
            "train": {**LAB["train"], "epochs": 1},
            "untuned": {**LAB["untuned"], "train": {**LAB["train"], "epochs": 1}},
        },
        "lab": LAB,
        "paper": {**LAB, **common.PAPER_ENCODERS},
    },
    minutes={"smoke": 0.4, "lab": 40, "paper": 120},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=len(probes.DECAYS),
)
