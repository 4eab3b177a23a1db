"""One modality at a time: fine-tuned ViT, fine-tuned BERT, and the average of what they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders import ImageEncoder, TextEncoder
from ..pmf import PMFOutput, _check_batch
from ..unimodal import UnimodalClassifier
from .common import Baseline, one_answer


class ImageOnly(Baseline):
    """The image encoder and a head on its readout; all trains, the text is never looked at."""

    def __init__(self, image_encoder: ImageEncoder, num_classes: int) -> None:
        super().__init__()
        self.classifier = UnimodalClassifier(image_encoder.requires_grad_(True), num_classes)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> PMFOutput:
        """Pixels (B, 3, H, W) -> logits (B, C)."""
        return one_answer(self.classifier(pixel_values))


class TextOnly(Baseline):
    """The text encoder and a head on its readout; all trains, the image is never looked at."""

    def __init__(self, text_encoder: TextEncoder, num_classes: int) -> None:
        super().__init__()
        self.classifier = UnimodalClassifier(text_encoder.requires_grad_(True), num_classes)

    def forward(
        self, pixel_values: Tensor | None, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        Raises:
            InputError: a text is all padding, or as the encoder's ``embed``.
        """
        _check_batch(input_ids, input_ids, attention_mask)
        return one_answer(self.classifier(input_ids, attention_mask))


class LateAverage(Baseline):
    """Both of the above side by side; the answer is the mean of their probabilities.

    The two never meet in training: take the mean of the losses of ``loss_logits(output)``. Each
    model then gets half the gradient that it would get alone. Adam does not notice a constant
    factor; with SGD the learning rate must be doubled to be that of a model trained alone.

    Args:
        image_encoder, text_encoder: of any widths and depths.
        num_classes: C.
        several: False averages softmax probabilities; True, where an item may have several
            labels, the sigmoid probability of each label.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        num_classes: int,
        several: bool = False,
    ) -> None:
        super().__init__()
        self.image = ImageOnly(image_encoder, num_classes)
        self.text = TextOnly(text_encoder, num_classes)
        self.several = several

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        ``logits`` are such that their softmax (sigmoid, if ``several``) is the mean probability.

        Raises:
            InputError: batch sizes differ, a text is all padding, or as the encoders' ``embed``.
        """
        _check_batch(pixel_values, input_ids, attention_mask)
        image = self.image(pixel_values).logits  # (B, C)
        text = self.text(None, input_ids, attention_mask).logits  # (B, C)
        average = mean_sigmoid_logits if self.several else mean_softmax_logits
        return PMFOutput(average(image, text), image, text)

    def loss_logits(self, output: PMFOutput) -> tuple[Tensor, Tensor]:
        """The logits of the two models, each of which gets a loss of its own."""
        return output.image_logits, output.text_logits


def mean_softmax_logits(first: Tensor, second: Tensor) -> Tensor:
    """``log((softmax(a) + softmax(b)) / 2)``: (B, C), (B, C) -> (B, C)."""
    return torch.logaddexp(first.log_softmax(-1), second.log_softmax(-1)) - math.log(2)


def mean_sigmoid_logits(first: Tensor, second: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of ``p = (sigmoid(a) + sigmoid(b)) / 2``: (B, C), (B, C) -> (B, C).

    ``1 - sigmoid(a) = sigmoid(-a)``, so the halves cancel in the quotient.
    """
    yes = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
    no = torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))
    return yes - no
