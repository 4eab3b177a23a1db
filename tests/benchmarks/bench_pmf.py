"""Throughput of a PMF training step: the plain way, shared, and from cached base features.

    python tests/benchmarks/bench_pmf.py [--repeats 5] [--batch 8] [--threads 1] [--precision no bf16]

Shapes of ViT-B/16 and BERT-base, random weights, texts of 40 tokens, N_f = 2. One step is forward,
backward and the optimizer's update:

(a) plain: every layer runs forward in each step, fusion layers twice, as published;
(b) shared: the same from pixels and ids, fusion layers in their shared form;
(c) cached: shared, from base features computed once.

All three give the same numbers. They take turns in one process and the median of the repeats
counts. On a CPU the clock is the processor time of this process, so that other work on the machine
does not count; on a GPU it is the wall. bf16 is autocast, as in ``TrainConfig``. The exit status is
1 when a ratio is below the project's target.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from mmfusion_lib import settings
from mmfusion_lib.encoders import build_encoder
from mmfusion_lib.pmf import PMF, PMFConfig
from mmfusion_lib.train_config import TrainConfig, make_optimizer

TEXT_TOKENS = 40
CLASSES = 101
TARGETS = {("no", "cached"): 6.0, ("bf16", "cached"): 4.0, ("no", "shared"): 1.35}


def steps(batch: int, precision: str, device: torch.device) -> dict[str, Callable[[], None]]:
    """One training step of each way, over one model."""
    torch.manual_seed(0)
    config = PMFConfig(CLASSES)
    model = PMF(build_encoder("vit-base"), build_encoder("bert-base"), config).to(device)
    optimizer = make_optimizer(model, TrainConfig(epochs=1, precision=precision))
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    ids = torch.randint(1000, 30000, (batch, TEXT_TOKENS), device=device)
    mask = torch.ones_like(ids)
    mask[::2, TEXT_TOKENS // 2 :] = 0  # half of the texts have padding
    labels = torch.randint(CLASSES, (batch,), device=device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    with autocast():
        base = model.base_features(pixels, ids, mask)
    base = [tokens.to(torch.bfloat16 if precision == "bf16" else torch.float32) for tokens in base]

    def step(shared: bool, cached: bool) -> None:
        model.shared = shared
        with autocast():
            output = model.from_base_features(*base, mask) if cached else model(pixels, ids, mask)
            loss = F.cross_entropy(output.logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "plain": lambda: step(shared=False, cached=False),
        "shared": lambda: step(shared=True, cached=False),
        "cached": lambda: step(shared=True, cached=True),
    }


def seconds(step: Callable[[], None], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def medians(batch: int, precision: str, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of one step, by way."""
    ways = steps(batch, precision, device)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first round warms up
        for name, step in ways.items():
            passed = seconds(step, device)
            if repeat:
                taken[name].append(passed)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"], choices=["no", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = settings.device()
    print(f"{device}, batch {arguments.batch}, {arguments.threads} thread(s)")
    print(f"{'precision':<11}{'way':<8}{'seconds':>9}{'samples/s':>11}{'x plain':>9}{'target':>8}")
    missed = 0
    for precision in arguments.precision:
        found = medians(arguments.batch, precision, arguments.repeats, device)
        for name, value in found.items():
            ratio, target = found["plain"] / value, TARGETS.get((precision, name))
            missed += target is not None and ratio < target
            print(
                f"{precision:<11}{name:<8}{value:>9.3f}{arguments.batch / value:>11.2f}"
                f"{ratio:>9.2f}{'-' if target is None else f'{target:g}':>8}",
                flush=True,
            )
    print(f"targets missed: {missed}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
