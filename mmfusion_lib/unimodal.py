"""One modality, trained whole: an encoder, its readout, a linear head.

These are PMF's baselines "ViT" and "BERT" (fine-tuned unimodal transformers) and the small ViT
that chapter 1 trains from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from .data.images import ImageTransform, augment, open_image
from .encoders import Encoder
from .errors import InputError


class UnimodalClassifier(nn.Module):
    """Encoder -> readout -> linear head. R width of the readout, C classes."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.readout_width, num_classes)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pixel values (B, 3, H, W), or token ids (B, T) with mask (B, T) -> logits (B, C)."""
        tokens = self.encoder.embed(inputs)  # (B, N, D)
        for layer in self.encoder.layers:
            tokens = layer(tokens, mask)
        return self.head(self.encoder.readout(tokens, mask))  # (B, R) -> (B, C)


class LabelledImages(Dataset):
    """Pictures held as bytes of pixels, normalised (and augmented) when they are taken.

    Args:
        sources: N pictures, as ``open_image`` takes them.
        labels: (N,) class indices.
        transform: size and normalisation.
        augmented: random crop and flip, drawn from torch's global generator.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        labels: Tensor,
        transform: ImageTransform,
        augmented: bool = False,
    ) -> None:
        import numpy as np

        _same_length(sources, labels)
        pictures = [transform.resize(open_image(s, f"picture {i}")) for i, s in enumerate(sources)]
        self.pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
        self.pixels = self.pixels.permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W) uint8
        self.labels, self.augmented = labels, augmented
        self.mean = torch.tensor(transform.mean)[:, None, None]  # (3, 1, 1)
        self.std = torch.tensor(transform.std)[:, None, None]  # (3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = self.pixels[index].float() / 255  # (3, H, W)
        if self.augmented:
            pixels = augment(pixels, torch.default_generator)
        return {"inputs": (pixels - self.mean) / self.std, "labels": self.labels[index]}


class LabelledTexts(Dataset):
    """Texts, tokenized once and padded to the longest of the set."""

    def __init__(
        self, texts: Sequence[str], labels: Tensor, tokenizer: Any, max_length: int = 64
    ) -> None:
        _same_length(texts, labels)
        self.ids, self.mask = tokenizer(list(texts), max_length=max_length)  # (N, T), (N, T)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "inputs": self.ids[index],
            "mask": self.mask[index],
            "labels": self.labels[index],
        }


def loss(model: UnimodalClassifier, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy, averaged over the batch."""
    return F.cross_entropy(model(batch["inputs"], batch.get("mask")), batch["labels"])


@torch.no_grad()
def predict(model: UnimodalClassifier, data: Dataset, batch_size: int = 128) -> Tensor:
    """Class index of every item, (N,), on the CPU. The model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(data), batch_size):
        items = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        inputs = torch.stack([item["inputs"] for item in items]).to(device)
        mask = torch.stack([i["mask"] for i in items]).to(device) if "mask" in items[0] else None
        found.append(model(inputs, mask).argmax(-1).cpu())  # (B,)
    return torch.cat(found)  # (N,)


def _same_length(inputs: Sequence[Any], labels: Tensor) -> None:
    if len(inputs) != len(labels) or not len(labels):
        raise InputError(
            f"There are {len(inputs)} inputs for {len(labels)} labels: give one label an input, "
            "and at least one."
        )
