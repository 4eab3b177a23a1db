"""Turn a downloaded MM-IMDB into the one layout that `mmimdb.load` reads.

Two published files are understood:

1. ``mmimdb.tar.gz``: ``mmimdb/split.json`` and ``mmimdb/dataset/<id>.json`` and ``<id>.jpeg``. Only
   these are unpacked, by their last name, so that nothing can be written anywhere else.
2. ``multimodal_imdb.hdf5`` with ``metadata.npy`` beside it: posters cropped to 160 x 256, and plots
   as word numbers. It needs ``pip install h5py``.

The second form is not equal to the first. Its posters are cropped and small, in Caffe's form (blue
first, a mean subtracted, cut to whole numbers), which is undone here to within one grey level and
then stored as JPEG; its plots are in small letters with digits replaced by N and punctuation set
apart. Say which one a result is for: ``build.json`` does.

Its words are in ``metadata.npy``, which is a pickle. It is not unpickled: the instructions in it
are read as text, without any being carried out, until the list of words is complete.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from ..files import write_json
from .mmimdb import GENRES, LAYOUT, SPLIT_NAMES, film_ids

JPEG_QUALITY = 95
_MEMBER = re.compile(r"(?:^|/)(split\.json|dataset/\w+\.(?:json|jpeg))$")
_PUNCTUATION = ("MARK", "SETITEM", "SETITEMS", "FRAME", "MEMOIZE", "PUT", "BINPUT",
                "LONG_BINPUT")  # fmt: skip
_BLUE_GREEN_RED_MEAN = (103.939, 116.779, 123.68)  # what the authors' make_dataset.py subtracts


def build(out: str | Path, source: str | Path) -> dict[str, Any]:
    """Write ``out/mmimdb`` from ``mmimdb.tar.gz`` or ``multimodal_imdb.hdf5``.

    ``split.json``, which the reader asks for, appears last: an interrupted build leaves no half set.

    Args:
        out: a data root; point MMFUSION_DATA at it afterwards.
        source: the downloaded file.

    Returns:
        The number of films and the name of the source; also in ``mmimdb/build.json``.

    Raises:
        InputError: the source is missing, damaged or another file, the set is there already, or the
            folder cannot be written to.
    """
    source, folder = Path(source), Path(out) / "mmimdb"
    if not source.is_file():
        raise InputError(f"{source} does not exist: give mmimdb.tar.gz or multimodal_imdb.hdf5.")
    for name in ("split.json", "dataset"):
        if (folder / name).exists():
            raise InputError(f"{folder / name} exists already: choose another folder, or move it.")
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "dataset").mkdir(parents=True)
        if source.suffix == ".hdf5":
            with open_hdf5(source) as file:
                _convert(file, read_words(source.with_name("metadata.npy")), partial, source)
        else:
            _unpack(source, partial)
        lists = film_ids(partial)
        for name in (name for names in lists.values() for name in names):
            for ending in ("json", "jpeg"):
                if not (partial / "dataset" / f"{name}.{ending}").is_file():
                    raise InputError(f"{source} lacks {name}.{ending}: fetch it again.")
        report = {"films": sum(map(len, lists.values())), "source": source.name}
        for name in ("dataset", "split.json"):
            os.replace(partial / name, folder / name)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}): free some space, or choose another "
            "folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_json(folder / "build.json", report)
    return report


def _unpack(source: Path, folder: Path) -> None:
    """Write the wanted members of the archive into ``folder``."""
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                match = _MEMBER.search(member.name)
                if match and member.isfile():
                    content = archive.extractfile(member).read()
                    (folder / match.group(1)).write_bytes(content)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"{source} is not a readable archive ({error}): fetch it again."
        ) from error
    if not (folder / "split.json").is_file():
        raise InputError(f"{source} holds no split.json: give the archive with {LAYOUT}.")


def open_hdf5(source: Path) -> Any:
    """The file, opened for reading.

    Raises:
        InputError: h5py is not installed, or the file is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{source} is an HDF5 file: install its reader, pip install h5py."
        ) from error
    try:
        return h5py.File(source, "r")
    except OSError as error:
        raise InputError(f"{source} is not a readable HDF5 file: fetch it again.") from error


def _convert(file: Any, words: list[str], folder: Path, source: Path) -> None:
    """Write every film of an HDF5 file; ``file`` behaves as `h5py.File`."""
    from tqdm.auto import tqdm

    for key in ("images", "genres", "sequences", "imdb_ids"):
        if key not in file:
            raise InputError(f"{source} has no {key!r}: give the published multimodal_imdb.hdf5.")
    names = json.loads(file["genres"].attrs["target_names"])
    if sorted(names) != sorted(GENRES):
        raise InputError(
            f"{source}: its genres are {', '.join(names)}, not the 23 of MM-IMDB: give the published "
            "multimodal_imdb.hdf5."
        )
    lists: dict[str, list[str]] = {}
    for key, (start, stop) in _spans(file, source).items():
        lists[key] = [name.decode() for name in file["imdb_ids"][start:stop]]
        for row in tqdm(range(start, stop), key, leave=False, disable=stop - start < 500):
            film = lists[key][row - start]
            if not re.fullmatch(r"\w+", film):
                raise InputError(f"{source}, row {row}: {film!r} is no film id: fetch it again.")
            try:
                numbers, poster = file["sequences"][row], _poster(file["images"][row])
            except OSError as error:
                raise InputError(
                    f"{source}, row {row} cannot be read ({error}): fetch it again."
                ) from error
            if len(numbers) and not 0 <= min(numbers) <= max(numbers) < len(words):
                raise InputError(
                    f"{source}, film {film}: a word number is beyond the {len(words)} words of "
                    "metadata.npy: the two files do not belong together."
                )
            content = {
                "plot": [" ".join(words[number] for number in numbers)],
                "genres": [name for name, has in zip(names, file["genres"][row]) if has],
            }
            text = json.dumps(content, ensure_ascii=False)
            (folder / "dataset" / f"{film}.json").write_text(text, encoding="utf-8")
            (folder / "dataset" / f"{film}.jpeg").write_bytes(poster)
    write_json(folder / "split.json", lists)


def _spans(file: Any, source: Path) -> dict[str, tuple[int, int]]:
    """First row and end of train, dev and test, from the table that Fuel keeps in the file."""
    spans = {}
    for entry in file.attrs.get("split", ()):
        if entry["source"].decode() == "genres" and entry["available"]:
            spans[entry["split"].decode()] = (int(entry["start"]), int(entry["stop"]))
    if set(spans) != set(SPLIT_NAMES.values()):
        raise InputError(
            f"{source} says {sorted(spans)} of splits, not train, dev and test: give the published "
            "multimodal_imdb.hdf5."
        )
    return {key: spans[key] for key in SPLIT_NAMES.values()}


def _poster(crop: Any) -> bytes:
    """(3, height, width) whole numbers in Caffe's form -> an RGB JPEG file."""
    import numpy as np
    from PIL import Image

    mean = np.array(_BLUE_GREEN_RED_MEAN)[:, None, None]  # (3, 1, 1)
    pixels = (np.asarray(crop) + mean).round().clip(0, 255).astype(np.uint8)  # (3, H, W)
    picture = Image.fromarray(np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0)))  # (H, W, 3)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def read_words(path: Path) -> list[str]:
    """The words of ``metadata.npy`` by number, read without unpickling.

    The file holds a dictionary in which ``ix_to_word`` maps 0, 1, 2, ... to words and ``word_to_ix``
    the other way. In a pickle such a dictionary is a run of instructions "number, text, number,
    text, ..."; `pickletools` lists them, and carries none out. The first of the two is read: the
    second refers back to it.

    Raises:
        InputError: the file is missing, or holds no such dictionary.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: it holds the words, put it beside the HDF5 file.")
    words: dict[int, str] = {}
    with open(path, "rb") as file:
        head = file.read(8)
        size = int.from_bytes(file.read(2 if head[6:7] == b"\x01" else 4), "little")
        file.seek(size, io.SEEK_CUR)  # behind the header of the array: the pickle
        values = _values(file)
        try:
            if head[:6] == b"\x93NUMPY" and any(v in ("ix_to_word", "word_to_ix") for v in values):
                next(values)  # the instruction that begins the dictionary
                for pair in zip(values, values):
                    number, word = pair if isinstance(pair[0], int) else pair[::-1]
                    if not isinstance(number, int) or not isinstance(word, str):
                        break  # the end of the dictionary: two texts, or something else
                    words[number] = word
        except (ValueError, StopIteration):  # no pickle, or one that is cut short
            words = {}
    if words.get(len(words) - 1) == "vocab_size":
        del words[len(words) - 1]  # the next key of the outer dictionary: its value is their number
    if not words or sorted(words) != list(range(len(words))):
        raise InputError(f"{path} is not the published metadata.npy: fetch it again.")
    return [words[number] for number in range(len(words))]


def _values(file: BinaryIO) -> Iterator[int | str | None]:
    """Numbers and texts that a pickle names, in order; None for all else except its punctuation."""
    for op, value, _ in pickletools.genops(file):
        if "UNICODE" in op.name or "STRING" in op.name or "INT" in op.name:
            yield value
        elif op.name not in _PUNCTUATION:
            yield None
