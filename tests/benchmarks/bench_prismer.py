"""Speed of Prismer's language side, and the bytes of a batch: the recipe ``prismer-speed``, any size.

    python tests/benchmarks/bench_prismer.py [--batch 4] [--threads 1] [--dtype float32]

The exit status is 1 when a ratio is below the project's target.
"""

from __future__ import annotations

import argparse
import sys

import torch

from mmfusion_lib import settings
from mmfusion_lib.recipes import prismer_speed

TARGETS = {"captions": 5.0, "ranking": 5.0, "bytes": 20.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = {"batches": [arguments.batch], "dtype": arguments.dtype}
    s = {**prismer_speed.RECIPE.scales["lab"], **changes, "repeats": arguments.repeats}
    print(f"{settings.device()}, {arguments.threads} thread(s), {arguments.dtype}")
    print(f"{'what':<14}{'published':>11}{'ours':>11}{'ratio':>8}{'target':>8}")
    missed = 0
    for unit in prismer_speed.units(s):
        found = {name: min(rows) for name, rows in prismer_speed.run_unit(s, unit).items()}
        target = TARGETS[unit.partition("-")[0]]
        missed += found["ratio"] < target
        print(
            f"{unit:<14}{found['published']:>11.2f}{found['ours']:>11.2f}{found['ratio']:>8.1f}"
            f"{target:>8g}",
            flush=True,
        )
    print(f"targets missed: {missed}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
