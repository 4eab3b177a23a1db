"""Naming groceries from 1 to 16 photographs a product: Prismer against simpler ways on the same encoder.

Every way reads the same pictures through the same blocks of the same image encoder, and of each picture
the patches in the middle, where people hold what they photograph. A class is learnt from 16 pictures: the
shots, and views of them (``fewshot.view``), the same for all ways. "prismer" is PrismerZ (nobody has
exact maps of a photograph) with its vision side standing still, see ``fewshot``; it chooses among the 81
names by ranking. "probe" is a softmax regression and "mean" the nearest class mean, both on the mean of
the same tokens; "whitened" is the latter after all directions in which tokens vary were made to count
alike. "tuned" trains the last blocks with a linear head.

Settings were fixed on the validation split, which has 60 of the 81 classes, with shots of seed 0; the
probe's weight decay is chosen there anew for each unit, which favours the probe. The test split is read
once a unit. Pictures of one product were taken within moments of each other, and nothing says which: so
intervals draw whole products.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch

from .. import checkpoints, fewshot, metrics, probes, train
from ..data import groceries, subsets
from ..features import Images, extract
from ..prismer import Prismer, load_prismer
from ..prismer_config import ENCODERS, MODELS
from ..records import cost, costs, spread
from ..runs import Recipe, Settings
from ..trainable import freeze
from .scene_encoder import encoded

SPLITS = ("train", "validation", "test")


@lru_cache(maxsize=3)
def table(split: str, classes: int, count: int | None) -> tuple[list[Any], torch.Tensor]:
    """Encoded pictures and labels of the first ``classes`` products; at most ``count`` of them."""
    rows = groceries.load(split)
    labels = rows["label"][:]
    kept = [row for row, label in enumerate(labels) if label < classes]
    if count is not None:
        kept = [kept[i] for i in subsets.stratified([labels[row] for row in kept], count)]
    pictures = encoded(rows)
    return [pictures[row] for row in kept], torch.tensor([labels[row] for row in kept])


def pictures(s: Settings, split: str) -> tuple[Images, torch.Tensor]:
    """Pictures of one split at the size of the encoder, and their labels (N,)."""
    sources, labels = table(split, s["classes"], s["count"][split])
    return Images(sources, transform(s)), labels


def transform(s: Settings) -> Any:
    """What every way does to a picture first."""
    return checkpoints.image_transform(ENCODERS["small"][0], size=s["image_size"])


def units(s: Settings) -> list[str]:
    """A unit a number of shots, way and seed, in the order of ``s["shots"]``: its ends first."""
    return [
        f"{way}-{shots}-{seed}" for shots in s["shots"] for way in s["ways"] for seed in s["seeds"]
    ]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Learn from the shots; test hits, validation accuracy, what training and naming took."""
    way, shots, seed = unit.split("-")
    labels = {split: pictures(s, split)[1] for split in SPLITS[1:]}
    labels["train"] = pictures(s, "train")[1][[row for row, _ in chosen(s, int(shots), int(seed))]]
    ways = {"mean": _mean, "whitened": partial(_mean, white=True), "probe": _probe}
    learn = (ways | {"prismer": _prismer, "tuned": _tuned})[way]
    found = learn(s, int(shots), labels, int(seed))
    right = found["test"] == labels["test"]
    return {
        "hits": "".join("01"[int(x)] for x in right),
        "validation": metrics.accuracy(found["validation"], labels["validation"]),
        **found.get("more", {}),
    }


def chosen(s: Settings, shots: int, seed: int) -> list[tuple[int, int]]:
    """What is learnt from: rows of the training split, each with the number of a view (0: as it is)."""
    rows = fewshot.draw(pictures(s, "train")[1].tolist(), shots, seed)
    return [(row, number) for row in rows for number in range(max(1, s["views"] // shots))]


def _mean(
    s: Settings, shots: int, labels: dict[str, torch.Tensor], seed: int, white: bool = False
) -> dict[str, Any]:
    tokens = vision(s, prismer(s, seed), shots, seed)
    means = {split: part.mean(1) for split, part in tokens.items()}  # (N, L, D) -> (N, D) each
    if white:
        centre, turn = fewshot.whitening(tokens["train"])
        means = {split: (part - centre) @ turn for split, part in means.items()}
    learnt = means["train"], labels["train"]
    return {
        split: fewshot.nearest_mean(*learnt, means[split], s["classes"]) for split in SPLITS[1:]
    }


def _probe(s: Settings, shots: int, labels: dict[str, torch.Tensor], seed: int) -> dict[str, Any]:
    tokens = vision(s, prismer(s, seed), shots, seed)
    values = {split: part.mean(1) for split, part in tokens.items()}
    start = time.perf_counter()
    probe = probes.fit_probe(
        values["train"], labels["train"],
        values["validation"], labels["validation"], num_classes=s["classes"],
    )  # fmt: skip
    more = {"decay": probe.decay, "seconds": time.perf_counter() - start}
    return {**{split: probe.predict(values[split]) for split in SPLITS[1:]}, "more": more}


def _prismer(s: Settings, shots: int, labels: dict[str, torch.Tensor], seed: int) -> dict[str, Any]:
    model = prismer(s, seed)
    latents = vision(s, model, shots, seed)
    names = names_of(s)
    items = fewshot.Named(latents["train"], labels["train"], names, model.tokenizer, s["seen"])
    result = train.fit(model, items, fewshot.objective, _config(s, "prismer", len(items), seed))
    start = time.perf_counter()
    options = {"shortlist": s["shortlist"], "smoothing": s["smoothing"]}
    found = {
        split: fewshot.rank_names(model, latents[split], names, **options) for split in SPLITS[1:]
    }
    ranked = sum(len(latents[split]) for split in SPLITS[1:])
    per_second = ranked / (time.perf_counter() - start)
    more = {"loss": result.losses[-1], "steps": result.steps, "named a second": per_second}
    return {**found, "more": {**more, **cost(result)}}


def _tuned(s: Settings, shots: int, labels: dict[str, torch.Tensor], seed: int) -> dict[str, Any]:
    depth, below = s["image_layers"], s["image_layers"] - s["tuned_blocks"]
    encoder = checkpoints.load_image_encoder(ENCODERS["small"][0], depth=depth)
    tokens = {
        split: fewshot.middle(part, s["middle"])
        for split, part in tokens_of(s, encoder, below, s["shots"], shots, seed).items()
    }
    torch.manual_seed(seed)
    model = fewshot.Tail(encoder, below, s["classes"])
    items = [
        {"tokens": one, "labels": label} for one, label in zip(tokens["train"], labels["train"])
    ]  # fmt: skip
    config = _config(s, "tuned", len(items), seed)
    result = train.fit(model, items, fewshot.Tail.loss, config)
    found = {split: fewshot.predict(model, tokens[split]) for split in SPLITS[1:]}
    return {**found, "more": {"loss": result.losses[-1], **cost(result)}}


def _config(s: Settings, way: str, items: int, seed: int) -> train.TrainConfig:
    """As many epochs as give about ``steps`` steps, whatever the number of shots."""
    options = dict(s[way])
    per_epoch = items // options["batch_size"]
    epochs = max(1, round(options.pop("steps") / per_epoch))
    return train.TrainConfig(epochs=epochs, seed=seed, **options)


def prismer(s: Settings, seed: int) -> Prismer:
    """PrismerZ of which the decoder trains, but for its word table and what ``s["freeze"]`` freezes."""
    small = MODELS["small"]
    model = load_prismer(
        "small",
        seed=seed,
        experts=(),
        image=replace(small.image, depth=s["image_layers"]),
        text=replace(small.text, depth=s["text_layers"]),
        image_size=s["image_size"],
    )
    model.freeze(s["freeze"])
    freeze(fewshot.silence(model.encoder))
    freeze(model.decoder.words)
    return model


def vision(s: Settings, model: Prismer, shots: int, seed: int) -> dict[str, torch.Tensor]:
    """(N, L, D) by split: the middle of each picture that is learnt from, validated and tested on."""
    encoder = fewshot.VisionTokens(model.encoder, s["middle"])
    return tokens_of(s, encoder, 0, s["shots"], shots, seed)


def tokens_of(
    s: Settings, encoder: Any, depth: int, every: list[int], shots: int, seed: int
) -> dict[str, torch.Tensor]:
    """(N, L, D) by split at a depth, from the cache.

    What is learnt from is computed once a seed for ``every`` number of shots: those of fewer are among
    those of more.
    """

    def read(data: Any) -> torch.Tensor:
        return extract(encoder, data, depths=[depth])[depth].values

    wanted = [pair for k in every for pair in chosen(s, k, seed)]
    places = {pair: place for place, pair in enumerate(dict.fromkeys(wanted))}
    train = read(fewshot.Views(pictures(s, "train")[0], list(places)))
    tokens = {split: read(pictures(s, split)[0]) for split in SPLITS[1:]}
    tokens["train"] = train[[places[pair] for pair in chosen(s, shots, seed)]]
    return {split: part.float() for split, part in tokens.items()}


def names_of(s: Settings) -> list[str]:
    """Class names as they follow "A photo of a": in lower case (official code)."""
    return [name.lower() for name in groceries.CLASSES[: s["classes"]]]


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by way and shots; paired intervals over products and seeds; curves over shots."""
    labels = table("test", s["classes"], s["count"]["test"])[1]
    groups = labels.tolist()
    hits, results, curves = {}, {}, {}
    every = sorted(s["shots"])
    for way in s["ways"]:
        for shots in every:
            runs = [done[f"{way}-{shots}-{seed}"] for seed in s["seeds"]]
            rows = torch.tensor([[int(c) for c in run["hits"]] for run in runs])  # (S, N)
            hits[way, shots] = rows
            results[f"{way}-{shots}"] = spread(rows.double().mean(1).tolist())
            seen = [run["validation"] for run in runs]
            results[f"{way}-{shots}-validation"] = spread(seen)
            results |= costs(f"{way}-{shots}", runs)
        found = [results[f"{way}-{shots}"] for shots in every]
        curves[way] = {
            "x": every,
            "mean": [each["mean"] for each in found],
            "std": [each["std"] for each in found],
        }
    comparisons = {
        f"prismer-{k} - {way}-{k}": metrics.paired_bootstrap(
            hits["prismer", k], hits[way, k], groups
        )._asdict()
        for k in every
        for way in s["ways"]
        if way != "prismer"
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


LAB = {
    "seeds": [0, 1, 2],
    "classes": 81,
    "count": {"train": None, "validation": None, "test": None},
    "shots": [1, 16, 4, 2, 8],  # every class has 16 training pictures or more
    "ways": ["mean", "whitened", "probe", "prismer", "tuned"],
    "image_layers": 8,
    "image_size": 224,
    "middle": 10,  # patches a side, of 16
    "views": 16,  # pictures that a class is learnt from: its shots, and views of them
    "text_layers": 3,
    "freeze": "lang_vision",
    "seen": 25,  # of 100 tokens, at a time, in training
    "shortlist": 8,
    "smoothing": 0.1,
    "prismer": {"steps": 300, "batch_size": 16, "lr": 1e-3, "weight_decay": 0.05, "warmup": 0.1},
    "tuned_blocks": 2,
    "tuned": {"steps": 100, "batch_size": 16, "lr": 3e-4, "weight_decay": 0.05, "warmup": 0.1},
}

RECIPE = Recipe(
    name="groceries-fewshot",
    title="Groceries from 1 to 16 shots: Prismer ranks names; probe, class mean, fine-tuning",
    chapter="05",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "classes": 5,
            "count": {"train": 60, "validation": 10, "test": 20},
            "shots": [1, 2],
            "image_layers": 2,
            "image_size": 56,
            "middle": 3,
            "views": 2,
            "text_layers": 1,
            "seen": 4,
            "tuned_blocks": 1,
            "prismer": {**LAB["prismer"], "steps": 3, "batch_size": 4},
            "tuned": {**LAB["tuned"], "steps": 3, "batch_size": 4},
        },
        "lab": LAB,
        "paper": {  # whole encoders at the paper's resolution; its pictures are ImageNet's
            **LAB,
            "image_layers": 12,
            "image_size": 224,
            "text_layers": 6,
            "prismer": {**LAB["prismer"], "steps": 1000, "batch_size": 64},
            "tuned": {**LAB["tuned"], "steps": 1000, "batch_size": 64},
        },
    },
    minutes={"smoke": 0.3, "lab": 90, "paper": 600},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
    trials=len(probes.DECAYS),
)
