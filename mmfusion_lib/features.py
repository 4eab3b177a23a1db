"""Base features: run the frozen part of an encoder once, keep the tokens, train on them for ever.

The layers below the first trainable one always compute the same thing (PMF section 3.1 calls it
base feature extraction). We therefore write their output to disk, in a folder whose name is a
digest of everything it depends on: encoder weights, depth, input transform, data, data type.
Files are appended row by row, so that an interrupted extraction goes on where it stopped, and
memory-mapped when read, so that they may be larger than memory.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

from . import settings
from .encoders import masked_mean
from .errors import InputError
from .files import digest, read_json, write_json

Pool = Literal["mean", "readout"] | None
POOLS = (None, "mean", "readout")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Batch(NamedTuple):
    """What an encoder's ``embed`` takes, and the mask of its tokens (None: all are kept)."""

    inputs: torch.Tensor  # (B, 3, H, W) pixel values or (B, T) token ids
    mask: torch.Tensor | None  # (B, T), 1 = keep


class Images:
    """A sequence of pictures, opened and transformed when they are needed.

    Args:
        sources: whatever :func:`mmfusion_lib.data.images.open_image` takes, one a picture.
        transform: an ``ImageTransform``.
    """

    def __init__(self, sources: Sequence[Any], transform: Any) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, start: int, stop: int) -> Batch:
        """Pictures start..stop-1 as (B, 3, H, W)."""
        from .data.images import open_image

        pictures = [
            self.transform(open_image(self.sources[i], name=_name(self.sources[i], i)))
            for i in range(start, stop)
        ]
        return Batch(torch.stack(pictures), None)  # (B, 3, H, W)

    def digest(self) -> str:
        """Digest of the encoded pictures and of the transform; one picture is read at a time."""
        pictures = (_content(source, _name(source, i)) for i, source in enumerate(self.sources))
        return digest(self.transform.digest, list(pictures))


class Texts:
    """A sequence of texts, tokenized once and padded to the longest.

    Args:
        texts: one string an item.
        tokenizer: from :func:`mmfusion_lib.checkpoints.load_tokenizer`.
        max_length: longer texts are cut to this many tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, max_length: int = 64) -> None:
        self.ids, self.mask = tokenizer(list(texts), max_length=max_length)  # (N, T), (N, T)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, start: int, stop: int) -> Batch:
        """Texts start..stop-1 as (B, T) token ids and mask."""
        return Batch(self.ids[start:stop], self.mask[start:stop])

    def digest(self) -> str:
        """Digest of token ids and mask."""
        return digest(self.ids.numpy().tobytes(), self.mask.numpy().tobytes(), self.ids.shape[1])


@dataclass(frozen=True)
class Features:
    """Cached features of N items, memory-mapped.

    Attributes:
        values: (N, T, D) tokens, or (N, D) where they were pooled.
        mask: (N, T), 1 = keep; None where every token counts or tokens were pooled.
    """

    values: torch.Tensor
    mask: torch.Tensor | None
    folder: Path

    @property
    def digest(self) -> str:
        """Names the content: weights, depth, transform and data; checked when training resumes."""
        return self.folder.name

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = {"tokens": self.values[index]}  # (T, D) or (D,)
        if self.mask is not None:
            item["mask"] = self.mask[index]  # (T,)
        return item


def run_to(encoder: nn.Module, batch: Batch, depths: Sequence[int]) -> dict[int, torch.Tensor]:
    """Tokens after each of the given numbers of layers: {depth: (B, T, D)}; 0 is the embedding.

    Raises:
        InputError: a depth is negative or beyond the encoder's last layer.
    """
    _check_depths(encoder, depths)
    tokens = encoder.embed(batch.inputs)  # (B, T, D)
    found = {0: tokens} if 0 in depths else {}
    for depth, layer in enumerate(encoder.layers[: max(depths)], start=1):
        tokens = layer(tokens, batch.mask)  # (B, T, D)
        if depth in depths:
            found[depth] = tokens
    return found


def _check_depths(encoder: nn.Module, depths: Sequence[int]) -> None:
    if not depths:
        raise InputError("No depth is asked for: name at least one, from 0 (the embedding) on.")
    wrong = [d for d in depths if not 0 <= d <= len(encoder.layers)]
    if wrong:
        raise InputError(
            f"Depth {wrong[0]} is asked of an encoder with {len(encoder.layers)} layers: use 0 to "
            f"{len(encoder.layers)}."
        )


def pooled(
    encoder: nn.Module, tokens: torch.Tensor, mask: torch.Tensor | None, pool: Pool
) -> torch.Tensor:
    """(B, T, D) tokens -> (B, T, D), their mean over kept tokens (B, D), or the readout (B, R)."""
    if pool is None:
        return tokens
    if pool == "readout":
        return encoder.readout(tokens, mask)  # (B, R)
    return masked_mean(tokens, mask)  # (B, D)


def extract(
    encoder: nn.Module,
    data: Images | Texts,
    *,
    depths: Sequence[int],
    pool: Pool = None,
    dtype: str = "bfloat16",
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
) -> dict[int, Features]:
    """Features of every item at each depth: read from the cache, or computed once and cached.

    One pass serves all depths. An interrupted run (Ctrl-C, a full disk, SIGKILL) leaves whole
    rows only; the next call with the same arguments continues behind the last of them.

    Args:
        encoder: any encoder of design section 3; it is not changed.
        data: N items.
        depths: after how many layers to read; 0 is the embedding.
        pool: None keeps all tokens (N, T, D); "mean" averages them; "readout" asks the encoder.
        dtype: "bfloat16" (half the disk, several times faster on current CPUs) or "float32".
        batch_size: items a step.
        device: as in :func:`mmfusion_lib.settings.device`.

    Raises:
        InputError: bad depth, dtype, pool or batch size, unreadable picture, cache folder that
            cannot be written, disk full (nothing is half-written).
    """
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}.")
    if pool not in POOLS:
        raise InputError(f"Unknown pool {pool!r}: use None, 'mean' or 'readout'.")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be 1 or more.")
    if not len(data):
        raise InputError("There is nothing to extract features from: the data set is empty.")
    depths = sorted(set(depths))
    _check_depths(encoder, depths)
    lock, folders = _folders(encoder, data, depths, pool, dtype)
    missing = [d for d in depths if not (folders[d] / "meta.json").exists()]
    if missing:
        from filelock import FileLock

        with _guarded(folders), FileLock(lock):
            missing = [d for d in missing if not (folders[d] / "meta.json").exists()]
            if missing:
                where = settings.device(device)
                model = copy.deepcopy(encoder).eval().to(device=where, dtype=DTYPES[dtype])
                _write(model, data, missing, folders, pool, dtype, batch_size, where, progress)
    mask = data.mask if isinstance(data, Texts) and pool is None else None
    return {d: _open(folders[d], mask) for d in depths}


def _folders(
    encoder: nn.Module, data: Images | Texts, depths: Sequence[int], pool: Pool, dtype: str
) -> tuple[Path, dict[int, Path]]:
    """A lock for this encoder on these data, and the folder of each depth."""
    from .checkpoints import weights_digest

    # The same weights compute something else with other heads or another activation.
    model = digest(weights_digest(encoder), repr(getattr(encoder, "config", None)))
    content = data.digest()
    lock = _root() / f"{digest(model, content, pool, dtype)}.lock"
    return lock, {d: _root() / digest(model, content, d, pool, dtype) for d in depths}


def _root() -> Path:
    return settings.cache_root() / "features"


@contextmanager
def _guarded(folders: dict[int, Path]) -> Iterator[None]:
    """Turn what the system says of a full or read-only disk into one sentence."""
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(
            f"Features cannot be cached in {_root()} ({error.strerror or error}): free some space "
            "or set MMFUSION_CACHE to another disk, then run again; finished rows are kept."
        ) from error


def _write(
    model: nn.Module,
    data: Images | Texts,
    depths: Sequence[int],
    folders: dict[int, Path],
    pool: Pool,
    dtype: str,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> None:
    @torch.inference_mode()
    def compute(start: int, stop: int) -> dict[int, torch.Tensor]:
        inputs, mask = data.batch(start, stop)
        inputs = inputs.to(device, DTYPES[dtype] if inputs.is_floating_point() else None)
        batch = Batch(inputs, None if mask is None else mask.to(device))
        found = run_to(model, batch, depths)
        return {d: pooled(model, t, batch.mask, pool).cpu().contiguous() for d, t in found.items()}

    shape = {d: list(t.shape[1:]) for d, t in compute(0, 1).items()}
    row = {d: torch.Size(shape[d]).numel() * DTYPES[dtype].itemsize for d in depths}
    parts = {d: folders[d] / "values.part" for d in depths}
    for d in depths:
        if (folders[d] / "values.bin").exists():  # stopped just before meta.json was written
            os.replace(folders[d] / "values.bin", parts[d])
        parts[d].touch()
    done = min(len(data), *(parts[d].stat().st_size // row[d] for d in depths))
    for d in depths:  # drop what lies behind the last row that every depth has
        os.truncate(parts[d], done * row[d])
    bar = tqdm(total=len(data), initial=done, desc="extracting", unit="item", disable=not progress)
    with bar:
        for start in range(done, len(data), batch_size):
            stop = min(start + batch_size, len(data))
            for d, values in compute(start, stop).items():
                with open(parts[d], "ab") as file:
                    file.write(values.view(torch.uint8).numpy().tobytes())
            bar.update(stop - start)
    for d in depths:
        os.replace(parts[d], folders[d] / "values.bin")
        write_json(folders[d] / "meta.json", {"shape": [len(data), *shape[d]], "dtype": dtype})


def _open(folder: Path, mask: torch.Tensor | None) -> Features:
    meta = read_json(folder / "meta.json")
    path = folder / "values.bin"
    try:
        shape, dtype = meta["shape"], DTYPES[meta["dtype"]]
        count = torch.Size(shape).numel()
        whole = path.stat().st_size == count * dtype.itemsize
    except (KeyError, TypeError, FileNotFoundError):
        whole = False
    if not whole:
        raise InputError(f"The feature cache {path} is damaged: delete the folder {folder}.")
    values = torch.from_file(str(path), shared=False, size=count, dtype=dtype)
    return Features(values.view(shape), mask, folder)  # (N, T, D) or (N, D)


def _path(source: Any) -> str | None:
    """Path of a picture that lies in a file."""
    if isinstance(source, dict):
        source = source.get("path")
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def _name(source: Any, number: int) -> str:
    """What an error calls a picture."""
    path = _path(source)
    return f"picture {number} ({path})" if path else f"picture {number}"


def _content(source: Any, name: str) -> str:
    """Digest of a picture: of its encoded bytes, or of its pixels where it has been decoded."""
    encoded = source.get("bytes") if isinstance(source, dict) else source
    if isinstance(encoded, bytes | bytearray | memoryview):
        return digest(bytes(encoded))
    path = _path(source)
    if path is None:
        from .data.images import open_image

        picture = open_image(source, name)
        return digest(list(picture.size), picture.tobytes())
    try:
        return digest(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check the path.") from error
