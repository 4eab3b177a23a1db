"""Groceries: photographs taken in shops -> 81 products in 43 groups, for few-shot classification.

``description`` is one text per class, so it gives the label away: use it as a prompt or as a key
to the label, never as an input beside the picture. The validation split has only 60 of the classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .packs import Pack

if TYPE_CHECKING:
    import datasets

CREDIT = "GroceryStoreDataset, M. Klasson, C. Zhang and H. Kjellström (WACV 2019), MIT licence"

# (coarse class, its fine classes), in label order.
_GROUPS = (
    ("Apple", ("Golden Delicious", "Granny Smith", "Pink Lady", "Red Delicious", "Royal Gala")),
    ("Avocado", ("Avocado",)),
    ("Banana", ("Banana",)),
    ("Kiwi", ("Kiwi",)),
    ("Lemon", ("Lemon",)),
    ("Lime", ("Lime",)),
    ("Mango", ("Mango",)),
    ("Melon", ("Cantaloupe", "Galia Melon", "Honeydew Melon", "Watermelon")),
    ("Nectarine", ("Nectarine",)),
    ("Orange", ("Orange",)),
    ("Papaya", ("Papaya",)),
    ("Passion Fruit", ("Passion Fruit",)),
    ("Peach", ("Peach",)),
    ("Pear", ("Anjou", "Conference", "Kaiser")),
    ("Pineapple", ("Pineapple",)),
    ("Plum", ("Plum",)),
    ("Pomegranate", ("Pomegranate",)),
    ("Red Grapefruit", ("Red Grapefruit",)),
    ("Satsumas", ("Satsumas",)),
    ("Juice", ("Bravo Apple Juice", "Bravo Orange Juice", "God Morgon Apple Juice",
        "God Morgon Orange Juice", "God Morgon Orange Red Grapefruit Juice",
        "God Morgon Red Grapefruit Juice", "Tropicana Apple Juice",
        "Tropicana Golden Grapefruit", "Tropicana Juice Smooth", "Tropicana Mandarin Morning")),
    ("Milk", ("Arla Ecological Medium Fat Milk", "Arla Lactose Medium Fat Milk",
        "Arla Medium Fat Milk", "Arla Standard Milk", "Garant Ecological Medium Fat Milk",
        "Garant Ecological Standard Milk")),
    ("Oatghurt", ("Oatly Natural Oatghurt",)),
    ("Oat Milk", ("Oatly Oat Milk",)),
    ("Sour Cream", ("Arla Ecological Sour Cream", "Arla Sour Cream")),
    ("Sour Milk", ("Arla Sour Milk",)),
    ("Soyghurt", ("Alpro Blueberry Soyghurt", "Alpro Vanilla Soyghurt")),
    ("Soy Milk", ("Alpro Fresh Soy Milk", "Alpro Shelf Soy Milk")),
    ("Yoghurt", ("Arla Mild Vanilla Yoghurt", "Arla Natural Mild Low Fat Yoghurt",
        "Arla Natural Yoghurt", "Valio Vanilla Yoghurt", "Yoggi Strawberry Yoghurt",
        "Yoggi Vanilla Yoghurt")),
    ("Asparagus", ("Asparagus",)),
    ("Aubergine", ("Aubergine",)),
    ("Cabbage", ("Cabbage",)),
    ("Carrots", ("Carrots",)),
    ("Cucumber", ("Cucumber",)),
    ("Garlic", ("Garlic",)),
    ("Ginger", ("Ginger",)),
    ("Leek", ("Leek",)),
    ("Mushroom", ("Brown Cap Mushroom",)),
    ("Onion", ("Yellow Onion",)),
    ("Pepper", ("Green Bell Pepper", "Orange Bell Pepper", "Red Bell Pepper",
        "Yellow Bell Pepper")),
    ("Potato", ("Floury Potato", "Solid Potato", "Sweet Potato")),
    ("Red Beet", ("Red Beet",)),
    ("Tomato", ("Beef Tomato", "Regular Tomato", "Vine Tomato")),
    ("Zucchini", ("Zucchini",)),
)  # fmt: skip

COARSE_CLASSES = tuple(coarse for coarse, _ in _GROUPS)
CLASSES = tuple(fine for _, names in _GROUPS for fine in names)
COARSE_OF = tuple(i for i, (_, names) in enumerate(_GROUPS) for _ in names)  # fine -> coarse

PACK = Pack(
    name="groceries",
    classes={"label": CLASSES, "coarse_label": COARSE_CLASSES},
    texts={"description": False, "source": False},
    identity="source",
)

# Looked at before printing: no people, readable at a small size. Ids, in label order.
PRINTABLE = tuple(
    f"marcusklasson/GroceryStoreDataset:dataset/train/{name}"
    for name in (
        "Fruit/Apple/Golden-Delicious/Golden-Delicious_006.jpg",
        "Fruit/Banana/Banana_008.jpg",
        "Fruit/Lemon/Lemon_017.jpg",
        "Fruit/Lime/Lime_027.jpg",
        "Fruit/Melon/Watermelon/Watermelon_023.jpg",
        "Fruit/Orange/Orange_029.jpg",
        "Fruit/Pineapple/Pineapple_001.jpg",
        "Vegetables/Aubergine/Aubergine_021.jpg",
        "Vegetables/Leek/Leek_018.jpg",
        "Vegetables/Pepper/Red-Bell-Pepper/Red-Bell-Pepper_005.jpg",
        "Vegetables/Pepper/Yellow-Bell-Pepper/Yellow-Bell-Pepper_022.jpg",
        "Vegetables/Tomato/Vine-Tomato/Vine-Tomato_029.jpg",
    )
)


def load(split: str, root: str | Path | None = None) -> datasets.Dataset:
    """Read one split, validated.

    Args:
        split: ``train``, ``validation`` or ``test``.
        root: data root; by default `MMFUSION_DATA`.

    Returns:
        Columns image (RGB, longest side 160), description, source (unique id), label (into
        `CLASSES`) and coarse_label (into `COARSE_CLASSES`).

    Raises:
        InputError: missing root or file, broken parquet, wrong label, empty text, duplicate id,
            picture that does not decode; each names file and row.
    """
    return PACK.load(split, root)


def printable(root: str | Path | None = None) -> list[dict]:
    """The rows of `PRINTABLE`, in its order; show `CREDIT` with them."""
    return PACK.find(PRINTABLE, root)
