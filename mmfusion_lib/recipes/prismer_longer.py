"""The captioner of scenes with twice as many scenes to learn from: how far from the template is it then?

Prismer of ``prismer_captions``, whose functions do the work here, sees each of 9,000 scenes twice instead
of 4,500. No other way is trained: whether experts help is asked there, this asks how good it gets.
"""

from __future__ import annotations

from ..runs import Recipe
from . import prismer_captions
from .prismer_captions import WAYS

ALONE = {"ways": {"prismer": WAYS["prismer"]}, "take_away": False}
LAB = {
    **prismer_captions.LAB,
    **ALONE,
    "count": {"train": 10_000, "validation": 100, "test": 500},
    "questions": {"train": 3000, "validation": 15, "test": 60},
}

RECIPE = Recipe(
    name="prismer-longer",
    title="Captions of scenes and answers with twice as many scenes to learn from",
    chapter="05",
    scales={
        "smoke": {**prismer_captions.SMOKE, **ALONE},
        "lab": LAB,
        "paper": {**prismer_captions.PAPER, **ALONE},
    },
    minutes={"smoke": 0.5, "lab": 75, "paper": 10_000},
    units=prismer_captions.units,
    run_unit=prismer_captions.run_unit,
    summarise=prismer_captions.summarise,
)
