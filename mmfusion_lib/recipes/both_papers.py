"""Both papers together: words on signs reach a text by the resampler, by prompts, by both, or not at all.

Each scene has one sign. 'The sign says "taxi".': true or false? The word is too small for the image
encoder, so only an expert can know it: the map of ``ocr_detection``. 'Something is red.': true or false?
Only the picture can know that, as no map holds colours. Every sentence and every picture is true as
often as false, so a model of one modality is right half of the time. All ways train equally many
parameters (``expert_fusion.equalised``), on the same pairs in the same order.
"""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from .. import accounting, checkpoints, metrics, pair_training, scene_texts, train
from ..data import scene_presence, scenes
from ..data.pairs import Pairs
from ..data.scene_facts import Graph
from ..expert_fusion import ExpertFusionConfig, ExpertPMF, equalised
from ..expert_task import ExpertItems
from ..experts import tensors
from ..pmf import PMFConfig, PMFOutput
from ..records import spread
from ..runs import Recipe, Settings
from . import entailment
from . import fusion_common as common

MIB = 2**20
FAMILIES = ("word", "colour")
WORDINGS = ('The sign says "{0}".', 'The word on the sign is "{0}".')
COMPARED = (
    ("prompts", "resampler"),
    ("both", "resampler"),
    ("both", "prompts"),
    ("prompts", "none"),
    ("resampler", "none"),
)


# The data.


@lru_cache(maxsize=3)
def sign_table(split: str, count: int) -> Any:
    """Those of the first ``count`` scenes of a split that show exactly one sign."""
    table = scenes.load(split, count)
    signs = [len(_signs(json.loads(graph))) for graph in table["graph"]]
    return table.select([row for row, number in enumerate(signs) if number == 1])


def sentences(graphs: list[Graph], families: list[str], rounds: int) -> list[dict]:
    """Rows ``{"index", "hypothesis", "label", "type"}``: balanced claims about scenes with one sign.

    In each round and family, two scenes share two sentences, each true of one and false of the other.
    """
    rows = []
    if "word" in families:
        rng = random.Random("signs")
        said = [_signs(graph)[0] for graph in graphs]
        for _ in range(rounds):
            waiting = rng.sample(range(len(graphs)), len(graphs))
            while waiting:
                a = waiting.pop()
                b = next((i for i in reversed(waiting) if said[i] != said[a]), None)
                if b is None:
                    continue
                waiting.remove(b)
                for true, false in ((a, b), (b, a)):
                    text = rng.choice(WORDINGS).format(said[true])
                    for index, label in zip((true, false), scene_presence.LABELS):
                        rows.append(
                            {"index": index, "hypothesis": text, "label": label, "type": "word"}
                        )
    if "colour" in families:
        found = scene_presence.presence(graphs, rounds=rounds)
        rows += [row for row in found if row["type"] == "colour"]
    return sorted(rows, key=lambda row: row["index"])


@lru_cache(maxsize=12)
def sign_pairs(split: str, count: int, families: tuple[str, ...], rounds: int) -> Pairs:
    """The sentences of a split as pairs; ``groups`` are the scenes."""
    table = sign_table(split, count)
    rows = sentences([json.loads(graph) for graph in table["graph"]], list(families), rounds)
    pictures = table.cast_column("image", datasets.Image(decode=False))
    names = table["id"]
    return Pairs(
        pictures["image"][:],
        torch.tensor([row["index"] for row in rows]),
        [row["hypothesis"] for row in rows],
        torch.tensor([scene_presence.LABELS.index(row["label"]) for row in rows]),
        [names[row["index"]] for row in rows],
        scene_presence.LABELS,
    )


def _signs(graph: Graph) -> list[str]:
    """The words on a scene's signs."""
    return [item["word"] for item in graph["objects"] if item["word"]]


class ExpertPairs(Dataset):
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


def data(s: Settings, split: str, items: list[int] | None = None) -> ExpertPairs:
    """A split, ready to train on or to be tested on."""
    part = pairs(s, split)
    image, text = common.encoders(s)
    tokenizer = checkpoints.load_tokenizer(s["text_encoder"])
    depths = s["image_depth"], s["text_depth"]
    cached = pair_training.cache(
        image, text, part, common.transform(s), tokenizer, depths,
        max_length=s["max_length"], items=items,
    )  # fmt: skip
    return ExpertPairs(cached, maps(split, s["count"][split], tuple(s["experts"]), s["map_size"]))


@lru_cache(maxsize=3)
def maps(split: str, count: int, experts: tuple[str, ...], size: int) -> ExpertItems:
    """The experts' exact maps of the scenes of ``sign_table``, ``size`` pixels a side."""
    table = sign_table(split, count)
    batch = scene_texts.scene_batch(table, lambda picture: torch.zeros(1), experts, size=size)
    return ExpertItems(
        {name: batch[name] for name in experts}, torch.arange(len(table)), table["id"]
    )


def pairs(s: Settings, split: str) -> Pairs:
    """The sentences of a split."""
    return sign_pairs(split, s["count"][split], tuple(s["families"]), s["rounds"])


# Training and testing.


def units(s: Settings) -> list[str]:
    """A unit a way and seed, all ways for one seed before the next."""
    return [f"{seed}-{way}" for seed in s["seeds"] for way in s["ways"]]


def run_unit(s: Settings, unit: str) -> dict[str, Any]:
    """Train one way; test hits, also with the maps of other scenes; parameters and activations."""
    seed, _, way = unit.partition("-")
    model, result = trained(s, way, int(seed))
    test = data(s, "test")
    found = {"true maps": logits(model, test)}
    if way != "none":
        order = torch.randperm(len(test.maps), generator=torch.Generator().manual_seed(int(seed)))
        found["other maps"] = logits(model, ExpertPairs(test.pairs, test.maps.take(order)))
    return {
        "hits": {name: common.right(scores, test.labels) for name, scores in found.items()},
        "validation": [row["accuracy"] for row in result.validations],
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "activations": activations(model, test) / MIB,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
    }


def trained(s: Settings, way: str, seed: int) -> tuple[ExpertPMF, train.TrainResult]:
    """The model of one way, trained on the pairs that ``seed`` draws; its best epoch is kept."""
    held_out = data(s, "validation")
    model = build(s, way, seed)

    def validate(model: nn.Module) -> dict[str, float]:
        found = logits(model, held_out).argmax(1)
        return {"accuracy": metrics.accuracy(found, held_out.labels)}

    drawn = common.drawn(s, pairs(s, "train"), seed)
    config = train.TrainConfig(seed=seed, select="accuracy", **s["train"])
    return model, train.fit(model, data(s, "train", drawn), objective, config, validate=validate)


def build(s: Settings, way: str, seed: int) -> ExpertPMF:
    """The model of one way, as many parameters as the others; what trains is drawn from ``seed``."""
    image, text = common.encoders(s)
    fusion = s["pmf"]["num_fusion_layers"]
    for encoder, depth in ((image, s["image_depth"]), (text, s["text_depth"])):
        encoder.layers = encoder.layers[: depth + fusion]
    pmf = PMFConfig(len(scene_presence.LABELS), **s["pmf"])
    config = ExpertFusionConfig(pmf, way, tuple(s["experts"]), **s["sizes"])
    torch.manual_seed(seed)
    return ExpertPMF(image, text, equalised(config, image.config, text.config))


def outputs(model: ExpertPMF, batch: dict[str, Any]) -> PMFOutput:
    """Call the model on a batch of ``ExpertPairs``."""
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
    """Bytes that a training step keeps for one pair, the mean over a batch of ``count``."""
    device = next(model.parameters()).device
    batch = tensors.to(default_collate([items[i] for i in range(count)]), device)
    model.train()
    kept = accounting.saved_activation_bytes(lambda: outputs(model, batch).logits, [model])
    return kept / count


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of each way, in all and by family, its cost, and intervals over scenes and seeds."""
    groups = list(pairs(s, "test").groups)
    kinds = families(s, "test")
    runs = {way: [done[f"{seed}-{way}"] for seed in s["seeds"]] for way in s["ways"]}
    results, hits = {}, {}
    for way, found in runs.items():
        rows = hits[way] = common.hits([run["hits"]["true maps"] for run in found])  # (S, N)
        results[way] = spread(rows.double().mean(1).tolist())
        for kind in s["families"]:
            part = rows[:, [other == kind for other in kinds]]  # (S, N of this family)
            results[f"{way}-{kind}"] = spread(part.double().mean(1).tolist())
        if way != "none":
            rows = common.hits([run["hits"]["other maps"] for run in found])
            results[f"{way}-other-maps"] = spread(rows.double().mean(1).tolist())
        for name, unit in UNITS.items():
            results[f"{way}-{name}"] = spread([run[name] for run in found], unit)
    comparisons = {
        f"{a} - {b}": metrics.paired_bootstrap(hits[a], hits[b], groups)._asdict()
        for a, b in COMPARED
        if a in hits and b in hits
    }
    curves = {}
    for way, found in runs.items():
        rows = torch.tensor([run["validation"] for run in found])  # (S, epochs)
        curves[way] = {
            "x": list(range(1, rows.shape[1] + 1)),
            "mean": rows.mean(0).tolist(),
            "std": rows.std(0, correction=0).tolist(),
        }
    return {"results": results, "comparisons": comparisons, "curves": curves}
