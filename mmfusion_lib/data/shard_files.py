"""Shards, that is tar files of captioned pictures: index them, read words, pack new ones."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import settings
from ..errors import InputError
from ..files import atomic_path, digest
from .paper_sets import LeftOut

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
WORDS = (".json", ".txt")  # the first that is there is read


class Index(NamedTuple):
    """Where the S samples of a shard lie."""

    keys: np.ndarray  # (S,) bytes
    places: np.ndarray  # (S, 4): offset and size of the picture, offset and size of the words
    endings: np.ndarray  # (S, 2): numbers into PICTURES and WORDS


def kept_index(file: Path, left_out: LeftOut) -> Index:
    """As `scan`, but once: the index is kept in the cache, under path, size and time of the shard.

    Raises:
        InputError: as `scan`, or the cache cannot be written.
    """
    state = file.stat()
    name = digest("index 1", str(file.resolve()), state.st_size, state.st_mtime_ns)
    path = settings.cache_root() / "shards" / f"{name}.npz"
    try:
        with np.load(path) as kept:
            index, left = Index(*(kept[k] for k in Index._fields)), json.loads(str(kept["left"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or a damaged one
        here = LeftOut()
        index = scan(file, here)
        left = {reason: [n, here.first[reason]] for reason, n in here.counts.items()}
        with atomic_path(path) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, **index._asdict(), left=json.dumps(left))
    for reason, (n, first) in left.items():
        left_out.counts[reason] += n
        left_out.first.setdefault(reason, first)
    return index


def scan(file: Path, left_out: LeftOut) -> Index:
    """Read the headers of a shard, and the captions: a sample without a word is left out.

    Raises:
        InputError: the tar file is damaged or cut off, a name is there twice, or a sample's words are
            no valid JSON or text.
    """
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    end = 0
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = member.offset_data + (member.size + 511) // 512 * 512  # whole blocks
                if not member.isfile():
                    continue
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = name.partition(".")
                key, ending = f"{folder}/{stem}".lstrip("/"), f".{ending.lower()}"
                if ending in found.setdefault(key, {}):
                    raise InputError(f"{file}: {member.name} is there twice: repack the shard.")
                found[key][ending] = member
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{file} is no whole tar file ({error}): fetch or pack it again."
        ) from error
    if file.stat().st_size < end + 512:  # a whole tar file ends with an empty block
        raise InputError(f"{file} is cut off: fetch or pack it again.")
    rows = []
    with open(file, "rb") as opened:
        for key, members in found.items():
            ends = [next((e for e in of if e in members), None) for of in (PICTURES, WORDS)]
            if None in ends:
                missing = "a picture" if ends[0] is None else "words"
                left_out.add(f"samples without {missing}", f"{file}, {key}")
                continue
            pair = [members[ends[0]], members[ends[1]]]
            opened.seek(pair[1].offset_data)
            text = opened.read(pair[1].size)
            if has_word(read_words(text, ends[1], f"{file}, {key}{ends[1]}")[0]):
                rows.append((key, [n for m in pair for n in (m.offset_data, m.size)], ends))
            else:
                left_out.add("samples without words", f"{file}, {key}")
    return Index(
        np.array([key.encode() for key, _, _ in rows] or [], "S"),
        np.array([places for _, places, _ in rows], np.int64).reshape(-1, 4),
        np.array([(PICTURES.index(p), WORDS.index(w)) for _, _, (p, w) in rows], np.int8).reshape(
            -1, 2
        ),
    )


def read_words(text: bytes, ending: str, where: str) -> tuple[list[str], str]:
    """Captions of a sample, and the path of its maps where the JSON has one.

    Raises:
        InputError: no valid JSON or text.
    """
    try:
        content = text.decode("utf-8")
        record = {"caption": content} if ending == ".txt" else json.loads(content)
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(
            f"{where} is no valid JSON or text ({error}): repack the shard."
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is no JSON object: repack the shard.")
    captions = record.get("captions", [record.get("caption")])
    captions = captions if isinstance(captions, list) else [captions]
    captions = [c.strip() for c in captions if isinstance(c, str) and c.strip()]
    maps = record.get("maps")
    return captions, maps if isinstance(maps, str) else ""


def has_word(texts: Iterable[str]) -> bool:
    """Whether there is a letter or digit in any of the texts."""
    return any(letter.isalnum() for text in texts for letter in text)


def pack(rows: Iterable[dict[str, Any]], folder: str | Path, size: int = 10_000) -> list[Path]:
    """Write rows of a caption reader as shards ``00000.tar``, ``00001.tar``, ...

    Pictures are copied as they are. The same rows give the same bytes. Write to a new folder.

    Args:
        rows: of a reader, or any with image (``{"bytes", "path"}``), captions and maps.
        size: samples of a shard, except of the last.

    Raises:
        InputError: the folder has shards already, no rows, a missing picture, or a full disk.
    """
    import datasets

    folder = Path(folder)
    if any(folder.glob("*.tar")):
        raise InputError(f"{folder} holds shards already: give a new folder.")
    if isinstance(rows, datasets.Dataset):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    files, batch = [], []

    def flush() -> None:
        file = folder / f"{len(files):05d}.tar"
        with atomic_path(file) as temporary, tarfile.open(temporary, "w:") as tar:
            for number, row in enumerate(batch, start=len(files) * size):
                _add(tar, f"{number:09d}", row)
        files.append(file)
        batch.clear()

    for row in rows:
        batch.append(row)
        if len(batch) == size:
            flush()
    if batch:
        flush()
    if not files:
        raise InputError(f"There are no rows to pack into {folder}: give one or more.")
    return files


def _add(tar: tarfile.TarFile, key: str, row: dict[str, Any]) -> None:
    path = str(row["image"]["path"] or "")
    ending = Path(path).suffix.lower()
    content = row["image"]["bytes"]
    if content is None:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): complete it.") from error
    record = {"captions": list(row["captions"]), "maps": row["maps"]}
    words = json.dumps(record, ensure_ascii=False).encode()
    parts: Sequence[tuple[str, bytes]] = (
        (ending if ending in PICTURES else ".jpg", content),
        (".json", words),
    )
    for end, value in parts:
        member = tarfile.TarInfo(key + end)
        member.size = len(value)
        tar.addfile(member, io.BytesIO(value))
