"""Speed of training Prismer small with six label maps on captions of scenes: a step, and reading files.

training-step  our step against a straightforward one, in turns: semantic maps painted with 64-wide vectors
               on the host, item by item, as the official loader does; attention written out, with its matrix
               of weights kept; the vocabulary compared at every place, padding included; float32. Ours:
               integer maps, PyTorch's fused attention, logits only where something is learnt, and
               ``precision``: bfloat16, unless a processor emulates it and is slow in it. Both take the same
               items from memory, prepare them in the step, and must find the same loss. On a CPU: one
               thread, and the clock is the processor time of this process.
reading        pictures (JPEG) and label maps (PNG, JSON) in a folder, opened by one loader process while
               another trains on one thread: two cores. The share of the training time that was spent
               waiting for data, by the wall clock. The system keeps the new files in memory, so opening
               and decoding counts, and the disk does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import default_collate

from .. import scene_texts, settings, train
from ..caption_items import CaptionItems, Pictures
from ..data import scenes
from ..data.caption_table import Row
from ..experts import from_scenes, painting, tensors
from ..experts.labels import write_labels
from ..prismer import Prismer, load_prismer
from ..prismer_config import MODELS, SCENE_EXPERTS
from ..prismer_training import objective
from ..records import spread
from ..runs import Settings

UNITS = ("training-step", "reading")
CLOSE = {"no": 1e-4, "bf16": 0.02}  # greatest relative difference of the two losses
OTHERS = {"data-wait": "share", "ratio": "ratio"}  # units of what is no rate


def run_unit(s: Settings, unit: str) -> dict[str, list[float]]:
    """Numbers by name, round after round."""
    part = s[unit]
    with one_thread():
        model = _model(part)
        return steps(part, model) if unit == "training-step" else reading(part, model)


def summarise(done: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Spread over the rounds, of the units that are these."""
    return {
        f"{unit}-{what}": spread(values, OTHERS.get(what, "samples per second"))
        for unit in UNITS
        for what, values in done[unit].items()
    }


def steps(s: Settings, model: Prismer) -> dict[str, list[float]]:
    """Samples a second of the straightforward step and of ours, in turns, and their ratio.

    Raises:
        AssertionError: the two found different losses.
    """
    device = settings.device()
    model.to(device).eval()  # no dropout: both losses must agree
    data, _ = scene_texts.caption_items(
        "validation", s["batch"], model.transform, model.tokenizer, SCENE_EXPERTS
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)  # the work of a step, the same weights after it

    def step(
        loss: Callable[..., Tensor], prepare: Callable[[dict], dict], precision: str
    ) -> tuple[float, float]:
        """Samples a second, and the loss."""
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        batch = default_collate([prepare(data[i]) for i in range(len(data))])
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(model, tensors.to(batch, device))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        found = float(value.detach())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return len(data) / (clock() - start), found

    def straightforward() -> tuple[float, float]:
        with written_out():
            return step(plain_loss, painted, "no")

    def ours() -> tuple[float, float]:
        return step(objective, lambda item: item, s["precision"])

    straightforward(), ours()  # warm up
    rounds = [(straightforward(), ours()) for _ in range(s["rounds"])]
    for (_, expected), (_, found) in rounds:
        if abs(found - expected) > CLOSE[s["precision"]] * abs(expected):
            raise AssertionError(f"the two ways found different losses: {expected}, {found}")
    slow, fast = ([pair[way][0] for pair in rounds] for way in (0, 1))
    return {"straightforward": slow, "ours": fast, "ratio": [b / a for a, b in zip(slow, fast)]}


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(QK^T / sqrt(d)) V, step by step; arguments as PyTorch's fused one has them."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, N, M)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return torch.dropout(scores.softmax(-1), dropout_p, True) @ value


@contextmanager
def written_out() -> Iterator[None]:
    """Attention step by step, wherever the library asks for PyTorch's."""
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield


def painted(item: dict[str, Any]) -> dict[str, Any]:
    """The semantic maps of one item, painted on the host: (64, h, w) each, channel after channel."""

    def paint(value: dict[str, Tensor]) -> Tensor:
        return painting.paint({k: v[None] for k, v in value.items()})[0].contiguous()

    maps = dict(item["experts"])
    detection = maps["obj_detection"]
    maps["obj_detection"] = {**detection, "label": paint(detection["label"])}
    maps |= {name: paint(maps[name]) for name in ("seg_scenes", "ocr_detection")}
    return {**item, "experts": maps}


def plain_loss(model: Prismer, batch: dict[str, Any]) -> Tensor:
    """The loss as the paper writes it: everything computed, then masked."""
    latents = model.encode(batch["experts"])
    return model.decode(batch["ids"], batch["mask"], latents, batch["labels"]).loss.mean()


def reading(s: Settings, model: Prismer) -> dict[str, list[float]]:
    """Samples a second of training on files, and the share of waiting; an epoch a round."""
    with TemporaryDirectory() as folder:
        pictures, labels = Path(folder, "pictures"), Path(folder, "labels")
        rows = write_scenes(s["scenes"], s["pixels"], pictures, labels)
        looks = {row.image: row.image for row in rows}  # no training goes on from here
        items = CaptionItems(rows, Pictures(model, pictures, labels), model, looks)
        found = []
        for number in range(s["rounds"]):
            config = train.TrainConfig(
                1, s["batch"], precision=s["precision"], seed=number, workers=s["workers"]
            )
            found.append(train.fit(model, items, objective, config, collate=items.collate))
    return {
        "rate": [result.samples_per_second for result in found],
        "data-wait": [result.data_wait_share for result in found],
    }


def write_scenes(count: int, pixels: int, pictures: Path, labels: Path) -> list[Row]:
    """Write training scenes of so many pixels a side as pictures with label files.

    Returns:
        The table of their captions.
    """
    from PIL import Image

    pictures.mkdir()
    rows = []
    for row in scenes.load("train", count, size=pixels):
        scene = scenes.decode(row)
        name = f"{row['id']}.jpg"
        Image.fromarray(scene.image).save(pictures / name, quality=95)
        for label in from_scenes.from_scene(scene).values():
            write_labels(labels, label, name)
        rows.append(Row(name, "", scene_texts.listing(scene.graph), name))
    return rows


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's work on one thread, so that processor time is that of the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _model(s: Settings) -> Prismer:
    small = MODELS["small"]
    image, text = s["depth"]
    return load_prismer(
        "small", image=replace(small.image, depth=image), text=replace(small.text, depth=text)
    )


_COMMON = {"batch": 16, "rounds": 3, "precision": "bf16", "depth": [8, 6]}  # as "small" has
LAB = {
    "training-step": {**_COMMON, "rounds": 5},
    "reading": {**_COMMON, "scenes": 224, "pixels": 224, "workers": 1},
}
GPU = {**LAB, "reading": {**LAB["reading"], "workers": 8}}
_QUICK = {"batch": 4, "rounds": 1, "precision": "no", "depth": [1, 1]}
SMOKE = {
    "training-step": {**LAB["training-step"], **_QUICK},
    "reading": {**LAB["reading"], **_QUICK, "scenes": 8, "pixels": 112},
}
