"""Both papers together: what experts see meets a text on one of two roads.

Two tasks on scenes, two recipes:

signs        "What does the sign say?", "What colour is the sign?" The text alone knows which of the
             two is asked. The word is too small for the image encoder: it is in the map of the expert
             that reads. The colour is in the picture alone: no map holds colours.
entailment   "There is a mug", "Something is red": true or false of the picture? Each sentence and each
             picture is true as often as false. Two maps hold the kinds of things, none holds colours.

The expert's tokens come by the resampler, by prompts, by both, or not at all. All ways train equally many
parameters (``expert_fusion.equalised``) on the same pairs in the same order. At lab scale, no way may keep
more bytes for a pair in training than the resampler does. For signs all that have experts keep as many.
For entailment prompts keep fewer: with 16 of them, which would take as much, seed 0 had hardly left
chance on validation after four epochs. Each way and seed takes the learning rate that is best on
validation. For entailment there is one; at 1e-3, tried with the resampler on sentences that also name a
colour and a kind together, validation was at chance after two epochs.
"""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from .. import accounting, checkpoints, metrics, pair_training, scene_batch, train
from ..data import scenes
from ..data.pairs import Pairs
from ..data.scene_facts import Graph, facts
from ..data.scene_objects import COLOURS, WORDS
from ..data.scene_presence import LABELS, presence
from ..data.scene_questions import QUESTIONS
from ..expert_fusion import WAYS, ExpertFusionConfig, ExpertPMF, equalised
from ..expert_task import ExpertItems
from ..experts import tensors
from ..pmf import PMFConfig, PMFOutput
from ..records import cost, costs, spread
from ..runs import Recipe, Settings
from . import fusion_common as common
from .scene_encoder import encoded

MIB = 2**20
ANSWERS = {"word": tuple(WORDS), "colour": tuple(COLOURS)}  # to the questions about signs
COMPARED = (
    ("prompts", "resampler"),
    ("both", "resampler"),
    ("both", "prompts"),
    ("prompts", "none"),
    ("resampler", "none"),
)
Asked = list[tuple[int, str, int, str]]  # (place of its scene, text, label, what it is about) each

# The data.


def signs(graphs: list[Graph]) -> tuple[Asked, tuple[str, ...]]:
    """Two questions about each scene that has one clear sign; the classes.

    "new colour" is one that no sign has in training.
    """
    found, classes, rng = [], sum(ANSWERS.values(), ()), random.Random("signs")
    for place, graph in enumerate(graphs):
        known = facts(graph)
        if ("word", "sign") in known:
            for kind in ANSWERS:
                text, answer = rng.choice(QUESTIONS[kind]).format("sign"), known[kind, "sign"]
                about = "new colour" if (answer, "sign") in scenes.HELD_OUT else kind
                found.append((place, text, classes.index(answer), about))
    return found, classes


def sentences(graphs: list[Graph]) -> tuple[Asked, tuple[str, ...]]:
    """True and false sentences about a colour or a kind; the classes."""
    found = [
        (row["index"], row["hypothesis"], LABELS.index(row["label"]), row["type"])
        for row in presence(graphs)
        if row["type"] != "both"
    ]
    return found, LABELS


@lru_cache(maxsize=3)
def asked(task: str, split: str, count: int) -> tuple[Any, Pairs, list[str]]:
    """What is asked about the first ``count`` scenes of a split.

    Args:
        task: "signs" or "entailment".

    Returns:
        U rows of ``scenes.load``: the scenes that are asked about; N pairs with their scenes as groups; what
        each pair is about.
    """
    table = scenes.load(split, count)
    graphs = [json.loads(graph) for graph in table["graph"]]
    found, classes = {"signs": signs, "entailment": sentences}[task](graphs)
    used, rows = torch.tensor([place for place, *_ in found]).unique(return_inverse=True)
    table = table.select(used.tolist())
    names = table["id"]
    groups = [names[row] for row in rows.tolist()]
    _, texts, labels, kinds = zip(*found)
    return table, Pairs(encoded(table), rows, texts, torch.tensor(labels), groups, classes), kinds


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
    _, part, _ = asked(s["task"], split, s["count"][split])
    image, text = common.encoders(s)
    tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
    cached = pair_training.cache(
        image, text, part, common.transform(s), tokenizer, tuple(s["depths"]),
        max_length=s["max_length"], items=items,
    )  # fmt: skip
    which = s["task"], split, s["count"][split]
    return AskedPictures(cached, maps(*which, tuple(s["experts"]), s["map_size"]))


@lru_cache(maxsize=3)
def maps(task: str, split: str, count: int, experts: tuple[str, ...], size: int) -> ExpertItems:
    """The experts' exact maps of the scenes that are asked about, ``size`` pixels a side."""
    table, _, _ = asked(task, split, count)
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
    model, result, lr = trained(s, way, int(seed))
    test = data(s, "test")
    order = torch.randperm(len(test.maps), generator=torch.Generator().manual_seed(int(seed)))
    cases = {"true": test, "other": AskedPictures(test.pairs, test.maps.take(order))}
    return {
        "hits": {x: common.right(logits(model, each), test.labels) for x, each in cases.items()},
        "validation": [row["accuracy"] for row in result.validations],
        "lr": lr,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "activations": activations(model, test) / MIB,
        **cost(result),
    }


def trained(s: Settings, way: str, seed: int) -> tuple[ExpertPMF, train.TrainResult, float]:
    """The model of one way, trained on the pairs that ``seed`` draws, at each learning rate.

    The best epoch of the best learning rate on validation is kept.
    """
    held_out = data(s, "validation")
    drawn = common.drawn(s, asked(s["task"], "train", s["count"]["train"])[1], seed)
    learnt = data(s, "train", drawn)

    def validate(model: nn.Module) -> dict[str, float]:
        found = logits(model, held_out).argmax(1)
        return {"accuracy": metrics.accuracy(found, held_out.labels)}

    def fit(lr: float) -> tuple[ExpertPMF, train.TrainResult]:
        model = build(s, way, seed)
        config = train.TrainConfig(seed=seed, select="accuracy", lr=lr, **s["train"])
        return model, train.fit(model, learnt, objective, config, validate=validate)

    tried = {lr: fit(lr) for lr in s["lrs"]}
    lr = max(tried, key=lambda lr: tried[lr][1].best["accuracy"])
    return *tried[lr], lr


def build(s: Settings, way: str, seed: int) -> ExpertPMF:
    """The model of one way, with as many parameters as the others, drawn from ``seed``.

    Fusion layers stand on the layers whose output is cached; the encoders' layers above go unused.
    """
    encoders, above = common.encoders(s), s["pmf"]["num_fusion_layers"]
    for encoder, depth in zip(encoders, s["depths"]):
        encoder.layers = encoder.layers[: depth + above]
    classes = asked(s["task"], "validation", s["count"]["validation"])[1].classes
    pmf, experts = PMFConfig(len(classes), **s["pmf"]), tuple(s["experts"])
    like = ExpertFusionConfig(pmf, "resampler", experts, **s["sizes"]["resampler"])
    config = ExpertFusionConfig(pmf, way, experts, **s["sizes"][way])
    config = equalised(config, like, *(encoder.config for encoder in encoders))
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
    _, part, kinds = asked(s["task"], "test", s["count"]["test"])
    alone = metrics.text_alone(part.texts, part.labels.tolist())
    results = {"text alone, at best": spread([alone], "bound")}
    hits, curves = {}, {}
    for way in s["ways"]:
        runs = [done[f"{seed}-{way}"] for seed in s["seeds"]]
        rows = hits[way] = common.hits([run["hits"]["true"] for run in runs])  # (S, N)
        results[way] = spread(rows.double().mean(1).tolist())
        for kind in dict.fromkeys(kinds):
            columns = [number for number, other in enumerate(kinds) if other == kind]
            results[f"{way}-{kind}"] = spread(rows[:, columns].double().mean(1).tolist())
        other = common.hits([run["hits"]["other"] for run in runs])  # (S, N)
        results[f"{way}-other-maps"] = spread(other.double().mean(1).tolist())
        results[f"{way}-trainable"] = spread([runs[0]["trainable"]], "parameters")
        kept = [run["activations"] for run in runs]
        results[f"{way}-activations"] = spread(kept, "MiB per sample")
        results[f"{way}-lr"] = spread([run["lr"] for run in runs], "learning rate")
        results |= costs(way, runs)
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
    "share": 0.9,  # of the training pairs that each seed draws
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
}
TRAIN = {"batch_size": 32, "weight_decay": 0.01, "warmup": 0.05, "precision": "bf16"}
SMOKE = {
    "seeds": [0],
    "ways": ["resampler", "prompts"],
    "lrs": [1e-3],
    "count": {"train": 150, "validation": 60, "test": 60},
    "train": {**TRAIN, "epochs": 1, "batch_size": 16, "precision": "no"},
}
PAPER = {
    **common.PAPER_ENCODERS,
    "depths": [10, 10],
    "map_size": 224,
    "count": {"train": 60_000, "validation": 4000, "test": 10_000},
    "experts": ["depth", "normal", "seg_scenes", "edge", "obj_detection", "ocr_detection"],
    "pmf": {"num_fusion_layers": 2, "mapping_width": 384},
    "sizes": {
        "none": {},
        "resampler": {"latents": 64, "resampler_layers": 4},
        "prompts": {"expert_prompts": 16},
        "both": {"expert_prompts": 16, "latents": 64, "resampler_layers": 4},
    },
    "train": {**TRAIN, "epochs": 10},
}

ON_SIGNS = {
    **LAB,
    "task": "signs",
    "experts": ["obj_detection", "ocr_detection"],
    "count": {"train": 6000, "validation": 700, "test": 3000},  # scenes; two in nine have one sign
    "pmf": {
        "num_fusion_layers": 1,
        "query_context_prompts": 0,
        "fusion_context_prompts": 0,
        "mapping_width": 192,
    },
    "sizes": {
        "none": {},
        "resampler": {"latents": 16},
        "prompts": {"expert_prompts": 24},
        "both": {"expert_prompts": 4, "latents": 8},
    },
    "lrs": [5e-4, 1e-3],
    "train": {**TRAIN, "epochs": 6},
}

ON_SENTENCES = {
    **LAB,
    "task": "entailment",
    "experts": ["obj_detection", "seg_scenes"],
    "count": {"train": 2000, "validation": 200, "test": 1000},  # scenes
    "pmf": {"num_fusion_layers": 2, "mapping_width": 192},
    "sizes": {
        "none": {},
        "resampler": {"latents": 16},
        "prompts": {"expert_prompts": 4},
        "both": {"expert_prompts": 4, "latents": 6},
    },
    "lrs": [5e-4],
    "train": {**TRAIN, "epochs": 4},
}


def _recipe(name: str, title: str, lab: Settings, minutes: float) -> Recipe:
    """One task at its three scales."""
    return Recipe(
        name=name,
        title=title,
        chapter="05",
        scales={
            "smoke": {**lab, **SMOKE},
            "lab": lab,
            "paper": {**lab, **PAPER},
        },
        minutes={"smoke": 0.3, "lab": minutes, "paper": 3000},
        units=units,
        run_unit=run_unit,
        summarise=summarise,
        trials=len(lab["lrs"]),
    )


SIGNS = _recipe(
    "both-papers",
    "A word only an expert reads: by resampler, by prompts, by both, not at all",
    ON_SIGNS,
    40,
)
ENTAILMENT = _recipe(
    "both-papers-entailment",
    "Is it in the picture? Experts: by resampler, by prompts, by both, not at all",
    ON_SENTENCES,
    75,
)
