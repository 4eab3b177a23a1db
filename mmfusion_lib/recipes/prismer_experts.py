"""What experts are worth to Prismer's encoder: none, some, all, spoilt ones and pure noise.

Task: which of 24 words is on the sign (``expert_task``). The encoder is that of Prismer ``small``, its
pretrained blocks frozen; stems, resampler, adaptors and the answer train. Ways differ in the maps alone:
"more" experts, "better" ones (the words of a share of the pictures are wrong) and "noisy" ones (maps of
pure noise beside exact words).
"""

from __future__ import annotations

from typing import Any

import torch

from .. import expert_task, metrics, train
from ..checkpoints import image_transform, load_image_encoder
from ..data import subsets
from ..data.scene_objects import WORDS
from ..experts import from_scenes
from ..prismer_config import ENCODERS, named_prismer
from ..prismer_encoder import PrismerEncoder
from ..records import cost, costs, spread
from ..runs import Recipe, Settings
from ..trainable import freeze

SPLITS = ("train", "validation", "test")
LOW = ("depth", "normal", "edge")
ALL = ("depth", "normal", "seg_scenes", "edge", "obj_detection", "ocr_detection")
OCR = ("ocr_detection",)

# Way -> the experts that are given, and how some of them are spoilt: (which, kind, amount).
WAYS = {
    "rgb": {"experts": (), "spoil": None},
    "words": {"experts": OCR, "spoil": None},
    "all": {"experts": ALL, "spoil": None},
    "all-but-words": {"experts": ALL[:-1], "spoil": None},
    "words-wrong-0.25": {"experts": OCR, "spoil": (OCR, "wrong", 0.25)},
    "words-wrong-0.5": {"experts": OCR, "spoil": (OCR, "wrong", 0.5)},
    "words-wrong-1": {"experts": OCR, "spoil": (OCR, "wrong", 1.0)},
    "words+noise": {"experts": (*LOW, *OCR), "spoil": (LOW, "noise", 1.0)},
}


def units(s: Settings) -> list[str]:
    """A unit a way and seed, all ways for one seed before the next."""
    return [f"{seed}-{way}" for seed in s["seeds"] for way in s["ways"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one way; test hits, validation accuracy by epoch, what training took."""
    seed, _, way = unit.partition("-")
    result, hits = trained(s, way, int(seed))
    return {
        "hits": hits,
        "validation": [row["accuracy"] for row in result.validations],
        **cost(result),
    }


def trained(s: Settings, way: str, seed: int) -> tuple[train.TrainResult, str]:
    """The classifier of one way, trained; what it gets right of the test scenes, "0" or "1" each."""
    data = {split: items(s, split, way, seed) for split in SPLITS}
    labels = data["train"].labels.tolist()
    drawn = subsets.stratified(labels, round(s["share"] * len(labels)), seed)
    model = classifier(s, way, seed)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        found = expert_task.logits(model, data["validation"]).argmax(1)
        return {"accuracy": metrics.accuracy(found, data["validation"].labels)}

    config = train.TrainConfig(seed=seed, select="accuracy", **s["train"])
    result = train.fit(
        model, data["train"].take(drawn), expert_task.objective, config, validate=validate
    )
    found = expert_task.logits(model, data["test"]).argmax(1)
    return result, "".join("01"[int(x)] for x in found == data["test"].labels)


def items(s: Settings, split: str, way: str, seed: int) -> expert_task.ExpertItems:
    """One split with the maps of a way; what is spoilt, is so in training and testing."""
    change = s["ways"][way]

    def spoil(labels: expert_task.Labels, row: int) -> expert_task.Labels:
        which, kind, amount = change["spoil"]
        spoilt = {name: labels[name] for name in which if name in labels}
        number = 1_000_000 * seed + 100_000 * SPLITS.index(split) + row
        return {**labels, **from_scenes.noisy(spoilt, kind, amount, number)}

    size = s["image_size"]
    return expert_task.sign_items(
        split,
        s["count"][split],
        image_transform(ENCODERS[s["name"]][0], size=size),
        change["experts"],
        spoil=spoil if change["spoil"] else None,
        size=size,
    )


def classifier(s: Settings, way: str, seed: int) -> expert_task.ExpertClassifier:
    """Prismer's encoder for the experts of a way; what is new is drawn from ``seed``."""
    image = load_image_encoder(ENCODERS[s["name"]][0], depth=s["image_layers"])
    experts = tuple(s["ways"][way]["experts"])
    config = named_prismer(
        s["name"], image=image.config, experts=experts, image_size=s["image_size"]
    )
    torch.manual_seed(seed)
    encoder = PrismerEncoder(image, config)
    for layer in encoder.layers:
        freeze(layer.block)
    return expert_task.ExpertClassifier(encoder, len(WORDS))


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by way; paired intervals over scenes and seeds; the curve over wrong words."""
    groups = items(s, "test", "rgb", 0).groups
    hits = {
        way: torch.tensor(
            [[int(c) for c in done[f"{seed}-{way}"]["hits"]] for seed in s["seeds"]]
        )  # (S, N)
        for way in s["ways"]
    }
    results = {way: spread(rows.double().mean(1).tolist()) for way, rows in hits.items()}
    for way in s["ways"]:
        results |= costs(way, [done[f"{seed}-{way}"] for seed in s["seeds"]])
    pairs = [("all", "rgb"), ("words", "rgb"), ("all", "words"), ("all", "all-but-words")]
    pairs += [("words+noise", "words"), ("words+noise", "rgb"), ("words", "words-wrong-0.25")]
    pairs += [("words-wrong-0.25", "words-wrong-0.5"), ("words-wrong-0.5", "words-wrong-1")]
    comparisons = {
        f"{a} - {b}": metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
        for a, b in pairs
        if a in hits and b in hits
    }
    wrong = {0.0: "words", 0.25: "words-wrong-0.25", 0.5: "words-wrong-0.5", 1.0: "words-wrong-1"}
    wrong = {amount: way for amount, way in wrong.items() if way in hits}
    curves = {
        "wrong words": {
            "x": list(wrong),
            "mean": [results[way]["mean"] for way in wrong.values()],
            "std": [results[way]["std"] for way in wrong.values()],
        }
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


LAB = {
    "seeds": [0, 1, 2],
    "ways": WAYS,
    "count": {"train": 6000, "validation": 700, "test": 3000},  # scenes; a fifth have one sign
    "share": 0.9,  # of the training items that each seed draws
    "name": "small",
    "image_layers": 8,
    "image_size": 112,
    "train": {"epochs": 2, "batch_size": 16, "lr": 5e-4, "weight_decay": 0.05, "warmup": 0.1},
}

RECIPE = Recipe(
    name="prismer-experts",
    title="Prismer small reads signs: no experts, more, better and noisier ones",
    chapter="04",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "ways": {way: WAYS[way] for way in ("rgb", "words")},
            "count": {"train": 200, "validation": 100, "test": 100},
            "image_layers": 2,
            "train": {**LAB["train"], "epochs": 1, "batch_size": 8},
        },
        "lab": LAB,
        "paper": {
            **LAB,
            "name": "prismer-base",
            "image_layers": 12,
            "image_size": 224,
            "count": {"train": 60_000, "validation": 4000, "test": 10_000},
        },
    },
    minutes={"smoke": 0.5, "lab": 110, "paper": 1500},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
