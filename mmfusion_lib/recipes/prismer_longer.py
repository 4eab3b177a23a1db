"""Prismer and PrismerZ with twice as many scenes to learn from: how far from the template are they then?

Two ways of ``prismer_captions``, whose functions do the work here, see each of 9,000 scenes twice instead
of 4,500.
"""

from __future__ import annotations

from ..runs import Recipe
from . import prismer_captions
from .prismer_captions import WAYS

TWO = {"ways": {way: WAYS[way] for way in ("prismer", "prismerz")}, "take_away": False}
LAB = {
    **prismer_captions.LAB,
    **TWO,
    "count": {"train": 10_000, "validation": 100, "test": 500},
    "questions": {"train": 3000, "validation": 15, "test": 60},
}

RECIPE = Recipe(
    name="prismer-longer",
    title="Captions and answers, Prismer and PrismerZ, with twice as many scenes to learn from",
    chapter="05",
    scales={
        "smoke": {**prismer_captions.SMOKE, **TWO},
        "lab": LAB,
        "paper": {**prismer_captions.PAPER, **TWO},
    },
    minutes={"smoke": 0.5, "lab": 120, "paper": 20_000},
    units=prismer_captions.units,
    run_unit=prismer_captions.run_unit,
    summarise=prismer_captions.summarise,
)
