"""Captions of textbook figures: PrismerZ learns the alternative texts.

The texts are cut to 32 tokens: ``figures_captions_data`` says how, and how many.

Five ways are held against the cut texts of the same test figures: "prismerz"; "exchanged", its texts, each
written for another test figure, so that only what is true of all figures can match; "nearest", the text of
the training figure nearest in the frozen encoder's readout; "common", the one training text that shares
most words with others; "zero-shot", what the published captioner of scenes, which never saw a figure, writes
of the picture alone, without label maps. Intervals draw whole textbook sections. A twin that trains with
exchanged pictures was tried with one seed and left out: it stayed at the frequencies of words, so to beat it
shows little.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from .. import (
    caption_metrics,
    checkpoints,
    metrics,
    prismer_training,
    records,
    runs,
    scene_captioner,
    settings,
    train,
)
from ..data import figures, subsets
from ..features import extract
from ..files import read_json, write_json
from ..prismer import load_prismer
from ..prismer_config import MODELS
from ..prismer_text import CAPTION_PROMPT
from ..records import spread
from ..runs import Recipe, Settings
from ..trainable import freeze
from .figures_captions_data import IMAGE, exchange, images, items, medoid, part

ZERO_SHOT = "zero-shot"


def units(s: Settings) -> list[str]:
    """A unit a seed and way, and one that has no seed."""
    return [*(f"{seed}-{way}" for seed in s["seeds"] for way in s["ways"]), ZERO_SHOT]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """The texts that one way gives the test figures, and how its training went."""
    if unit == ZERO_SHOT:
        return {"texts": _zero_shot(s)}
    seed, _, way = unit.partition("-")
    learnt, test = part(s, "train"), part(s, "test")
    count = len(learnt.texts)
    chosen = subsets.stratified([0] * count, round(s["share"] * count), int(seed))
    if way == "prismerz":
        return _trained(s, chosen, int(seed))
    if way == "common":
        return {"texts": [medoid([learnt.texts[row] for row in chosen])] * len(test.texts)}
    likeness = readouts(s, "test") @ readouts(s, "train")[chosen].T  # (N, R) @ (R, K) -> (N, K)
    return {"texts": [learnt.texts[chosen[best]] for best in likeness.argmax(1).tolist()]}


def _trained(s: Settings, chosen: list[int], seed: int) -> dict[str, Any]:
    small = MODELS["small"]
    model = load_prismer(
        "small",
        seed=seed,
        experts=(),
        image=replace(small.image, depth=s["image_layers"]),
        text=replace(small.text, depth=s["text_layers"]),
        image_size=s["image_size"],
        adaptor_near_zero=True,
    )
    # As in the captioner of scenes: at this rate these would unlearn what they know.
    for piece in (model.decoder.words, model.encoder.patch, model.encoder.norm):
        freeze(piece)
    model.encoder.positions.requires_grad_(False)
    held_out, test = (
        items(s, split, list(range(len(part(s, split).texts)))) for split in ("validation", "test")
    )

    def validate(model: torch.nn.Module) -> dict[str, float]:
        return {"loss": prismer_training.mean_loss(model, held_out, 64)}

    config = train.TrainConfig(seed=seed, select="loss", select_lowest=True, **s["train"])
    data = items(s, "train", chosen)
    result = train.fit(model, data, prismer_training.objective, config, validate=validate)
    length = s["tokens"] + 2  # and both marks
    return {
        "texts": prismer_training.captions(
            model, test, 64, num_beams=s["beams"], max_length=length
        ),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": result.losses[:: s["every"]],
        "validation": [row["loss"] for row in result.validations],
        **records.cost(result),
    }  # fmt: skip


def _zero_shot(s: Settings) -> list[str]:
    """What the captioner of scenes writes, as it writes of scenes, from the picture alone."""
    model = scene_captioner.load().to(settings.device())
    s = {**s, "image_size": model.config.image_size}
    test = items(s, "test", list(range(len(part(s, "test").texts))), CAPTION_PROMPT)
    return prismer_training.captions(model, test, 64, num_beams=s["beams"])


def readouts(s: Settings, split: str) -> torch.Tensor:
    """(N, R) of the frozen encoder, CLS and mean patch, each row of length 1."""
    depth = s["image_layers"]
    encoder = checkpoints.load_image_encoder(IMAGE, depth=depth)
    found = extract(encoder, images(s, split), depths=[depth], pool="readout", dtype="float32")
    return normalize(found[depth].values, dim=1)


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Likeness to the cut alternative texts by way; paired intervals over sections and seeds."""
    test = part(s, "test")
    references = [[text] for text in test.texts]
    results, cider, curves = {}, {}, {}
    first = s["ways"][0]
    found = {way: [done[f"{seed}-{way}"] for seed in s["seeds"]] for way in s["ways"]}
    found["exchanged"] = [
        {"texts": [row["texts"][giver] for giver in exchange(len(test.texts), seed)]}
        for seed, row in zip(s["seeds"], found[first])
    ]
    found[ZERO_SHOT] = [done[ZERO_SHOT]]
    for way, rows in found.items():
        texts = [row["texts"] for row in rows]
        scores = [caption_metrics.cider(each, references) for each in texts]
        cider[way] = torch.stack([score.items for score in scores])  # (S, N)
        bleu = [caption_metrics.bleu(each, references)[3].corpus for each in texts]
        rouge = [caption_metrics.rouge_l(each, references).corpus for each in texts]
        results[f"{way}-cider"] = spread([score.corpus for score in scores], "CIDEr-D")
        results[f"{way}-bleu4"] = spread(bleu, "BLEU-4")
        results[f"{way}-rouge"] = spread(rouge, "ROUGE-L")
        different = [len(set(each)) / len(each) for each in texts]
        results[f"{way}-different"] = spread(different, "share")
        if "losses" not in rows[0]:
            continue
        results[f"{way}-trainable"] = spread([row["trainable"] for row in rows], "parameters")
        results |= records.costs(way, rows)
        lowest = [min(row["validation"]) for row in rows]
        results[f"{way}-validation"] = spread(lowest, "nats a text")
        for name, every in (("losses", s["every"]), ("validation", 1)):
            values = torch.tensor([row[name] for row in rows])  # (S, T)
            curves[f"{way} {name}"] = {
                "x": [every * place + 1 for place in range(values.shape[1])],  # steps, or epochs
                "mean": values.mean(0).tolist(),
                "std": values.std(0, correction=0).tolist(),
            }
    comparisons = {
        f"{first} - {way}": metrics.paired_bootstrap(
            cider[first], cider[way].expand_as(cider[first]), test.sections
        )._asdict()
        for way in found
        if way != first
    }
    return {"results": results, "comparisons": comparisons, "curves": curves}


def examples(s: Settings, done: dict[str, Any], each: int = 3) -> dict[str, list[dict[str, Any]]]:
    """The best, median and worst texts of "prismerz" by CIDEr-D, of the first seed, with ``credit``.

    Chosen by nothing else; equal ones in the order of the test figures.
    """
    test, seed = part(s, "test"), s["seeds"][0]
    written, nearest = (done[f"{seed}-{way}"]["texts"] for way in ("prismerz", "nearest"))
    scores = caption_metrics.cider(written, [[text] for text in test.texts]).items
    order = scores.sort(descending=True, stable=True).indices.tolist()
    middle = (len(order) - each) // 2
    places = {"best": order[:each], "median": order[middle:][:each], "worst": order[-each:]}
    return {
        name: [
            {
                "id": test.rows[row]["source"],
                "alt": test.texts[row],
                "written": written[row],
                "nearest": nearest[row],
                "cider": scores[row].item(),
                "credit": figures.credit_line(test.rows[row]),
            }
            for row in rows
        ]
        for name, rows in places.items()
    }


def write_examples(scale: str = "lab", path: Path | None = None) -> Path:
    """Write ``examples`` of a finished run, whose units lie in the cache, beside the book's records."""
    s = RECIPE.scales[scale]
    folder = runs.unit_folder(RECIPE, scale, s)
    done = {name: read_json(folder / f"{name}.json")["result"] for name in units(s)}
    path = path or records.results_root() / "examples" / f"{RECIPE.name}.json"
    write_json(path, examples(s, done))
    return path


LAB = {
    "seeds": [0, 1, 2],
    "ways": ["prismerz", "nearest", "common"],
    "count": {"train": None, "validation": 200, "test": 400},
    "share": 0.9,
    "tokens": 32,
    "image_layers": 8,
    "image_size": 112,
    "text_layers": 6,
    "beams": 3,
    "every": 25,
    "train": {
        "epochs": 3,
        "batch_size": 16,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "precision": "bf16",
    },
}

RECIPE = Recipe(
    name="figures-captions",
    title="Captions of textbook figures: PrismerZ, the same with exchanged pictures, nearest texts",
    chapter="05",
    scales={
        "smoke": {
            **LAB,
            "seeds": [0],
            "count": {"train": 60, "validation": 8, "test": 4},
            "image_layers": 2,
            "text_layers": 1,
            "beams": 1,
            "every": 1,
            "train": {**LAB["train"], "epochs": 1, "batch_size": 16, "precision": "no"},
        },
        "lab": LAB,
        "paper": {  # whole encoders at a larger size, all test figures
            **LAB,
            "count": {"train": None, "validation": None, "test": None},
            "image_layers": 12,
            "image_size": 224,
            "train": {**LAB["train"], "epochs": 12},
        },
    },
    minutes={"smoke": 0.4, "lab": 30, "paper": 2000},
    units=units,
    run_unit=run_unit,
    summarise=summarise,
)
