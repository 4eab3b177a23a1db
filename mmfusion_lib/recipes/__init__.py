"""All recipes, most valuable first."""

from . import figures_depth, figures_finetune, figures_probes, scratch_vit

ALL = (
    figures_probes.RECIPE,
    figures_depth.RECIPE,
    figures_finetune.RECIPE,
    scratch_vit.RECIPE,
)
