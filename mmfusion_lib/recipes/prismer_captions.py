"""Captions of scenes and answers about them: Prismer against PrismerZ, and Prismer taken apart.

One model learns both tasks: to list what stands on the table, and to answer balanced questions, of which
the question alone gives nothing away. Prismer also reads six exact maps; a control of equal size reads the
same six for every picture. Captions are held against the scenes' graphs: are the things and colours true?
A quarter of all colours of things never occur in training: is a pink mug named that was never seen? Then
each expert is taken from the trained Prismer, one by one. A template that sees the true graph, with a
tenth of its facts replaced, says how good good is.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import product
from typing import Any

import torch

from .. import (
    caption_metrics,
    checkpoints,
    files,
    metrics,
    prismer_training,
    scene_captioner,
    scene_truth,
    settings,
    train,
)
from ..data import scene_tasks, scenes, subsets
from ..data.scene_objects import COLOURS, KINDS
from ..prismer import Prismer
from ..prismer_config import ENCODERS, SCENE_EXPERTS
from ..prismer_training import PrismerItems
from ..records import cost, costs, spread
from ..runs import Recipe, Settings
from ..scene_texts import SceneTalk, scene_items, talk_objective
from ..trainable import freeze

# Of a way: experts, what else of the model differs, what does not train, whether its maps are blank.
Way = dict[str, Any]


def way(experts: tuple[str, ...] = SCENE_EXPERTS, frozen: str = "", mode: str = "lang_vision",
        blank: bool = False, **changes: Any) -> Way:  # fmt: skip
    """One way.

    Args:
        experts: whose maps it reads.
        frozen: part of the names of parameters that do not train.
        mode: what else is frozen.
        blank: all pictures have the maps of one and the same training scene.
        changes: of ``PrismerConfig``.
    """
    return {
        "experts": experts, "changes": changes, "frozen": frozen, "mode": mode, "blank": blank
    }  # fmt: skip


# "blank" is Prismer in all but what it learns from maps: as many parameters, as much work.
WAYS = {
    "prismer": way(),
    "prismerz": way(()),
    "prismer-blank": way(blank=True),
}
KNOWN = frozenset(product(COLOURS, KINDS)) - scenes.HELD_OUT  # in training scenes, too
SHOWN = {  # of ``scene_truth.score``, with units
    **dict.fromkeys(("objects_f1", "colours_f1", "named_f1", "named_f1_mean"), "F1"),
    **dict.fromkeys(("objects_precision", "colours_precision", "counts_precision"), "precision"),
    **dict.fromkeys(("objects_recall", "colours_recall", "counts_recall"), "recall"),
    **dict.fromkeys(("counts_stated", "relations_stated", "words_stated"), "claims"),
    "hallucination": "share",
}


def units(s: Settings) -> list[str]:
    """A unit a way and seed, all ways for one seed before the next."""
    return [f"{seed}-{way}" for seed in s["seeds"] for way in s["ways"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one way; its captions of test scenes and its answers, also without each expert."""
    seed, _, name = unit.partition("-")
    model, result = trained(s, name, int(seed))
    chosen = s["ways"][name]
    experts = chosen["experts"]
    items, _, asked = data(s, "test", chosen)
    removed = {"all": ()}
    if s["take_away"] and experts and not chosen["blank"]:
        removed |= {expert: (expert,) for expert in experts} | {"any": experts}
    cases = {case: items.without(away) for case, away in removed.items()}
    if name == "prismer":
        file = f"scene-captioner-{files.digest(s)[:8]}-{seed}"
        scene_captioner.save(model, settings.cache_root() / "weights" / file, {"unit": unit})
    return {
        "captions": {case: write(s, model, each) for case, each in cases.items()},
        "answers": {case: answer(s, model, each, asked) for case, each in cases.items()},
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": result.losses[:: s["every"]],
        "validation": [row["loss"] for row in result.validations],
        **cost(result),
    }


def trained(s: Settings, name: str, seed: int) -> tuple[Prismer, train.TrainResult]:
    """The model of one way, trained on the subset that ``seed`` draws; its best epoch is kept."""
    model, chosen = build(s, name, seed), s["ways"][name]
    items, graphs, asked = data(s, "train", chosen)
    drawn = subsets.stratified([0] * len(graphs), round(s["share"] * len(graphs)), seed)
    learnt, loss = (
        (SceneTalk(items, drawn), talk_objective)
        if asked
        else (items.take(drawn), prismer_training.objective)
    )
    validation, *_ = data(s, "validation", chosen)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        return {"loss": prismer_training.mean_loss(model, validation, 64)}

    config = train.TrainConfig(seed=seed, select="loss", select_lowest=True, **s["train"])
    return model, train.fit(model, learnt, loss, config, validate=validate)


def build(s: Settings, name: str, seed: int) -> Prismer:
    """The model of one way before training."""
    chosen = s["ways"][name]
    model = scene_captioner.build(
        chosen["experts"], seed, image=s["image_layers"], text=s["text_layers"], **chosen["changes"]
    )
    if chosen["mode"] == "none":
        for layer in (*model.encoder.layers, *model.decoder.layers):
            layer.block.requires_grad_(True)
    parts = [part for key, part in model.named_modules() if key.endswith(chosen["frozen"])]
    for part in parts if chosen["frozen"] else ():
        freeze(part)
    return model


def data(s: Settings, split: str, chosen: Way) -> tuple[PrismerItems, list[dict], list[dict]]:
    """Captions and questions of a split with the maps of one way, the graphs, the questions."""
    items, graphs, asked = _loaded(split, s["count"][split], s["questions"][split])
    items = items.without([e for e in SCENE_EXPERTS if e not in chosen["experts"]])
    if chosen["blank"]:
        known, *_ = _loaded("train", s["count"]["train"], s["questions"]["train"])
        items = with_maps_of(items, known)
    return items, graphs, asked


def with_maps_of(items: PrismerItems, known: PrismerItems) -> PrismerItems:
    """The same items, each with the maps of the first picture of ``known`` in place of its own."""
    own = items.pictures.experts
    same = known.pictures.take([0] * len(own["rgb"])).experts
    return PrismerItems(
        {name: own[name] if name == "rgb" else same[name] for name in own},
        items.prompts,
        items.texts,
        items.tokenizer,
        items.groups,
        items.weights,
        rows=items.places,
    )


@lru_cache(maxsize=3)
def _loaded(split: str, count: int, limit: int) -> tuple[PrismerItems, list[dict], list[dict]]:
    image, text = ENCODERS["small"]
    given = checkpoints.image_transform(image, size=112), checkpoints.load_tokenizer(text)
    return scene_items(split, count, *given, SCENE_EXPERTS, limit=limit)


def write(s: Settings, model: Any, items: PrismerItems) -> list[str]:
    """Captions of the first test scenes by beam search, as published."""
    part = items.take(range(s["captioned"]))
    with precision(s):
        return prismer_training.captions(model, part, 64, num_beams=s["beams"])


def precision(s: Settings) -> torch.autocast:
    """The number format of training, for what is written and answered."""
    half = s["train"]["precision"] == "bf16"
    return torch.autocast(settings.device().type, torch.bfloat16, enabled=half)


def answer(s: Settings, model: Any, items: PrismerItems, asked: list[dict]) -> list[str]:
    """The best of all answers that the test questions have, for each question, by ranking."""
    if not asked:
        return []
    part = items.take(range(s["count"]["test"], len(items)))
    with precision(s):
        return prismer_training.answers(model, part, sorted({row["answer"] for row in asked}), 64)


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Truth of captions and answers by way; without each expert; paired intervals over scenes, seeds."""
    _, graphs, asked = _loaded("test", s["count"]["test"], s["questions"]["test"])
    graphs = graphs[: s["captioned"]]
    references = [scene_tasks.captions(graph) for graph in graphs]
    runs = {way: [done[f"{seed}-{way}"] for seed in s["seeds"]] for way in s["ways"]}
    cases = {
        way if case == "all" else f"without {case}": (rows, case)
        for way, rows in runs.items()
        for case in rows[0]["captions"]
    }
    written = {
        name: [run["captions"][case] for run in rows] for name, (rows, case) in cases.items()
    }
    written["template"] = [
        [scene_truth.template(graph, 0.1, seed) for graph in graphs] for seed in s["seeds"]
    ]
    results, f1, hits = {}, {}, {}
    for name, rows in written.items():
        judged = [scene_truth.score(texts, graphs) for texts in rows]
        for kind, unit in SHOWN.items():
            results[f"{name}-{kind}"] = spread([each[kind] for each in judged], unit)
        for kind, pairs in (("new", scenes.HELD_OUT), ("known", KNOWN)):
            found = [scene_truth.pair_recall(texts, graphs, pairs) for texts in rows]
            results[f"{name}-{kind}_pairs"] = spread(found, "recall")
        cider = [caption_metrics.cider(texts, references).corpus for texts in rows]
        results[f"{name}-cider"] = spread(cider, "CIDEr-D")
        f1[name] = torch.stack(
            [scene_truth.f1(scene_truth.truths(texts, graphs)) for texts in rows]
        )  # (S, N)
    kinds: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(asked):
        kinds[row["type"]].append(number)
    for name, (rows, case) in cases.items() if asked else ():
        said = [run["answers"][case] for run in rows]
        hits[name] = torch.tensor(
            [[a == row["answer"] for a, row in zip(each, asked)] for each in said]
        ).double()  # (S, Q)
        results[f"{name}-answers"] = spread(hits[name].mean(1).tolist())
        for kind, numbers in kinds.items():
            found = hits[name][:, numbers].mean(1).tolist()
            results[f"{name}-answers-{kind}"] = spread(found)
    for way, rows in runs.items():
        results[f"{way}-trainable"] = spread([rows[0]["trainable"]], "parameters")
        results |= costs(way, rows)
    first = next(iter(s["ways"]))
    scenes_of = [graph["id"] for graph in graphs], [row["scene"] for row in asked]
    comparisons = {
        f"{first} - {other}{what}": metrics.paired_bootstrap(
            values[first], values[other], groups
        )._asdict()
        for values, groups, what in ((f1, scenes_of[0], ""), (hits, scenes_of[1], " answers"))
        for other in values
        if other != first
    }
    return {
        "results": results,
        "comparisons": comparisons,
        "curves": {
            f"{way} loss": {
                "x": [s["every"] * i + 1 for i in range(len(rows[0]["losses"]))],
                "mean": torch.tensor([run["losses"] for run in rows]).mean(0).tolist(),
                "std": torch.tensor([run["losses"] for run in rows]).std(0, False).tolist(),
            }
            for way, rows in runs.items()
        },
    }


LAB = {
    "seeds": [0, 1, 2],
    "ways": WAYS,
    "take_away": True,
    "count": {"train": 5000, "validation": 100, "test": 500},
    "questions": {"train": 1500, "validation": 15, "test": 60},  # at most, of each type
    "captioned": 300,  # test scenes
    "share": 0.9,
    "image_layers": 8,
    "text_layers": 3,
    "beams": 3,
    "every": 25,
    "train": {
        "epochs": 2,
        "batch_size": 16,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "precision": "bf16",
    },
}
SMOKE = {
    **LAB,
    "seeds": [0],
    "count": {"train": 20, "validation": 4, "test": 4},
    "questions": {"train": 0, "validation": 0, "test": 0},
    "captioned": 4,
    "image_layers": 1,
    "text_layers": 1,
    "beams": 1,
    "every": 1,
    "train": {**LAB["train"], "epochs": 1, "batch_size": 8, "precision": "no"},
}
PAPER = {
    **LAB,
    "count": {"train": 60_000, "validation": 1000, "test": 5000},
    "questions": {"train": 15_000, "validation": 150, "test": 600},
    "captioned": 5000,
    "train": {**LAB["train"], "epochs": 10},
}

RECIPE = Recipe(
    name="prismer-captions",
    title="Captions of scenes and answers, held against the truth: Prismer and PrismerZ",
    chapter="05",
    scales={
        "smoke": {**SMOKE, "ways": {way: WAYS[way] for way in ("prismer", "prismerz")}},
        "lab": LAB,
        "paper": PAPER,
    },
    minutes={"smoke": 0.5, "lab": 110, "paper": 30_000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
