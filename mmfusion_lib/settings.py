"""Where data and caches live, how large a run is, and on what it runs: four environment variables.

========================  ===========================================================  ============
variable                  meaning                                                      default
========================  ===========================================================  ============
``MMFUSION_DATA``         read-only folder that holds one sub-folder per data set      none
``MMFUSION_CACHE``        everything that this library writes                          user cache
``MMFUSION_SCALE``        ``smoke``, ``lab`` or ``paper``                              by device
``MMFUSION_DEVICE``       ``cpu``, ``cuda``, ``cuda:1``, ``mps``                       best present
========================  ===========================================================  ============
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import torch

SCALES = ("smoke", "lab", "paper")


def data_root() -> Path | None:
    """Folder named by ``MMFUSION_DATA``, or None when the variable is unset or empty.

    Raises:
        InputError: the variable names something that is not a folder.
    """
    value = os.environ.get("MMFUSION_DATA")
    if not value:
        return None
    root = Path(value).expanduser().resolve()
    if not root.is_dir():
        raise InputError(
            f"MMFUSION_DATA names {value!r}, which is not a folder: point it at the folder that "
            "holds the data sets, or unset it to work on generated scenes."
        )
    return root


def cache_root() -> Path:
    """Folder for everything written: ``MMFUSION_CACHE``, or the user's cache folder. Created."""
    value = os.environ.get("MMFUSION_CACHE")
    if value:
        root = Path(value).expanduser().resolve()
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches" / "mmfusion"
    elif os.name == "nt":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "mmfusion"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmfusion"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The cache folder {root} cannot be made ({error.strerror}): set MMFUSION_CACHE to a "
            "folder you can write to."
        ) from error
    return root


def scale(value: str | None = None) -> str:
    """``value``, else ``MMFUSION_SCALE``, else ``lab`` where CUDA is there and ``smoke`` elsewhere.

    Raises:
        InputError: the name is not one of ``SCALES``.
    """
    value = value or os.environ.get("MMFUSION_SCALE")
    if not value:
        import torch

        return "lab" if torch.cuda.is_available() else "smoke"
    if value not in SCALES:
        raise InputError(f"Unknown scale {value!r}: use one of {', '.join(SCALES)}.")
    return value


def device(value: str | None = None) -> torch.device:
    """``value``, else ``MMFUSION_DEVICE``, else CUDA, Apple's GPU or the CPU, in this order.

    Raises:
        InputError: the device is unknown, or is not there.
    """
    import torch

    value = value or os.environ.get("MMFUSION_DEVICE")
    if not value:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(value)
    except RuntimeError as error:
        raise InputError(f"Unknown device {value!r}: use cpu, cuda, cuda:N or mps.") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InputError(
            f"Device {value!r} was asked for but this machine shows {count} CUDA devices: unset "
            "MMFUSION_DEVICE, or use cpu."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"Device {value!r} was asked for but is not there: use cpu.")
    return chosen
