"""Every card parses, and its numbers are those of the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmfusion_lib import cards
from mmfusion_lib.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "data_cards"


@pytest.mark.parametrize("name", cards.NAMES)
def test_card_is_complete(name):
    text = cards.card_path(name).read_text(encoding="utf-8")
    fields = cards.front_matter(FOLDER / f"{name}.md")
    for field in (
        "license",
        "language",
        "task_categories",
        "size_categories",
        "pretty_name",
        "tags",
    ):
        assert fields.get(field), f"{name}.md has no {field}"
    for heading in ("Sources", "Uses", "Structure", "Creation", "Known faults", "Citation"):
        assert f"\n## {heading}" in text, f"{name}.md has no section {heading}"
    assert f"({name}.md)" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["figures", "groceries"])
def test_numbers_are_the_datas(name, data_root):
    assert cards.check(name) == []


@pytest.mark.parametrize("name", cards.PAPER_SETS)
def test_published_numbers_need_no_data(name, monkeypatch):
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    assert cards.check(name) == []
    text = cards.card_path(name).read_text(encoding="utf-8")
    assert "not counted by us" in text and "not distributed" in text
    with pytest.raises(InputError, match=f"The set {name} is not at MMFUSION_DATA"):
        cards.compare(name)


def test_your_copy_beside_the_published_numbers(tmp_path):
    """A made copy: 2 training films where 15,552 were published; 1 of them is a Western."""
    import json

    root = tmp_path / "mmimdb"
    (root / "dataset").mkdir(parents=True)
    for film, genre in (("0000001", "Western"), ("0000002", "Adult")):
        content = json.dumps({"plot": ["Once."], "genres": [genre]})
        (root / f"dataset/{film}.json").write_text(content)
    lists = {"train": ["0000001", "0000002"], "dev": [], "test": []}
    (root / "split.json").write_text(json.dumps(lists))
    lines = cards.compare("mmimdb", root).splitlines()
    assert lines[0] == "| what | published | this copy |"
    assert "| train films | 15,552 | 2 (differs) |" in lines
    assert "| Western | 705 | 1 (differs) |" in lines
    assert "| films without one of the 23 genres | - | 1 |" in lines
    with pytest.raises(InputError, match="'figures' has no published numbers"):
        cards.compare("figures")
    with pytest.raises(InputError, match="'mmimdb' are not counted"):
        cards.numbers("mmimdb")


def test_scene_vocabulary():
    pytest.importorskip("trimesh")
    assert cards.check("scenes") == []


def test_update_and_check(tmp_path, cache):
    """A made pack: 3 + 2 + 2 rows, one picture in two splits, one class absent."""
    from test_builders import noise

    from mmfusion_lib.data import groceries

    def row(seed, label, number):
        values = {"description": "A fine fruit.", "source": f"id-{number}"}
        return values | {
            "image": noise(seed, (100, 80)),
            "label": label,
            "coarse_label": groceries.COARSE_OF[label],
        }

    rows = {
        "train": [(1, 0), (2, 1), (3, 2)],
        "validation": [(4, 0), (5, 0)],
        "test": [(1, 1), (6, 2)],
    }
    for split, values in rows.items():
        path = tmp_path / "root/groceries" / f"{split}.parquet"
        groceries.PACK.write(path, [row(*pair, i) for i, pair in enumerate(values)])
    found = cards.numbers("groceries", tmp_path / "root")
    assert [file["rows"] for file in found["files"].values()] == [3, 2, 2]
    assert found["classes"]["Granny Smith"] == [1, 0, 1]
    assert found["texts"]["description"] == {
        "empty": 0, "least": 3, "median": 3, "mean": 3.0, "most": 3,
    }  # fmt: skip
    assert found["pictures"]["width"] == [100, 100, 100]
    faults = found["faults"]
    assert faults["exact duplicate pictures across splits"] == 1
    assert faults["exact duplicate pictures within a split"] == 0
    assert faults["validation or test pictures with a near-duplicate in train"] == 1
    assert faults["classes absent in validation"] == 80

    shutil.copy(FOLDER / "groceries.md", tmp_path)
    where = {"folder": tmp_path, "root": tmp_path / "root"}
    assert "+| train | 3 |" in " ".join(cards.check("groceries", **where))[:2000].replace("**", "")
    before = (tmp_path / "groceries.md").read_text()
    cards.update("groceries", **where)
    after = (tmp_path / "groceries.md").read_text()
    assert cards.check("groceries", **where) == []
    assert before.split(cards.START)[0] == after.split(cards.START)[0]  # the prose stays
    assert before.split(cards.END)[1] == after.split(cards.END)[1]


def test_bad_cards(tmp_path):
    with pytest.raises(InputError, match="no data card 'birds'"):
        cards.update("birds")
    with pytest.raises(InputError, match="does not exist"):
        cards.check("figures", folder=tmp_path)
    (tmp_path / "figures.md").write_text("no block")
    with pytest.raises(InputError, match="no block"):
        cards.check("figures", folder=tmp_path)
    with pytest.raises(InputError, match="front matter"):
        cards.front_matter(tmp_path / "figures.md")
    (tmp_path / "figures.md").write_text("---\na: [\n---\n")
    with pytest.raises(InputError, match="not YAML"):
        cards.front_matter(tmp_path / "figures.md")
