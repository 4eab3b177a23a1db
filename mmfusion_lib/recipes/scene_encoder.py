"""Unimodal pretraining on scenes: the top blocks of the image encoder learn what objects look like.

The result is published with the book (``book/results/weights``) and used by the entailment recipes.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checkpoints, features, scene_tuning, settings, train, trainable
from ..data import scenes
from ..records import spread
from ..runs import Recipe, Settings


def units(s: Settings) -> list[str]:
    """One unit a seed."""
    return [f"seed-{seed}" for seed in s["seeds"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Tune once; the tuned part is written to the cache folder."""
    seed = int(unit.removeprefix("seed-"))
    encoder = checkpoints.load_image_encoder(scene_tuning.NAME, depth=scene_tuning.LAYERS)
    parts = {split: patches(encoder, split, count) for split, count in s["count"].items()}
    torch.manual_seed(seed)
    model = scene_tuning.SceneReader(encoder, scene_tuning.DEPTH)
    config = train.TrainConfig(seed=seed, **s["train"])

    def validate(reader: Any) -> dict[str, float]:
        return scene_tuning.patch_accuracy(reader, parts["validation"])

    result = train.fit(model, parts["train"], scene_tuning.loss, config, validate=validate)
    file = settings.cache_root() / "weights" / f"scene-encoder-{seed}.safetensors"
    trainable.save_trainable(model, file, {"recipe": "scene-encoder", "seed": seed}, half=True)
    test = scene_tuning.patch_accuracy(model, parts["test"])
    return {"test": test, "validation": result.validations, "losses": result.losses[:: s["every"]]}


def patches(encoder: Any, split: str, count: int) -> scene_tuning.ScenePatches:
    """Cached tokens of ``count`` scenes, and what their patches show."""
    transform = checkpoints.image_transform(scene_tuning.NAME, size=112)
    rows = scenes.load(split, count)
    pictures = features.Images(encoded(rows), transform)
    depth = scene_tuning.DEPTH
    found = features.extract(encoder, pictures, depths=[depth], dtype="float32")[depth]
    return scene_tuning.ScenePatches(found, scene_tuning.patch_labels(rows, side=8))


def encoded(rows: Any) -> list[dict[str, Any]]:
    """Pictures of a `datasets.Dataset`, not decoded."""
    import datasets

    return rows.cast_column("image", datasets.Image(decode=False))["image"][:]


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Test accuracy on patches, by attribute."""
    runs = [done[unit] for unit in units(s)]
    return {
        "results": {
            name: spread([run["test"][name] for run in runs]) for name in scene_tuning.ATTRIBUTES
        }
    }


LAB = {
    "seeds": [0],  # one encoder is published, as with any pretrained encoder
    "count": {"train": 6000, "validation": 300, "test": 1000},
    "train": {"epochs": 2, "batch_size": 32, "lr": 3e-4, "weight_decay": 0.05, "warmup": 0.05},
    "every": 20,
}

RECIPE = Recipe(
    name="scene-encoder",
    title="What patches of scenes show, named by tuned blocks of the image encoder",
    chapter="03",
    scales={
        "smoke": {
            **LAB,
            "count": {"train": 64, "validation": 32, "test": 32},
            "train": {**LAB["train"], "epochs": 1},
            "every": 1,
        },
        "lab": LAB,
        "paper": {**LAB, "count": {**LAB["count"], "train": 30_000}},
    },
    minutes={"smoke": 0.5, "lab": 12, "paper": 60},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
