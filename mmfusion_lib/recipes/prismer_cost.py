"""What Prismer's models count and keep: parameters by formula, activations of the base encoder measured.

Nothing depends on a seed or on data. Parameters are counted on the meta device and by formula, which must
agree; a model's total with experts adds the six expert networks of the paper's Table 1. Saved
activations are those of one picture with six maps, random weights, float32.
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

MILLION, MIB = 1e6, 2**20
FINE_TUNED = {"base": 480, "large": 476}  # pixels; of 480, patches of 14 fill 476


def units(s: Settings) -> list[str]:
    """Counting, then measuring."""
    return ["parameters", *(f"activations-{name}" for name in s["measured"])]


def run_unit(s: Settings, unit: str) -> dict[str, float]:
    """Numbers by name."""
    if unit == "parameters":
        return _parameters(s)
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


def summarise(s: Settings, done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One value a name."""
    results = {}
    for numbers in done.values():
        for name, value in numbers.items():
            ratio = name.endswith(("free", "measured"))
            unit = "ratio" if ratio else "MiB per sample"
            if not name.endswith("activations") and not ratio:
                unit = "millions"
            results[name] = spread([value], unit)
    return {"results": results}


_PAPER = {
    "seeds": [],  # nothing is random
    "expert_millions": 654,  # of the paper's Table 1, summed
    "measured": ["prismer-base"],
    "map_size": 224,
}

RECIPE = Recipe(
    name="prismer-cost",
    title="Parameters and saved activations of Prismer",
    chapter="04",
    scales={"smoke": {**_PAPER, "measured": []}, "lab": _PAPER, "paper": _PAPER},
    minutes={"smoke": 0.2, "lab": 1, "paper": 1},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
