"""A small ViT trained from scratch, on few pictures, against a probe on pretrained features.

Two data sets: single objects cut out of generated scenes (any number of pictures can be had, so
that the curve over training-set size says what scratch training is short of), and textbook figures.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checkpoints, features, metrics, probes, train, unimodal
from ..data import problems
from ..data.images import ImageTransform
from ..encoders import EncoderConfig, build_encoder
from ..records import spread
from ..runs import Recipe, Settings

SPLITS = ("train", "validation", "test")
HALF = (0.5, 0.5, 0.5)


def small_vit(size: int, width: int = 192, depth: int = 6) -> EncoderConfig:
    """A ViT for pictures of ``size`` pixels in patches of 8 (16 from 112 pixels on)."""
    return EncoderConfig(
        kind="image", width=width, depth=depth, heads=3, mlp_width=4 * width,
        image_size=size, patch_size=8 if size < 112 else 16, dropout=0.1, readout="mean",
    )  # fmt: skip


def units(s: Settings) -> list[str]:
    """A unit a data set, training-set size, method and seed."""
    return [
        f"{name}-{count}-{way}-{seed}"
        for name in s["counts"]
        for count in s["counts"][name]["train"]
        for way in ("scratch", "probe")
        for seed in s["seeds"]
    ]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one classifier on one subset; returns test hits, and the loss by epoch."""
    name, count, way, seed = unit.split("-")
    counts = s["counts"][name]
    parts = {x: problems.load(name, x, counts[x]) for x in ("validation", "test")}
    parts["train"] = problems.load(name, "train", int(count), int(seed))
    run = _scratch if way == "scratch" else _probe
    predictions, more = run(s, parts, int(seed))
    hits = predictions == parts["test"].labels
    return {"hits": "".join("01"[int(hit)] for hit in hits), **more}


def _scratch(
    s: Settings, parts: dict[str, problems.Problem], seed: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    transform = ImageTransform(s["size"], HALF, HALF)
    data = {
        x: unimodal.LabelledImages(p.images, p.labels, transform, augmented=x == "train")
        for x, p in parts.items()
    }

    def validate(model: Any) -> dict[str, float]:
        found = unimodal.predict(model, data["validation"])
        return {"validation": metrics.accuracy(found, data["validation"].labels)}

    best: dict[str, Any] | None = None
    for lr in s["lrs"]:
        torch.manual_seed(seed)
        model = unimodal.UnimodalClassifier(
            build_encoder(small_vit(s["size"])), len(parts["test"].classes)
        )
        # The same number of steps for every training-set size: small sets are seen more often.
        epochs = max(1, s["samples"] // len(data["train"]))
        config = train.TrainConfig(
            epochs=epochs, batch_size=64, lr=lr, weight_decay=0.05, warmup=0.1, precision="bf16",
            seed=seed, select="validation",
        )  # fmt: skip
        result = train.fit(model, data["train"], unimodal.loss, config, validate=validate)
        if best is None or result.best["validation"] > best["validation"]:
            losses = torch.tensor([row["loss"] for row in result.history if "loss" in row])
            curve = [part.mean().item() for part in losses.chunk(10)]
            best = {
                "validation": result.best["validation"],
                "loss": curve + curve[-1:] * (10 - len(curve)),
                "predictions": unimodal.predict(model, data["test"]),
            }
    return best.pop("predictions"), best


def _probe(
    s: Settings, parts: dict[str, problems.Problem], seed: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    encoder = checkpoints.load_image_encoder("dinov2-small", depth=s["probe_layers"])
    transform = checkpoints.image_transform("dinov2-small", size=s["probe_size"])
    depth, found = len(encoder.layers), {}
    for split, problem in parts.items():
        data = features.Images(problem.images, transform)
        extracted = features.extract(encoder, data, depths=[depth], pool="mean")
        found[split] = extracted[depth].values.float()  # (N, D)
    probe = probes.fit_probe(
        found["train"], parts["train"].labels, found["validation"], parts["validation"].labels,
        num_classes=len(parts["test"].classes), decays=s["decays"],
    )  # fmt: skip
    return probe.predict(found["test"]), {"validation": probe.validation}


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracies by training-set size; the largest size gives the headline and the intervals."""
    results, comparisons, curves = {}, {}, {}
    for name, counts in s["counts"].items():
        label = "scenes" if name == "crops" else name
        groups = list(problems.load(name, "test", counts["test"]).groups)
        sizes, hits = counts["train"], {}
        for way in ("scratch", "probe"):
            rows = {}
            for count in sizes:
                runs = [done[f"{name}-{count}-{way}-{seed}"] for seed in s["seeds"]]
                rows[count] = torch.tensor([[int(c) for c in run["hits"]] for run in runs])
                results[f"{label}-{way}-{count}"] = spread(rows[count].double().mean(1).tolist())
            largest = max(sizes)
            hits[way] = rows[largest]  # (S, N)
            results[f"{label}-{way}"] = results[f"{label}-{way}-{largest}"]
            curves[f"{label}-{way}"] = {
                "x": list(sizes),
                "mean": [results[f"{label}-{way}-{c}"]["mean"] for c in sizes],
                "std": [results[f"{label}-{way}-{c}"]["std"] for c in sizes],
            }
            if way == "scratch":
                loss = torch.tensor([run["loss"] for run in runs])  # (S, 10)
                curves[f"{label}-scratch-loss"] = {
                    "x": [10 * i for i in range(1, 11)],  # per cent of the training
                    "mean": loss.mean(0).tolist(),
                    "std": loss.std(0, correction=0).tolist(),
                }
        comparisons[f"{label}-probe - {label}-scratch"] = metrics.paired_bootstrap(
            hits["probe"], hits["scratch"], groups
        )._asdict()
    return {"results": results, "comparisons": comparisons, "curves": curves}


_LAB = {
    "seeds": [0, 1, 2],
    "counts": {
        "crops": {"train": [500, 2000, 8000], "validation": 500, "test": 2000},
        "figures": {"train": [3656], "validation": None, "test": None},
    },
    "size": 48,
    "samples": 32_000,  # pictures seen in one training run, repeats counted
    "lrs": [1e-3],
    "decays": [1e-1],  # as many trials as there are learning rates
    "probe_layers": 8,
    "probe_size": 112,
}

RECIPE = Recipe(
    name="scratch-vit",
    title="A small ViT from scratch against a probe on pretrained features",
    chapter="01",
    scales={
        "smoke": {
            **_LAB,
            "seeds": [0],
            "counts": {"crops": {"train": [256], "validation": 64, "test": 128}},
            "size": 32,
            "samples": 1024,
            "probe_layers": 2,
            "probe_size": 56,
        },
        "lab": _LAB,
        "paper": {
            **_LAB,
            "counts": {"crops": {"train": [2000, 8000, 64_000], "validation": 2000, "test": 4000}},
            "size": 224,
            "samples": 6_400_000,
        },
    },
    minutes={"smoke": 0.4, "lab": 40, "paper": 3000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=1,
)
