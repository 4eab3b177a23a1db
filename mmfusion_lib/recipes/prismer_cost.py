"""What Prismer's models count and keep: parameters by formula, activations of the base encoder measured.

Nothing depends on a seed or on data. Parameters are counted on the meta device and by formula, which must
agree; a model's total with experts adds the six expert networks of the paper's Table 1. Saved
activations are those of one picture with six maps, random weights, float32.

Where there is a GPU, whole training steps follow at the paper's sizes: ``prismer_cost_steps``.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import accounting, prismer_cost
from ..encoders import build_encoder
from ..prismer import build_prismer
from ..prismer_config import PrismerConfig, named_prismer
from ..prismer_encoder import PrismerEncoder
from ..records import spread
from ..runs import Recipe, Settings
from ..stems import channels_of, stem_of
from ..trainable import freeze
from .prismer_cost_steps import Shape, measure

MILLION, MIB = 1e6, 2**20
FINE_TUNED = {"base": 480, "large": 476}  # pixels; of 480, patches of 14 fill 476


def units(s: Settings) -> list[str]:
    """Counting, then measuring; and whole steps on a GPU."""
    found = ["parameters", *(f"activations-{name}" for name in s["measured"])]
    if torch.cuda.is_available():
        found += [f"steps-{Shape(*shape).name}" for shape in s["steps"]]
    return found


def run_unit(s: Settings, unit: str) -> dict[str, float]:
    """Numbers by name."""
    if unit == "parameters":
        return _parameters(s)
    if unit.startswith("steps-"):
        [shape] = [x for x in (Shape(*row) for row in s["steps"]) if unit == f"steps-{x.name}"]
        return measure(shape, s["text_length"], "cuda")
    name = unit.removeprefix("activations-")
    config = named_prismer(name)
    free, frozen = (_activations(config, s["map_size"], frozen) for frozen in (False, True))
    predicted = prismer_cost.activation_bytes(config, config.experts, s["map_size"], 1)
    return {
        f"{name}-activations": frozen / MIB,
        f"{name}-frozen-over-free": frozen / free,
        f"{name}-predicted-over-measured": sum(predicted.values()) / frozen,
    }


def _parameters(s: Settings) -> dict[str, float]:
    found = {}
    for size in ("base", "large", "huge"):
        for family, changes in (("prismer", {}), ("prismerz", {"experts": ()})):
            name, config = f"{family}-{size}", named_prismer(f"prismer-{size}", **changes)
            own = _counted(config, "none")
            experts = s["expert_millions"] if config.experts else 0
            found[f"{name}-own"] = own / MILLION
            found[f"{name}-trainable"] = _counted(config, "lang_vision") / MILLION
            found[f"{name}-total"] = own / MILLION + experts
    for size, pixels in FINE_TUNED.items():
        config = named_prismer(f"prismer-{size}", image_size=pixels)
        found[f"prismer-{size}-finetuned"] = _counted(config, "vision") / MILLION
    return found


def _counted(config: PrismerConfig, mode: str) -> int:
    """Parameters that train in a mode: of the built model, which the formula must give too."""
    with torch.device("meta"):
        model = build_prismer(config)
    model.freeze(mode)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == prismer_cost.trainable_parameters(config, mode)
    return count


def _activations(config: PrismerConfig, size: int, frozen: bool) -> int:
    encoder = PrismerEncoder(build_encoder(config.image), config)
    for layer in encoder.layers if frozen else ():
        freeze(layer.block)
    experts: dict[str, Any] = {"rgb": torch.randn(1, 3, config.image_size, config.image_size)}
    for name in config.experts:
        maps = torch.randn(1, channels_of(stem_of(name)), size, size)
        experts[name] = maps
        if name == "obj_detection":
            none = torch.full((1, 1, size, size), 255, dtype=torch.uint8)
            experts[name] = {"label": maps, "instance": none}
    return accounting.saved_activation_bytes(lambda: encoder(experts), [encoder])


UNITS = {
    "activations": "MiB per sample",
    "free": "ratio",
    "measured": "ratio",
    "peak": "GiB",
    "step": "ms",
    "rate": "pictures per second",
}


def summarise(s: Settings, done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One value a name."""
    results = {}
    for numbers in done.values():
        for name, value in numbers.items():
            unit = UNITS.get(name.rsplit("-", 1)[-1], "millions")
            results[name] = spread([value], unit)
    return {"results": results}


_PAPER = {
    "seeds": [],  # nothing is random
    "expert_millions": 654,  # of the paper's Table 1, summed
    "measured": ["prismer-base"],
    "map_size": 224,
    "text_length": 30,  # tokens: the longest caption
    "steps": [  # model, pixels, batch, what is frozen, with activation checkpointing
        ["prismer-base", 224, 32, "lang_vision", False],
        ["prismer-base", 224, 32, "lang_vision", True],
        ["prismer-base", 224, 64, "lang_vision", False],
        ["prismer-base", 224, 64, "lang_vision", True],
        ["prismer-large", 224, 64, "lang_vision", False],
        ["prismer-large", 224, 64, "lang_vision", True],
        ["prismer-base", 480, 16, "vision", False],
    ],
}

RECIPE = Recipe(
    name="prismer-cost",
    title="Parameters, saved activations and training steps of Prismer",
    chapter="04",
    scales={"smoke": {**_PAPER, "measured": [], "steps": []}, "lab": _PAPER, "paper": _PAPER},
    minutes={"smoke": 0.2, "lab": 2, "paper": 2},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
