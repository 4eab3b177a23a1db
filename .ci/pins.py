"""Write every resolved version into pyproject.toml and environment.yml.

    .uv/bin/uv run --no-project .ci/pins.py             # re-resolve, keep the present versions
    .uv/bin/uv run --no-project .ci/pins.py --upgrade   # take the newest versions that fit together

Only ``name==version`` (and a marker where a package is for one platform) is kept: no addresses,
so that whoever installs uses the index they already have.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / (".uv/Scripts/uv.exe" if sys.platform == "win32" else ".uv/bin/uv")
START, END = "constraint-dependencies = [\n", "]\n"
CONDA_PYTHON = "3.12"

CONDA_HEAD = f"""\
# For conda users and for Binder. Written by .ci/pins.py from pyproject.toml; a test compares them.
#   conda env create -f environment.yml && conda activate mmfusion
name: mmfusion
channels:
  - conda-forge
dependencies:
  - python={CONDA_PYTHON}
  - pip
  - pip:
      - --editable .[test]
"""


def split_pyproject(text: str) -> tuple[str, list[str], str]:
    """The text before the list of pins, the pins, the text after it."""
    start = text.index(START) + len(START)
    end = text.index(END, start)
    return text[:start], re.findall(r'"(.+)"', text[start:end]), text[end:]


def resolve() -> list[str]:
    """``name==version ; marker`` of everything that the extras need, on any platform."""
    export = [UV, "export", "--all-extras", "--no-hashes", "--no-emit-project", "--no-annotate"]
    lines = subprocess.run(export, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    pins = [line.strip() for line in lines.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    pins = [pin.replace('"', "'") for pin in pins if "sys_platform == 'emscripten'" not in pin]
    return [pin.removesuffix(" ; sys_platform != 'emscripten'") for pin in pins]


def for_conda(pins: list[str]) -> list[str]:
    """The pins of one Python version: those for older ones are dropped."""
    older = re.compile(r"python_full_version (<|<=|==) '3\.(11|12)")
    return [pin for pin in pins if not older.search(pin)]


def main() -> None:
    path = ROOT / "pyproject.toml"
    before, _, after = split_pyproject(path.read_text(encoding="utf-8"))
    if "--upgrade" in sys.argv:
        path.write_text(before + after, encoding="utf-8")
        (ROOT / "uv.lock").unlink(missing_ok=True)
    pins = resolve()
    listed = "".join(f'  "{pin}",\n' for pin in pins)
    path.write_text(before + listed + after, encoding="utf-8")
    conda = "".join(f'      - "{pin}"\n' for pin in for_conda(pins))
    (ROOT / "environment.yml").write_text(CONDA_HEAD + conda, encoding="utf-8")


if __name__ == "__main__":
    main()
