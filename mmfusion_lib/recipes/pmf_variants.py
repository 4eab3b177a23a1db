"""PMF taken apart and varied, on scenes entailment: components, start layer, prompt length, encoders.

Four recipes over one function: train PMF with a changed configuration, test it. All variants of a
recipe see the same pairs, epochs and learning rate, which were chosen for the reference on validation. As
there are many variants, the task is the easiest family of the recipe ``entailment``, colours, which PMF
learns from few pairs.
"""

from __future__ import annotations

from typing import Any

from .. import metrics
from ..records import spread
from ..runs import Recipe, Settings
from . import entailment
from . import fusion_common as common

M = 4  # the length of every prompt, unless it is varied
NONE = {"query_prompts": 0, "query_context_prompts": 0, "fusion_context_prompts": 0}

# Rows of the component table. QP: query prompts, QCP: query context prompts, FCP: fusion context
# prompts, f: the mapping. "longer-qp" spends the length of QCP on QP instead.
COMPONENT_CHANGES = {
    "none": NONE,
    "fcp": {**NONE, "fusion_context_prompts": M},
    "qp-f": {"query_context_prompts": 0, "fusion_context_prompts": 0},
    "qp-qcp-f": {"fusion_context_prompts": 0},
    "qp-fcp-f": {"query_context_prompts": 0},
    "qp-qcp-fcp": {"mapping_width": 0},
    "all": {},
    "fixed-context": {"train_fusion_context": False},  # as the official file runs
    "longer-qp": {"query_prompts": 2 * M, "query_context_prompts": 0},
}
LAYER_CHANGES = {str(count): {"num_fusion_layers": count} for count in (1, 2, 3, 4, 6)}
PROMPT_CHANGES = {str(length): dict.fromkeys(NONE, length) for length in (1, 2, 4, 8, 16, 32)}


def units(s: Settings) -> list[str]:
    """A unit a variant and seed."""
    return [f"{seed}-{name}" for seed in s["seeds"] for name in s["variants"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Test hits, trained parameters, and activations saved for one pair."""
    seed, _, name = unit.partition("-")
    change = s["variants"][name]
    model, result = common.fit_pmf({**s, **change["settings"]}, int(seed), **change["pmf"])
    test = common.pairs(s, "test")
    scores = common.test_logits({**s, **change["settings"]}, model, test)
    kept = common.kept(model, common.cached({**s, **change["settings"]}, model, test))
    return {
        "hits": common.right(scores, test.labels),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "activations": kept,
        "validation": result.best["accuracy"],
        "seconds": result.seconds,
    }


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and cost by variant; intervals of the reference against each; curves over numbers."""
    groups = list(common.pairs(s, "test").groups)
    runs = {name: [done[f"{seed}-{name}"] for seed in s["seeds"]] for name in s["variants"]}
    hits = {name: common.hits([run["hits"] for run in found]) for name, found in runs.items()}
    results = {name: spread(rows.double().mean(1).tolist()) for name, rows in hits.items()}
    for name, found in runs.items():
        results[f"{name}-trainable"] = spread([found[0]["trainable"]], "parameters")
        results[f"{name}-activations"] = spread([found[0]["activations"]], "MiB per sample")
    best = s["reference"]
    comparisons = {
        f"{best} - {name}": metrics.paired_bootstrap(hits[best], rows, groups)._asdict()
        for name, rows in hits.items()
        if name != best
    }
    curves = {}
    if all(name.isdigit() for name in runs):
        x = [int(name) for name in runs]
        curves["accuracy"] = {
            "x": x,
            "mean": [results[name]["mean"] for name in runs],
            "std": [results[name]["std"] for name in runs],
        }
        memory = [results[f"{name}-activations"]["mean"] for name in runs]
        curves["memory"] = {"x": x, "mean": memory, "std": [0.0] * len(x)}
    return {"results": results, "comparisons": comparisons, "curves": curves}


def variants(changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Changes of the PMF configuration alone."""
    return {name: {"pmf": change, "settings": {}} for name, change in changes.items()}


def recipe(
    name: str, title: str, changes: dict[str, dict[str, Any]], reference: str, smoke: list[str]
) -> Recipe:
    """A recipe over variants; ``smoke`` names the few that a first look trains."""
    lab = {
        **entailment.LAB,
        "types": ["colour"],
        "count": {"train": 1500, "validation": 300, "test": 1000},
        "train": {**entailment.LAB["train"], "epochs": 4, "lr": 5e-4},
        "variants": changes,
        "reference": reference,
    }
    return Recipe(
        name=name,
        title=title,
        chapter="03",
        scales={
            "smoke": {
                **lab,
                "seeds": [0],
                "count": {"train": 48, "validation": 32, "test": 32},
                "train": {**lab["train"], "epochs": 1, "batch_size": 16},
                "variants": {x: changes[x] for x in smoke},
            },
            "lab": lab,
            "paper": {**lab, **common.PAPER_ENCODERS, **entailment.PAPER},
        },
        minutes={"smoke": 0.3, "lab": 60, "paper": 6000},
        units=units,
        run_unit=run_unit,
        summarise=summarise,
    )


COMPONENTS = recipe(
    "pmf-components",
    "Which parts of PMF matter: prompts, mapping, longer query prompts",
    variants(COMPONENT_CHANGES),
    "all",
    ["none", "all"],
)
PROMPTS = recipe(
    "pmf-prompts", "Length of all three prompts", variants(PROMPT_CHANGES), "4", ["1", "4"]
)
LAYERS = recipe(
    "pmf-layers", "Number of fusion layers, from the top", variants(LAYER_CHANGES), "2", ["1", "2"]
)
# One word of the settings is another encoder: that is all it takes.
MODULARITY = recipe(
    "pmf-modularity",
    "Another image encoder, another text encoder",
    {
        "scenes+minilm-l6": {"pmf": {}, "settings": {}},
        "dinov2-small+minilm-l6": {"pmf": {}, "settings": {"image_encoder": "dinov2-small"}},
        "scenes+minilm-l6-first-4": {"pmf": {}, "settings": {"text_layers": 4}},
        "dinov2-small-12+minilm-l6": {
            "pmf": {},
            "settings": {"image_encoder": "dinov2-small", "image_layers": 12},
        },
    },
    "scenes+minilm-l6",
    ["scenes+minilm-l6"],
)
