"""Captioned pictures in tar files of thousands (webdataset shards): as items, or as a stream.

A shard is a tar file in which files with one name up to the first dot are one sample::

    cc12m/00000.tar:  000000012.jpg  000000012.txt  000000012.json  000000013.jpg ...

A tar file can be read at any place once its headers are known, so no shuffle buffer is needed. There
are two ways to read.

**By number**, ``shards[i]``, as `train.fit` reads any data, and so Prismer's recipes with their setting
``shards``. The order of an epoch is shuffled over all samples, and going on after an interruption is
that of `train.fit`. Each sample is a seek in some shard: this wants a local disk that is quick at it.

**As a stream**, for training loops of your own; no recipe uses it. Shards are shuffled by a seed, and
samples inside their shard, so a shard is read in one go. A position is three numbers, how many passes,
shards and samples are done, and to go on there is exact. Readers with a buffer cannot do that (its
content is lost, or everything before must be read again), which is why this one is built on `tarfile`
of the standard library.

Where samples lie is found once for each shard and kept in the cache, below ``shards``. One sample is in
memory at a time, and some 45 bytes for each sample whose shard was opened.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import digest
from .paper_sets import LeftOut
from .shard_files import PICTURES, WORDS, Index, kept_index, read_words


@dataclass(frozen=True)
class Position:
    """Where a process is in its stream: what it has read of its own shards.

    Attributes:
        epoch: passes over all shards that are done.
        shard: shards of this pass that are done.
        sample: samples of this shard that are done.
    """

    epoch: int = 0
    shard: int = 0
    sample: int = 0


class WebShards:
    """The samples of a folder of shards.

    ``shards[i]`` is an item of a fixed list, for `train.fit`; `stream` reads shard after shard.
    Items are ``{"id", "image", "captions", "maps", "group"}``: image is ``{"bytes", "path"}`` as
    `images.open_image` takes it; captions is a list of texts; maps is the path that names expert
    labels, ``<folder>/<shard>/<key>.jpg`` unless the JSON says.

    A sample without a picture, with neither ``.json`` nor ``.txt``, or without a letter or digit in its
    captions, is left out and counted in ``left_out``; other files of a sample are ignored.

    Args:
        folder: holds the shards, ``*.tar``; they are taken in the order of their names.

    Raises:
        InputError: no shards; later, a shard that cannot be read, changed, has a key twice, or
            broken words.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("*.tar"))
        if not self.files:
            raise InputError(
                f"{folder} holds no .tar file: make shards with shard_files.pack or img2dataset."
            )
        self.sizes = [file.stat().st_size for file in self.files]
        self.left_out = LeftOut()
        self._indices: dict[int, Index] = {}
        self._starts: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """Names the shards by name and size; `train.fit` refuses to resume on others."""
        return digest([file.name for file in self.files], self.sizes)

    def __len__(self) -> int:
        """Samples in all shards. The first call reads headers and captions of shards without an index
        in the cache, about 2 s for 10,000 samples."""
        if self._starts is None:
            lengths = [len(self.index(shard).keys) for shard in range(len(self.files))]
            self._starts = np.cumsum([0, *lengths])  # (shards + 1,)
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.read(shard, number - int(self._starts[shard]))

    def stream(
        self,
        position: Position | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[tuple[dict[str, Any], Position]]:
        """Samples without end, each with the position behind it: store that of the last one used.

        In every pass each shard is read by one process. Processes whose shards are fewer or smaller
        begin their next pass earlier; nobody waits, so give the length of a run in steps.

        Args:
            position: where to begin; as a stream of the same seed, rank and world gave it.
            seed: of the order of shards, and of samples in their shard, which change with the pass.
            rank: number of this process, from 0. Where R training processes have W loaders each,
                there are R x W, and each keeps a position of its own.
            world: how many processes there are.

        Raises:
            InputError: fewer shards than processes, a position outside them, no usable sample in a
                whole pass, or a shard that cannot be read.
        """
        if not 0 <= rank < world <= len(self.files):
            raise InputError(
                f"{self.folder} holds {len(self.files)} shards for process {rank} of {world}: each "
                "needs one or more, so use fewer processes or smaller shards."
            )
        epoch, first, start = (
            getattr(position or Position(), n) for n in ("epoch", "shard", "sample")
        )
        while True:
            order = list(range(len(self.files)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            mine, used = order[rank::world], bool(first or start)
            if not 0 <= first < len(mine):
                raise InputError(f"Shard {first} of {len(mine)} is no position here: begin anew.")
            for place, shard in list(enumerate(mine))[first:]:
                samples = list(range(len(self.index(shard).keys)))
                random.Random(f"{seed}/{epoch}/{self.files[shard].name}").shuffle(samples)
                if not 0 <= start <= len(samples):
                    raise InputError(
                        f"{self.files[shard]} has {len(samples)} samples, so {start} cannot be "
                        "done: the shards changed; begin anew."
                    )
                for done, sample in enumerate(samples[start:], start=start + 1):
                    used = True
                    after = self._after(epoch, place, done, len(mine), len(samples))
                    yield self.read(shard, sample), after
                start = 0
            if not used:
                raise InputError(f"{self.folder}: no sample has a picture and words: repack it.")
            epoch, first = epoch + 1, 0

    def state(
        self, position: Position, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> dict[str, Any]:
        """What a checkpoint keeps of one process's stream, as plain values for JSON."""
        shards = {file.name: size for file, size in zip(self.files, self.sizes)}
        return {
            "position": asdict(position), "seed": seed, "rank": rank, "world": world,
            "shards": shards,
        }  # fmt: skip

    def resume(
        self, state: dict[str, Any], *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> Position:
        """The position that `state` kept, where the stream is still the same one.

        Raises:
            InputError: another seed, rank, number of processes, or shards; names the difference.
        """
        now = self.state(Position(), seed=seed, rank=rank, world=world)
        for key in ("seed", "rank", "world"):
            if state[key] != now[key]:
                raise InputError(
                    f"{self.folder}: the stream was begun with {key} {state[key]} and not "
                    f"{now[key]}: give the same, or begin anew."
                )
        for name in sorted({**state["shards"], **now["shards"]}):
            was, is_now = state["shards"].get(name), now["shards"].get(name)
            if was != is_now:
                sizes = ["absent" if n is None else f"{n:,} bytes" for n in (was, is_now)]
                raise InputError(
                    f"{self.folder / name} was {sizes[0]} when the stream was begun and is "
                    f"{sizes[1]} now: restore it, or begin anew."
                )
        return Position(**state["position"])

    @staticmethod
    def _after(epoch: int, place: int, done: int, shards: int, samples: int) -> Position:
        if done < samples:
            return Position(epoch, place, done)
        return Position(epoch, place + 1) if place + 1 < shards else Position(epoch + 1)

    def read(self, shard: int, sample: int) -> dict[str, Any]:
        """One sample of one shard, by its numbers in the files' order.

        Raises:
            InputError: the shard changed, or the sample's JSON is broken.
        """
        index, file = self.index(shard), self.files[shard]
        start, size, words_start, words_size = index.places[sample].tolist()
        picture, words = (e[n] for e, n in zip((PICTURES, WORDS), index.endings[sample]))
        key = index.keys[sample].decode()
        with open(file, "rb") as opened:
            opened.seek(start)
            content = opened.read(size)
            opened.seek(words_start)
            text = opened.read(words_size)
        captions, maps = read_words(text, words, f"{file}, {key}{words}")
        maps = maps or f"{self.folder.name}/{file.stem}/{key}{picture}"
        name = f"{file.name}/{key}"
        image = {"bytes": content, "path": f"{file}/{key}{picture}"}
        return {"id": name, "image": image, "captions": captions, "maps": maps, "group": maps}

    def index(self, shard: int) -> Index:
        """Where the samples of a shard lie."""
        if shard not in self._indices:
            file = self.files[shard]
            if file.stat().st_size != self.sizes[shard]:
                raise InputError(f"{file} changed while it was in use: begin anew.")
            self._indices[shard] = kept_index(file, self.left_out)
        return self._indices[shard]
