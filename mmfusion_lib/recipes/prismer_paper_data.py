"""What Prismer's stages at paper scale read: pictures, label files and texts, opened when they are needed.

A reader gives rows; ``PaperItems`` opens the picture of a row and the label files of its experts, crops
them together, and writes its text as ids. Nothing of a set but its lists is held in memory. Shapes: B
batch, N tokens, S pixels a side.

Published: crop by area and shape, mirror images, 224 pixels of maps, 30 tokens of a caption and 35 of a
question. Of the ten published distortions, the two shifts are done here, and not the other eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .. import prismer_input, prismer_text
from ..data import coco, imagenet, nocaps, vqav2, web_captions
from ..data.images import open_image
from ..data.paper_sets import LeftOut
from ..data.shard_files import has_word
from ..data.webshards import WebShards
from ..errors import InputError
from ..experts import geometry
from ..experts.label_table import COCO_STUFF, COCO_THINGS, spoken
from ..experts.labels import read_labels
from ..files import digest
from ..prismer import Prismer
from ..prismer_training import IGNORED, prompt_tokens
from ..runs import Settings

QUESTION_TOKENS = 35  # with the begin mark
TEXT_TOKENS = 26  # with the end mark: 30 less "<s>A picture of"
CLASSES = {"seg_coco": tuple(spoken(name) for name in (*COCO_THINGS, *COCO_STUFF))}


class Answers:
    """Rows of questions, one for each of their answers, with its weight (how they are drawn: chosen)."""

    def __init__(self, data: Any):
        self.data = data
        self.rows, self.answers, self.weights = vqav2.pairs(data)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.data[self.rows[i]], "answers": [self.answers[i]], "weight": self.weights[i]}


class PaperItems:
    """Rows of a reader as items for ``train.fit``, with ``collate`` to batch them.

    Args:
        data: rows with ``image`` (undecoded), ``maps`` and what ``task`` needs.
        task: "captions" (``captions``), "answers" (``question``, ``answers``) or "names" (``label``).
        model: its tokenizer, transform, experts and label table are used.
        labels: folder of label files.
        prompt: what stands before a caption.
        names: of the classes.
        crop: least and largest share of the picture that a crop keeps, drawn from torch's generator;
            None: the whole picture, as in a test.
        look: names the sources of the rows; ``train.fit`` refuses to go on with others.
        learn: False: prompt and picture alone, as a test wants them.
    """

    def __init__(
        self,
        data: Any,
        task: str,
        model: Prismer,
        labels: Path,
        *,
        prompt: str = "",
        names: Sequence[str] = (),
        crop: Sequence[float] | None = None,
        look: str = "",
        learn: bool = True,
    ):
        self.data, self.task, self.labels = data, task, labels
        self.prompt, self.names, self.crop, self.learn = prompt, list(names), crop, learn
        self.tokenizer, self.transform = model.tokenizer, model.transform
        self.experts = model.config.experts
        self.map_size = min(prismer_input.MAP_SIZE, self.transform.size)
        self.tables = prismer_input.label_tables(model, self.experts)
        chosen = digest(
            task, prompt, self.names, list(self.experts), list(crop or ()),
            self.transform.digest, self.tokenizer.digest,
        )  # fmt: skip
        self.digest = f"{look}; settings {chosen[:8]}"

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.data[i]
        prompt, texts, weight = self.spoken(row)
        seen = {"prompt": prompt, **self.picture(row)}
        if not self.learn:
            return seen
        if not texts:
            raise InputError(f"The captions of {row['id']} have no word: leave that row out.")
        text = texts[int(torch.randint(len(texts), ()))] if len(texts) > 1 else texts[0]
        start = prompt_tokens(self.tokenizer, prompt)[:QUESTION_TOKENS]
        [said] = prismer_text.answer_ids(self.tokenizer, [text])
        said = said if len(said) <= TEXT_TOKENS else [*said[: TEXT_TOKENS - 1], said[-1]]
        return {
            "ids": torch.tensor(start + said),
            "labels": torch.tensor([IGNORED] * len(start) + said),
            "weight": weight,
            **seen,
        }

    def spoken(self, row: dict[str, Any]) -> tuple[str, list[str], float]:
        """Prompt, texts that may follow it, and weight of a row."""
        if self.task == "names":
            return prismer_text.CLASS_PROMPT, [self.names[row["label"]]], 1.0
        if self.task == "answers":
            question = prismer_text.clean_question(row["question"])
            return question, row["answers"], row.get("weight", 1.0)
        texts = [text for text in map(prismer_text.clean_caption, row["captions"]) if text]
        return self.prompt, texts, 1.0

    def picture(self, row: dict[str, Any]) -> dict[str, Any]:
        """``rgb`` (3, S, S) and ``maps``, cut out alike.

        Raises:
            InputError: the picture or a label file is missing or broken.
        """
        image = open_image(row["image"])
        maps = {
            name: read_labels(self.labels, name, row["maps"], image.size, CLASSES.get(name))
            for name in self.experts
        }
        cut = geometry.Geometry()
        if self.crop is not None:
            aspect = image.width / image.height
            cut = geometry.sample(torch.default_generator, aspect, scale=tuple(self.crop))
        side, small = self.transform.size, self.map_size
        image, maps = geometry.apply(cut, image, maps, (side, side), (small, small))
        return {"rgb": self.transform(image), "maps": maps}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items -> what ``prismer_training.objective`` takes: ids (B, N), padding behind."""
        ids = pad_sequence([item["ids"] for item in items], True, self.tokenizer.pad_id)  # (B, N)
        labels = pad_sequence([item["labels"] for item in items], True, IGNORED)  # (B, N)
        lengths = torch.tensor([len(item["ids"]) for item in items])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()  # (B, N)
        weight = torch.tensor([float(item["weight"]) for item in items])
        experts = self.seen(items)[1]
        return {"experts": experts, "ids": ids, "mask": mask, "labels": labels, "weight": weight}

    def seen(self, items: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
        """Items -> their prompts, and the batch of experts as ``Prismer.encode`` takes it."""
        experts = prismer_input.stack(items, self.map_size, self.tables, self.experts)
        return [item["prompt"] for item in items], experts


def training(s: Settings, root: Path, seed: int, shots: int) -> tuple[Any, str]:
    """Rows that a stage trains on, and their sources: name, number of rows and digest of each.

    Rows without a word in their captions, or question, are left out; a warning counts them.

    Raises:
        InputError: whatever a reader finds wrong.
    """
    import datasets

    if s["shards"] is not None:
        shards = WebShards(root / s["shards"])
        look = f"{s['shards']} {len(shards)} rows {shards.digest[:8]}"
        shards.left_out.warn(f"{shards.folder}")
        return shards, look
    if s["task"] == "names":
        found = [("imagenet", imagenet.load("train", root, shots=shots, seed=seed))]
    elif s["task"] == "answers":
        found = [("vqav2", vqav2.load("train", root, protocol=s["protocol"]))]
    else:
        found = [
            (source, coco.load("train", root) if source == "coco"
            else web_captions.load("train", root, source=source))
            for source in s["sources"]
        ]  # fmt: skip
    parts = [_worded(undecoded(part), name) for name, part in found]
    looks = [
        f"{name} {len(part)} rows {whole._fingerprint[:8]}"
        for (name, whole), part in zip(found, parts)
    ]
    data = datasets.concatenate_datasets(parts)
    return (Answers(data) if s["task"] == "answers" else data), "; ".join(looks)


def testing(s: Settings, root: Path) -> dict[str, Any]:
    """Rows that a stage is tested on, by name of the set.

    NoCaps is left out where its list is not there. Of VQAv2's validation part, a model that starts from
    captions of COCO gets the questions on pictures that those do not show; ``protocol="server"`` has the
    test part instead.

    Raises:
        InputError: whatever a reader finds wrong, or no question is left.
    """
    if s["task"] == "names":
        return {"imagenet": undecoded(imagenet.load("test", root))}
    if s["task"] == "captions":
        found = {"coco": undecoded(coco.load("test", root))}
        places = (root, root / nocaps.FOLDER)
        if any((place / "nocaps_val.json").is_file() for place in places):
            found["nocaps"] = undecoded(nocaps.load("validation", root))
        return found
    if s["protocol"] == "server":
        return {"vqav2": undecoded(vqav2.load("test", root))}
    data = undecoded(vqav2.load("validation", root))
    if s["start"] is not None:
        known = {int(number) for number in coco.load("train", root)["group"][:]}
        rows = [i for i, path in enumerate(data["maps"][:]) if coco.image_id(path) not in known]
        if not rows:
            raise InputError(
                f"{root}: every validation question is on a picture of coco_karpathy_train.json, "
                "on which the start was trained: set start to None."
            )
        data = data.select(rows)
    return {"vqav2": data}


def _worded(data: Any, name: str) -> Any:
    """The rows of a source with a word in what is read of them."""
    column = next((c for c in ("question", "captions") if c in data.column_names), None)
    if column is None:
        return data
    kept, left_out = [], LeftOut()
    for i, text in enumerate(data[column]):
        if has_word([text] if isinstance(text, str) else text):
            kept.append(i)
        else:
            left_out.add("rows without a word", data[i]["id"])
    left_out.warn(name)
    return data.select(kept) if left_out.counts else data


def undecoded(data: Any) -> Any:
    """The same rows, with pictures as their files."""
    import datasets

    return data.cast_column("image", datasets.Image(decode=False))


def label_folder(s: Settings, root: Path) -> Path:
    """The folder of label files.

    Raises:
        InputError: one of the experts has no folder there.
    """
    folder = root / s["labels"]
    for name in s["experts"]:
        if not (folder / name).is_dir() and name != "ocr_detection":  # no word, no file
            raise InputError(
                f"{folder / name} does not exist: make the labels with `python -m mmfusion_lib "
                f"experts {root} --experts {','.join(s['experts'])} --source hub --to {folder}`, "
                "or set experts to ()."
            )
    return folder
