"""The main table once more, on scenes: sentences about colours, which neither side answers alone.

``fusion_baselines`` compares the methods on figures, where picture and words each say much; its functions
do the work here. Sized for two processor cores that are quick in bf16: few scenes, two epochs, and two
rates a method, of which the one that is best on validation is kept.
"""

from __future__ import annotations

from ..runs import Recipe
from . import entailment, fusion_baselines, fusion_common, pmf_variants

PARTS = pmf_variants.COMPONENTS.scales["lab"]
LAB = {
    **{k: v for k, v in PARTS.items() if k not in ("variants", "reference")},
    "count": {"train": 1000, "validation": 100, "test": 400},
    "methods": list(fusion_baselines.METHODS),
    "train": {**PARTS["train"], "epochs": 2, "batch_size": 16, "precision": "bf16"},
    "lrs": {"whole": [3e-5, 1e-4], "prompts": [5e-4, 1e-3]},
}

RECIPE = Recipe(
    name="scenes-baselines",
    title="Main table on scenes: PMF and its baselines on sentences about colours",
    chapter="03",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "methods": ["linear", "pmf"],
            "count": {"train": 24, "validation": 16, "test": 16},
            "train": {**LAB["train"], "epochs": 1, "precision": "no"},
            "lrs": {"whole": [1e-4], "prompts": [1e-3]},
        },
        "lab": LAB,
        "paper": {**LAB, **fusion_common.PAPER_ENCODERS, **entailment.PAPER},
    },
    minutes={"smoke": 0.4, "lab": 130, "paper": 6000},
    units=fusion_baselines.units,
    run_unit=fusion_baselines.run_unit,
    summarise=fusion_baselines.summarise,
    trials=2,
)
