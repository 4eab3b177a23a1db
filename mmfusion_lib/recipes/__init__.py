"""All recipes, most valuable first."""

from . import (
    entailment,
    figures_depth,
    figures_finetune,
    figures_fusion,
    figures_probes,
    fusion_baselines,
    paper_cost,
    pmf_cost,
    pmf_paper,
    pmf_search,
    pmf_variants,
    scene_encoder,
    scratch_vit,
)

ALL = (
    figures_probes.RECIPE,
    paper_cost.RECIPE,
    pmf_cost.RECIPE,
    scene_encoder.RECIPE,
    entailment.RECIPE,
    figures_fusion.RECIPE,
    fusion_baselines.RECIPE,
    pmf_variants.COMPONENTS,
    pmf_variants.LAYERS,
    pmf_variants.PROMPTS,
    pmf_search.RECIPE,
    pmf_variants.MODULARITY,
    figures_depth.RECIPE,
    figures_finetune.RECIPE,
    scratch_vit.RECIPE,
    pmf_paper.FOOD101,
    pmf_paper.FOOD101_TITLES,
    pmf_paper.MMIMDB,
    pmf_paper.SNLI_VE,
)
