"""What the recipes of chapter 3 share: encoders and pairs by settings, one training run of PMF.

Settings: ``problem`` with its ``words`` or ``types`` (see ``pair_problems.load``) and ``count`` (items,
or scenes, a split), ``share`` of the training part that a seed draws, the two encoders with their
layers and ``image_size``, ``pmf`` (fields of PMFConfig) and ``train`` (fields of TrainConfig).
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .. import accounting, checkpoints, pair_training, scene_tuning, train
from ..data import pair_problems, subsets
from ..data.images import ImageTransform
from ..data.pairs import Pairs
from ..encoders import Encoder
from ..pmf import PMF, PMFConfig
from ..runs import Settings

MIB = 2**20
SPLITS = ("train", "validation", "test")
PAPER_ENCODERS = {
    "image_encoder": "vit-base",
    "image_layers": 12,
    "image_size": 224,
    "image_readout": None,
    "text_encoder": "bert-base",
    "text_layers": 12,
    "text_readout": None,
}
_load = lru_cache(maxsize=6)(pair_problems.load)


def pairs(s: Settings, split: str) -> Pairs:
    """One split."""
    options = {"words": s["words"]} if "words" in s else {}
    if "types" in s:
        options["types"] = tuple(s["types"])
    return _load(s["problem"], split, s["count"][split], **options)


def drawn(s: Settings, part: Pairs, seed: int) -> list[int]:
    """The training pairs that ``seed`` draws, with the same share of each class."""
    return subsets.stratified(part.labels.tolist(), round(s["share"] * len(part.labels)), seed)


def encoders(s: Settings) -> tuple[Encoder, Encoder]:
    """Both pretrained encoders, cut to their first layers, read as the settings say.

    The image encoder ``"scenes"`` is DINOv2-small with two blocks tuned on scenes.
    """
    if s["image_encoder"] == "scenes":
        image = scene_tuning.load_encoder(s["image_layers"])
    else:
        image = checkpoints.load_image_encoder(s["image_encoder"], depth=s["image_layers"])
    text = checkpoints.load_text_encoder(s["text_encoder"], depth=s["text_layers"])
    for encoder, readout in ((image, s["image_readout"]), (text, s["text_readout"])):
        if readout is not None:
            encoder.config = dataclasses.replace(encoder.config, readout=readout)
    return image, text


def transform(s: Settings) -> ImageTransform:
    """Size and normalisation of the image encoder."""
    name = scene_tuning.NAME if s["image_encoder"] == "scenes" else s["image_encoder"]
    return checkpoints.image_transform(name, size=s["image_size"])


def live(s: Settings, part: Pairs, hold: bool = True) -> pair_training.LivePairs:
    """Pictures and texts for methods that run the whole network."""
    tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
    return pair_training.LivePairs(part, transform(s), tokenizer, s["max_length"], hold=hold)


def cached(
    s: Settings, model: PMF, part: Pairs, items: list[int] | None = None
) -> pair_training.CachedPairs:
    """Base features as they enter the model's first fusion layer, from the cache."""
    tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
    return pair_training.cache(
        model.image_encoder,
        model.text_encoder,
        part,
        transform(s),
        tokenizer,
        (model.image_depth, model.text_depth),
        max_length=s["max_length"],
        items=items,
    )


def pmf(s: Settings, seed: int, classes: int, **changes: Any) -> PMF:
    """PMF with its trained part drawn anew from ``seed``; ``changes`` replace fields of its config."""
    image, text = encoders(s)
    torch.manual_seed(seed)
    return PMF(image, text, PMFConfig(classes, **{**s["pmf"], **changes}))


def fit_pmf(s: Settings, seed: int, **changes: Any) -> tuple[PMF, train.TrainResult]:
    """Train PMF on cached base features; the best epoch on validation is kept."""
    part = pairs(s, "train")
    model = pmf(s, seed, len(part.classes), **changes)
    data = cached(s, model, part, drawn(s, part, seed))
    return model, fit(s, model, data, cached(s, model, pairs(s, "validation")), seed)


def fit(
    s: Settings,
    model: nn.Module,
    data: Any,
    held_out: Any,
    seed: int,
    weights: Tensor | None = None,
) -> train.TrainResult:
    """One training run with the recipe's settings; the best epoch on validation is kept.

    Args:
        weights: of the classes, (C,), see ``pair_training.objective``.
    """
    select = "accuracy" if held_out.labels.ndim == 1 else "f1_micro"
    config = train.TrainConfig(seed=seed, select=select, **s["train"])
    validate = pair_training.validator(held_out)
    loss = pair_training.objective(weights)
    return train.fit(model, data, loss, config, validate=validate)


def test_logits(s: Settings, model: PMF, part: Pairs) -> Tensor:
    """Logits (N, C) of PMF on pairs, through the cache."""
    return pair_training.logits(model, cached(s, model, part))


def kept(model: nn.Module, data: Any) -> float:
    """Activations that a training step of the model keeps for one pair, MiB; measured on the CPU.

    Two items are taken: of one alone, slices would be views that keep all of it.
    """
    first, second = data[0], data[1]
    batch = {name: torch.stack([first[name], second[name]]) for name in first}
    model.cpu().train()
    saved = accounting.saved_activation_bytes(
        lambda: pair_training.outputs(model, batch).logits, [model]
    )
    return saved / 2 / MIB


def right(scores: Tensor, labels: Tensor) -> str:
    """One character an item: 1 where the class is found."""
    return "".join("01"[int(hit)] for hit in scores.argmax(-1) == labels)


def hits(rows: list[str]) -> Tensor:
    """One string a seed -> (S, N) of 0 and 1."""
    return torch.tensor([[int(c) for c in row] for row in rows])
