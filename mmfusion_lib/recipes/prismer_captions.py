"""Captions of scenes: Prismer against PrismerZ, at equal training and at equal trainable parameters.

Both learn to list what stands on the table from the same pictures in the same order; Prismer also reads
the six exact maps. The captions are held against the scenes' graphs: are the things and colours true?
Then each expert is taken from the trained Prismer, one by one. A template that sees the true graph, with
a tenth of its facts replaced, says how good good is.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import (
    caption_metrics,
    files,
    metrics,
    prismer_training,
    scene_captioner,
    scene_truth,
    settings,
    train,
)
from ..data import scene_tasks, subsets
from ..prismer_config import SCENE_EXPERTS
from ..records import spread
from ..runs import Recipe, Settings
from ..scene_texts import caption_items

# Way -> experts, and what else differs. "wide" has adaptors so wide that it trains as much as Prismer.
WAYS = {
    "prismer": {"experts": SCENE_EXPERTS, "changes": {}},
    "prismerz": {"experts": (), "changes": {}},
    "prismerz-wide": {"experts": (), "changes": {"adaptor_bottleneck": 1046}},
}
SHOWN = ("objects_f1", "colours_f1", "named_f1", "named_f1_mean", "hallucination")


def units(s: Settings) -> list[str]:
    """A unit a way and seed, all ways for one seed before the next."""
    return [f"{seed}-{way}" for seed in s["seeds"] for way in s["ways"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one way; its captions of the test scenes, also without each expert."""
    seed, _, way = unit.partition("-")
    model, result = trained(s, way, int(seed))
    items, _ = data(s, "test", way, model)
    written = {"all": write(s, model, items)}
    if way == "prismer":
        for removed in s["ways"][way]["experts"]:
            written[removed] = write(s, model, items.without([removed]))
        written["none"] = write(s, model, items.without(SCENE_EXPERTS))
    if way == "prismer":
        name = f"scene-captioner-{files.digest(s)[:8]}-{seed}"
        scene_captioner.save(model, settings.cache_root() / "weights" / name, {"unit": unit})
    return {
        "captions": written,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": result.losses[:: s["every"]],
        "validation": [row["loss"] for row in result.validations],
        "samples_per_second": result.samples_per_second,
        "data_wait_share": result.data_wait_share,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
    }


def trained(s: Settings, way: str, seed: int) -> tuple[Any, train.TrainResult]:
    """The captioner of one way, trained on the subset that ``seed`` draws."""
    chosen = s["ways"][way]
    model = scene_captioner.build(
        chosen["experts"], seed, image=s["image_layers"], text=s["text_layers"], **chosen["changes"]
    )
    items, _ = data(s, "train", way, model)
    drawn = subsets.stratified([0] * len(items), round(s["share"] * len(items)), seed)
    validation, _ = data(s, "validation", way, model)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        return {"loss": prismer_training.mean_loss(model, validation)}

    config = train.TrainConfig(seed=seed, **s["train"])
    objective = prismer_training.objective
    return model, train.fit(model, items.take(drawn), objective, config, validate=validate)


def data(s: Settings, split: str, way: str, model: Any) -> tuple[Any, list[dict]]:
    """The scenes of a split with the maps of a way."""
    experts = s["ways"][way]["experts"]
    return caption_items(split, s["count"][split], model.transform, model.tokenizer, experts)


def write(s: Settings, model: Any, items: Any) -> list[str]:
    """Captions of all items by beam search, as published."""
    return prismer_training.captions(model, items, num_beams=s["beams"])


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Truth of the captions by way; without each expert; paired intervals over scenes and seeds."""
    import json

    from ..data import scenes

    table = scenes.load("test", s["count"]["test"])
    graphs = [json.loads(text) for text in table["graph"]]
    references = [scene_tasks.captions(graph) for graph in graphs]
    runs = {way: [done[f"{seed}-{way}"] for seed in s["seeds"]] for way in s["ways"]}
    written = {way: [run["captions"]["all"] for run in rows] for way, rows in runs.items()}
    written["template"] = [
        [scene_truth.template(graph, 0.1, seed) for graph in graphs] for seed in s["seeds"]
    ]
    for expert in (*SCENE_EXPERTS, "none"):
        if all(expert in run["captions"] for run in runs["prismer"]):
            written[f"without {expert}"] = [run["captions"][expert] for run in runs["prismer"]]
    written["all experts left out"] = written.pop("without none")

    results, f1 = {}, {}
    for way, rows in written.items():
        judged = [scene_truth.score(texts, graphs) for texts in rows]
        for name in SHOWN:
            unit = "share" if name == "hallucination" else "F1"
            results[f"{way}-{name}"] = spread([each[name] for each in judged], unit)
        cider = [caption_metrics.cider(texts, references).corpus for texts in rows]
        results[f"{way}-cider"] = spread(cider, "CIDEr-D")
        f1[way] = torch.stack(
            [scene_truth.f1(scene_truth.truths(texts, graphs)) for texts in rows]
        )  # (S, N)
    for way, rows in runs.items():
        results[f"{way}-trainable"] = spread([run["trainable"] for run in rows], "count")
        results[f"{way}-seconds"] = spread([run["seconds"] for run in rows], "seconds")
        results[f"{way}-data-wait"] = spread([run["data_wait_share"] for run in rows], "share")
    pairs = [("prismer", other) for other in f1 if other != "prismer"]
    return {
        "results": results,
        "comparisons": {
            f"{a} - {b}": metrics.paired_bootstrap(f1[a], f1[b], table["id"])._asdict()
            for a, b in pairs
        },
        "curves": {
            f"{way} loss": {
                "x": [s["every"] * i + 1 for i in range(len(rows[0]["losses"]))],
                "mean": torch.tensor([run["losses"] for run in rows]).mean(0).tolist(),
                "std": torch.tensor([run["losses"] for run in rows]).std(0, False).tolist(),
            }
            for way, rows in runs.items()
        },
    }


LAB = {
    "seeds": [0, 1, 2],
    "ways": WAYS,
    "count": {"train": 3600, "validation": 100, "test": 200},
    "share": 0.9,
    "image_layers": 8,
    "text_layers": 3,
    "beams": 3,
    "every": 25,
    "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3, "weight_decay": 0.05, "warmup": 0.2},
}

RECIPE = Recipe(
    name="prismer-captions",
    title="Captions of scenes, held against the truth: Prismer and PrismerZ",
    chapter="05",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "ways": {way: WAYS[way] for way in ("prismer", "prismerz")},
            "count": {"train": 20, "validation": 4, "test": 4},
            "image_layers": 1,
            "text_layers": 1,
            "beams": 1,
            "every": 1,
            "train": {**LAB["train"], "epochs": 1, "batch_size": 8},
        },
        "lab": LAB,
        "paper": {
            **LAB,
            "count": {"train": 60_000, "validation": 1000, "test": 5000},
            "train": {**LAB["train"], "epochs": 10, "batch_size": 64, "precision": "bf16"},
        },
    },
    minutes={"smoke": 0.5, "lab": 120, "paper": 300},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
