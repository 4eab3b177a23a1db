"""How many scenes a second, with all labels, on all cores: ``python tests/benchmarks/bench_scenes.py``.

Fresh scenes are made in an empty cache; workers are started anew for each of the two calls.
"""

from __future__ import annotations

import os
import tempfile
import time

COUNT, SIZE = 512, 112


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMFUSION_CACHE"] = folder
        from mmfusion_lib.data import scenes

        times = []
        for count in (32, COUNT):
            start = time.perf_counter()
            scenes.load("train", count, size=SIZE)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        scenes.load("train", COUNT, size=SIZE)
        again = time.perf_counter() - start
    made = COUNT - 32
    print(f"{os.cpu_count()} cores, {SIZE} px, all labels")
    print(f"first 32 scenes: {times[0]:.1f} s; the next {made}: {made / times[1]:.0f} scenes/s")
    print(f"reading {COUNT} scenes again: {again:.2f} s")


if __name__ == "__main__":
    main()
