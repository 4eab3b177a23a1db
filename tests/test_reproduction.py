"""The page of all claims: whole, and its errata point at tests and sections that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmfusion_lib import records

TESTS = Path(__file__).parent
BOOK = TESTS.parent / "book"
CELLS = json.loads((BOOK / "reproduction.ipynb").read_text(encoding="utf-8"))["cells"]
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
CODE = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")


def defined() -> set[str]:
    """Names of all tests."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    return set(re.findall(r"^def (test_\w+)", text, re.M))


def headings(chapter: str) -> set[str]:
    """Headings of a chapter, as the built page names them in its links."""
    cells = json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}


def test_every_test_that_the_errata_name_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 20
    assert sorted(named - defined()) == []


@pytest.mark.parametrize("name", ["test_official_errata.py", "test_prismer_errata.py"])
def test_every_fault_that_we_made_again_is_listed(name):
    blocks = re.split(r"^# (\d+\. .+)$", (TESTS / name).read_text(encoding="utf-8"), flags=re.M)
    faults = dict(zip(blocks[1::2], blocks[2::2]))  # [before, "1. title", code, "2. title", ...]
    assert len(faults) >= 6
    for title, code in faults.items():
        shown = [test for test in re.findall(r"^def (test_\w+)", code, re.M) if f"`{test}`" in TEXT]
        assert shown, f"{name}, {title}: no test of it is on the page"


def test_links_lead_to_sections_of_the_chapters():
    links = re.findall(r'href="(\w+)\.html#([^"]+)"', TEXT)
    assert len(links) > 20
    assert [link for link in links if link[1] not in headings(link[0])] == []


def test_every_claim_is_on_the_page():
    shown = set(re.findall(r'by_chapter\("(\w+)"\)', CODE))
    assert shown == {claim.source for claim in records.claims()}


def test_tables_of_numbers_alone_hide_no_result_of_ours():
    for beginning in re.findall(r'"grid:(\w+)"', CODE):
        found = [claim for claim in records.claims() if claim.id.startswith(beginning)]
        assert found and not [claim.id for claim in found if claim.recipe]


def test_what_we_have_not_seen_has_no_value():
    for claim in records.claims():
        assert claim.provenance != "not available" or claim.value is None, claim.id
