"""Both papers together: a word that only an expert can read reaches a question on one of two roads.

"What does the sign say?", "What colour is the sign?" Which of the two is asked, the text alone knows.
The colour is in the picture alone, as no map holds colours. The word is in the map of an expert that
reads alone: it is too small for the image encoder. A picture without its question is right once in two,
a question alone once in eight or in two dozen. The expert's tokens come by the resampler, by prompts, by
both, or not at all. All ways train equally many parameters (``expert_fusion.equalised``), on the same
questions in the same order.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from .. import accounting, checkpoints, metrics, pair_training, scene_batch, train
from ..data import scenes
from ..data.pairs import Pairs
from ..data.scene_facts import facts
from ..data.scene_objects import COLOURS, WORDS
from ..data.scene_questions import QUESTIONS
from ..expert_fusion import ExpertFusionConfig, ExpertPMF, equalised
from ..expert_task import ExpertItems
from ..experts import tensors
from ..pmf import PMFConfig, PMFOutput
from ..records import spread
from ..runs import Recipe, Settings
from . import fusion_common as common
from .scene_encoder import encoded

MIB = 2**20
FAMILIES = {"word": tuple(WORDS), "colour": tuple(COLOURS)}  # what is asked -> its answers
ANSWERS = tuple(answer for answers in FAMILIES.values() for answer in answers)
WAYS = ("none", "resampler", "prompts", "both")
COMPARED = (
    ("prompts", "resampler"),
    ("both", "resampler"),
    ("both", "prompts"),
    ("prompts", "none"),
    ("resampler", "none"),
)
UNITS = {"trainable": "parameters", "activations": "MiB per sample", "seconds": "seconds"}

# The data.


@lru_cache(maxsize=3)
def questions(split: str, count: int) -> tuple[Any, Pairs, list[str]]:
    """Of the first ``count`` scenes of a split: those with one clear sign, two questions each, their kinds.

    Returns:
        U rows of ``scenes.load``, N = 2 U questions with their scenes as groups, N times "word" or
        "colour".
    """
    table = scenes.load(split, count)
    known = [facts(json.loads(graph)) for graph in table["graph"]]
    chosen = [row for row, found in enumerate(known) if ("word", "sign") in found]
    table, rng = table.select(chosen), random.Random("signs")
    texts, labels, kinds = [], [], []
    for row in chosen:
        for kind in FAMILIES:
            texts.append(rng.choice(QUESTIONS[kind]).format("sign"))
            labels.append(ANSWERS.index(known[row][kind, "sign"]))
            kinds.append(kind)
    rows = torch.arange(len(chosen)).repeat_interleave(len(FAMILIES))  # (N,)
    names = table["id"]
    groups = [names[row] for row in rows.tolist()]
    part = Pairs(encoded(table), rows, texts, torch.tensor(labels), groups, ANSWERS)
    return table, part, kinds


def text_alone(part: Pairs) -> float:
    """Share that is right when each question gets its most common answer of this very split."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for text, label in zip(part.texts, part.labels.tolist()):
        answers[text][label] += 1
    return sum(max(each.values()) for each in answers.values()) / len(part.labels)


class AskedPictures(Dataset):
    """Cached base features of N pairs, with the maps of each pair's picture.

    Args:
        pairs: base features.  maps: of the U pictures.
    """

    def __init__(self, pairs: pair_training.CachedPairs, maps: ExpertItems) -> None:
        self.pairs, self.maps = pairs, maps
        self.labels, self.digest = pairs.labels, pairs.digest

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        experts = self.maps[int(self.pairs.rows[index])]["experts"]
        return {**self.pairs[index], "experts": experts}


def data(s: Settings, split: str, items: list[int] | None = None) -> AskedPictures:
    """A split, ready to train on or to be tested on."""
    _, part, _ = questions(split, s["count"][split])
    image, text = common.encoders(s)
    tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
    cached = pair_training.cache(
        image, text, part, common.transform(s), tokenizer, tuple(s["depths"]),
        max_length=s["max_length"], items=items,
    )  # fmt: skip
    return AskedPictures(cached, maps(split, s["count"][split], tuple(s["experts"]), s["map_size"]))


@lru_cache(maxsize=3)
def maps(split: str, count: int, experts: tuple[str, ...], size: int) -> ExpertItems:
    """The experts' exact maps of the scenes that are asked about, ``size`` pixels a side."""
    table, _, _ = questions(split, count)
    batch = scene_batch.batch(table, lambda picture: torch.zeros(1), experts, size=size)
    kept = {name: batch[name] for name in experts}
    return ExpertItems(kept, torch.arange(len(table)), table["id"])


# Training and testing.


def units(s: Settings) -> list[str]:
    """A unit a way and seed, all ways for one seed before the next."""
    return [f"{seed}-{way}" for seed in s["seeds"] for way in s["ways"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one way; test hits, also with the maps of other scenes; parameters and activations."""
    seed, _, way = unit.partition("-")
    model, result = trained(s, way, int(seed))
    test = data(s, "test")
    order = torch.randperm(len(test.maps), generator=torch.Generator().manual_seed(int(seed)))
    cases = {"true": test, "other": AskedPictures(test.pairs, test.maps.take(order))}
    return {
        "hits": {x: common.right(logits(model, each), test.labels) for x, each in cases.items()},
        "validation": [row["accuracy"] for row in result.validations],
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "activations": activations(model, test) / MIB,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
    }


def trained(s: Settings, way: str, seed: int) -> tuple[ExpertPMF, train.TrainResult]:
    """The model of one way, trained on the pairs that ``seed`` draws; its best epoch is kept."""
    held_out, model = data(s, "validation"), build(s, way, seed)

    def validate(model: nn.Module) -> dict[str, float]:
        found = logits(model, held_out).argmax(1)
        return {"accuracy": metrics.accuracy(found, held_out.labels)}

    drawn = common.drawn(s, questions("train", s["count"]["train"])[1], seed)
    config = train.TrainConfig(seed=seed, select="accuracy", **s["train"])
    return model, train.fit(model, data(s, "train", drawn), objective, config, validate=validate)


def build(s: Settings, way: str, seed: int) -> ExpertPMF:
    """The model of one way, with as many parameters as the others, drawn from ``seed``.

    Fusion layers stand on the layers whose output is cached; the encoders' layers above go unused.
    """
    encoders, above = common.encoders(s), s["pmf"]["num_fusion_layers"]
    for encoder, depth in zip(encoders, s["depths"]):
        encoder.layers = encoder.layers[: depth + above]
    pmf = PMFConfig(len(ANSWERS), **s["pmf"])
    config = ExpertFusionConfig(pmf, way, tuple(s["experts"]), **s["sizes"])
    config = equalised(config, *(encoder.config for encoder in encoders))
    torch.manual_seed(seed)
    return ExpertPMF(*encoders, config)


def outputs(model: ExpertPMF, batch: dict[str, Any]) -> PMFOutput:
    """Call the model on a batch of ``AskedPictures``."""
    names = ("image_tokens", "text_tokens", "attention_mask", "experts")
    return model.from_base_features(*(batch[name] for name in names))


def objective(model: ExpertPMF, batch: dict[str, Any]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(outputs(model, batch).logits, batch["labels"])


@torch.no_grad()
def logits(model: ExpertPMF, items: Dataset, batch_size: int = 64) -> Tensor:
    """Logits of every item (N, C), on the CPU. The model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(items), batch_size):
        rows = range(start, min(start + batch_size, len(items)))
        batch = tensors.to(default_collate([items[i] for i in rows]), device)
        found.append(outputs(model, batch).logits.float().cpu())  # (B, C)
    return torch.cat(found)  # (N, C)


def activations(model: ExpertPMF, items: Dataset, count: int = 8) -> float:
    """Bytes that a training step keeps for one pair on the CPU, the mean over ``count`` pairs."""
    batch = default_collate([items[i] for i in range(count)])
    model.cpu().train()
    return accounting.saved_activation_bytes(lambda: outputs(model, batch).logits, [model]) / count


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of each way, in all and by family, its cost, and intervals over scenes and seeds."""
    _, part, kinds = questions("test", s["count"]["test"])
    results = {"text alone, at best": spread([text_alone(part)], "bound")}
    hits, curves = {}, {}
    for way in s["ways"]:
        runs = [done[f"{seed}-{way}"] for seed in s["seeds"]]
        rows = hits[way] = common.hits([run["hits"]["true"] for run in runs])  # (S, N)
        results[way] = spread(rows.double().mean(1).tolist())
        for kind in FAMILIES:
            columns = [number for number, other in enumerate(kinds) if other == kind]
            results[f"{way}-{kind}"] = spread(rows[:, columns].double().mean(1).tolist())
        other = common.hits([run["hits"]["other"] for run in runs])  # (S, N)
        results[f"{way}-other-maps"] = spread(other.double().mean(1).tolist())
        for name, unit in UNITS.items():
            results[f"{way}-{name}"] = spread([run[name] for run in runs], unit)
        epochs = torch.tensor([run["validation"] for run in runs])  # (S, epochs)
        mean, std = epochs.mean(0).tolist(), epochs.std(0, correction=0).tolist()
        curves[way] = {"x": list(range(1, len(mean) + 1)), "mean": mean, "std": std}
    comparisons = {
        f"{a} - {b}": metrics.paired_bootstrap(hits[a], hits[b], list(part.groups))._asdict()
        for a, b in COMPARED
        if a in hits and b in hits
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


LAB = {
    "seeds": [0, 1, 2],
    "ways": list(WAYS),
    "count": {"train": 6000, "validation": 700, "test": 3000},  # scenes; two in nine have one sign
    "share": 0.9,  # of the training pairs that each seed draws
    "experts": ["obj_detection", "ocr_detection"],
    "map_size": 56,
    "image_encoder": "scenes",  # as in the recipe "entailment"
    "image_layers": 10,
    "image_size": 112,
    "image_readout": "cls",
    "text_encoder": "minilm-l6",
    "text_layers": 6,
    "text_readout": None,
    "depths": [8, 4],  # layers of picture and text below fusion
    "max_length": 32,
    "pmf": {
        "num_fusion_layers": 1,
        "query_context_prompts": 0,
        "fusion_context_prompts": 0,
        "mapping_width": 192,
    },
    "sizes": {"expert_prompts": 8, "latents": 16, "resampler_layers": 1},
    "train": {"epochs": 6, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.05},
}

RECIPE = Recipe(
    name="both-papers",
    title="A word only an expert reads: by resampler, by prompts, by both, not at all",
    chapter="05",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "ways": ["resampler", "prompts"],
            "count": {"train": 150, "validation": 60, "test": 60},
            "train": {**LAB["train"], "epochs": 1, "batch_size": 16},
        },
        "lab": LAB,
        "paper": {
            **LAB,
            **common.PAPER_ENCODERS,
            "depths": [10, 10],
            "map_size": 224,
            "count": {"train": 60_000, "validation": 4000, "test": 10_000},
            "experts": ["depth", "normal", "seg_scenes", "edge", "obj_detection", "ocr_detection"],
            "pmf": {"num_fusion_layers": 2, "mapping_width": 384},
            "sizes": {"expert_prompts": 16, "latents": 64, "resampler_layers": 4},
            "train": {**LAB["train"], "epochs": 10},
        },
    },
    minutes={"smoke": 0.3, "lab": 60, "paper": 3000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
