"""VPT and P-BERT: one frozen encoder whose every layer reads ten trained tokens of its own.

    [x^l; dropped] = Trans([x^{l-1}; P^l])          for each layer l

The prompts of a layer replace what became of those of the layer before (VPT-deep: Jia et al., ECCV
2022, section 3.2). They have no position, so their place in the sequence changes nothing; here they
stand at the end. The readout looks at the original tokens alone. With ViT-base or BERT-base and 101
classes, 12 * 10 * 768 + 769 * 101 = 169,829 numbers train.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..encoders import Encoder, ImageEncoder, TextEncoder
from ..fusion import Tokens, appended
from ..pmf import PMFOutput, _check_batch
from .common import Baseline, one_answer

PROMPTS = 10  # M, in each layer, as PMF sets it


class VPT(Baseline):
    """Prompts in a frozen image encoder. The text is never looked at.

    Prompts start uniform in (-v, v) with ``v = sqrt(6 / (3 P^2 + D))``, P the side of a patch in
    pixels, as in VPT's code: a patch of three channels is the fan-in, a token the fan-out.
    """

    def __init__(self, image_encoder: ImageEncoder, num_classes: int) -> None:
        super().__init__()
        config = image_encoder.config
        self.image_encoder = image_encoder.requires_grad_(False)
        bound = math.sqrt(6 / (config.channels * config.patch_size**2 + config.width))
        start = torch.empty(config.depth, PROMPTS, config.width).uniform_(-bound, bound)
        self.prompts = nn.Parameter(start)  # (L, M, D)
        self.head = nn.Linear(config.readout_width, num_classes)
        self.train()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> PMFOutput:
        """Pixels (B, 3, H, W) -> logits (B, C)."""
        tokens = prompted(self.image_encoder, self.prompts, pixel_values, None)  # (B, N_i, D)
        return one_answer(self.head(self.image_encoder.readout(tokens)))  # (B, R) -> (B, C)


class PBert(Baseline):
    """Prompts in a frozen text encoder. The image is never looked at.

    Prompts start as N(0, 0.02^2), as PMF's do, and are always visible.
    """

    def __init__(self, text_encoder: TextEncoder, num_classes: int) -> None:
        super().__init__()
        config = text_encoder.config
        self.text_encoder = text_encoder.requires_grad_(False)
        start = torch.empty(config.depth, PROMPTS, config.width).normal_(std=0.02)
        self.prompts = nn.Parameter(start)  # (L, M, D)
        self.head = nn.Linear(config.readout_width, num_classes)
        self.train()

    def forward(
        self, pixel_values: Tensor | None, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        Raises:
            InputError: a text is all padding, or as the encoder's ``embed``.
        """
        _check_batch(input_ids, input_ids, attention_mask)
        tokens = prompted(self.text_encoder, self.prompts, input_ids, attention_mask)
        summary = self.text_encoder.readout(tokens, attention_mask)  # (B, N_t, D) -> (B, R)
        return one_answer(self.head(summary))


def prompted(encoder: Encoder, prompts: Tensor, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Through all layers with prompts (L, M, D), a row of them a layer: -> (B, N, D)."""
    tokens = Tokens(encoder.embed(inputs), mask)  # (B, N, D)
    count = tokens.values.shape[1]
    for layer, own in zip(encoder.layers, prompts):
        joined = appended(tokens, own)  # (B, N + M, D)
        tokens = tokens._replace(values=layer(joined.values, joined.mask)[:, :count])  # (B, N, D)
    return tokens.values
