"""MMBT: the picture becomes a few more words, and a text encoder reads both (Kiela et al. 2019). ::

    [CLS] img_1 .. img_N [SEP]  text [SEP]
    |------- segment 0 -------| |- segment 1 -|         positions counted on from 0

PMF puts a ViT in the place of the original ResNet and trains all weights. How many image tokens it
took is not known. Chosen here: N = 4, means of the patch tokens over the quarters of the picture.
The answer is read as the text encoder is read, over the whole sequence; PMF's BERT pooler is left
out, as in all methods of this book.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders import ImageEncoder, TextEncoder
from ..errors import InputError
from ..pmf import PMFOutput, _check_batch
from .common import Baseline, one_answer

IMAGE_TOKENS = 4  # N: two by two


class MMBT(Baseline):
    """Both encoders, the projection between them and the head train.

    Args:
        image_encoder, text_encoder: of any widths and depths. Where the text encoder has one
            segment only (RoBERTa), image and text share it.
        num_classes: C.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, num_classes: int
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder.requires_grad_(True)
        self.text_encoder = text_encoder.requires_grad_(True)
        self.project = nn.Linear(image_encoder.config.width, text_encoder.config.width)
        self.head = nn.Linear(text_encoder.config.readout_width, num_classes)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        A text is ``[CLS] words [SEP] padding``: its first id is taken for CLS, its last kept id
        for SEP.

        Raises:
            InputError: the sequence has more tokens than the text encoder has positions, batch
                sizes differ, a text is all padding, or as the encoders' ``embed``.
        """
        _check_batch(pixel_values, input_ids, attention_mask)
        self._check_length(input_ids)
        patches = self.image_encoder(pixel_values)[:, 1:]  # (B, 1 + h * w, D_i), less CLS
        side = self.image_encoder.config.patch_size
        rows, columns = pixel_values.shape[2] // side, pixel_values.shape[3] // side
        image = self.project(quarters(patches, rows, columns))  # (B, 4, D_i) -> (B, 4, D_t)
        tokens, mask = self._joined(image, input_ids, attention_mask)  # (B, N_t + 5, D_t)
        for layer in self.text_encoder.layers:
            tokens = layer(tokens, mask)
        return one_answer(self.head(self.text_encoder.readout(tokens, mask)))  # (B, R) -> (B, C)

    def _joined(
        self, image: Tensor, ids: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, N_t + 5, D_t) and mask (B, N_t + 5) of the sequence drawn above."""
        text = self.text_encoder
        cls, last = ids[:, :1], ids[:, -1:]  # 2 x (B, 1)
        if mask is not None:
            place = torch.arange(ids.shape[1], device=ids.device) * mask.bool()  # (B, N_t)
            last = ids.gather(1, place.argmax(dim=1, keepdim=True))  # (B, 1)
            mask = F.pad(mask, (IMAGE_TOKENS + 1, 0), value=1)  # (B, N_t) -> (B, N_t + 5)
        # The words, with CLS keeping the places of the image tokens.
        words = torch.cat([cls.expand(-1, 1 + IMAGE_TOKENS), last, ids[:, 1:]], dim=1)
        types = torch.zeros_like(words)
        types[:, IMAGE_TOKENS + 2 :] = min(1, text.config.token_types - 1)
        tokens = text.embed(words, types)  # (B, N_t + 5, D_t)
        first = text.config.position_offset + 1  # position of the token behind CLS
        image = image + text.positions.weight[first : first + IMAGE_TOKENS] + text.types.weight[0]
        image = text.dropout(text.input_norm(image))  # (B, 4, D_t)
        return torch.cat([tokens[:, :1], image, tokens[:, 1 + IMAGE_TOKENS :]], dim=1), mask

    def _check_length(self, ids: Tensor) -> None:
        longest, length = self.text_encoder.config.max_positions, ids.shape[-1]
        more = IMAGE_TOKENS + 1
        if length + more > longest:
            raise InputError(
                f"The text is {length} tokens long and MMBT adds {more}, but the text encoder has "
                f"{longest} positions: cut the text (tokenizer(..., max_length={longest - more}))."
            )


def quarters(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Means over the four quarters of a grid of patches.

    Args:
        patches: (B, rows * columns, D), row by row. The middle row or column of an odd number
            counts in both halves.

    Returns:
        (B, 4, D): top left, top right, bottom left, bottom right.
    """
    grid = patches.transpose(1, 2).unflatten(2, (rows, columns))  # (B, D, rows, columns)
    return F.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2)  # (B, D, 2, 2) -> (B, 4, D)
