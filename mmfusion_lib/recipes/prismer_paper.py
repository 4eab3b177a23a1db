"""Prismer's four stages at full scale: pre-training on captions, then captions, questions, few shots.

Each is one command, such as ``python -m mmfusion_lib run prismer-coco --scale paper``, or the same behind
``accelerate launch``: a step, and the test, are then shared out over the processes. Several nodes need
``MMFUSION_DATA`` and ``MMFUSION_CACHE`` on a disk that all see. ``--seeds 0`` is one run, as published.

**Not run by us**: the scale ``paper`` of all four, since the data are not ours to hand on, anything on
several GPUs, and a start from an official file. The scale ``smoke`` runs the same code on a made tree of eight scenes.

Published: pixels, what is frozen, batch, epochs, rates, weight decay, warm-up in steps, AdamW, prompts,
beams, shortlists, label smoothing, no clipping. Ours differ: cosine to 0 a step (there to 1e-6 in
pre-training, and a step an epoch there and for questions); norms and biases do not decay; bf16, not fp16;
the last epoch is kept, none is chosen on test; two of the ten distortions (``prismer_paper_data``);
questions are trained without val, and scored on it, without the pictures of COCO's captions where the start
knows those. As published is ``protocol="server"``: trained on val, too, and the answers to the test
questions are written to a file for the server, so there is no accuracy. NoCaps without its references has
such a file, too. It lies beside the weights, in the cache below ``stages``. A rank of names does not tell two
classes of one name apart. LARGE is ``model="prismer-large"``; in pre-training its rate is 1e-4. An
interrupted run goes on with as many processes as before; one interrupted in its test has no throughput.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from .. import prismer_text, prismer_training, recompute, settings, train, trainable
from ..data import coco, imagenet, prismer_sets
from ..files import digest, sha256
from ..prismer import Prismer
from ..prismer_config import PAPER_EXPERTS, SCENE_EXPERTS
from ..records import spread
from ..runs import Recipe, Settings
from . import prismer_paper_data as data
from . import prismer_paper_start as start
from . import prismer_paper_tree
from .prismer_paper_score import UNITS, alone, processes, same_buffers, score

POINTS = 200  # of a recorded loss curve
COST = {  # name -> what it is of a unit, unit, and by what it is divided
    "trainable": ("trainable", "parameters", 1),
    "seconds": ("seconds", "seconds", 1),
    "samples-per-second": ("samples_per_second", "samples/s", 1),
    "data-wait": ("data_wait_share", "share", 1),
    "peak": ("peak_bytes", "GiB", 2**30),
}


def units(s: Settings) -> list[str]:
    """A unit a seed; in few-shot a unit a seed and number of shots."""
    if s["task"] != "names":
        return [f"{seed}" for seed in s["seeds"]]
    return [f"{seed}-{shots}" for seed in s["seeds"] for shots in s["shots"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train, leave the weights for later stages, test. Goes on where it was interrupted."""
    seed, _, shots = unit.partition("-")
    made = prismer_paper_tree.tree() if s["made"] else None
    root = prismer_sets.find_tree("coco", made, coco.LAYOUT)
    begin, labels = start.start_file(s), data.label_folder(s, root)
    rows, look = data.training(s, root, int(seed), int(shots or 0))
    tests = data.testing(s, root)
    names = imagenet.class_names(root) if s["task"] == "names" else []
    model, about = start.build(s, int(seed))

    def read(part: Any, **options: Any) -> data.PaperItems:
        spoken = {"prompt": s["prompt"], "names": [name.lower() for name in names]}
        return data.PaperItems(part, s["task"], model, labels, **spoken, **options)

    items = read(rows, crop=s["crop"], look=look)
    items.collate([items[0]])  # what is missing shows now, and not after days of training
    for part in tests.values():
        read(part, learn=False)[0]
    known = sha256(begin) if begin is not None and begin.is_file() else str(begin)
    folder = settings.cache_root() / "training" / s["name"] / digest(s, unit, known)
    result = fit(s, model, items, int(seed), folder)
    same_buffers(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    path = start.own_file(s, int(seed))
    if s["task"] != "names":
        alone(lambda: trainable.save_trainable(model, path, about))
    start.resize(model, s["test_pixels"])
    scores: dict[str, float] = {}
    for name, part in tests.items():
        file = path.with_name(f"{path.stem}.{name}.json")
        found = score(s, model, read(part, learn=False), root, file)
        scores |= {f"{name}-{key}": value for key, value in found}
    if s["task"] == "names":  # fifteen checkpoints would fill a disk, and nothing starts from them
        alone(lambda: shutil.rmtree(folder, ignore_errors=True))
    every = max(1, len(result.losses) // POINTS)
    curve = {"losses": result.losses[::every], "every": every}
    measured = ("seconds", "samples_per_second", "data_wait_share", "peak_bytes")
    cost = {"trainable": trained} | {name: getattr(result, name) for name in measured}
    return {"scores": scores, **curve, **cost}


def fit(
    s: Settings, model: Prismer, items: data.PaperItems, seed: int, folder: Path
) -> train.TrainResult:
    """One training run; a batch is cut into parts that fit a GPU, whatever the number of processes."""
    if s["recompute"]:
        recompute.recompute_layers(model)
    batch, epochs = s["train"]["batch_size"], s["train"]["epochs"]
    parts = max(1, batch // (processes().num_processes * s["together"]))
    steps = max(1, epochs * (len(items) // batch))
    warmup = min(s["warmup_steps"] / steps, 0.5)
    config = train.TrainConfig(seed=seed, accumulate=parts, warmup=warmup, **s["train"])
    loss = prismer_training.objective
    return train.fit(model, items, loss, config, folder=folder, collate=items.collate)


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Scores and cost; of few-shot for each number of shots."""
    results, curves = {}, {}
    for shots in s["shots"] if s["task"] == "names" else [None]:
        label = "" if shots is None else f"{shots}-shot-"
        runs = [done[f"{seed}" if shots is None else f"{seed}-{shots}"] for seed in s["seeds"]]
        for metric in runs[0]["scores"]:
            unit = UNITS[metric.split("-")[-1]]
            results[label + metric] = spread([run["scores"][metric] for run in runs], unit)
        for name, (key, unit, scale) in COST.items():
            results[label + name] = spread([run[key] / scale for run in runs], unit)
        losses = torch.tensor([run["losses"] for run in runs])  # (S, points)
        curves[f"{label}loss"] = {
            "x": [runs[0]["every"] * i + 1 for i in range(losses.shape[1])],
            "mean": losses.mean(0).tolist(),
            "std": losses.std(0, False).tolist(),
        }
    return {"results": results, "curves": curves}


_PAPER: Settings = {
    "seeds": [0, 1, 2],
    "made": False,
    "model": "prismer-base",
    "layers": None,  # all
    "experts": PAPER_EXPERTS,  # () is PrismerZ
    "labels": "labels",  # folder of label files below the data root
    "start": "prismer-pretrain",  # see prismer_paper_start
    "freeze": "vision",
    "pixels": 480,
    "test_pixels": 480,
    "crop": [0.5, 1.0],
    "prompt": "",
    "sources": ["coco"],  # lists of captions
    "shards": None,  # folder of shards below the data root, in place of the lists; read by number
    "shots": [],
    "together": 8,  # samples a GPU holds at a time, on 32 GiB
    "recompute": False,  # True: less memory, more time
    "warmup_steps": 0,
    "beams": 3,
    "shortlist": 16,
    "at_test": 32,  # samples at a time; chosen
    "train": {
        "epochs": 3,
        "batch_size": 256,
        "lr": 5e-5,
        "weight_decay": 0.05,
        "clip": None,
        "precision": "bf16",
        "checkpoint_every": 1000,  # chosen
        "workers": 8,  # chosen
    },
}
# A rehearsal of the same code on a made tree: pixels, blocks and batch are small.
_REHEARSAL: Settings = {
    "seeds": [0],
    "made": True,
    "model": "small",
    "layers": 1,
    "experts": SCENE_EXPERTS,
    "start": None,
    "pixels": 28,
    "together": 2,
    "shortlist": 3,
    "at_test": 2,
}


def recipe(name: str, title: str, minutes: float, train: Settings, **changes: Any) -> Recipe:
    """One of the four: ``train`` are fields of ``TrainConfig`` unlike those of the captions.

    ``minutes``, on two CPU cores, are a guess from shapes alone.
    """
    paper = {**_PAPER, "name": name, **changes, "train": {**_PAPER["train"], **train}}
    quick = {"epochs": 1, "batch_size": 4, "precision": "no", "workers": 0}
    few = {
        "shots": paper["shots"][1:2],
        "warmup_steps": min(1, paper["warmup_steps"]),
        "test_pixels": 28 if paper["test_pixels"] == paper["pixels"] else 56,
    }
    smoke = {**paper, **_REHEARSAL, **few, "train": {**paper["train"], **quick}}
    return Recipe(
        name=name,
        title=title,
        chapter="05",
        scales={"smoke": smoke, "paper": paper},
        minutes={"smoke": 0.3, "paper": minutes},
        units=units,
        run_unit=run_unit,
        summarise=summarise,
    )


# Tested as published for "zero-shot" captions: larger pictures, no prompt. Prompt and seed: chosen.
PRETRAIN = recipe(
    "prismer-pretrain",
    "Prismer: pre-training on captions of COCO, Visual Genome, CC3M, SBU and CC12M",
    10_000_000,
    {"epochs": 20, "batch_size": 1024, "lr": 3e-4},
    task="captions",
    seeds=[0],
    start=None,
    freeze="lang_vision",
    pixels=224,
    crop=[0.5, 1.5],
    sources=["coco", "vg", "cc3m_sbu", "cc12m"],
    together=32,
    warmup_steps=2000,
)
COCO = recipe(
    "prismer-coco",
    "Prismer: captions of COCO, tested on COCO and NoCaps",
    800_000,
    {},
    task="captions",
    prompt=prismer_text.CAPTION_PROMPT,
    together=4,
)
VQA = recipe(
    "prismer-vqa",
    "Prismer: questions of VQAv2 and Visual Genome",
    9_000_000,
    {"epochs": 10, "batch_size": 512},
    task="answers",
    protocol="local",  # or "server", as published: see above
)
IMAGENET = recipe(
    "prismer-imagenet",
    "Prismer: ImageNet from 1 to 16 shots",
    200_000,
    {"epochs": 20, "batch_size": 64},
    task="names",
    pixels=384,
    test_pixels=384,
    shots=[1, 2, 4, 8, 16],
    together=2,
    shortlist=32,
)
