"""VQAv2 with the questions of Visual Genome (Goyal et al., 2017; Krishna et al., 2017).

Expected in the tree of :mod:`mmfusion_lib.data.prismer_sets`::

    vqav2_train_val.json      [{"dataset", "image", "question", "answer", "weight"}, ...]
    vg_qa.json                the same fields; every answer weighs 0.2
    vqav2_test.json           [{"image", "question", "question_id"}, ...]
    answer_list.json          the answers that are ranked, a list of texts
    vqav2/{train2014,val2014,test2015}/   vg/                              pictures
    vqav2/v2_OpenEnded_mscoco_val2014_questions.json                       for validation
    vqav2/v2_mscoco_val2014_annotations.json                               for validation
    vg/image_data.json                                                     for protocol="local"

There are two protocols. ``server`` is Prismer's: train on train **and** val, send the answers for
test to a server. ``local`` is ours: train on train only and score on val.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .json_lists import read_list
from .paper_sets import LeftOut, Published, check_split
from .prismer_sets import (
    as_dataset,
    find_list,
    find_tree,
    write_results,
)
from .vqav2_rows import LAYOUT, QUESTIONS, test_rows, train_rows, validation_rows

if TYPE_CHECKING:
    import datasets

PROTOCOLS = ("local", "server")
_SITE = "visualqa.org, download page"
PUBLISHED: Published = {
    "train questions, train2014": (443_757, _SITE),
    "validation questions": (214_354, _SITE),
    "test questions": (447_793, _SITE),
    "answers in the list": (3_128, "thread 19 of NVlabs/prismer"),
}


def load(
    split: str, root: str | Path | None = None, *, protocol: str = "local"
) -> datasets.Dataset:
    """Read one split under one protocol.

    Under ``local``, train holds no picture of val: questions on ``val2014`` are left out by rule,
    and those of Visual Genome are kept only where ``vg/image_data.json`` shows that the picture is
    not one of COCO's outside train2014. Without that file all are left out; a warning counts.

    Args:
        split: train, validation (``local`` only) or test.
        root: of the tree; by default ``MMFUSION_DATA``.
        protocol: ``local`` or ``server``.

    Returns:
        Columns id (the question's number where it has one), image (decodes to PIL), maps, group
        (the picture), question, answers and weights. In train answers are distinct, each with its
        share of the ten given, or 0.2 for Visual Genome. In validation they are the ten as given.
        In test there are none.

    Raises:
        InputError: unknown split or protocol; a missing file, picture or field; a question number
            that occurs twice; weights that do not fit the answers, by file and row.
    """
    import datasets

    columns, left_out = _read(split, root, protocol)
    left_out.warn(f"vqav2 {split}, {protocol}")
    text = datasets.Value("string")
    features = {
        "question": text,
        "answers": datasets.List(text),
        "weights": datasets.List(datasets.Value("float32")),
    }
    return as_dataset("vqav2", split, find_tree("vqav2", root, LAYOUT), columns, features)


def answer_list(root: str | Path | None = None) -> list[str]:
    """The answers that are ranked, in the file's order.

    Raises:
        InputError: the file is missing, an answer is no text, is empty, or occurs twice.
    """
    path = find_list("vqav2", find_tree("vqav2", root, LAYOUT), "answer_list.json", LAYOUT)
    seen: dict[str, int] = {}
    for row, answer in read_list(path):
        if not isinstance(answer, str) or not answer.strip() or answer in seen:
            raise InputError(
                f"{path}, row {row}: the answer {answer!r} is no text, is empty, or occurs twice: "
                "fetch the file again."
            )
        seen[answer] = row
    return list(seen)


def pairs(data: datasets.Dataset) -> tuple[list[int], list[str], list[float]]:
    """(row, answer, weight) of every answer of every question: one training sample each."""
    rows, answers, weights = [], [], []
    for row, (given, shares) in enumerate(zip(data["answers"][:], data["weights"][:])):
        rows += [row] * len(given)
        answers += given
        weights += shares
    return rows, answers, weights


def write_answers(path: str | Path, data: datasets.Dataset, answers: list[str]) -> Path:
    """Write the file for the server: ``[{"question_id": 1, "answer": "yes"}, ...]``.

    Raises:
        InputError: another number of answers than questions, or an empty one.
    """
    return write_results(path, data["id"][:], answers, "question_id answer")


def count(root: str | Path | None = None) -> dict[str, int]:
    """Numbers of your copy under the names of `PUBLISHED`, and what each protocol leaves out."""
    found = {"answers in the list": len(answer_list(root))}
    columns, left_out = _read("train", root, "local")
    found["train questions, train2014"] = sum("/train2014/" in p for p in columns["maps"])
    found["train questions of Visual Genome, local"] = (
        len(columns["id"]) - found["train questions, train2014"]
    )
    found |= {f"train left out, local: {reason}": n for reason, n in left_out.counts.items()}
    columns, _ = _read("train", root, "server")
    found["train questions, server"] = len(columns["id"])
    tree = find_tree("vqav2", root, LAYOUT)
    for split, file in (("validation", QUESTIONS), ("test", "vqav2_test.json")):
        if any((place / file).is_file() for place in (tree, tree / "vqav2")):
            found[f"{split} questions"] = len(_read(split, root, "local")[0]["id"])
    return found


def _read(split: str, root: Any, protocol: str) -> tuple[dict[str, list], LeftOut]:
    check_split("vqav2", split)
    if protocol not in PROTOCOLS:
        raise InputError(f"vqav2 has no protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}.")
    if split == "validation" and protocol == "server":
        raise InputError(
            "vqav2 has no validation part under protocol='server', which trains on it: use 'local'."
        )
    tree, left_out = find_tree("vqav2", root, LAYOUT), LeftOut()
    columns: dict[str, list] = {
        name: [] for name in ("id", "maps", "group", "question", "answers", "weights")
    }
    rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}[split]
    arguments = (tree, protocol, left_out) if split == "train" else (tree,)
    seen: dict[str, str] = {}
    for where, name, place, question, answers, weights in rows(*arguments):
        if name in seen:
            raise InputError(
                f"{where}: the question_id {name} is already used in {seen[name]}: leave one out."
            )
        seen[name] = where
        if not question:
            raise InputError(f"{where}: the question is empty: repair or delete the row.")
        for column, value in zip(columns, (name, place, place, question, answers, weights)):
            columns[column].append(value)
    if not seen:
        raise InputError(f"{tree} holds no question for {split}: vqav2 needs {LAYOUT}.")
    return columns, left_out
