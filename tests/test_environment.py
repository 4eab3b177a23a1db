"""The three places that name versions agree: pyproject.toml, environment.yml, what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = PYPROJECT["tool"]["uv"]["constraint-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)==(\S+)( ; .+)?")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(pins: list[str]) -> dict[str, set[str]]:
    """name -> pinned versions; some packages have one for each Python version."""
    found: dict[str, set[str]] = {}
    for pin in pins:
        name, number, _ = REQUIREMENT.fullmatch(pin).groups()
        found.setdefault(canonical(name), set()).add(number)
    return found


def wanted() -> set[str]:
    """Names of the direct requirements: the library's and those of every extra."""
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [re.split(r"[\s=<>\[]", entry, maxsplit=1)[0] for group in lists for entry in group]
    return {canonical(name) for name in names} - {"mmfusion-lib"}


def test_every_pin_is_a_name_and_a_version():
    assert [pin for pin in PINS if not REQUIREMENT.fullmatch(pin)] == []
    assert not any("/" in pin for pin in PINS)  # no addresses


def test_every_requirement_is_pinned():
    assert wanted() - versions(PINS).keys() == set()


def test_library_has_lower_bounds_only():
    for entry in PYPROJECT["project"]["dependencies"]:
        assert ">=" in entry and "<" not in entry and "==" not in entry, entry


def test_jupyter_book_is_version_1():
    """Version 2 builds nothing for `jupyter-book build book`, and exits with 0."""
    assert versions(PINS)["jupyter-book"] == {"1.0.4.post1"}


def test_conda_environment_has_the_same_versions():
    python = next(entry for entry in CONDA["dependencies"] if str(entry).startswith("python="))
    pip = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert pip[0] == "--editable .[test]"
    conda, pinned = versions(pip[1:]), versions(PINS)
    assert conda.keys() == pinned.keys()
    for name, numbers in conda.items():
        assert len(numbers) == 1 and numbers <= pinned[name], name
    assert python == "python=3.12"


def test_installed_versions_are_the_pinned_ones():
    pinned = versions(PINS)
    installed = {canonical(d.metadata["Name"]): d.version for d in metadata.distributions()}
    if installed.get("jupyter-book") not in pinned["jupyter-book"]:
        pytest.skip("not the environment that the README's commands make")
    other = {
        name: number
        for name, number in installed.items()
        if name != "mmfusion-lib" and number.split("+")[0] not in pinned.get(name, set())
    }
    assert other == {}  # a package that is not pinned, or has another version
