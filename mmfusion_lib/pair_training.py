"""Image-text pairs, ready for training: decoded once and run live, or as cached base features.

Every method of chapter 3 trains and is tested through the functions of this file. What a batch
holds tells how the model is called::

    LivePairs     pixel_values, input_ids, attention_mask        model(...)
    CachedPairs   image_tokens, text_tokens, attention_mask      model.from_base_features(...)

Shapes: B batch, N pairs over U different pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from .data.images import ImageTransform, augment, open_image
from .data.pairs import Pairs
from .encoders import Encoder
from .features import Features, Images, Texts, extract
from .files import digest
from .metrics import accuracy, f1
from .pmf import PMFOutput

Batch = dict[str, Tensor]


class LivePairs(Dataset):
    """Pictures as pixels, texts as token ids; the whole network runs on them.

    Args:
        pairs: N pairs.
        transform: size and normalisation of the image encoder.
        tokenizer: of the text encoder.
        max_length: longer texts are cut to this many tokens.
        augmented: random crop and flip, drawn from torch's global generator.
        hold: decode all pictures now and keep them in memory; False decodes one when it is asked
            for (with loader processes, ``TrainConfig.workers``), for large sets.
    """

    def __init__(
        self,
        pairs: Pairs,
        transform: ImageTransform,
        tokenizer: Any,
        max_length: int = 64,
        augmented: bool = False,
        hold: bool = True,
    ) -> None:
        self.images, self.transform = pairs.images, transform
        self.pixels = torch.stack([self.open(i) for i in range(len(self.images))]) if hold else None
        self.ids, self.mask = tokenizer(list(pairs.texts), max_length=max_length)  # 2 x (N, T)
        self.rows, self.labels, self.augmented = pairs.rows, pairs.labels, augmented
        self.mean = torch.tensor(transform.mean)[:, None, None]  # (3, 1, 1)
        self.std = torch.tensor(transform.std)[:, None, None]  # (3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, row: int) -> Tensor:
        """One picture, (3, H, W) uint8."""
        import numpy as np

        picture = self.transform.resize(open_image(self.images[row], f"picture {row}"))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)

    def __getitem__(self, index: int) -> Batch:
        row = int(self.rows[index])
        pixels = self.open(row) if self.pixels is None else self.pixels[row]
        pixels = pixels.float() / 255  # (3, H, W)
        if self.augmented:
            pixels = augment(pixels, torch.default_generator)
        return {
            "pixel_values": (pixels - self.mean) / self.std,
            "input_ids": self.ids[index],
            "attention_mask": self.mask[index],
            "labels": self.labels[index],
        }


class CachedPairs(Dataset):
    """Base features of pairs. Several views of a picture (a mirrored one, say) are drawn from.

    Args:
        views: one or more caches (U, N_i, D_i) of the same pictures; one is drawn for each item.
        text: cache (N, N_t, D_t).
        rows: (N,) picture of each pair.
        labels: (N,) or (N, C).
        items: which of the N pairs are in this set; None: all.
    """

    def __init__(
        self,
        views: Sequence[Features],
        text: Features,
        rows: Tensor,
        labels: Tensor,
        items: Sequence[int] | None = None,
    ) -> None:
        self.views, self.text = views, text
        self.items = torch.arange(len(labels)) if items is None else torch.tensor(items)
        self.rows, self.labels = rows[self.items], labels[self.items]
        content = [view.digest for view in views], self.items.tolist(), self.labels.tolist()
        self.digest = digest(*content, text.digest)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        view = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        item = self.items[index]
        return {
            "image_tokens": self.views[view].values[self.rows[index]].float(),  # (N_i, D_i)
            "text_tokens": self.text.values[item].float(),  # (N_t, D_t)
            "attention_mask": self.text.mask[item],
            "labels": self.labels[index],
        }


def cache(
    image_encoder: Encoder,
    text_encoder: Encoder,
    pairs: Pairs,
    transforms: ImageTransform | Sequence[ImageTransform],
    tokenizer: Any,
    depths: tuple[int, int],
    *,
    max_length: int = 64,
    dtype: str = "float32",
    items: Sequence[int] | None = None,
) -> CachedPairs:
    """Run the frozen layers below ``depths`` (image, text) once; later calls read the cache.

    Args:
        transforms: one, or one for each view of a picture.
        depths: layers run of the image and of the text encoder: ``model.image_depth`` and
            ``model.text_depth`` of the model that trains on the result.
        dtype: as in :func:`mmfusion_lib.features.extract`.
        items: which pairs are wanted. Features of all are cached, so that subsets share them.
    """
    image, text = depths
    transforms = transforms if isinstance(transforms, Sequence) else [transforms]
    views = [
        extract(image_encoder, Images(pairs.images, t), depths=[image], dtype=dtype)[image]
        for t in transforms
    ]
    tokens = Texts(pairs.texts, tokenizer, max_length)
    texts = extract(text_encoder, tokens, depths=[text], dtype=dtype)[text]
    return CachedPairs(views, texts, pairs.rows, pairs.labels, items)


def outputs(model: nn.Module, batch: Batch) -> PMFOutput:
    """Call the model on a batch of either kind."""
    if "image_tokens" in batch:
        return model.from_base_features(
            batch["image_tokens"], batch["text_tokens"], batch["attention_mask"]
        )
    return model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])


def objective(weights: Tensor | None = None) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss of PMF section 4: cross-entropy, or binary cross-entropy for several labels.

    Args:
        weights: (C,) factors of the classes (``data.class_weights``): of the cross-entropy, or of
            the positive labels; None: all 1.
    """

    def of_logits(logits: Tensor, labels: Tensor) -> Tensor:
        factors = None if weights is None else weights.to(logits)
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), pos_weight=factors
            )
        return F.cross_entropy(logits, labels, weight=factors)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        output = outputs(model, batch)
        # Models that are trained apart and averaged have a loss each.
        parts = model.loss_logits(output) if hasattr(model, "loss_logits") else [output.logits]
        return sum(of_logits(part, batch["labels"]) for part in parts) / len(parts)

    return loss


@torch.no_grad()
def logits(model: nn.Module, data: Dataset, batch_size: int = 128) -> Tensor:
    """Logits of every item, (N, C), on the CPU. The model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(data), batch_size):
        items = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        batch = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        found.append(outputs(model, batch).logits.float().cpu())  # (B, C)
    return torch.cat(found)  # (N, C)


def decide(scores: Tensor, several: bool) -> Tensor:
    """Class indices (N,), or yes and no (N, C) at a probability of 0.5, from logits (N, C)."""
    return scores > 0 if several else scores.argmax(-1)


def score(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, or micro- and macro-F1 where an item has several labels."""
    if labels.ndim == 1:
        return {"accuracy": accuracy(decide(scores, False), labels)}
    micro, macro = f1(decide(scores, True), labels.bool(), scores.shape[1])
    return {"f1_micro": micro, "f1_macro": macro}


def validator(data: Dataset, batch_size: int = 128) -> Callable[[nn.Module], dict[str, float]]:
    """For ``train.fit``: scores on ``data`` once an epoch, and the plain loss there."""

    def validate(model: nn.Module) -> dict[str, float]:
        scores = logits(model, data, batch_size)
        if data.labels.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(scores, data.labels.float())
        else:
            loss = F.cross_entropy(scores, data.labels)
        return {**score(scores, data.labels), "loss": loss.item()}

    return validate
