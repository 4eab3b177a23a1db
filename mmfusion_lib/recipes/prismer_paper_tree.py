"""A made tree in the published layouts: a few scenes with their exact label maps, for a rehearsal.

It stands in for data that are not ours to hand on, so that the code for them runs anywhere. Pictures and
maps, captions and answers fit each other; the two classes stand for nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .. import settings
from ..data import nocaps, scene_tasks, scenes, vqav2, vqav2_rows
from ..experts.from_scenes import from_scene
from ..experts.labels import write_labels
from ..files import digest, write_json

SCENES = 8
TRAIN, RESTVAL, TEST = range(4), (4,), (5, 6, 7)  # scenes by part of COCO
DOMAINS = ("in-domain", "near-domain", "out-domain")  # of NoCaps's three pictures
CLASSES = {"n00000001": "First", "n00000002": "Second"}


def tree() -> Path:
    """The folder of the made tree, in the cache; it is made where it is not there yet."""
    version = digest(Path(__file__).read_bytes())[:8]
    folder = settings.cache_root() / "rehearsal" / f"prismer-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            make(new)
            os.replace(new, folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return folder


def make(root: Path) -> None:
    """Write lists, pictures and label files of all sets into an empty folder."""
    made = [scenes.decode(row) for row in scenes.load("train", SCENES)]
    names = {i: _coco(i) for i in range(SCENES)}
    for i, name in names.items():
        _picture(root, f"vqav2/{name}", made[i])
    captions = [scene_tasks.captions(scene.graph) for scene in made]

    shown = [*TRAIN, *RESTVAL]
    rows = [{"image": names[i], "caption": text} for i in shown for text in captions[i][:2]]
    write_json(root / "coco_karpathy_train.json", rows)
    write_json(root / "coco_karpathy_test.json", [{"image": names[i]} for i in TEST])
    truth = _truth({i + 1: captions[i] for i in TEST})
    write_json(root / "coco_karpathy_test_gt.json", truth)

    for i in TEST:
        _picture(root, f"nocaps/val/{i}.jpg", made[i])
    write_json(root / "nocaps_val.json", [{"image": f"val/{i}.jpg", "img_id": i} for i in TEST])
    truth = _truth({i: captions[i] for i in TEST})
    for image, domain in zip(truth["images"], DOMAINS):
        image["domain"] = domain
    write_json(root / nocaps.TRUTH, truth)

    web = {
        "vg_caption": "vg/VG_100K",
        "filtered_cc3m_sbu": "cc3m_sgu/0",
        "filtered_cc12m": "cc12m/0",
    }
    for i, (name, folder) in enumerate(web.items()):
        _picture(root, f"{folder}/{i}.jpg", made[i])
        row = {"image": f"{folder}/{i}.jpg", "caption": captions[i][0]}
        write_json(root / f"{name}.json", [row])
    _questions(root, made, names)
    _classes(root, made)


def _questions(root: Path, made: list[scenes.Scene], names: dict[int, str]) -> None:
    """How many objects there are, and whether there is one of a kind."""
    rows, asked, told, test = [], [], [], []
    kinds = scenes.KINDS
    for i, scene in enumerate(made):
        there = {item["kind"] for item in scene.graph["objects"]}
        for j, (question, answer) in enumerate(
            [
                ("How many objects are there?", str(len(scene.graph["objects"]))),
                (f"Is there a {kinds[i]}?", "yes" if kinds[i] in there else "no"),
            ]
        ):
            number = 10 * (i + 1) + j
            row = {"question_id": number, "image": names[i], "question": question}
            rows.append({**row, "dataset": "vqa", "answer": [answer], "weight": [1.0]})
            if i not in TRAIN:
                asked.append({"question_id": number, "image_id": i + 1, "question": question})
                ten = [{"answer": answer}] * 10
                told.append({"question_id": number, "image_id": i + 1, "answers": ten})
            if i in TEST:
                image = f"test2015/COCO_test2015_{i + 1:012d}.jpg"
                test.append({"question_id": number, "image": image, "question": question})
                _picture(root, f"vqav2/{image}", scene)
    write_json(root / "vqav2_train_val.json", rows)
    write_json(root / "vqav2_test.json", test)
    genome = {**rows[0], "dataset": "vg", "image": "VG_100K/0.jpg", "weight": vqav2_rows.VG_WEIGHT}
    write_json(root / "vg_qa.json", [{**genome, "answer": rows[0]["answer"][0]}])
    write_json(root / "vg" / "image_data.json", [{"image_id": 0, "coco_id": None}])
    write_json(root / "answer_list.json", ["yes", "no", *map(str, range(2, 6))])
    write_json(root / "vqav2" / vqav2.QUESTIONS, {"questions": asked})
    write_json(root / "vqav2" / vqav2_rows.ANNOTATIONS, {"annotations": told})


def _classes(root: Path, made: list[scenes.Scene]) -> None:
    """Six training pictures and one test picture of each class."""
    for number, wnid in enumerate(CLASSES):
        for j in range(6):
            scene = made[(2 * j + number) % len(TRAIN)]
            _picture(root, f"imagenet_train/{wnid}/{wnid}_{j}.JPEG", scene)
        _picture(root, f"imagenet/{wnid}/{wnid}_val.JPEG", made[TEST[number]])
    write_json(root / "imagenet" / "imagenet_answer.json", list(CLASSES.values()))
    numbers = {wnid: number for number, wnid in enumerate(CLASSES)}
    write_json(root / "imagenet" / "imagenet_class.json", numbers)


def _coco(i: int) -> str:
    part = "train2014" if i in TRAIN else "val2014"
    return f"{part}/COCO_{part}_{i + 1:012d}.jpg"


def _picture(root: Path, path: str, scene: scenes.Scene) -> None:
    """A scene as JPEG, and its maps as label files."""
    from PIL import Image

    (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(root / path, "JPEG", quality=95)
    for labels in from_scene(scene).values():
        write_labels(root / "labels", labels, path)


def _truth(captions: dict[int, list[str]]) -> dict[str, Any]:
    """References in COCO's form."""
    pairs = [(number, text) for number, texts in captions.items() for text in texts]
    return {
        "images": [{"id": number} for number in captions],
        "annotations": [
            {"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(pairs)
        ],
    }
