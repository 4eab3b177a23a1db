"""Questions after captions: the captioners of ``prismer_captions`` learn nothing but answers for a while.

There, captions and answers are learnt together, and most types of questions stay near chance. The paper first learns
captions, then tunes the model to questions. Here the second step is done, with and without experts, on the
same questions again. The vision side stands still, where published tuning trains it too: so each picture's
tokens are computed once, and a step costs little. What is found is what the decoder can read off tokens
that were made for captions.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from .. import metrics, scene_captioner, settings, train
from ..data import subsets
from ..experts import tensors
from ..files import digest
from ..prismer import Prismer
from ..prismer_training import PrismerItems, text_loss
from ..records import cost, costs, spread
from ..runs import Recipe, Settings, code_digest
from ..trainable import freeze
from . import prismer_captions
from .prismer_captions import WAYS, answer, precision

PAIR = {way: WAYS[way] for way in ("prismer", "prismerz")}


class Asked:
    """Questions and answers about pictures that are encoded already, as training data.

    Args:
        items: questions.
        latents: (U, L, D) of ``Prismer.encode`` for the U pictures of ``items``.
    """

    def __init__(self, items: PrismerItems, latents: Tensor):
        self.items, self.latents = items, latents

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = self.items[i]
        del item["experts"]
        return {**item, "latents": self.latents[self.items.places[i]].float()}


def objective(model: Prismer, batch: dict[str, Tensor]) -> Tensor:
    """``text_loss`` of a batch of ``Asked``."""
    return text_loss(model, **batch)


def units(s: Settings) -> list[str]:
    """A unit a way and seed, all ways for one seed before the next."""
    return [f"{seed}-{way}" for seed in s["seeds"] for way in s["captions"]["ways"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Answers to the test questions before and after; the captioner is trained first where it is not kept."""
    seed, _, way = unit.partition("-")
    captions = s["captions"]
    model = captioner(captions, way, int(seed))
    chosen = captions["ways"][way]
    test, _, asked = prismer_captions.data(captions, "test", chosen)
    before = answer(captions, model, test, asked)
    items, graphs, known = prismer_captions.data(captions, "train", chosen)
    latents = encode(captions, model, items, len(graphs))
    drawn = subsets.stratified(
        [row["type"] for row in known], round(s["share"] * len(known)), int(seed)
    )
    learnt = Asked(items.take([len(graphs) + i for i in drawn]), latents)
    freeze(model.encoder)
    config = train.TrainConfig(seed=int(seed), **s["train"])
    result = train.fit(model, learnt, objective, config)
    return {
        "before": before,
        "after": answer(captions, model, test, asked),
        "loss": result.losses[-1],
        "steps": result.steps,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **cost(result),
    }


def captioner(captions: Settings, way: str, seed: int) -> Prismer:
    """The captioner of one way, with its weights in eight bits; trained and kept when first asked for."""
    key = digest(captions, code_digest(prismer_captions.RECIPE))[:8]
    path = settings.cache_root() / "weights" / f"captioner-{key}-{seed}-{way}"
    if not path.with_name(f"{path.name}-0.safetensors").exists():
        model, _ = prismer_captions.trained(captions, way, seed)
        scene_captioner.save(model, path)
    return scene_captioner.load(str(path), captions["ways"][way]["experts"])


@torch.no_grad()
def encode(captions: Settings, model: Prismer, items: PrismerItems, count: int) -> Tensor:
    """(count, L, D) bfloat16: the tokens of the first pictures of ``items``."""
    found = []
    model.eval()
    with precision(captions):
        for start in range(0, count, 64):
            batch = items.batch(range(start, min(start + 64, count)))
            found.append(model.encode(tensors.to(batch, settings.device())).bfloat16().cpu())
    return torch.cat(found)


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy before and after, by way and by type of question; paired intervals over scenes and seeds."""
    captions = s["captions"]
    _, _, asked = prismer_captions.data(captions, "test", WAYS["prismerz"])
    kinds: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(asked):
        kinds[row["type"]].append(number)
    results, hits = {}, {}
    for kind, numbers in kinds.items():
        columns = ([asked[n][name] for n in numbers] for name in ("question", "answer"))
        results[f"question alone-{kind}"] = spread([metrics.text_alone(*columns)], "bound")
    for way in captions["ways"]:
        runs = [done[f"{seed}-{way}"] for seed in s["seeds"]]
        for when in ("before", "after"):
            rows = [[a == row["answer"] for a, row in zip(run[when], asked)] for run in runs]
            found = hits[way, when] = torch.tensor(rows).double()  # (S, Q)
            results[f"{way}-{when}"] = spread(found.mean(1).tolist())
            for kind, numbers in kinds.items():
                results[f"{way}-{when}-{kind}"] = spread(found[:, numbers].mean(1).tolist())
        results[f"{way}-trainable"] = spread([runs[0]["trainable"]], "parameters")
        results |= costs(way, runs)
    groups = [row["scene"] for row in asked]
    pairs = {
        f"{way}: after - before": ((way, "after"), (way, "before")) for way in captions["ways"]
    }
    pairs["after: prismer - prismerz"] = ("prismer", "after"), ("prismerz", "after")
    comparisons = {
        name: metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
        for name, (a, b) in pairs.items()
    }
    return {"results": results, "comparisons": comparisons}


LAB = {
    "seeds": [0, 1, 2],
    "captions": {**prismer_captions.LAB, "ways": PAIR},
    "share": 0.9,  # of the training questions that each seed draws
    "train": {
        "epochs": 2,
        "batch_size": 32,
        "lr": 5e-4,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "precision": "bf16",
    },
}
SIZES = {name: prismer_captions.LAB[name] for name in ("image_layers", "text_layers")}

RECIPE = Recipe(
    name="prismer-answers",
    title="Questions after captions: Prismer and PrismerZ before and after",
    chapter="05",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "captions": {
                **prismer_captions.SMOKE,
                **SIZES,
                "ways": PAIR,
                "count": {"train": 100, "validation": 4, "test": 40},
                "questions": {"train": 16, "validation": 0, "test": 8},
            },
            "train": {**LAB["train"], "epochs": 1, "precision": "no"},
        },
        "lab": LAB,
        "paper": {**LAB, "captions": {**prismer_captions.PAPER, "ways": PAIR}},
    },
    minutes={"smoke": 1, "lab": 140, "paper": 20_000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
