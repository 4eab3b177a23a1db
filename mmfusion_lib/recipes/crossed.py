"""The other half of two comparisons: PMF's parts on figures, the main table on scenes.

``pmf_variants`` takes PMF apart on scenes, where no modality answers alone, and ``fusion_baselines`` compares
methods on figures, where each does. Here the sets change places; functions, trials and budgets stay.
"""

from __future__ import annotations

from typing import Any

from ..runs import Recipe, Settings
from . import entailment, fusion_baselines, fusion_common, pmf_variants

# PMF as the main table has it, at the middle one of its three rates.
FIGURES = {
    **{k: v for k, v in fusion_baselines.LAB.items() if k not in ("methods", "lrs")},
    "train": {**fusion_baselines.LAB["train"], "lr": 1e-3},
}
SMALL = fusion_baselines.RECIPE.scales["smoke"]
ENCODERS: dict[str, Settings] = {
    "dinov2-small+minilm-l6": {},
    # Fusion above the tuned blocks, as in ``pmf_variants``.
    "scenes+minilm-l6": {"image_encoder": "scenes", "image_layers": 10},
    "dinov2-small+minilm-l6-first-4": {"text_layers": 4},
    "dinov2-small-12+minilm-l6": {"image_layers": 12},
}


def on_figures(base: Recipe, smoke: list[str], **changes: Any) -> Recipe:
    """The variants of a recipe, trained on the figures of the main table.

    Args:
        base: of ``pmf_variants``.
        smoke: the few variants that a first look trains.
        changes: settings that are other than there.
    """
    theirs = {name: base.scales["lab"][name] for name in ("variants", "reference")}
    lab = {**FIGURES, **theirs, **changes}
    small = {k: SMALL[k] for k in ("seeds", "count", "image_layers", "image_size", "text_layers")}
    return Recipe(
        name=base.name.replace("pmf-", "figures-"),
        title=f"{base.title}; on figures",
        chapter="03",
        scales={
            "smoke": {
                **lab,
                **small,
                "train": {**lab["train"], "epochs": 1},
                "variants": {name: lab["variants"][name] for name in smoke},
            },
            "lab": lab,
            "paper": {
                **lab,
                **fusion_common.PAPER_ENCODERS,
                "count": {"train": None, "validation": None, "test": None},
            },
        },
        minutes={"smoke": 0.3, "lab": 60, "paper": 600},
        units=pmf_variants.units,
        run_unit=pmf_variants.run_unit,
        summarise=pmf_variants.summarise,
    )


COMPONENTS = on_figures(pmf_variants.COMPONENTS, ["none", "all"])
LAYERS = on_figures(pmf_variants.LAYERS, ["1", "2"])
PROMPTS = on_figures(pmf_variants.PROMPTS, ["1", "4"])
MODULARITY = on_figures(
    pmf_variants.MODULARITY,
    ["dinov2-small+minilm-l6"],
    variants={name: {"pmf": {}, "settings": change} for name, change in ENCODERS.items()},
    reference="dinov2-small+minilm-l6",
)

PARTS = pmf_variants.COMPONENTS.scales["lab"]
SCENES = {
    **{k: v for k, v in PARTS.items() if k not in ("variants", "reference")},
    "methods": list(fusion_baselines.METHODS),
    "lrs": {"whole": [3e-5, 1e-4, 3e-4], "prompts": [2e-4, 5e-4, 1e-3]},
}

BASELINES = Recipe(
    name="scenes-baselines",
    title="Main table on scenes: PMF and its baselines on sentences about colours",
    chapter="03",
    scales={
        "smoke": {
            **SCENES,
            "seeds": [0],
            "methods": ["linear", "pmf"],
            "count": {"train": 24, "validation": 16, "test": 16},
            "train": {**SCENES["train"], "epochs": 1, "batch_size": 16},
            "lrs": {"whole": [1e-4], "prompts": [1e-3]},
        },
        "lab": SCENES,
        "paper": {**SCENES, **fusion_common.PAPER_ENCODERS, **entailment.PAPER},
    },
    minutes={"smoke": 0.4, "lab": 900, "paper": 6000},
    units=fusion_baselines.units,
    run_unit=fusion_baselines.run_unit,
    summarise=fusion_baselines.summarise,
    trials=3,
)
