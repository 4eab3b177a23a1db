"""Few-shot naming: Prismer ranks class names, on vision tokens that are computed once.

A photograph is named by ranking: which class name follows "A photo of a" best (paper section 3.4)? From a
few shots the decoder learns to look at the picture and to spell the names.

**What is left out here.** The vision side stands still: its adaptors are silenced (`silence`) or, in a
trained start, kept as they are, and patch projection, positions and outer norm do not train either.
Published fine-tuning trains all of these. In return a picture's tokens are computed once for all seeds,
shots and epochs, and a step costs a few times less. In place of crops that are drawn anew each epoch,
each shot has a few fixed ones (`Views`), and a random part of the tokens is hidden, anew each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import prismer_text
from .data import scene_tasks
from .data.images import open_image
from .encoders import ImageEncoder
from .errors import InputError
from .features import Batch, Images
from .files import digest
from .prismer import Prismer
from .prismer_encoder import PrismerEncoder
from .prismer_training import IGNORED, prompt_tokens, text_loss
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Row numbers of ``shots`` items of each class; those of fewer shots are among those of more.

    Raises:
        InputError: a class has fewer items, or ``shots`` is below 1.
    """
    rows = [{"label": int(label), "index": row} for row, label in enumerate(labels)]
    return scene_tasks.shots(rows, shots, seed)


def silence(encoder: PrismerEncoder) -> PrismerEncoder:
    """Make the adaptors of the vision side the identity, in place: all that was drawn in them becomes 0.

    So the encoder is the same for all seeds, and its tokens are computed once.
    """
    for layer in encoder.layers:
        for part in (layer.adaptor.down, layer.adaptor.up):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    return encoder


def view(picture: Image, seed: str) -> Image:
    """A crop near the middle, half of the time mirrored.

    Its side is 0.6 to 1 times the picture's shorter one, each of the two changed by up to a tenth.

    Args:
        picture: of any size and mode.
        seed: decides which crop.
    """
    from PIL import ImageOps

    rng = random.Random(seed)
    side = rng.uniform(0.6, 1) * min(picture.size)
    sizes = [min(side * rng.uniform(0.9, 1.1), whole) for whole in picture.size]
    # Off the middle by at most a fifth of what the crop leaves out.
    corner = [
        (whole - size) * (0.5 + rng.uniform(-0.2, 0.2)) for whole, size in zip(picture.size, sizes)
    ]
    ends = [at + max(size, 1) for at, size in zip(corner, sizes)]
    crop = picture.crop(tuple(int(x) for x in (*corner, *ends)))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


class Views:
    """Pictures and views of them, cut when they are needed, in the form that ``features.extract`` takes.

    Args:
        images: of the features.
        chosen: (number of the picture, number of its view) an item; view 0 is the picture itself.
    """

    def __init__(self, images: Images, chosen: Sequence[tuple[int, int]]):
        self.images, self.chosen = images, list(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, start: int, stop: int) -> Batch:
        """Items start..stop-1 as (B, 3, H, W)."""
        cut = []
        for row, number in self.chosen[start:stop]:
            picture = open_image(self.images.sources[row])
            cut.append(view(picture, f"{row}-{number}") if number else picture)
        return Images(cut, self.images.transform).batch(0, len(cut))

    def digest(self) -> str:
        """Digest of all pictures and of what is chosen."""
        return digest(self.images.digest(), self.chosen)


class VisionTokens(nn.Module):
    """PrismerZ's whole vision side as one step, in the form that ``features.extract`` takes (depth 0).

    Args:
        encoder: of PrismerZ.
        side: patches that are kept, see `middle`.
    """

    def __init__(self, encoder: PrismerEncoder, side: int):
        super().__init__()
        self.encoder, self.side = encoder, side
        self.config = encoder.config, side  # what tells caches of features apart
        self.layers = nn.ModuleList()

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, D)."""
        return middle(self.encoder({"rgb": pixels}), self.side)


def middle(tokens: Tensor, side: int) -> Tensor:
    """The patches in the middle of pictures: (N, r * r, D) -> (N, side * side, D); a CLS token stays first.

    Raises:
        InputError: ``side`` is not in 1..r.
    """
    rows = math.isqrt(tokens.shape[1])
    if not 1 <= side <= rows:
        raise InputError(f"middle={side} of {rows} patches a side: use 1 to {rows}.")
    first, low = tokens.shape[1] - rows * rows, (rows - side) // 2
    grid = torch.arange(rows * rows).view(rows, rows)[low : low + side, low : low + side]
    kept = torch.cat([torch.arange(first), first + grid.flatten()])
    return tokens[:, kept]


def whitening(tokens: Tensor, shrinkage: float = 0.1) -> tuple[Tensor, Tensor]:
    """Mean and matrix with which tokens vary alike in all directions: ``(x - mean) @ matrix``.

    Args:
        tokens: (K, L, D); no label is needed.
        shrinkage: added to each variance, as a share of their mean, so that noise is not blown up.

    Returns:
        (D,) and (D, D).
    """
    rows = tokens.flatten(0, 1)  # (K, L, D) -> (K * L, D)
    mean = rows.mean(0)
    variances, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, axes * (variances + shrinkage * variances.mean()).rsqrt()


class Named:
    """Tokens of pictures and the names of their classes, as training data.

    Args:
        latents: (N, L, D) of ``Prismer.encode``; may be memory-mapped.
        labels: (N,) class indices.
        names: C class names, as they are to be written.
        tokenizer: of the decoder.
        seen: tokens of a picture that are shown at a time, drawn from torch's generator; None: all.

    Raises:
        InputError: counts differ, or ``seen`` is not in 1..L.
    """

    def __init__(
        self,
        latents: Tensor,
        labels: Tensor,
        names: Sequence[str],
        tokenizer: Tokenizer,
        seen: int | None = None,
    ):
        if len(latents) != len(labels):
            raise InputError(
                f"There are {len(labels)} labels for {len(latents)} pictures: give one each."
            )
        if seen is not None and not 1 <= seen <= latents.shape[1]:
            raise InputError(
                f"seen={seen} of {latents.shape[1]} tokens cannot be shown: use 1 to "
                f"{latents.shape[1]}, or None for all."
            )
        self.latents, self.labels, self.seen = latents, labels, seen
        prompt = prompt_tokens(tokenizer, prismer_text.CLASS_PROMPT)
        rows = [prompt + ids for ids in prismer_text.answer_ids(tokenizer, names)]
        longest = max(len(row) for row in rows)
        self.ids = torch.full((len(rows), longest), tokenizer.pad_id)  # (C, N_t)
        self.targets = torch.full((len(rows), longest), IGNORED)  # (C, N_t)
        for number, row in enumerate(rows):
            self.ids[number, : len(row)] = torch.tensor(row)
            self.targets[number, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        latents, label = self.latents[i], self.labels[i]  # (L, D)
        if self.seen is not None:
            latents = latents[torch.randperm(len(latents))[: self.seen]]  # (seen, D)
        return {"latents": latents, "ids": self.ids[label], "labels": self.targets[label]}


def objective(model: Prismer, batch: Mapping[str, Tensor]) -> Tensor:
    """``prismer_training.text_loss`` of a batch of ``Named``."""
    return text_loss(model, batch["latents"], batch["ids"], batch["labels"])


@torch.no_grad()
def rank_names(
    model: Prismer,
    latents: Tensor,
    names: Sequence[str],
    *,
    shortlist: int | None = None,
    batch_size: int = 32,
    **options: Any,
) -> Tensor:
    """The class of each picture, (N,) on the CPU: the name that ``Prismer.rank`` scores highest.

    Args:
        latents: (N, L, D).
        names: C class names.
        shortlist: see ``rank.rank``; 32 as published for ImageNet.
        options: further ones of ``rank.rank``.
    """
    if model.tokenizer is None:
        raise InputError("This model has no tokenizer: set model.tokenizer before ranking names.")
    model.eval()
    device = model.encoder.positions.device
    names = prismer_text.answer_ids(model.tokenizer, names)
    prompt = torch.tensor([prompt_tokens(model.tokenizer, prismer_text.CLASS_PROMPT)])  # (1, P)
    found = []
    for start in range(0, len(latents), batch_size):
        some = latents[start : start + batch_size].to(device).float()  # (B, L, D)
        prompts = prompt.expand(len(some), -1).to(device)  # (1, P) -> (B, P)
        scores = model.rank(some, prompts, names, shortlist, **options)  # (B, C)
        found.append(scores.argmax(1).cpu())
    return torch.cat(found)  # (N,)


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor, num_classes: int) -> Tensor:
    """Nearest class mean by cosine: (N, D) features with labels (N,), (M, D) queries -> (M,) classes.

    Raises:
        InputError: a class has no item.
    """
    counts = torch.bincount(labels, minlength=num_classes)  # (C,)
    if (counts == 0).any():
        raise InputError(f"Class {int(counts.argmin())} has no item: give one of each or more.")
    sums = torch.zeros(num_classes, features.shape[1]).index_add_(0, labels, features)  # (C, D)
    return (F.normalize(queries, dim=1) @ F.normalize(sums, dim=1).T).argmax(1)


class Tail(nn.Module):
    """The last blocks of an image encoder with a linear head, on tokens cached below them.

    Args:
        encoder: its blocks from ``depth`` on, last norm and readout are used, not copied.
        depth: blocks that the cached tokens have been through.
        num_classes: C.
    """

    def __init__(self, encoder: ImageEncoder, depth: int, num_classes: int):
        super().__init__()
        if not 0 <= depth <= len(encoder.layers):
            raise InputError(
                f"depth={depth} is asked of an encoder with {len(encoder.layers)} blocks: use 0 to "
                f"{len(encoder.layers)}."
            )
        self.layers, self.norm, self.pool = encoder.layers[depth:], encoder.norm, encoder.pool
        self.head = nn.Linear(encoder.config.readout_width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + L, D), CLS first -> (B, C)."""
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.pool(self.norm(tokens)))  # (B, 1 + L, D) -> (B, R) -> (B, C)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy, the mean over the batch."""
        return F.cross_entropy(self(batch["tokens"]), batch["labels"])


@torch.no_grad()
def predict(model: Tail, tokens: Tensor, batch_size: int = 64) -> Tensor:
    """(N, 1 + L, D) -> class of each, (N,) on the CPU; the model is left in evaluation mode."""
    model.eval()
    device = model.head.weight.device
    parts = tokens.split(batch_size)
    return torch.cat([model(part.to(device).float()).argmax(1).cpu() for part in parts])
