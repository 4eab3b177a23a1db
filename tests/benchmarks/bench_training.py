"""Speed of a training step of Prismer small, against a straightforward implementation.

    python tests/benchmarks/bench_training.py [--batch 16] [--threads 1] [--rounds 3] [--float32]

Six label maps, captions of scenes. Straightforward: the semantic maps painted with 64-wide vectors on
the host, item by item, as the official loader does; attention written out, with its matrix of weights
kept; the vocabulary compared at every position; full batches of padding; float32. Ours: integer maps,
PyTorch's fused attention, logits only where something is learnt, and bfloat16. Both take the same items,
and must find the same loss. A processor that emulates bfloat16 is slow in it: --float32 is for those.

On a CPU the clock is the processor time of this process, so that other work on the machine does not
count; on a GPU it is the wall. Waiting for data counts. The exit status is 1 below the project's target.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmfusion_lib import scene_texts, settings
from mmfusion_lib.experts import painting, tensors
from mmfusion_lib.prismer import Prismer, load_prismer
from mmfusion_lib.prismer_config import SCENE_EXPERTS
from mmfusion_lib.prismer_training import objective

TARGET = 1.3


def attention(query, key, value, keep=None, dropout=0.0, causal=False, *, dropout_p=0.0) -> Tensor:
    """softmax(QK^T / sqrt(d)) V, step by step."""
    weights = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, N, M)
    if causal:
        keep = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
    if keep is not None:
        weights = weights.masked_fill(~keep, float("-inf")) if keep.dtype == torch.bool else (
            weights + keep
        )  # fmt: skip
    return torch.dropout(weights.softmax(-1), dropout + dropout_p, True) @ value


def painted(item: dict) -> dict:
    """The semantic maps of one item, painted on the host."""
    maps = dict(item["experts"])
    for name in ("seg_scenes", "ocr_detection"):
        maps[name] = painting.paint({k: v[None] for k, v in maps[name].items()})[0].contiguous()
    label = {k: v[None] for k, v in maps["obj_detection"]["label"].items()}
    maps["obj_detection"] = {
        "label": painting.paint(label)[0].contiguous(),
        "instance": maps["obj_detection"]["instance"],
    }
    return {**item, "experts": maps}


def plain_loss(model: Prismer, batch: dict) -> Tensor:
    """The loss as it is written in the paper's terms: everything computed, then masked."""
    latents = model.encode(batch["experts"])
    return model.decode(batch["ids"], batch["mask"], latents, batch["labels"]).loss.mean()


@contextmanager
def written_out():
    """Attention step by step, wherever the library asks for it."""
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield


def seconds(work: Callable[[], float], device: torch.device) -> tuple[float, float]:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    value = work()
    return clock() - start, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 on our side")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = settings.device()
    model = load_prismer("small").to(device).eval()  # no dropout: both losses must agree
    data, _ = scene_texts.caption_items(
        "validation", arguments.batch, model.transform, model.tokenizer, SCENE_EXPERTS
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)  # the work of a step, the same weights after it

    def step(loss: Callable, prepare: Callable[[dict], dict]) -> float:
        batch = default_collate([prepare(data[i]) for i in range(len(data))])
        batch = tensors.to(batch, device)
        bf16 = loss is objective and not arguments.float32
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach())

    def plain() -> float:
        with written_out():
            return step(plain_loss, painted)

    def ours() -> float:
        return step(objective, lambda item: item)

    plain(), ours()  # warm up
    rounds = [(seconds(plain, device), seconds(ours, device)) for _ in range(arguments.rounds)]
    for (_, a), (_, b) in rounds:
        assert abs(a - b) <= (1e-4 if arguments.float32 else 0.02) * abs(a), (a, b)
    slow, fast = (min(pair[side][0] for pair in rounds) for side in (0, 1))
    print(f"{device}, batch {arguments.batch}, {arguments.threads} threads, float32 beside "
          f"{'float32' if arguments.float32 else 'bfloat16'}")  # fmt: skip
    print(f"straightforward {slow:.2f} s a step, ours {fast:.2f} s: {slow / fast:.2f}x")
    return int(slow / fast < TARGET)


if __name__ == "__main__":
    sys.exit(main())
