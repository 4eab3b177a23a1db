"""Your own pictures and texts as training data of Prismer: pictures stay in their files until needed.

``PrismerItems`` holds all pictures as tensors; that is quickest where they fit. ``CaptionItems`` gives
the same items but opens a picture, and reads the maps of its experts, each time the item is asked for,
so that memory does not grow with the folder. Shapes: B batch, N tokens, S pixels a side.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from . import prismer_input
from .data.caption_table import Row, shown
from .data.images import open_image
from .errors import InputError
from .experts.label_map import Expert, LabelMap
from .experts.labels import label_path, read_labels
from .files import digest, sha256
from .prismer import Prismer
from .prismer_text import CAPTION_PROMPT, clean_caption, clean_question
from .prismer_training import PrismerItems

LONGEST = 64  # tokens of prompt, text and end mark

Picture = dict[str, Any]  # "rgb" (3, S, S), "maps": label maps by expert


class Pictures:
    """Files as Prismer reads them, with label maps from files or from experts that run now.

    Args:
        model: its ``transform`` and ``config.experts`` are used.
        folder: of the pictures.
        labels: folder of label files, laid out as the pictures; None: ``suppliers`` are asked.
        suppliers: experts to run on each picture.

    Raises:
        InputError: a model without tokenizer or transform, or labels for one without experts.
    """

    def __init__(
        self,
        model: Prismer,
        folder: str | Path,
        labels: str | Path | None = None,
        suppliers: Sequence[Expert] = (),
    ):
        if model.transform is None or model.tokenizer is None:
            raise InputError("This model reads no files: set model.transform and model.tokenizer.")
        if labels is not None and not model.config.experts:
            raise InputError(
                f"This model reads no label maps: leave {labels} out, or name experts."
            )
        self.folder = Path(folder)
        self.labels = None if labels is None else Path(labels)
        self.suppliers = suppliers
        self.transform = model.transform
        self.experts: tuple[str, ...] = tuple(each.name for each in suppliers)
        if self.labels is not None:
            self.experts = model.config.experts
        self.size = min(prismer_input.MAP_SIZE, model.transform.size)
        self.tables = prismer_input.label_tables(model, self.experts)

    def __call__(self, name: str) -> Picture:
        """Open one picture, by its path below the folder, and get its maps.

        Raises:
            InputError: the picture or a label file is missing or broken.
        """
        image = open_image(self.folder / name, shown(str(self.folder / name)))
        maps: dict[str, LabelMap] = {}
        if self.labels is not None:
            for expert in self.experts:
                maps[expert] = read_labels(self.labels, expert, name, image.size)
        for supplier in self.suppliers:
            maps[supplier.name] = supplier([image])[0]
        return {"rgb": self.transform(image), "maps": maps}

    def batch(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """Opened pictures -> a batch of experts as ``Prismer.encode`` takes it."""
        return prismer_input.stack(pictures, self.size, self.tables, self.experts)

    def digest(self, name: str) -> str:
        """Of the bytes of a picture and of its label files."""
        found = [sha256(self.folder / name)]
        if self.labels is not None:
            for expert in self.experts:
                path = label_path(self.labels, expert, name)
                found += [sha256(p) for p in (path, path.with_suffix(".json")) if p.exists()]
        return digest(found)


class CaptionItems:
    """Rows of a table as items for ``train.fit``, with ``collate`` to batch them.

    Args:
        rows: captions as they are, or questions with answers; captions are cut at 30 words.
        pictures: opens them.
        model: for its tokenizer.
        looks: digest of each picture, by name.

    Attributes:
        lengths: tokens of the shortest and of the longest text, end mark included.
        digest: of texts, pictures, maps and of how they are read.

    Raises:
        InputError: a text without words, or one that is too long.
    """

    def __init__(
        self, rows: Sequence[Row], pictures: Pictures, model: Prismer, looks: Mapping[str, str]
    ):
        self.rows, self.pictures, self.model, self.looks = list(rows), pictures, model, looks
        self.names = [row.image for row in rows]
        prompts = [clean_question(r.question) if r.question else CAPTION_PROMPT for r in rows]
        texts = [row.text if row.question else clean_caption(row.text) for row in rows]
        for row, text in zip(rows, texts):
            if not text:
                raise InputError(f"{row.where}: there is no word in {row.text!r}: write some.")
        # The texts are kept as PrismerItems keeps them; its pictures are left empty.
        self.texts = PrismerItems(
            {"rgb": torch.zeros(len(rows), 0)}, prompts, [[text] for text in texts],
            model.tokenizer, self.names, max_length=2 * model.tokenizer.max_length,
        )  # fmt: skip
        for row, [(ids, _)] in zip(rows, self.texts.rows):
            if len(ids) > LONGEST:
                raise InputError(
                    f"{row.where}: the text has {len(ids)} tokens with what stands before it, more "
                    f"than {LONGEST}: shorten it."
                )
        lengths = [len(ids) - prompt for [(ids, prompt)] in self.texts.rows]
        self.lengths = min(lengths), max(lengths)
        self.digest = digest(
            pictures.transform.digest, model.tokenizer.digest, list(pictures.experts),
            [[row.image, prompt, text, looks[row.image]]
             for row, prompt, text in zip(rows, prompts, texts)],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.texts[i], "experts": self.pictures(self.names[i])}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items -> what ``prismer_training.objective`` takes; maps may differ in their names."""
        texts = [{k: v for k, v in item.items() if k != "experts"} for item in items]
        experts = self.pictures.batch([item["experts"] for item in items])
        return {**torch.utils.data.default_collate(texts), "experts": experts}

    def swapped(self) -> CaptionItems | None:
        """The same texts, each with the next of the other pictures; None where there is one picture."""
        names = list(dict.fromkeys(self.names))
        if len(names) < 2:
            return None
        following = dict(zip(names, names[1:] + names[:1]))
        rows = [row._replace(image=following[row.image]) for row in self.rows]
        return CaptionItems(rows, self.pictures, self.model, self.looks)


def check_pictures(pictures: Pictures, rows: Iterable[Row]) -> dict[str, str]:
    """Open every picture once, with its maps: digests by name.

    Raises:
        InputError: one that cannot be opened, or has no maps, by its row.
    """
    from tqdm.auto import tqdm

    first = {row.image: row.where for row in reversed(list(rows))}
    names = sorted(first)

    def look(name: str) -> str:
        try:
            pictures.batch([pictures(name)])
            return pictures.digest(name)
        except InputError as error:
            raise InputError(f"{first[name]}: {error}") from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            found = tqdm(
                pool.map(look, names), "checking pictures", len(names), leave=False, disable=None
            )
            return dict(zip(names, found))
        except InputError:
            pool.shutdown(cancel_futures=True)  # the pictures behind it need not be looked at
            raise
