"""Linear and LateConcat: both readouts side by side, then one linear layer.

    logits = W [readout(z); readout(x)] + b

Linear freezes both encoders, LateConcat trains everything. PMF's paper calls both strong. With
ViT-base and BERT-base and 101 classes Linear trains (768 + 768) * 101 + 101 = 155,237 numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..encoders import ImageEncoder, TextEncoder
from ..pmf import BaseFeatures, PMFOutput, _check_batch
from .common import Baseline, last_tokens, one_answer


class LateConcat(Baseline):
    """Both encoders and the head train.

    Args:
        image_encoder, text_encoder: of any widths and depths.
        num_classes: C.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, num_classes: int
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder.requires_grad_(True)
        self.text_encoder = text_encoder.requires_grad_(True)
        width = image_encoder.config.readout_width + text_encoder.config.readout_width
        self.head = nn.Linear(width, num_classes)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        Raises:
            InputError: batch sizes differ, a text is all padding, or as the encoders' ``embed``.
        """
        tokens = self._encode(pixel_values, input_ids, attention_mask)
        return self._classify(*tokens, attention_mask)

    def _encode(self, pixel_values: Tensor, ids: Tensor, mask: Tensor | None) -> BaseFeatures:
        """What leaves the last blocks: image (B, N_i, D_i) and text (B, N_t, D_t)."""
        _check_batch(pixel_values, ids, mask)
        image = last_tokens(self.image_encoder, pixel_values)
        return BaseFeatures(image, last_tokens(self.text_encoder, ids, mask))

    def _classify(self, image: Tensor, text: Tensor, mask: Tensor | None) -> PMFOutput:
        """Readouts and head."""
        seen = self.image_encoder.readout(image)  # (B, N_i, D_i) -> (B, R_i)
        said = self.text_encoder.readout(text, mask)  # (B, N_t, D_t) -> (B, R_t)
        return one_answer(self.head(torch.cat([seen, said], dim=1)))  # (B, R_i + R_t) -> (B, C)


class LinearProbe(LateConcat):
    """Only the head trains, so what the encoders say may be cached, as for PMF."""

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, num_classes: int
    ) -> None:
        super().__init__(image_encoder, text_encoder, num_classes)
        image_encoder.requires_grad_(False)
        text_encoder.requires_grad_(False)
        self.train()

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """As ``LateConcat.forward``."""
        base = self.base_features(pixel_values, input_ids, attention_mask)
        return self.from_base_features(*base, attention_mask)

    @torch.no_grad()
    def base_features(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> BaseFeatures:
        """A fixed function of the data: all blocks of both encoders."""
        return self._encode(pixel_values, input_ids, attention_mask)

    def from_base_features(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """The rest: readouts and head.

        Args:
            image_tokens: (B, N_i, D_i) behind the last block of the image encoder.
            text_tokens: (B, N_t, D_t) behind the last block of the text encoder.
            attention_mask: (B, N_t), 1 = keep.

        Raises:
            InputError: batch sizes differ, or a text is all padding.
        """
        _check_batch(image_tokens, text_tokens, attention_mask)
        return self._classify(image_tokens, text_tokens, attention_mask)

    @property
    def image_depth(self) -> int:
        """Layers of the image encoder that cached tokens have been through: all."""
        return len(self.image_encoder.layers)

    @property
    def text_depth(self) -> int:
        """Layers of the text encoder that cached tokens have been through: all."""
        return len(self.text_encoder.layers)
