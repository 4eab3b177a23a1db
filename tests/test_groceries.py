"""The groceries reader and its two levels of classes."""

from __future__ import annotations

import pytest
from test_figures import jpeg

from mmfusion_lib.data import groceries
from mmfusion_lib.errors import InputError


def row(number: int, **changes) -> dict:
    values = {"image": jpeg(), "description": "A fruit.", "source": f"id-{number}"}
    return values | {"label": number, "coarse_label": groceries.COARSE_OF[number]} | changes


def test_classes():
    assert len(groceries.CLASSES) == 81 and len(set(groceries.CLASSES)) == 81
    assert len(groceries.COARSE_CLASSES) == 43
    fine = groceries.CLASSES.index("Watermelon")
    assert groceries.COARSE_CLASSES[groceries.COARSE_OF[fine]] == "Melon"


def test_reads_and_refuses(tmp_path, cache):
    path = tmp_path / "groceries/train.parquet"
    groceries.PACK.write(path, [row(0), row(80)])
    dataset = groceries.load("train", tmp_path)
    assert dataset["label"] == [0, 80] and dataset["coarse_label"] == [0, 42]
    assert dataset[0]["image"].size == (6, 4)
    groceries.PACK.write(path, [row(0), row(1, description="")])
    with pytest.raises(InputError, match=r"train\.parquet, row 1: column 'description'"):
        groceries.load("train", tmp_path)
    with pytest.raises(InputError, match="build groceries"):
        groceries.load("test", tmp_path)


def test_the_real_set(data_root):
    dataset = groceries.load("validation", data_root)
    assert len(dataset) == 296 and len(set(dataset["label"])) == 60
    assert all(
        groceries.COARSE_OF[f] == c for f, c in zip(dataset["label"], dataset["coarse_label"])
    )
    assert len(groceries.printable(data_root)) == 12
