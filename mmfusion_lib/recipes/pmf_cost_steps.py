"""Whole training steps of PMF at the paper's shapes, by number of fusion layers and by prompt length.

``pmf_cost`` measures what autograd keeps; here a step is timed: forward, backward and the published
optimizer, random weights, float32. The reference is fine-tuning both encoders with one head
(late-concat). A processor gets a small batch; on a GPU the paper's batches follow, with peak memory.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import pmf_cost as formulas
from ..baselines.concat import LateConcat
from ..pmf import PMF, PMFConfig
from ..records import spread
from ..runs import Recipe, Settings
from ..train_config import TrainConfig, make_optimizer
from .pmf_cost import ATTENTION, GIB, Pair

FORMS = {"plain": "manual", "shared": "sdpa"}  # with the attention that each is compared under
UNITS = {"step": "ms", "peak": "GiB"}


def units(s: Settings) -> list[str]:
    """A unit a device, text length, batch and attention."""
    shapes = [("cpu", *shape) for shape in s["cpu"]]
    if torch.cuda.is_available():
        shapes += [("cuda", *shape) for shape in s["cuda"]]
    return [f"{'-'.join(map(str, shape))}-{form}" for shape in shapes for form in FORMS]


def run_unit(s: Settings, unit: str) -> dict[str, float]:
    """``-step`` (ms), on a GPU ``-peak`` (GiB) and prediction over measurement, by name."""
    _, length, batch, form = unit.split("-")
    pair = Pair(s["encoders"], int(length), s["num_classes"], int(batch))
    pair.attend(FORMS[form])
    found = {}
    for name, config in {"late-concat": None, **designs(s)}.items():
        numbers = measured(s, pair, unit, config)
        found |= {f"{unit}-{name}-{what}": value for what, value in numbers.items()}
    return found


def designs(s: Settings) -> dict[str, PMFConfig]:
    """The points of both curves: "layers-2" has two fusion layers, "prompts-4" prompts of four."""
    classes = s["num_classes"]
    layers = {f"layers-{n}": PMFConfig(classes, n) for n in s["layers"]}
    return layers | {f"prompts-{m}": PMFConfig(classes, 2, m, m, m) for m in s["prompts"]}


def measured(s: Settings, pair: Pair, unit: str, config: PMFConfig | None) -> dict[str, float]:
    """One design, or late-concat where ``config`` is None. Nothing where it does not fit."""
    place, *_, form = unit.split("-")
    options: dict[str, Any] = {"method": "late-concat"}
    if config is None:
        model: nn.Module = LateConcat(*pair.encoders, pair.classes)
    else:
        model = PMF(*pair.encoders, config)
        model.shared = form == "shared"
        options = {"shared": model.shared}
    try:
        peak, milliseconds = step_cost(model.to(place), pair.batch, pair.classes, s["timed"])
    except torch.cuda.OutOfMemoryError:
        return {}
    finally:
        model.zero_grad()
    if not peak:
        return {"step": milliseconds}
    options |= ATTENTION[FORMS[form]]
    memory = formulas.training_memory(
        *pair.sides, config or PMFConfig(pair.classes), *pair.sizes, **options
    )
    ratio = memory.total / peak
    return {"step": milliseconds, "peak": peak / GIB, "peak-predicted-over-measured": ratio}


def step_cost(
    model: nn.Module, batch: tuple[Tensor, ...], classes: int, timed: int
) -> tuple[int, float]:
    """Peak bytes (0 on a CPU) and median milliseconds of a step."""
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    batch = tuple(each.to(device) for each in batch)
    labels = torch.randint(classes, (len(batch[0]),), device=device)
    config = TrainConfig(1, optimizer="sgd", momentum=0.9, weight_decay=1e-4)
    optimizer, taken = make_optimizer(model, config), []
    for number in range(1 + timed):
        if cuda:
            torch.cuda.synchronize()
            if number == 1:
                torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        F.cross_entropy(model(*batch).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return peak, statistics.median(taken[1:])


def summarise(s: Settings, done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Every number; and as curves the time of a step as a share of late-concat's, and peaks."""
    values = {name: value for numbers in done.values() for name, value in numbers.items()}
    results = {
        name: spread([value], UNITS.get(name.rsplit("-", 1)[-1], "ratio"))
        for name, value in values.items()
    }
    curves = {}
    for unit in done:
        whole = values.get(f"{unit}-late-concat-step")
        for kind in ("layers", "prompts"):
            for what, scale in (("step", whole), ("peak", 1.0)):
                found = {n: values.get(f"{unit}-{kind}-{n}-{what}") for n in s[kind]}
                known = {n: value for n, value in found.items() if value is not None}
                if known and scale:
                    curves[f"{kind}-{what}-{unit}"] = {
                        "x": list(known),
                        "mean": [value / scale for value in known.values()],
                        "std": [0.0] * len(known),
                    }
    return {"results": results, "curves": curves}


_PAPER = {
    "seeds": [],  # nothing that is random matters
    "encoders": ["vit-base", "bert-base"],
    "num_classes": 101,
    "layers": [1, 2, 4, 6, 9, 11, 12],  # N_f
    "prompts": [1, 4, 16, 32],  # M_qp = M_qcp = M_fcp
    "timed": 5,  # steps, after one to warm up
    "cpu": [[40, 4]],  # text length, batch
    "cuda": [[512, 32], [64, 64]],  # the paper's batches
}

RECIPE = Recipe(
    name="pmf-cost-steps",
    title="Time and peak memory of a training step of PMF, by fusion layers and by prompt length",
    chapter="03",
    scales={
        "smoke": {
            **_PAPER, "layers": [1, 2], "prompts": [4], "timed": 1, "cpu": [[8, 1]], "cuda": [],
        },
        "lab": _PAPER,
        "paper": _PAPER,
    },
    minutes={"smoke": 0.8, "lab": 15, "paper": 15},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)  # fmt: skip
