"""How notebooks are written: see "A chapter" in CONTRIBUTING.md. nbmake runs them; this reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
NOTEBOOKS = sorted(path for path in BOOK.rglob("*.ipynb") if "_build" not in path.parts)
CHAPTERS = sorted(BOOK.glob("0*_*.ipynb"))
SECTIONS = {
    "promise": r"promise|what you will|what you get",
    "prerequisites": r"prerequisite|before you",
    "time and hardware": r"time and hardware|time, hardware",
    "summary": r"summary",
    "exercises": r"exercises?",
    "full-scale reproduction": r"full[- ]scale",
    "references": r"references",
}
MAX_CODE_LINES = 30
DRAWS = re.compile(r"\bplt\.|\bsubplots\(|\bfig\b")


def each(paths: list[Path]):
    """Run a test once for each notebook, named after it."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def cells(path: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in found:
        cell["source"] = "".join(cell["source"])
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def titles(path: Path) -> list[str]:
    """Headings, titles of admonitions, and bold lead-ins such as ``**Promise.**``."""
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    patterns = (r"^#+\s+(.+)$", r"\{admonition\}\s+(.+)$", r"^\**\s*\*\*(.+?)\*\*")
    return [title for pattern in patterns for title in re.findall(pattern, text, re.M)]


def exercises(path: Path, word: str) -> int:
    """Exercises (or solutions): directives, or numbered headings where there are none."""
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    directives = re.findall(rf"\{{{word}(?:-start)?\}}", text)
    return len(directives) or len(re.findall(rf"^#+\s+{word}\s+\d", text, re.M | re.I))


@each(NOTEBOOKS)
def test_is_stripped_and_runs_on_the_ordinary_kernel(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    ids = [cell["id"] for cell in cells(path)]
    assert len(set(ids)) == len(ids)


@each(NOTEBOOKS)
def test_code_cells_hold_one_idea(path):
    for cell in cells(path, "code"):
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert len(lines) <= MAX_CODE_LINES, f"{len(lines)} lines: {lines[0]}"


@each(NOTEBOOKS)
def test_text_stands_between_code_cells(path):
    kinds = [cell["cell_type"] for cell in cells(path)]
    assert kinds[0] == "markdown" and kinds[-1] == "markdown"
    together = [i for i in range(1, len(kinds)) if kinds[i - 1] == kinds[i] == "code"]
    assert together == [], [cells(path)[i]["source"][:60] for i in together]


@each(NOTEBOOKS)
def test_every_figure_has_alternative_text(path):
    for cell in cells(path, "code"):
        if DRAWS.search(re.sub(r"(?m)^\s*(?:#|import |from ).*$", "", cell["source"])):
            image = cell["metadata"].get("mystnb", {}).get("image", {})
            assert image.get("alt", "").strip(), f"no mystnb.image.alt: {cell['source'][:80]}"
    for cell in cells(path, "markdown"):
        assert not re.search(r"!\[\s*\]\(", cell["source"]), "a picture without a description"
        for block in re.findall(r"\{(?:figure|image)\}.*?(?=```|:::)", cell["source"], re.S):
            assert ":alt:" in block, f"no :alt: {block[:60]}"


@each(CHAPTERS)
def test_chapter_has_its_sections(path):
    found = titles(path)
    missing = [
        name
        for name, pattern in SECTIONS.items()
        if not any(re.search(pattern, title, re.I) for title in found)
    ]
    assert missing == [], f"sections of {path.name}: {found}"


@each(CHAPTERS)
def test_chapter_starts_with_one_title(path):
    first = cells(path)[0]
    assert first["source"].startswith("# ")
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    assert len(re.findall(r"^# ", text, re.M)) == 1


@each(CHAPTERS)
def test_first_code_cell_says_scale_device_versions_and_minutes(path):
    assert re.search(r"print\(.*banner\(", cells(path, "code")[0]["source"], re.S)


@each(CHAPTERS)
def test_chapter_has_four_exercises_with_solutions(path):
    number = path.stem[:2]
    asked = exercises(BOOK / "exercises" / f"{number}_exercises.ipynb", "exercise")
    solved = exercises(BOOK / "exercises" / f"{number}_solutions.ipynb", "solution")
    assert asked >= 4 and solved == asked


def test_rules_are_not_empty(tmp_path):
    """The checks above see faults: each of these cells breaks one rule."""
    assert DRAWS.search("fig, ax = plt.subplots()") and not DRAWS.search("configure(figure=1)")
    text = "# T\n\n**Promise.** We\n\n## Summary\n\n```{exercise} A\n:label: a\n```"
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": [text]}
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [cell]}))
    assert titles(path) == ["T", "Summary", "Promise."] and exercises(path, "exercise") == 1
