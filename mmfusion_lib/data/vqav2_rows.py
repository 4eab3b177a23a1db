"""The rows of VQAv2's and Visual Genome's files, checked one by one, for :mod:`.vqav2`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from ..files import read_json
from .coco import image_id
from .json_lists import field, read_list
from .paper_sets import LeftOut
from .prismer_sets import Pictures, find_list

VG_WEIGHT = 0.2
LAYOUT = (
    "vqav2_train_val.json, vg_qa.json, vqav2_test.json, answer_list.json, the pictures in vqav2/ "
    "and vg/, and for validation the two val2014 files of visualqa.org in vqav2/"
)
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"

# Where the row stands, question number, picture below the root, question, answers, weights.
Rows = Iterator[tuple[str, str, str, str, list[str], list[float]]]


def train_rows(tree: Path, protocol: str, left_out: LeftOut) -> Rows:
    """Questions of VQAv2, then of Visual Genome."""
    path, pictures = (
        find_list("vqav2", tree, "vqav2_train_val.json", LAYOUT),
        Pictures(tree, "vqav2"),
    )
    ours = set()  # numbers of COCO's pictures that the local protocol trains on
    for row, record in read_list(path):
        where = f"{path}, row {row}"
        image = field(record, "image", where)
        parts = PurePosixPath(image).parts
        if "train2014" not in parts and "val2014" not in parts:
            raise InputError(
                f"{where}: {image!r} is not of train2014 or val2014: correct the path."
            )
        if "train2014" in parts:
            ours.add(image_id(image, where))
        elif protocol == "local":
            continue  # what the protocol says, hence not counted as left out
        name = str(record.get("question_id", f"vqa#{row}"))
        question = field(record, "question", where)
        yield where, name, pictures.need(image, where), question, *_weighted(record, where)
    path, pictures = find_list("vqav2", tree, "vg_qa.json", LAYOUT), Pictures(tree, "vg")
    origin = _origins(tree) if protocol == "local" else {}
    for row, record in read_list(path):
        where = f"{path}, row {row}"
        image = field(record, "image", where)
        if protocol == "local":
            stem = PurePosixPath(image).stem
            if stem not in origin:
                left_out.add("questions of Visual Genome not listed in vg/image_data.json", where)
                continue
            if origin[stem] is not None and origin[stem] not in ours:
                left_out.add("questions of Visual Genome on a picture not of train2014", where)
                continue
        question = field(record, "question", where)
        answer = field(record, "answer", where)
        if not answer:
            raise InputError(f"{where}: the answer is empty: repair or delete the row.")
        # Numbers of Visual Genome are not those of VQAv2, so they are not used.
        yield where, f"vg#{row}", pictures.need(image, where), question, [answer], [VG_WEIGHT]


def _weighted(record: dict[str, Any], where: str) -> tuple[list[str], list[float]]:
    """Distinct answers and their weights; without weights, the share of each among those given."""
    given, weights = field(record, "answer", where, (str, list)), record.get("weight")
    given = [given] if isinstance(given, str) else given
    weights = [weights] if isinstance(weights, (int, float)) else weights
    weights = [1 / max(1, len(given))] * len(given) if weights is None else weights
    total: dict[str, float] = {}
    fits = isinstance(weights, list) and len(weights) == len(given) > 0
    for answer, weight in zip(given, weights if fits else []):
        good = isinstance(answer, str) and answer.strip() and isinstance(weight, (int, float))
        if not good or not math.isfinite(weight) or weight <= 0:
            fits = False
            break
        total[answer.strip()] = total.get(answer.strip(), 0.0) + weight
    if not fits:
        raise InputError(
            f"{where}: the answers {given!r} and weights {weights!r} are not texts with a positive "
            "number each: repair or delete the row."
        )
    return list(total), list(total.values())


def _origins(tree: Path) -> dict[str, int | None]:
    """Picture of Visual Genome -> number in COCO, or None; empty without ``image_data.json``."""
    path = tree / "vg" / "image_data.json"
    if not path.is_file():
        return {}
    return {
        str(field(record, "image_id", f"{path}, row {row}", int)): record.get("coco_id")
        for row, record in read_list(path)
    }


def validation_rows(tree: Path) -> Rows:
    """Questions on val2014 with the ten answers as people gave them."""
    path = find_list("vqav2", tree, ANNOTATIONS, LAYOUT)
    truth = {}
    for row, record in enumerate(field(read_json(path), "annotations", str(path), list)):
        where = f"{path}, annotations, row {row}"
        given = field(record, "answers", where, list)
        truth[field(record, "question_id", where, int)] = [field(a, "answer", where) for a in given]
    asked = find_list("vqav2", tree, QUESTIONS, LAYOUT)
    pictures = Pictures(tree, "vqav2")
    for row, record in enumerate(field(read_json(asked), "questions", str(asked), list)):
        where = f"{asked}, questions, row {row}"
        name, number = (field(record, key, where, int) for key in ("question_id", "image_id"))
        answers = truth.get(name)
        if not answers:
            raise InputError(f"{where}: question {name} has no answers in {path}: fetch it again.")
        place = pictures.need(f"val2014/COCO_val2014_{number:012d}.jpg", where)
        share = [1 / len(answers)] * len(answers)
        yield where, str(name), place, field(record, "question", where), answers, share


def test_rows(tree: Path) -> Rows:
    path, pictures = find_list("vqav2", tree, "vqav2_test.json", LAYOUT), Pictures(tree, "vqav2")
    for row, record in read_list(path):
        where = f"{path}, row {row}"
        name = field(record, "question_id", where, int)
        place = pictures.need(field(record, "image", where), where)
        yield where, str(name), place, field(record, "question", where), [], []
