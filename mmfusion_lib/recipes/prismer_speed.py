"""Speed of Prismer's language side, and the bytes of a batch, against the published way; and of training.

Sizes of Prismer base: RoBERTa-base made causal, 260 vision tokens of width 768, random weights.

captions   beam search (3) to 20 tokens after a prompt of 4: our cache, against running the whole
           prefix at every step and projecting the vision tokens of every beam to keys and values
           again. Both run the head at the last place only, and must find the same texts.
           With one picture a CPU spends most of a cached step on reading the weights from memory,
           for three tokens: the ratio is smaller there, and grows with the batch.
ranking    1,000 answers of 2 to 4 tokens behind a question of 12: our tree, against one text for
           each answer, 10 at a time, measured on some of them and scaled by their number.
bytes      a batch of 8 pictures with six label maps at 224 pixels: integer maps and tables, against
           painted float maps. Counted, not timed.

Two more units are about training Prismer small: see ``prismer_speed_training``.

On a CPU the clock is the processor time of this process, so that other work on the machine does not
count; on a GPU it is the wall. "Published" is our own code in the order of work that the facts
describe, not the official code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import settings
from ..decoder import Decoder, loss
from ..encoders import CONFIGS, build_encoder
from ..experts.tensors import host_bytes
from ..generate import generate
from ..rank import rank
from ..records import spread
from ..runs import Recipe, Settings
from . import prismer_speed_training as training

LATENTS, WIDTH, BEAMS, LENGTH, PROMPT = 260, 768, 3, 20, 4
QUESTION, TOGETHER = 12, 10
EOS, PAD = 2, 1
UNITS = {"captions": "tokens per second", "ranking": "answers per second", "bytes": "MB"}


def units(s: Settings) -> list[str]:
    """Captions by batch, ranking, bytes."""
    return [*(f"captions-{batch}" for batch in s["batches"]), "ranking", "bytes"]


def all_units(s: Settings) -> list[str]:
    """And those of training."""
    return [*units(s), *training.UNITS]


def run_unit(s: Settings, unit: str) -> dict[str, list[float]]:
    """Published way, ours and their ratio, run after run."""
    if unit in training.UNITS:
        return training.run_unit(s, unit)
    kind, _, batch = unit.partition("-")
    if kind == "bytes":
        return megabytes(8)
    device = settings.device()
    torch.manual_seed(0)
    config = replace(CONFIGS["roberta-base"], **s["changes"])
    decoder = Decoder(build_encoder(config), WIDTH)
    decoder = decoder.to(device, getattr(torch, s["dtype"])).eval()
    latents = torch.randn(int(batch or 1), LATENTS, WIDTH).to(device, decoder.words.weight.dtype)
    if kind == "captions":
        return captions(decoder, latents, s["repeats"])
    return ranking(decoder, latents, s["answers"], s["measured"], s["repeats"])


def summarise(s: Settings, done: dict[str, Any]) -> dict[str, Any]:
    """Spread over the runs."""
    results = {}
    for name in units(s):
        unit = UNITS[name.partition("-")[0]]
        for which, values in done[name].items():
            results[f"{name}-{which}"] = spread(values, "ratio" if which == "ratio" else unit)
    return {"results": results | training.summarise(done)}


@dataclass
class _Texts:
    """What the published way keeps: the words, and the vision tokens of every text."""

    latents: Tensor
    ids: Tensor | None = None

    def select(self, rows: Tensor, images: Tensor | None = None) -> _Texts:
        beams = len(rows) // len(self.latents if images is None else images)
        kept = self.latents if images is None else self.latents[images]
        return _Texts(kept.repeat_interleave(beams, 0) if beams > 1 else kept, self.ids[rows])


class Rerun:
    """A ``Decoder`` for ``generate`` without a cache: each step computes everything again."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.config, self.logits = decoder, decoder.config, decoder.logits

    def start(self, latents: Tensor) -> _Texts:
        return _Texts(latents)

    def advance(self, ids: Tensor, texts: _Texts, mask: Tensor | None = None) -> Tensor:
        texts.ids = ids if texts.ids is None else torch.cat([texts.ids, ids], dim=1)
        return self.decoder.advance(texts.ids, self.decoder.start(texts.latents))


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, result


def each(work: Callable[[], Any], repeats: int, device: torch.device) -> tuple[list[float], Any]:
    """Seconds of some runs, after one that is not counted, and the last result."""
    work()
    runs = [seconds(work, device) for _ in range(repeats)]
    return [taken for taken, _ in runs], runs[-1][1]


def captions(decoder: Decoder, latents: Tensor, repeats: int) -> dict[str, list[float]]:
    """Tokens a second: run after run, the published way beside ours."""
    device = latents.device
    draw = torch.Generator().manual_seed(0)
    high = decoder.config.vocab_size
    prompt = torch.randint(3, high, (len(latents), PROMPT), generator=draw).to(device)
    options = {"num_beams": BEAMS, "max_length": LENGTH, "min_length": LENGTH, "eos_id": EOS}
    ours, texts = each(lambda: generate(decoder, latents, prompt, **options), repeats, device)
    plain, same = each(
        lambda: generate(Rerun(decoder), latents, prompt, **options), repeats, device
    )
    if decoder.words.weight.dtype == torch.float32 and not torch.equal(texts, same):
        raise AssertionError("the two ways wrote different texts")
    tokens = len(latents) * (LENGTH - PROMPT)
    return _rates([tokens / taken for taken in plain], [tokens / taken for taken in ours])


def made_answers(count: int, high: int) -> list[list[int]]:
    """Distinct answers; a few first words begin many of them, as colours and numbers do.

    Args:
        count: of answers.
        high: the vocabulary.
    """
    draw = torch.Generator().manual_seed(0)
    firsts = 1 / torch.arange(1, min(601, high // 4)).float()  # Zipf's law
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        first = 3 + int(torch.multinomial(firsts, 1, generator=draw))
        more = torch.randint(high // 4, high, (3,), generator=draw).tolist()
        length = int(torch.multinomial(torch.tensor([0.5, 0.35, 0.15]), 1, generator=draw))
        found[(first, *more[:length], EOS)] = None
    return [list(answer) for answer in found]


def ranking(
    decoder: Decoder, latents: Tensor, count: int, measured: int, repeats: int
) -> dict[str, list[float]]:
    """Answers a second for one picture: ``count`` in a tree, against ``measured`` of them in tens."""
    device, answers = latents.device, made_answers(count, decoder.config.vocab_size)
    question = torch.arange(3, 3 + QUESTION, device=device)[None]  # (1, QUESTION)
    few = answers[:: count // measured]

    @torch.no_grad()
    def one_by_one() -> Tensor:
        scores = []
        for begin in range(0, len(few), TOGETHER):
            part = few[begin : begin + TOGETHER]
            width = max(len(answer) for answer in part)
            new = torch.tensor([a + [PAD] * (width - len(a)) for a in part], device=device)
            ids = torch.cat([question.expand(len(part), -1), new], dim=1)
            labels = ids.masked_fill(ids == PAD, -100)
            labels[:, :QUESTION] = -100
            logits = decoder(ids, latents[:1].expand(len(part), -1, -1), (ids != PAD).long())
            scores.append(-loss(logits, labels) / (labels >= 0).sum(1))
        return torch.cat(scores)

    ours, scores = each(lambda: rank(decoder, latents[:1], question, answers), repeats, device)
    plain, expected = each(one_by_one, repeats, device)
    if decoder.words.weight.dtype == torch.float32:
        torch.testing.assert_close(scores[0, :: count // measured], expected, atol=1e-3, rtol=1e-4)
    return _rates([len(few) / taken for taken in plain], [count / taken for taken in ours])


def megabytes(images: int) -> dict[str, list[float]]:
    """Of a batch with six label maps: painted, and integers with tables of 133, 722, 8 rows."""
    plane = (images, 224, 224)

    def maps(kind: torch.dtype) -> dict[str, Tensor]:
        channels = {"depth": 1, "edge": 1, "normal": 3}
        return {n: torch.empty(images, c, 224, 224, dtype=kind) for n, c in channels.items()}

    def ids(*table: int) -> dict[str, Tensor]:
        return {"ids": torch.empty(plane, dtype=torch.uint8), "table": torch.empty(*table, 64)}

    rgb = {"rgb": torch.empty(images, 3, 224, 224)}
    instance = torch.empty(images, 1, 224, 224, dtype=torch.uint8)
    painted = torch.empty(images, 64, 224, 224)
    theirs = {
        **rgb, **maps(torch.float32), "seg_coco": painted, "ocr_detection": painted,
        "obj_detection": {"label": painted, "instance": instance},
    }  # fmt: skip
    ours = {
        **rgb, **maps(torch.uint8), "seg_coco": ids(133), "ocr_detection": ids(images, 8),
        "obj_detection": {"label": ids(722), "instance": instance},
    }  # fmt: skip
    big, small = host_bytes(theirs) / 1e6, host_bytes(ours) / 1e6
    return {"published": [big], "ours": [small], "ratio": [big / small]}


def _rates(published: list[float], ours: list[float]) -> dict[str, list[float]]:
    ratio = [b / a for a, b in zip(published, ours)]
    return {"published": published, "ours": ours, "ratio": ratio}


_LAB = {
    "seeds": [],  # random weights, always the same
    "batches": [1, 4],
    "changes": {},
    "dtype": "float32",
    "answers": 1000,
    "measured": 20,
    "repeats": 3,
    **training.LAB,
}

RECIPE = Recipe(
    name="prismer-speed",
    title="Speed of writing, ranking and training, and bytes of a batch",
    chapter="05",
    scales={
        "smoke": {
            **_LAB,
            "batches": [1],
            "changes": {"depth": 1, "width": 64, "heads": 2, "mlp_width": 64, "vocab_size": 200},
            "answers": 40,
            "measured": 20,
            "repeats": 1,
            **training.SMOKE,
        },
        "lab": _LAB,
        "paper": {**_LAB, "batches": [1, 4, 32], "dtype": "bfloat16", **training.GPU},
    },
    minutes={"smoke": 0.3, "lab": 8, "paper": 8},
    units=all_units,
    run_unit=run_unit,
    summarise=summarise,
)
