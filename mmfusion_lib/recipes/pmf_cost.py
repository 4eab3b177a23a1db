"""What PMF and its baselines cost at the paper's shapes, predicted and measured, with random weights.

ViT-B/16 at 224 pixels and BERT-base, float32; neither data nor seeds matter. Saved activations are
what autograd keeps for the backward pass, in MiB a sample. *manual* is attention written out with
the encoders' own dropout on, as in the official file's libraries; *sdpa* is PyTorch's fused
attention with dropout off. Two samples are in the batch: with one, slices need no copy and keep the
tensor that they are cut from, which no training run sees.

Where there is a GPU, training steps at the paper's batch sizes follow: peak memory and time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import accounting, pmf_cost
from ..baselines.concat import LateConcat, LinearProbe
from ..baselines.deep_prompts import VPT, PBert, prompted
from ..encoder_config import CONFIGS
from ..encoders import Encoder, build_encoder
from ..pmf import PMF, PMFConfig
from ..records import spread
from ..runs import Recipe, Settings
from ..train_config import TrainConfig, make_optimizer

ATTENTION = {"manual": {"fused": False, "dropout": True}, "sdpa": {"fused": True, "dropout": False}}
FORMS = ("plain", "shared")
SAMPLES = 2
MIB, GIB = 2**20, 2**30


def units(s: Settings) -> list[str]:
    """Counting, methods by text length, curves, a larger pair; and whole steps on a GPU."""
    found = ["parameters", *(f"methods-{length}" for length in s["text_lengths"])]
    found += [f"{curve}-{n}" for n in s["curve_lengths"] for curve in ("layers", "prompts")]
    found += [f"large-{length}" for length in s["large_lengths"]]
    if torch.cuda.is_available():
        found += [f"steps-{length}-{batch}" for length, batch in s["steps"]]
    return found


def run_unit(s: Settings, unit: str) -> dict[str, float]:
    """Numbers by name, with their units in ``summarise``."""
    kind, *numbers = unit.split("-")
    if kind == "parameters":
        return count(s)
    if kind == "steps":
        return steps(s, *map(int, numbers))
    length, classes = int(numbers[0]), s["num_classes"]
    pair = Pair(s["large_encoders" if kind == "large" else "encoders"], length, classes)
    found: dict[str, float] = {}

    def add(name: str, both: tuple[float, float]) -> None:
        found[name] = both[0]
        found[f"{name}-predicted-over-measured"] = both[1] / both[0]

    if kind in ("methods", "large"):
        prefix = "large-" if kind == "large" else ""
        for attention in ATTENTION:
            for method in BASELINES:
                add(f"{prefix}{method}-{attention}-{length}", pair.baseline(method, attention))
            for form in FORMS:
                both = pair.pmf(PMFConfig(classes), form, attention)
                add(f"{prefix}pmf-{form}-{attention}-{length}", both)
    for value in s[kind] if kind in ("layers", "prompts") else ():
        config = PMFConfig(classes, value)
        if kind == "prompts":
            config = PMFConfig(classes, 2, value, value, value)
        for form, attention in (("plain", "manual"), ("shared", "sdpa")):
            add(f"{kind}-{form}-{attention}-{length}-{value}", pair.pmf(config, form, attention))
    return found


def count(s: Settings) -> dict[str, float]:
    """Numbers that train, counted on models that take no memory, and their share of all."""
    found: dict[str, float] = {}
    for size, names in (("", s["encoders"]), ("large-", s["large_encoders"])):
        for kind in ("", "-frozen-context"):
            config = PMFConfig(s["num_classes"], train_fusion_context=not kind)
            with torch.device("meta"):
                model = PMF(*map(build_encoder, names), config)
            row = accounting.parameters(model)[-1]
            found[f"{size}pmf{kind}-trainable"] = row.trainable
            found[f"{size}pmf{kind}-trainable-share"] = row.share
    sides = [CONFIGS[name] for name in s["encoders"]]
    for method in BASELINES:
        trains = pmf_cost.trainable_parameters(*sides, config, method=method)
        found[f"{method}-trainable"] = trains
    return found


# ------------------------------------------------------------------ saved activations


class Pair:
    """Two encoders with random weights, built once for many models, and a batch for them."""

    def __init__(self, names: list[str], length: int, classes: int, samples: int = SAMPLES) -> None:
        self.encoders = [build_encoder(name) for name in names]
        self.sides = [encoder.config for encoder in self.encoders]
        self.classes = classes
        image, text = self.sides
        self.batch = (
            torch.randn(samples, image.channels, image.image_size, image.image_size),
            torch.randint(text.vocab_size, (samples, length)),
        )
        self.sizes = (1 + image.patches, length, samples)

    def baseline(self, method: str, attention: str) -> tuple[float, float]:
        """MiB a sample, measured and predicted."""
        model = BASELINES[method](*self.encoders, self.classes)
        options = {"method": method, **ATTENTION[attention]}
        return self.kept(model, attention), self.predicted(PMFConfig(self.classes), **options)

    def pmf(self, config: PMFConfig, form: str, attention: str) -> tuple[float, float]:
        """MiB a sample, measured and predicted."""
        model = PMF(*self.encoders, config)
        model.shared = form == "shared"
        options = {"shared": model.shared, **ATTENTION[attention]}
        return self.kept(model, attention), self.predicted(config, **options)

    def kept(self, model: nn.Module, attention: str) -> float:
        self.attend(attention)
        saved = accounting.saved_activation_bytes(lambda: model(*self.batch), [model])
        return saved / self.sizes[-1] / MIB

    def predicted(self, config: PMFConfig, **options: Any) -> float:
        saved = pmf_cost.activation_bytes(*self.sides, config, *self.sizes, **options)
        return saved / self.sizes[-1] / MIB

    def attend(self, attention: str) -> None:
        """Choose how attention is computed, and whether the encoders drop."""
        for encoder in self.encoders:
            encoder.train(ATTENTION[attention]["dropout"])
            for layer in encoder.layers:
                layer.attention.fused = ATTENTION[attention]["fused"]


class DeepPrompts(nn.Module):
    """VPT and P-BERT side by side, with one head on both summaries."""

    def __init__(self, image: Encoder, text: Encoder, classes: int) -> None:
        super().__init__()
        self.vpt, self.p_bert = VPT(image, classes), PBert(text, classes)
        self.head = nn.Linear(image.config.readout_width + text.config.readout_width, classes)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        image, text = self.vpt.image_encoder, self.p_bert.text_encoder
        seen = image.readout(prompted(image, self.vpt.prompts, pixel_values, None))  # (B, R_i)
        said = text.readout(prompted(text, self.p_bert.prompts, input_ids, None))  # (B, R_t)
        return self.head(torch.cat([seen, said], dim=1))  # (B, C)


BASELINES: dict[str, Callable[..., nn.Module]] = {
    "late-concat": LateConcat,
    "vpt+p-bert": DeepPrompts,
    "linear": LinearProbe,
}


# ------------------------------------------------------------------ whole steps, on a GPU


def steps(s: Settings, length: int, batch: int) -> dict[str, float]:
    """Peak memory (GiB) and time (ms) of a training step of each method; what does not fit is left out."""
    found: dict[str, float] = {}
    for attention in ATTENTION:
        for method in ("late-concat", "pmf-plain", "pmf-shared"):
            pair = Pair(s["encoders"], length, s["num_classes"], batch)
            config = PMFConfig(pair.classes)
            make = LateConcat if method == "late-concat" else PMF
            model = make(*pair.encoders, pair.classes if make is LateConcat else config).cuda()
            options: dict[str, Any] = {"method": "late-concat"}
            if make is PMF:
                model.shared = method == "pmf-shared"
                options = {"shared": model.shared}
            pair.attend(attention)
            name = f"{method}-{attention}-{length}-{batch}"
            try:
                peak, milliseconds = step_cost(model, pair.batch, pair.classes)
            except torch.cuda.OutOfMemoryError:
                continue
            memory = pmf_cost.training_memory(
                *pair.sides, config, *pair.sizes, **options, **ATTENTION[attention]
            )
            found[f"{name}-peak"] = peak / GIB
            found[f"{name}-peak-predicted-over-measured"] = memory.total / peak
            found[f"{name}-step"] = milliseconds
            del model, pair
            torch.cuda.empty_cache()
    return found


def step_cost(model: nn.Module, batch: tuple[Tensor, ...], classes: int) -> tuple[int, float]:
    """Peak bytes and median milliseconds of a step with the paper's optimizer."""
    batch = tuple(each.cuda() for each in batch)
    labels = torch.randint(classes, (len(batch[0]),)).cuda()
    config = TrainConfig(1, optimizer="sgd", momentum=0.9, weight_decay=1e-4)
    optimizer, taken = make_optimizer(model, config), []
    for number in range(8):
        if number == 3:  # three steps to warm up
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        F.cross_entropy(model(*batch).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    return torch.cuda.max_memory_allocated(), statistics.median(taken[3:])


# ------------------------------------------------------------------ record


UNITS = {
    "trainable": "parameters",
    "share": "ratio",
    "measured": "ratio",
    "peak": "GiB",
    "step": "ms",
}


def summarise(s: Settings, done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One value a name; the two curves by text length; and three ratios that the chapter draws."""
    values = {name: value for numbers in done.values() for name, value in numbers.items()}
    results = {
        name: spread([value], UNITS.get(name.rsplit("-", 1)[-1], "MiB per sample"))
        for name, value in values.items()
        if not name.startswith(("layers-", "prompts-"))
    }
    for length in s["text_lengths"]:
        whole = values[f"late-concat-manual-{length}"]
        for name in ("pmf-plain-manual", "pmf-shared-manual", "vpt+p-bert-manual"):
            ratio = values[f"{name}-{length}"] / whole
            results[f"{name}-{length}-over-late-concat"] = spread([ratio], "ratio")
        ratio = values[f"pmf-shared-sdpa-{length}"] / values[f"pmf-plain-sdpa-{length}"]
        results[f"pmf-shared-over-plain-sdpa-{length}"] = spread([ratio], "ratio")
    curves = {}
    for kind in ("layers", "prompts"):
        for length in s["curve_lengths"]:
            for form in ("plain-manual", "shared-sdpa"):
                name = f"{kind}-{form}-{length}"
                measured = [values[f"{name}-{x}"] for x in s[kind]]
                ratios = [values[f"{name}-{x}-predicted-over-measured"] for x in s[kind]]
                curves[name] = {
                    "x": s[kind],
                    "mean": measured,
                    "std": [0.0] * len(measured),
                    "predicted": [m * r for m, r in zip(measured, ratios)],
                }
    return {"results": results, "curves": curves}


_PAPER = {
    "seeds": [],  # nothing is random
    "encoders": ["vit-base", "bert-base"],
    "large_encoders": ["vit-large", "bert-large"],
    "num_classes": 101,
    "text_lengths": [40, 128, 512],
    "large_lengths": [40],
    "curve_lengths": [40, 128],
    "layers": [1, 2, 4, 6, 9, 11, 12],  # N_f
    "prompts": [1, 4, 16, 32],  # M_qp = M_qcp = M_fcp
    "steps": [[512, 32], [64, 64]],  # text length and the paper's batch size
}

RECIPE = Recipe(
    name="pmf-cost",
    title="Memory, parameters and time of PMF and its baselines at the paper's shapes",
    chapter="03",
    scales={
        "smoke": {
            **_PAPER,
            "text_lengths": [40],
            "large_lengths": [],
            "curve_lengths": [40],
            "layers": [1, 2],
            "prompts": [1, 4],
            "steps": [],
        },
        "lab": _PAPER,
        "paper": _PAPER,
    },
    minutes={"smoke": 0.5, "lab": 4, "paper": 4},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
