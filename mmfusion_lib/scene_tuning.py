"""Teach the top blocks of an image encoder what objects of generated scenes look like.

PMF's encoders were pretrained on pictures and texts like those that they meet. A general encoder,
cut in the middle, has not learned our toy objects. So its top blocks are tuned on scenes with one
modality only: each patch has to name the kind, colour and pattern of what it shows, and CLS which
of them occur anywhere. No sentence takes part. Afterwards the encoder is frozen again.

Shapes: B batch, N patches (one row and column of the grid each), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from . import checkpoints, records, trainable
from .encoders import ImageEncoder
from .errors import InputError
from .features import Features
from .files import digest

ATTRIBUTES = ("kind", "colour", "texture")
NAME, LAYERS, DEPTH = "dinov2-small", 8, 6  # the encoder, its blocks that are used, and frozen ones


def weights_file() -> Path:
    """The tuned blocks that come with the book."""
    return records.results_root() / "weights" / "scene-encoder.safetensors"


def load_encoder(layers: int = 10) -> ImageEncoder:
    """The packaged DINOv2-small, its first ``layers`` blocks, with blocks 7 and 8 tuned on scenes.

    The blocks above them are the packaged ones: fusion happens there, on tokens that already say
    what they show.

    Raises:
        InputError: the file is missing, or belongs to other weights.
    """
    reader = SceneReader(checkpoints.load_image_encoder(NAME, depth=LAYERS), DEPTH)
    trainable.load_trainable(reader, weights_file())
    encoder = checkpoints.load_image_encoder(NAME, depth=layers)
    for own, tuned in zip(encoder.layers[DEPTH:], reader.encoder.layers[DEPTH:]):
        own.load_state_dict(tuned.state_dict())
    return encoder.requires_grad_(False).eval()


def vocabulary() -> dict[str, tuple[str, ...]]:
    """The values of each attribute; index 0 of a patch's label means background, then these."""
    from .data import scenes

    return {
        "kind": tuple(scenes.KINDS),
        "colour": tuple(scenes.COLOURS),
        "texture": tuple(scenes.TEXTURES),
    }


def patch_labels(rows: Sequence[dict], side: int) -> Tensor:
    """What each patch shows: the object that covers most of it, if it covers a quarter or more.

    Args:
        rows: N scenes, as ``scenes.load`` gives them.
        side: patches a side.

    Returns:
        (N, side * side, 3) int64: kind, colour and texture, counted from 1; 0 is background.

    Raises:
        InputError: the picture's size is no multiple of ``side``.
    """
    from .data import scenes

    words = vocabulary()
    found = torch.zeros(len(rows), side * side, len(ATTRIBUTES), dtype=torch.long)
    for number, row in enumerate(rows):
        scene = scenes.decode(row)
        instances, objects = scene.instances, scene.graph["objects"]
        if instances.shape[0] % side:
            raise InputError(
                f"A picture of {instances.shape[0]} pixels does not divide into {side} patches: "
                "choose a side that divides it."
            )
        step = instances.shape[0] // side
        # (H, W) -> (side, step, side, step) -> (side * side, step * step)
        blocks = instances.reshape(side, step, side, step).swapaxes(1, 2).reshape(side * side, -1)
        for patch, pixels in enumerate(blocks):
            counts = np.bincount(pixels[pixels != scenes.NOTHING], minlength=1)
            if counts.max() * 4 < pixels.size:
                continue
            item = objects[int(counts.argmax())]
            values = [words[name].index(item[name]) + 1 for name in ATTRIBUTES]
            found[number, patch] = torch.tensor(values)
    return found


class ScenePatches(Dataset):
    """Cached tokens of scenes, and what their patches show.

    Args:
        tokens: (N, 1 + P, D), behind the last frozen block.
        labels: (N, P, 3), from ``patch_labels``.
    """

    def __init__(self, tokens: Features, labels: Tensor) -> None:
        self.tokens, self.labels = tokens, labels
        self.digest = digest(tokens.digest, labels.tolist())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens.values[index].float(), "labels": self.labels[index]}


class SceneReader(nn.Module):
    """An encoder whose top blocks train, with a linear head on patches and one on CLS.

    Args:
        encoder: its blocks from ``depth`` on train; the rest is frozen.
        depth: blocks below, whose output is cached.
    """

    def __init__(self, encoder: ImageEncoder, depth: int) -> None:
        super().__init__()
        self.encoder, self.depth = encoder.requires_grad_(False), depth
        self.encoder.layers[depth:].requires_grad_(True)
        width = encoder.config.width
        self.sizes = [1 + len(values) for values in vocabulary().values()]
        self.patches = nn.Linear(width, sum(self.sizes))
        self.cls = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + P, D) -> logits of the patches (B, P, V) and of the picture (B, V)."""
        for layer in self.encoder.layers[self.depth :]:
            tokens = layer(tokens, None)
        tokens = self.encoder.norm(tokens)
        return self.patches(tokens[:, 1:]), self.cls(tokens[:, 0])


def loss(model: SceneReader, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each attribute on each patch, and of presence anywhere."""
    patches, picture = model(batch["tokens"])
    parts = zip(patches.split(model.sizes, -1), picture.split(model.sizes, -1))
    total = patches.new_zeros(())
    for number, (on_patches, anywhere) in enumerate(parts):
        labels = batch["labels"][..., number]  # (B, P)
        total = total + F.cross_entropy(on_patches.flatten(0, 1), labels.flatten())
        present = F.one_hot(labels, on_patches.shape[-1]).amax(1)  # (B, P, v) -> (B, v)
        total = total + F.binary_cross_entropy_with_logits(anywhere, present.float())
    return total


@torch.no_grad()
def patch_accuracy(model: SceneReader, data: ScenePatches) -> dict[str, float]:
    """Share of the patches on objects whose kind, colour and texture are named."""
    right, count = torch.zeros(len(ATTRIBUTES)), 0
    for start in range(0, len(data), 64):
        items = [data[i] for i in range(start, min(start + 64, len(data)))]
        device = next(model.parameters()).device
        patches, _ = model(torch.stack([item["tokens"] for item in items]).to(device))
        labels = torch.stack([item["labels"] for item in items])  # (B, P, 3)
        on_object = labels[..., 0] > 0
        for number, scores in enumerate(patches.cpu().split(model.sizes, -1)):
            guesses = scores[..., 1:].argmax(-1) + 1  # background is no answer
            right[number] += (guesses == labels[..., number])[on_object].sum()
        count += int(on_object.sum())
    return dict(zip(ATTRIBUTES, (right / count).tolist()))
