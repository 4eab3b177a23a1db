"""README.md: its two commands, and its table of claims, which is made from the records."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from mmfusion_lib import records

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_two_commands_install_everything_in_one_line_each():
    blocks = re.findall(r"```bash\n(.+?)\n```", TEXT, re.S)
    first, second = blocks[:2]
    assert first.count("\n") == second.count("\n") == 0
    assert first.endswith("uv run -q -p .uv/bin/python --all-extras jupyter-book build book")
    assert second.endswith("uv run -q -p .uv/bin/python --all-extras pytest --nbmake")
    assert first.startswith("python3 -m venv .uv && ")  # also where the system's pip refuses


def test_ci_takes_its_commands_from_the_readme():
    patterns = re.findall(r"grep -m1 -E '(.+?)' README.md", (ROOT / ".ci/run").read_text())
    found = [
        subprocess.run(["grep", "-c", "-E", p, str(ROOT / "README.md")], capture_output=True)
        for p in patterns
    ]
    assert [result.stdout.strip() for result in found] == [b"1", b"1"]


def test_table_of_claims_is_the_one_that_the_records_give():
    if not (records.results_root() / "claims.yaml").is_file():
        pytest.skip("book/results/claims.yaml is absent")
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    assert readme.split(TEXT)[1] == readme.table(), "run python .ci/readme.py"
