"""All recipes, most valuable first."""

from . import figures_depth, figures_finetune, figures_probes, paper_cost, scratch_vit

ALL = (
    figures_probes.RECIPE,
    paper_cost.RECIPE,
    figures_depth.RECIPE,
    figures_finetune.RECIPE,
    scratch_vit.RECIPE,
)
