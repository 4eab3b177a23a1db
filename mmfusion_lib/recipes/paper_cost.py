"""What the paper's encoders cost, counted and measured at their real shapes, with random weights.

Nothing here depends on a seed or on data: parameters and saved activations follow from the shapes.
ViT-B/16 at 224 pixels and BERT-base, float32, one sample. Saved activations are those that autograd
keeps for the backward pass, with attention written out and BERT's dropout on, as in the official
file's libraries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import accounting
from ..encoders import build_encoder
from ..records import spread
from ..runs import Recipe, Settings

MIB = 2**20


def units(s: Settings) -> list[str]:
    """Counting, then one unit a text length."""
    return ["parameters", *(f"activations-{length}" for length in s["text_lengths"])]


def run_unit(s: Settings, unit: str) -> dict[str, float]:
    """Numbers by name."""
    image, text = (build_encoder(s[kind]) for kind in ("image_encoder", "text_encoder"))
    width = image.config.width + text.config.width
    if unit == "parameters":
        head = nn.Linear(width, s["num_classes"])
        return {
            "image-parameters": sum(p.numel() for p in image.parameters()),
            "text-parameters": sum(p.numel() for p in text.parameters()),
            "linear-trainable": sum(p.numel() for p in head.parameters()),
        }
    length = int(unit.removeprefix("activations-"))
    for layer in [*image.layers, *text.layers]:
        layer.attention.fused = False
    head = nn.Linear(width, s["num_classes"])
    pixels = torch.randn(1, 3, image.config.image_size, image.config.image_size)
    ids = torch.randint(1000, text.config.vocab_size, (1, length))

    def forward() -> torch.Tensor:
        both = [image(pixels)[:, 0], text(ids)[:, 0]]  # 2 x (1, D)
        return head(torch.cat(both, dim=1))  # (1, C)

    modules = [image, text, head]
    measured = accounting.saved_activation_bytes(forward, modules)
    tokens = 1 + image.config.patches
    predicted = accounting.encoder_activation_bytes(image.config, tokens, 1, fused=False)
    predicted += accounting.encoder_activation_bytes(text.config, length, 1, fused=False)
    for encoder in (image, text):
        encoder.requires_grad_(False)
    return {
        f"finetuned-{length}": measured / MIB,
        f"finetuned-{length}-predicted-over-measured": predicted / measured,
        f"linear-{length}": accounting.saved_activation_bytes(forward, modules) / MIB,
    }


def summarise(s: Settings, done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One value a name."""
    unit_of = {"parameters": "parameters", "trainable": "parameters", "measured": "ratio"}
    results = {}
    for numbers in done.values():
        for name, value in numbers.items():
            unit = unit_of.get(name.rsplit("-", 1)[-1], "MiB per sample")
            results[name] = spread([value], unit)
    return {"results": results}


_PAPER = {
    "seeds": [],  # nothing is random
    "image_encoder": "vit-base",
    "text_encoder": "bert-base",
    "num_classes": 101,
    "text_lengths": [40, 128, 512],
}

RECIPE = Recipe(
    name="paper-cost",
    title="Parameters and saved activations of the paper's encoders",
    chapter="02",
    scales={"smoke": {**_PAPER, "text_lengths": [40]}, "lab": _PAPER, "paper": _PAPER},
    minutes={"smoke": 0.2, "lab": 0.5, "paper": 0.5},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
