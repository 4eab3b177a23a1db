"""Small trees in the published layouts of Prismer's data: tiny pictures, lists of a few rows."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850")


def picture(path: Path, colour=(0, 0, 255), size=(7, 5)) -> None:
    """A tiny picture; JPEG whatever the case of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "JPEG" if path.suffix != ".png" else "PNG")


def write(root: Path, name: str, value) -> Path:
    """A JSON file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def coco_name(number: int, part: str = "train2014") -> str:
    """A picture's path as lists have it: below the folder ``vqav2``."""
    return f"{part}/COCO_{part}_{number:012d}.jpg"


def truth(captions: dict[int, list[str]], **fields) -> dict:
    """A ground truth in COCO's form."""
    pairs = [(number, text) for number, texts in captions.items() for text in texts]
    return {
        "images": [{"id": number, **fields} for number in captions],
        "annotations": [
            {"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(pairs)
        ],
    }


def coco(root: Path) -> Path:
    """Two training pictures with three captions, and two test pictures with two references each."""
    for number, part in ((9, "train2014"), (25, "val2014"), (42, "val2014"), (73, "val2014")):
        picture(root / "vqav2" / coco_name(number, part))
    rows = [
        {"image": coco_name(9), "caption": "A cat on a mat."},
        {"image": coco_name(25, "val2014"), "caption": "Two giraffes."},
        {"image": coco_name(9), "caption": "A black cat. "},
    ]
    write(root, "coco_karpathy_train.json", rows)
    references = {42: ["A dog.", "A dog runs."], 73: ["A red bus.", "A bus."]}
    listed = [
        {"image": coco_name(73, "val2014"), "caption": references[73]},
        {"image": coco_name(42, "val2014"), "caption": references[42]},
    ]
    write(root, "coco_karpathy_test.json", listed)
    write(root, "coco_karpathy_test_gt.json", truth(references))
    return root


def nocaps(root: Path) -> Path:
    """Two pictures, without the file of references."""
    for name in ("a", "b"):
        picture(root / f"nocaps/val/{name}.jpg")
    rows = [{"image": f"val/{name}.jpg", "img_id": i} for i, name in enumerate("ab")]
    write(root, "nocaps_val.json", rows)
    return root


def web(root: Path) -> Path:
    """Two rows of Visual Genome, three of CC3M + SBU on two pictures, two of CC12M."""
    for name in ("vg/VG_100K/1.jpg", "vg/VG_100K/2.jpg", "cc3m_sgu/0/a.jpg", "cc3m_sgu/0/b.jpg"):
        picture(root / name)
    picture(root / "cc12m/0/c.jpg", (255, 0, 0))
    picture(root / "cc12m/0/d.jpg", (0, 255, 0))
    lists = {
        "vg_caption.json": ["vg/VG_100K/1.jpg", "vg/VG_100K/2.jpg"],
        "filtered_cc3m_sbu.json": ["0/a.jpg", "0/b.jpg", "0/a.jpg"],
        "filtered_cc12m.json": ["0/c.jpg", "0/d.jpg"],
    }
    for name, images in lists.items():
        rows = [{"image": image, "caption": f"Row {i}."} for i, image in enumerate(images)]
        write(root, name, rows)
    return root


def question(number: int, image: str, answer, weight=None, **more) -> dict:
    """A row of a training list."""
    row = {"dataset": "vqa", "question_id": number, "image": image, "question": "What is it?"}
    return row | {"answer": answer} | ({} if weight is None else {"weight": weight}) | more


def vqav2(root: Path) -> Path:
    """Pictures 9 (train), 42 (val), 7 (test); of Visual Genome 1 (its own), 2 (= 42), 3 (= 9)."""
    for number, part in ((9, "train2014"), (42, "val2014"), (7, "test2015")):
        picture(root / "vqav2" / coco_name(number, part))
    for number in (1, 2, 3):
        picture(root / f"vg/VG_100K/{number}.jpg")
    write(
        root,
        "vqav2_train_val.json",
        [
            question(90, coco_name(9), ["cat", "dog"], [0.7, 0.3]),
            question(420, coco_name(42, "val2014"), ["red"], [1.0]),
        ],
    )
    genome = [
        question(90, f"VG_100K/{number}.jpg", "a tree", 0.2, dataset="vg") for number in (1, 2, 3)
    ]
    write(root, "vg_qa.json", genome)
    origins = [{"image_id": n, "coco_id": c} for n, c in ((1, None), (2, 42), (3, 9))]
    write(root, "vg/image_data.json", origins)
    asked = [
        {"question_id": n, "image": coco_name(7, "test2015"), "question": "Is it?"}
        for n in (70, 71)
    ]
    write(root, "vqav2_test.json", asked)
    write(root, "answer_list.json", ["yes", "no", "cat"])
    official = [{"question_id": 420, "image_id": 42, "question": "What colour?"}]
    write(root, "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": official})
    ten = [{"answer": "red", "answer_id": i} for i in range(8)] + [{"answer": "pink"}] * 2
    annotations = [{"question_id": 420, "image_id": 42, "answers": ten}]
    write(root, "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    return root


def imagenet(root: Path, pictures: int = 8) -> Path:
    """Three classes; folders are made in an order that is not the sorted one."""
    for wnid in reversed(WNIDS):
        for i in reversed(range(pictures)):
            picture(root / f"imagenet_train/{wnid}/{wnid}_{i}.JPEG")
        for i in (1, 0):
            picture(root / f"imagenet/{wnid}/ILSVRC2012_val_{i}.JPEG")
    write(root, "imagenet/imagenet_answer.json", ["tench", "goldfish", "great white shark"])
    write(root, "imagenet/imagenet_class.json", {wnid: i for i, wnid in enumerate(WNIDS)})
    return root
