"""Naming things cut out of scenes from 1 to 16 examples a kind: are exact maps worth more where pictures are few?

The crop of each thing comes with the same crop of its scene's maps. "prismer" reads all six; one of them says
of each pixel what kind of thing it shows, so it is told the answer in another language and has to learn to
translate. "prismer-low" reads depth, normals and edges, which show the shape and name nothing.
"prismer-blank" trains what "prismer" trains, on the same pictures, and reads the maps of one and the same
crop with each. "prismerz" has no maps. Nobody has seen scenes before: the encoder is the packaged one, the
decoder's cross-attention is new. A kind is learnt from 16 pictures, its shots and views of them.

Settings were fixed on the validation split with shots of seed 0.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from .. import checkpoints, metrics, prismer_training, scene_batch, train
from ..data import scene_tasks, scenes, subsets
from ..data.scene_facts import spoken
from ..data.scene_objects import KINDS
from ..experts import from_scenes, geometry, tensors
from ..prismer import Prismer, load_prismer
from ..prismer_config import ENCODERS, MODELS, SCENE_EXPERTS
from ..prismer_text import CLASS_PROMPT
from ..prismer_training import PrismerItems
from ..records import cost, costs, spread
from ..runs import Recipe, Settings
from ..trainable import freeze
from .prismer_captions import with_maps_of

WAYS = {
    "prismer": SCENE_EXPERTS,
    "prismer-low": ("depth", "normal", "edge"),
    "prismer-blank": SCENE_EXPERTS,
    "prismerz": (),
}
NAMES = [spoken(kind) for kind in KINDS]


def units(s: Settings) -> list[str]:
    """A unit a seed, number of shots and way, all ways for one number before the next."""
    return [
        f"{seed}-{shots}-{way}" for seed in s["seeds"] for shots in s["shots"] for way in s["ways"]
    ]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Learn from the shots; test hits, validation accuracy, what training took."""
    seed, shots, way = unit.split("-", 2)
    model = build(s, way, int(seed))
    learnt, _ = shown(s, "train", way, int(shots), int(seed))
    steps = dict(s["train"])
    epochs = max(1, round(steps.pop("steps") / (len(learnt) // steps["batch_size"])))
    config = train.TrainConfig(epochs=epochs, seed=int(seed), **steps)
    result = train.fit(model, learnt, prismer_training.objective, config)
    found = {}
    for split in ("validation", "test"):
        asked, labels = shown(s, split, way)
        said = prismer_training.answers(model, asked, NAMES, 64)
        found[split] = "".join("01"[name == NAMES[label]] for name, label in zip(said, labels))
    return {
        "hits": found["test"],
        "validation": found["validation"].count("1") / len(found["validation"]),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "loss": result.losses[-1],
        "steps": result.steps,
        **cost(result),
    }


def build(s: Settings, way: str, seed: int) -> Prismer:
    """The model of one way before training: a cut of ``small``, what is pretrained frozen."""
    small = MODELS["small"]
    model = load_prismer(
        "small",
        seed=seed,
        experts=WAYS[way],
        image=replace(small.image, depth=s["image_layers"]),
        text=replace(small.text, depth=s["text_layers"]),
        image_size=s["image_size"],
        **s["sizes"],
    )
    for part in (model.decoder.words, model.encoder.patch, model.encoder.norm):
        freeze(part)
    model.encoder.positions.requires_grad_(False)
    return model


def shown(
    s: Settings, split: str, way: str, shots: int | None = None, seed: int = 0
) -> tuple[PrismerItems, list[int]]:
    """Crops with the maps of one way, as "A photo of a" and a kind's name, and their labels.

    Args:
        shots: pictures of each kind that ``seed`` draws, with views of them; None: the split's
            own crops, as they are.
    """
    rows = objects(split, s["count"][split])[1]
    if shots is None:
        kept = [KINDS.index(row["label"]) for row in rows]
        chosen = [(row, 0) for row in subsets.stratified(kept, s["named"][split])]
    else:
        number = max(1, s["views"] // shots)
        chosen = [(row, v) for row in scene_tasks.shots(rows, shots, seed) for v in range(number)]
    items = cut(split, s["count"][split], tuple(chosen), s["image_size"])
    items = items.without([name for name in SCENE_EXPERTS if name not in WAYS[way]])
    if way == "prismer-blank":
        items = with_maps_of(items, cut("train", s["count"]["train"], ((0, 0),), s["image_size"]))
    return items, [KINDS.index(rows[row]["label"]) for row, _ in chosen]


@lru_cache(maxsize=3)
def objects(split: str, count: int) -> tuple[Any, list[dict]]:
    """Scenes of a split, and the things in them that can be cut out."""
    table = scenes.load(split, count)
    return table, scene_tasks.fewshot_kinds(json.loads(graph) for graph in table["graph"])


@lru_cache(maxsize=4)
def cut(split: str, count: int, chosen: tuple[tuple[int, int], ...], size: int) -> PrismerItems:
    """Views of things: (number of the thing, number of the view) each; all six maps."""
    table, rows = objects(split, count)
    transform = checkpoints.image_transform(ENCODERS["small"][0], size=size)
    pictures, samples = [], []
    for number, view in chosen:
        row = rows[number]
        scene = scenes.decode(table[row["index"]])
        maps = from_scenes.from_scene(scene)
        crop = around(row["box"], len(scene.image), f"{number}-{view}" if view else None)
        picture, labels = geometry.apply(crop, scene.image, maps, (size, size), (size, size))
        pictures.append(transform(Image.fromarray(picture)))
        samples.append(labels)
    experts = {"rgb": torch.stack(pictures)}
    experts |= tensors.batch(samples, size, scene_batch.tables(), SCENE_EXPERTS)
    found = [rows[number] for number, _ in chosen]
    return PrismerItems(
        experts,
        [CLASS_PROMPT] * len(found),
        [[spoken(row["label"])] for row in found],
        checkpoints.load_tokenizer(ENCODERS["small"][1]),
        [row["scene"] for row in found],
    )


def around(box: list[int], size: int, seed: str | None) -> geometry.Geometry:
    """A square around a thing's box, in shares of the picture; with a seed a looser or tighter one.

    Args:
        box: (left, top, right, bottom) in pixels.
        size: pixels a side of the picture.
        seed: None: a margin of a tenth on each side, not mirrored.
    """
    rng = random.Random(seed)
    margin, flip = (0.1, False) if seed is None else (rng.uniform(0, 0.3), rng.random() < 0.5)
    side = min(1.0, max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * margin) / size)
    corner = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        middle = (low + high) / 2 / size
        middle += 0 if seed is None else rng.uniform(-0.1, 0.1) * side
        corner.append(min(max(middle - side / 2, 0.0), 1 - side))
    return geometry.Geometry((*corner, *(min(1.0, low + side) for low in corner)), flip)


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by way and shots; paired intervals over scenes and seeds; curves over shots."""
    groups = shown(s, "test", "prismerz")[0].groups
    hits, results, curves = {}, {}, {}
    shots = sorted(s["shots"])
    for way in s["ways"]:
        for k in shots:
            runs = [done[f"{seed}-{k}-{way}"] for seed in s["seeds"]]
            rows = torch.tensor([[int(c) for c in run["hits"]] for run in runs])  # (S, N)
            hits[way, k] = rows
            results[f"{way}-{k}"] = spread(rows.double().mean(1).tolist())
            results[f"{way}-{k}-validation"] = spread([run["validation"] for run in runs])
            results |= costs(f"{way}-{k}", runs)
        results[f"{way}-trainable"] = spread([runs[0]["trainable"]], "parameters")
        found = [results[f"{way}-{k}"] for k in shots]
        curves[way] = {
            "x": shots,
            "mean": [each["mean"] for each in found],
            "std": [each["std"] for each in found],
        }
    first = s["ways"][0]
    comparisons = {
        f"{first}-{k} - {way}-{k}": metrics.paired_bootstrap(
            hits[first, k], hits[way, k], groups
        )._asdict()
        for k in shots
        for way in s["ways"][1:]
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


LAB = {
    "seeds": [0, 1, 2],
    "ways": list(WAYS),
    "shots": [1, 4, 16],
    "count": {"train": 1000, "validation": 300, "test": 500},  # scenes
    "named": {"validation": 200, "test": 600},  # things that are named, all kinds alike
    "views": 16,  # pictures that a kind is learnt from: its shots, and views of them
    "image_layers": 8,
    "text_layers": 3,
    "image_size": 56,
    "sizes": {"adaptor_bottleneck": 96, "adaptor_near_zero": True, "resampler_layers": 1},
    "train": {
        "steps": 200,
        "batch_size": 16,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "precision": "bf16",
    },
}

RECIPE = Recipe(
    name="scenes-fewshot",
    title="Things of scenes from 1 to 16 shots: Prismer, PrismerZ, a control of equal size",
    chapter="05",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "ways": ["prismer", "prismerz"],
            "shots": [1],
            "count": {"train": 100, "validation": 30, "test": 30},
            "named": {"validation": 20, "test": 20},
            "views": 1,
            "image_layers": 1,
            "text_layers": 1,
            "train": {**LAB["train"], "steps": 3, "batch_size": 8, "precision": "no"},
        },
        "lab": LAB,
        "paper": {
            **LAB,
            "count": {"train": 10_000, "validation": 1000, "test": 5000},
            "named": {"validation": 1000, "test": 5000},
            "image_layers": 12,
            "text_layers": 6,
            "image_size": 112,
            "train": {**LAB["train"], "steps": 1000, "batch_size": 64},
        },
    },
    minutes={"smoke": 0.3, "lab": 30, "paper": 3000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
