"""MBT: two streams that meet in a few bottleneck tokens (Nagrani et al., NeurIPS 2021).

    [z^l; b_i] = Trans_i([z^{l-1}; b]),   [x^l; b_t] = Trans_t([x^{l-1}; b]),   b <- (b_i + b_t) / 2

in the last layers; below them the streams are kept apart. So a layer sees of the other modality
what the bottleneck took from it in the layer before. Four bottlenecks in the last four layers of
twelve, as the authors have them; all weights train. Chosen here: shallower encoders fuse
min(4, depth) layers; where the widths differ the bottlenecks live at the image's, and one linear
map each way, shared by all layers, takes them to the text encoder and back.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..encoders import ImageEncoder, TextEncoder
from ..errors import InputError
from ..fusion import Tokens, appended, prompt
from ..pmf import PMFOutput, _check_batch
from .common import Baseline

BOTTLENECKS = 4  # M
FUSION_LAYERS = 4  # at most, at the top of both encoders


class MBT(Baseline):
    """Both encoders, the bottlenecks, the maps and two heads train; the heads are averaged.

    Args:
        image_encoder, text_encoder: of any widths.
        num_classes: C.

    Raises:
        InputError: an encoder has one layer. Two must fuse before anything crosses.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, num_classes: int
    ) -> None:
        super().__init__()
        image, text = image_encoder.config, text_encoder.config
        self.fusion_layers = min(FUSION_LAYERS, image.depth, text.depth)
        if self.fusion_layers < 2:
            raise InputError(
                f"MBT: the encoders have {image.depth} and {text.depth} layers, and nothing "
                "crosses before the second fusion layer: use encoders of 2 layers or more."
            )
        self.image_encoder = image_encoder.requires_grad_(True)
        self.text_encoder = text_encoder.requires_grad_(True)
        self.bottleneck = prompt(BOTTLENECKS, image.width)  # (M, D_i)
        same = image.width == text.width
        self.to_text = nn.Identity() if same else nn.Linear(image.width, text.width)
        self.to_image = nn.Identity() if same else nn.Linear(text.width, image.width)
        self.image_head = nn.Linear(image.readout_width, num_classes)
        self.text_head = nn.Linear(text.readout_width, num_classes)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        Raises:
            InputError: batch sizes differ, a text is all padding, or as the encoders' ``embed``.
        """
        _check_batch(pixel_values, input_ids, attention_mask)
        count = self.fusion_layers
        see, read = self.image_encoder, self.text_encoder
        image = Tokens(see.embed(pixel_values), None)  # (B, N_i, D_i)
        for layer in see.layers[:-count]:
            image = image._replace(values=layer(image.values))
        text = Tokens(read.embed(input_ids), attention_mask)  # (B, N_t, D_t)
        for layer in read.layers[:-count]:
            text = text._replace(values=layer(text.values, text.mask))

        shared = self.bottleneck  # (M, D_i), and (B, M, D_i) behind the first fusion layer
        for image_layer, text_layer in zip(see.layers[-count:], read.layers[-count:]):
            image, seen = exchange(image_layer, image, shared)
            text, said = exchange(text_layer, text, self.to_text(shared))
            shared = (seen + self.to_image(said)) / 2  # (B, M, D_i)

        image_logits = self.image_head(see.readout(image.values))  # (B, R_i) -> (B, C)
        text_logits = self.text_head(read.readout(text.values, text.mask))  # (B, R_t) -> (B, C)
        return PMFOutput((image_logits + text_logits) / 2, image_logits, text_logits)


def exchange(layer: nn.Module, tokens: Tokens, bottleneck: Tensor) -> tuple[Tokens, Tensor]:
    """One layer over tokens (B, N, D) and bottlenecks (M, D) or (B, M, D), taken apart again."""
    joined = appended(tokens, bottleneck)  # (B, N + M, D)
    out = layer(joined.values, joined.mask)
    count = tokens.values.shape[1]
    return tokens._replace(values=out[:, :count]), out[:, count:]  # (B, N, D), (B, M, D)
