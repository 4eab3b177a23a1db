"""Visual entailment on generated scenes: a question that neither picture nor sentence answers alone.

"There is a red mug": true or false of the picture? Every sentence and every picture has each label
equally often, so single modalities are at one half; and a sum of a score of the picture and a score
of the sentence (PMF's baseline "Linear") has an average margin of 0. PMF has to let one look at the
other. Controls: the wrong picture, the wrong sentence, a grey picture, an empty sentence.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checkpoints, features, metrics, probes
from ..data import pair_problems
from ..data.pairs import Pairs
from ..records import spread
from ..runs import Recipe, Settings
from . import fusion_common as common


def units(s: Settings) -> list[str]:
    """Probes and PMF, for each seed."""
    return [f"{way}-{seed}" for way in ("probes", "pmf") for seed in s["seeds"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Test hits by name; of PMF also the validation accuracy by epoch."""
    way, seed = unit.split("-")
    if way == "probes":
        return probe_hits(s, int(seed))
    model, result = common.fit_pmf(s, int(seed))
    test = common.pairs(s, "test")
    cases = {"pmf": test, **controls(test, int(seed))}
    for kind in pair_problems.TYPES[s["problem"]]:
        part = pair_problems.load(s["problem"], "test", s["count"]["test"], types=[kind])
        cases[f"pmf-{kind}"] = part
    found = {
        name: common.right(common.test_logits(s, model, part), part.labels)
        for name, part in cases.items()
    }
    curve = [row["accuracy"] for row in result.validations]
    steps = {"samples_per_second": result.samples_per_second, "peak_bytes": result.peak_bytes}
    return {"hits": found, "validation": curve, **steps}


def controls(test: Pairs, seed: int) -> dict[str, Pairs]:
    """The test pairs with one side exchanged or emptied; labels stay those of the true pairs."""
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test.labels), generator=generator)  # (N,)
    grey = [Image.new("RGB", (112, 112), (128, 128, 128))]
    return {
        "pmf-shuffled-image": test._replace(rows=test.rows[order]),
        "pmf-shuffled-text": test._replace(texts=[test.texts[i] for i in order.tolist()]),
        "pmf-no-image": test._replace(images=grey, rows=torch.zeros_like(test.rows)),
        "pmf-no-text": test._replace(texts=[""] * len(test.texts)),
    }


def probe_hits(s: Settings, seed: int) -> dict[str, Any]:
    """Image, text, and both side by side, each read out by a probe on frozen features."""
    parts = {x: common.pairs(s, x) for x in common.SPLITS}
    rows = common.drawn(s, parts["train"], seed)
    image, text = common.encoders(s)
    columns: dict[str, dict[str, torch.Tensor]] = {"image": {}, "text": {}, "linear": {}}
    for split, part in parts.items():
        seen, said = readouts(s, part, image, text)  # (N, R_i), (N, R_t)
        columns["image"][split], columns["text"][split] = seen, said
        columns["linear"][split] = torch.cat([seen, said], dim=1)  # (N, R_i + R_t)
    found = {}
    for name, column in columns.items():
        probe = probes.fit_probe(
            column["train"][rows], parts["train"].labels[rows], column["validation"],
            parts["validation"].labels, num_classes=len(parts["train"].classes),
        )  # fmt: skip
        scores = probe.logits(column["test"])
        found[name] = common.right(scores, parts["test"].labels)
    return {"hits": found}


def readouts(s: Settings, part: Pairs, image: Any, text: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What both frozen encoders say of N pairs: (N, R_i), (N, R_t)."""
    transform, tokenizer = common.transform(s), checkpoints.load_tokenizer(s["text_encoder"])
    top = len(image.layers), len(text.layers)
    pictures = features.Images(part.images, transform)
    seen = features.extract(image, pictures, depths=[top[0]], pool="readout", dtype="float32")
    words = features.Texts(part.texts, tokenizer, s["max_length"])
    said = features.extract(text, words, depths=[top[1]], pool="readout", dtype="float32")
    return seen[top[0]].values[part.rows], said[top[1]].values


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracies, paired intervals over scenes and seeds, validation accuracy by epoch."""
    groups = list(common.pairs(s, "test").groups)
    hits = {}
    for way in ("probes", "pmf"):
        runs = [done[f"{way}-{seed}"]["hits"] for seed in s["seeds"]]
        hits |= {name: common.hits([run[name] for run in runs]) for name in runs[0]}
    results = {name: spread(rows.double().mean(1).tolist()) for name, rows in hits.items()}
    rates = [done[f"pmf-{seed}"]["samples_per_second"] for seed in s["seeds"]]
    results["pmf-rate"] = spread(rates, "samples per second")
    rivals = ("image", "text", "linear", "pmf-shuffled-image", "pmf-shuffled-text")
    comparisons = {
        f"pmf - {name}": metrics.paired_bootstrap(hits["pmf"], hits[name], groups)._asdict()
        for name in rivals
    }
    curves = torch.tensor([done[f"pmf-{seed}"]["validation"] for seed in s["seeds"]])  # (S, epochs)
    validation = {
        "x": list(range(1, curves.shape[1] + 1)),
        "mean": curves.mean(0).tolist(),
        "std": curves.std(0, correction=0).tolist(),
    }
    return {"results": results, "comparisons": comparisons, "curves": {"validation": validation}}


LAB = {
    "seeds": [0, 1, 2],
    "problem": "presence",
    "count": {"train": 3000, "validation": 300, "test": 1000},  # scenes
    "share": 0.9,  # of the training pairs that each seed draws
    "image_encoder": "scenes",  # DINOv2-small, two blocks tuned on scenes
    "image_layers": 10,
    "image_size": 112,
    "image_readout": "cls",
    "text_encoder": "minilm-l6",
    "text_layers": 6,
    "text_readout": None,
    "max_length": 32,
    "pmf": {"num_fusion_layers": 2},
    "train": {"epochs": 3, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.05},
}  # fmt: skip

PAPER = {  # the paper's encoders, which have not been tuned on scenes
    "count": {"train": 30_000, "validation": 1000, "test": 2000},
    "share": 0.9,
    "train": {**LAB["train"], "epochs": 10},
}

RECIPE = Recipe(
    name="entailment",
    title="Visual entailment on scenes: PMF against single modalities and Linear",
    chapter="03",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "count": {"train": 96, "validation": 64, "test": 64},
            "train": {**LAB["train"], "epochs": 2, "batch_size": 32},
        },
        "lab": LAB,
        "paper": {**LAB, **common.PAPER_ENCODERS, **PAPER},
    },
    minutes={"smoke": 0.5, "lab": 60, "paper": 600},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=len(probes.DECAYS),
)
