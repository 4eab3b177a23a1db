"""Prismer taken apart: one change at a time to its adaptors, its resampler, and what is frozen.

The captioner of ``prismer_captions``, whose functions do the work here, learns from captions of scenes
alone, with one part at a time that does not train, or with pretrained blocks that do. Sized for two
processor cores that are quick in bf16, so training is short: what is compared is what a part is worth
after two thousand pictures.
"""

from __future__ import annotations

from ..runs import Recipe
from . import prismer_captions
from .prismer_captions import way

PARTS = {
    "reference": way(),
    "no adaptors": way(frozen="adaptor"),  # they start near the identity, and stay there
    "resampler as drawn": way(frozen="resampler"),
    "nothing frozen": way(mode="none"),
}
EVERY = {"ways": PARTS, "take_away": False}
LAB = {
    **prismer_captions.LAB,
    **EVERY,
    "count": {"train": 2500, "validation": 100, "test": 200},
    "questions": prismer_captions.SMOKE["questions"],  # none
    "captioned": 200,
    "beams": 1,
    "train": {**prismer_captions.LAB["train"], "epochs": 1},
}

RECIPE = Recipe(
    name="prismer-parts",
    title="Prismer taken apart: adaptors, resampler, what is frozen",
    chapter="05",
    scales={
        "smoke": {
            **prismer_captions.SMOKE,
            **EVERY,
            "ways": {name: PARTS[name] for name in ("reference", "no adaptors")},
        },
        "lab": LAB,
        "paper": {**prismer_captions.PAPER, **EVERY},
    },
    minutes={"smoke": 0.5, "lab": 40, "paper": 40_000},
    units=prismer_captions.units,
    run_unit=prismer_captions.run_unit,
    summarise=prismer_captions.summarise,
)
