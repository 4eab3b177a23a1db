"""One modality, all weights trained: image-only and text-only, against probes of the same encoder.

Each fine-tuned classifier starts from the pretrained encoder, with a new head. Its learning rate is
chosen on validation data among as many values as the probe has weight decays to choose from.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checkpoints, features, metrics, probes, train, unimodal
from ..data import problems, subsets
from ..records import spread
from ..runs import Recipe, Settings

SPLITS = ("train", "validation", "test")


def datasets(s: Settings, kind: str) -> dict[str, Any]:
    """{split: dataset} for kind "image" or "text"; only training pictures are augmented."""
    found = {}
    for split in SPLITS:
        problem = problems.load(s["problem"], split, s["count"][split])
        if kind == "image":
            transform = checkpoints.image_transform(s["image_encoder"], size=s["image_size"])
            found[split] = unimodal.LabelledImages(
                problem.images, problem.labels, transform, augmented=split == "train"
            )
        else:
            tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
            texts = problem.texts(s["words"])
            found[split] = unimodal.LabelledTexts(texts, problem.labels, tokenizer)
    return found


def encoder(s: Settings, kind: str) -> Any:
    """The pretrained encoder, cut as the settings say."""
    if kind == "image":
        return checkpoints.load_image_encoder(s["image_encoder"], depth=s["image_layers"])
    return checkpoints.load_text_encoder(s["text_encoder"], depth=s["text_layers"])


def units(s: Settings) -> list[str]:
    """A unit a modality and seed, for fine-tuning and for the probe."""
    ways = ("probe", "finetuned")
    return [f"{k}-{w}-{seed}" for w in ways for k in ("text", "image") for seed in s["seeds"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one classifier; returns its test hits and, where it was trained, the loss by epoch."""
    kind, way, seed = unit.split("-")
    data = datasets(s, kind)
    labels = data["train"].labels
    classes = len(problems.load(s["problem"], "test", s["count"]["test"]).classes)
    rows = subsets.stratified(labels.tolist(), round(s["share"] * len(labels)), int(seed))
    run = _probe if way == "probe" else _finetune
    predictions, more = run(s, kind, data, rows, classes, int(seed))
    hits = predictions == data["test"].labels
    return {"hits": "".join("01"[int(hit)] for hit in hits), **more}


def _probe(
    s: Settings, kind: str, data: dict[str, Any], rows: list[int], classes: int, seed: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    frozen, found = encoder(s, kind), {}
    for split in SPLITS:
        problem = problems.load(s["problem"], split, s["count"][split])
        if kind == "image":
            transform = checkpoints.image_transform(s["image_encoder"], size=s["image_size"])
            inputs = features.Images(problem.images, transform)
        else:
            tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
            inputs = features.Texts(problem.texts(s["words"]), tokenizer)
        depth = len(frozen.layers)
        extracted = features.extract(frozen, inputs, depths=[depth], pool="mean")
        found[split] = extracted[depth].values.float()  # (N, D)
    probe = probes.fit_probe(
        found["train"][rows], data["train"].labels[rows],
        found["validation"], data["validation"].labels, num_classes=classes,
        decays=s["decays"],
    )  # fmt: skip
    return probe.predict(found["test"]), {"validation": probe.validation}


def _finetune(
    s: Settings, kind: str, data: dict[str, Any], rows: list[int], classes: int, seed: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    best: dict[str, Any] | None = None
    for lr in s["lrs"][kind]:
        torch.manual_seed(seed)
        model = unimodal.UnimodalClassifier(encoder(s, kind), classes)
        config = train.TrainConfig(
            epochs=s["epochs"][kind], batch_size=32, lr=lr, weight_decay=0.05, warmup=0.1,
            precision="bf16", seed=seed, select="validation",
        )  # fmt: skip

        def validate(model: Any) -> dict[str, float]:
            found = unimodal.predict(model, data["validation"])
            return {"validation": metrics.accuracy(found, data["validation"].labels)}

        subset = torch.utils.data.Subset(data["train"], rows)
        result = train.fit(model, subset, unimodal.loss, config, validate=validate)
        score = result.best["validation"]
        if best is None or score > best["validation"]:
            losses = [row["loss"] for row in result.history if "loss" in row]
            steps = len(losses) // config.epochs
            curve = [sum(losses[i * steps : (i + 1) * steps]) / steps for i in range(config.epochs)]
            predictions = unimodal.predict(model, data["test"])
            best = {"validation": score, "lr": lr, "loss": curve, "predictions": predictions}
    return best.pop("predictions"), best


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Test accuracies, loss curves, and paired intervals of fine-tuning against the probe."""
    groups = list(problems.load(s["problem"], "test", s["count"]["test"]).groups)
    results, comparisons, curves, hits = {}, {}, {}, {}
    for kind in ("image", "text"):
        for way in ("probe", "finetuned"):
            runs = [done[f"{kind}-{way}-{seed}"] for seed in s["seeds"]]
            rows = torch.tensor([[int(c) for c in run["hits"]] for run in runs])  # (S, N)
            hits[f"{kind}-{way}"] = rows
            results[f"{kind}-{way}"] = spread(rows.double().mean(1).tolist())
        losses = torch.tensor([run["loss"] for run in runs])  # (S, epochs)
        curves[f"{kind}-finetuned-loss"] = {
            "x": list(range(1, losses.shape[1] + 1)),
            "mean": losses.mean(0).tolist(),
            "std": losses.std(0, correction=0).tolist(),
        }
        a, b = f"{kind}-finetuned", f"{kind}-probe"
        comparisons[f"{a} - {b}"] = metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
    return {"results": results, "comparisons": comparisons, "curves": curves}


_LAB = {
    "seeds": [0, 1, 2],
    "problem": "figures",
    "count": {"train": None, "validation": None, "test": None},
    "share": 0.9,  # of the training items that each seed draws
    "image_encoder": "dinov2-small",
    "text_encoder": "minilm-l6",
    "image_layers": 8,
    "image_size": 112,
    "text_layers": 6,
    "words": 5,
    "epochs": {"image": 3, "text": 5},
    "lrs": {"image": [3e-5, 1e-4], "text": [3e-5, 1e-4]},
    "decays": [1e-2, 1e-1],  # of the probes: as many trials as there are learning rates
}

RECIPE = Recipe(
    name="figures-finetune",
    title="Fine-tuned image-only and text-only classifiers against probes",
    chapter="01",
    scales={
        "smoke": {
            **_LAB,
            "seeds": [0],
            "count": {"train": 220, "validation": 66, "test": 110},
            "image_layers": 2,
            "image_size": 56,
            "text_layers": 2,
            "epochs": {"image": 1, "text": 1},
            "lrs": {"image": [1e-4], "text": [1e-4]},
            "decays": [1e-1],
        },
        "lab": _LAB,
        "paper": {  # PMF's baselines "ViT" and "BERT"; epochs and learning rates are chosen
            **_LAB,
            "problem": "food101",
            "share": 1.0,
            "image_encoder": "vit-base",
            "text_encoder": "bert-base",
            "image_layers": 12,
            "text_layers": 12,
            "image_size": 224,
            "words": None,
            "epochs": {"image": 10, "text": 10},
        },
    },
    minutes={"smoke": 0.4, "lab": 60, "paper": 400},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=2,
)
