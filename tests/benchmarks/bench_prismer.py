"""Speed of Prismer's language side, and the bytes of a batch, against the published way.

    python tests/benchmarks/bench_prismer.py [--batch 4] [--threads 1] [--precision no]

Sizes of Prismer base: RoBERTa-base made causal, 260 vision tokens of width 768, random weights.

captions   beam search (3) to 20 tokens after a prompt of 4: our cache, against running the whole
           prefix at every step and projecting the vision tokens of every beam to keys and values
           again. Both run the head at the last place only, and must find the same texts.
           With one picture a CPU spends most of a cached step on reading the weights from memory,
           for three tokens: the ratio is smaller there, and grows with the batch.
ranking    1,000 answers of 2 to 4 tokens behind a question of 12: our tree, against one text for
           each answer, 10 at a time, measured on 20 of them and scaled by their number.
bytes      a batch of pictures with six label maps at 224 pixels: integer maps and tables, against
           painted float maps. Counted, not timed.

On a CPU the clock is the processor time of this process, so that other work on the machine does not
count; on a GPU it is the wall. The exit status is 1 when a ratio is below the project's target.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfusion_lib import settings
from mmfusion_lib.decoder import Decoder, loss
from mmfusion_lib.encoders import build_encoder
from mmfusion_lib.experts.tensors import host_bytes
from mmfusion_lib.generate import generate
from mmfusion_lib.rank import rank

LATENTS, WIDTH, BEAMS, LENGTH, PROMPT = 260, 768, 3, 20, 4
ANSWERS, QUESTION, MEASURED, TOGETHER = 1000, 12, 20, 10
EOS, PAD = 2, 1
TARGETS = {"captions": 5.0, "ranking": 5.0, "bytes": 20.0}


@dataclass
class Texts:
    """What the published way keeps: the words, and the vision tokens of every text."""

    latents: Tensor
    ids: Tensor | None = None

    def select(self, rows: Tensor, images: Tensor | None = None) -> Texts:
        beams = len(rows) // len(self.latents if images is None else images)
        kept = self.latents if images is None else self.latents[images]
        return Texts(kept.repeat_interleave(beams, 0) if beams > 1 else kept, self.ids[rows])


class Rerun:
    """A ``Decoder`` for ``generate`` without a cache: each step computes everything again."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.config, self.logits = decoder, decoder.config, decoder.logits

    def start(self, latents: Tensor) -> Texts:
        return Texts(latents)

    def advance(self, ids: Tensor, texts: Texts, mask: Tensor | None = None) -> Tensor:
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


def best(work: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, Any]:
    """Fewest seconds of some runs, and the last result."""
    runs = [seconds(work, device) for _ in range(repeats)]
    return min(taken for taken, _ in runs), runs[-1][1]


def captions(decoder: Decoder, latents: Tensor, repeats: int) -> tuple[float, float]:
    """Tokens a second, published way and ours."""
    device = latents.device
    prompt = torch.randint(3, 50000, (len(latents), PROMPT), device=device)
    options = {"num_beams": BEAMS, "max_length": LENGTH, "min_length": LENGTH, "eos_id": EOS}
    generate(decoder, latents[:1], prompt[:1], **{**options, "max_length": PROMPT + 2})  # warm up
    ours, texts = best(lambda: generate(decoder, latents, prompt, **options), repeats, device)
    plain, same = best(
        lambda: generate(Rerun(decoder), latents, prompt, **options), repeats, device
    )
    if decoder.words.weight.dtype == torch.float32 and not torch.equal(texts, same):
        raise AssertionError("the two ways wrote different texts")
    tokens = len(latents) * (LENGTH - PROMPT)
    return tokens / plain, tokens / ours


def made_answers() -> list[list[int]]:
    """Distinct answers; a few first words begin many of them, as colours and numbers do."""
    draw = torch.Generator().manual_seed(0)
    firsts = 1 / torch.arange(1, 601).float()  # Zipf's law
    found: dict[tuple[int, ...], None] = {}
    while len(found) < ANSWERS:
        first = 100 + int(torch.multinomial(firsts, 1, generator=draw))
        more = torch.randint(1000, 3000, (3,), generator=draw).tolist()
        length = int(torch.multinomial(torch.tensor([0.5, 0.35, 0.15]), 1, generator=draw))
        found[(first, *more[:length], EOS)] = None
    return [list(answer) for answer in found]


def ranking(decoder: Decoder, latents: Tensor, repeats: int) -> tuple[float, float]:
    """Answers a second for one picture, published way and ours."""
    device, answers = latents.device, made_answers()
    question = torch.randint(3, 50000, (1, QUESTION), device=device)
    few = answers[:: ANSWERS // MEASURED]

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

    ours, scores = best(lambda: rank(decoder, latents[:1], question, answers), repeats, device)
    plain, expected = best(one_by_one, repeats, device)
    if decoder.words.weight.dtype == torch.float32:
        torch.testing.assert_close(
            scores[0, :: ANSWERS // MEASURED], expected, atol=1e-3, rtol=1e-4
        )
    return len(few) / plain, ANSWERS / ours


def megabytes(images: int) -> tuple[float, float]:
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
    return host_bytes(theirs) / 1e6, host_bytes(ours) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = settings.device()
    torch.manual_seed(0)
    kind = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    decoder = Decoder(build_encoder("roberta-base"), WIDTH).to(device, kind).eval()
    latents = torch.randn(arguments.batch, LATENTS, WIDTH, device=device, dtype=kind)
    print(f"{device}, batch {arguments.batch}, {arguments.threads} thread(s), {kind}")
    print(f"{'what':<10}{'unit':<12}{'published':>11}{'ours':>11}{'ratio':>8}{'target':>8}")
    missed = 0
    for name, unit, measure in (
        ("captions", "tokens/s", lambda: captions(decoder, latents, arguments.repeats)),
        ("ranking", "answers/s", lambda: ranking(decoder, latents, arguments.repeats)),
        ("bytes", "MB", lambda: megabytes(max(8, arguments.batch))),
    ):
        theirs, ours = measure()
        ratio = theirs / ours if name == "bytes" else ours / theirs
        missed += ratio < TARGETS[name]
        print(
            f"{name:<10}{unit:<12}{theirs:>11.2f}{ours:>11.2f}{ratio:>8.1f}{TARGETS[name]:>8g}",
            flush=True,
        )
    print(f"targets missed: {missed}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
