"""An execution cache that is honest: its name is a digest of everything that a cell can see.

jupyter-cache looks at a notebook's own cells only. Here the cache folder is named by the library's
sources, the data files, the recorded results, the installed packages, the scale and the device: a
change in any of them gives a new folder, and so every notebook runs again. The key is printed at
the foot of each page.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

from mmfusion_lib import settings

FOLDER = ".execution"


def digest(lines: list[str]) -> str:
    """Eight hexadecimal digits of the lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def contents(folder: Path, pattern: str) -> list[str]:
    """Name and SHA-256 of each file under ``folder`` that matches."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return [
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in files
    ]


def data_files(root: Path | None) -> list[str]:
    """Name, size and modification time of each data file: large files are not read."""
    if root is None:
        return []
    files = sorted(path for path in root.rglob("*") if path.is_file())
    stats = [
        (path.relative_to(root).as_posix(), path.stat()) for path in files
    ]
    return [
        f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats
    ]


def pinned_versions(pyproject: Path) -> list[str]:
    """Installed version of every package that ``pyproject.toml`` pins."""
    pins = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["uv"]
    names = {
        re.split(r"[=;\s]", pin, maxsplit=1)[0]
        for pin in pins["constraint-dependencies"]
    }
    lines = []
    for name in sorted(names):
        try:
            lines.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} absent")
    return lines


def parts(book: Path) -> dict[str, str]:
    """What a cell's output may depend on, each as a short digest or a name.

    Args:
        book: The book's source folder; its parent is the repository.
    """
    return {
        "library": digest(contents(book.parent / "mmfusion_lib", "*.py")),
        "data": digest(data_files(settings.data_root()))
        if settings.data_root()
        else "none",
        "records": digest(contents(book / "results", "*")),
        "packages": digest(pinned_versions(book.parent / "pyproject.toml")),
        "scale": settings.scale(),
        "device": os.environ.get("MMFUSION_DEVICE") or settings.device().type,
    }


def name_cache(app: Sphinx, config: Config) -> None:
    """Choose the cache folder, drop the outdated ones of this scale, and fill the page footer."""
    os.environ.setdefault(
        "TQDM_DISABLE", "1"
    )  # progress bars are for people who wait
    key = parts(Path(app.confdir))
    name = f"{key['scale']}-{digest([f'{part} {value}' for part, value in key.items()])}"
    caches = Path(app.outdir).parent / FOLDER
    for old in caches.glob(f"{key['scale']}-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    config.nb_execution_cache_path = str(caches / name)
    shown = " · ".join(f"{part} {value}" for part, value in key.items())
    config.html_theme_options = dict(config.html_theme_options) | {
        "extra_footer": f'<p class="execution-key">Executed as <code>{name}</code>: {shown}</p>'
    }


def setup(app: Sphinx) -> dict[str, bool]:
    """Entry point that Sphinx calls."""
    app.connect("config-inited", name_cache, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
