"""PMF's parts on figures.

``pmf_variants`` takes PMF apart on scenes, where no modality answers alone. Here the same is done on the
figures of ``fusion_baselines``, where each does; functions, trials and budgets stay.
"""

from __future__ import annotations

from typing import Any

from ..runs import Recipe, Settings
from . import fusion_baselines, fusion_common, pmf_variants

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
