"""PMF: two frozen encoders that exchange prompts in their last layers (Li et al., CVPR 2023).

    z^l = Trans_i(z^{l-1}),  x^l = Trans_t(x^{l-1})         base layers, frozen, kept apart
    z^l, x^l = FusionLayer(z^{l-1}, x^{l-1})                the last N_f layers, see fusion.py
    logits = (W_i readout(z) + b_i + W_t readout(x) + b_t) / 2

Only prompts, mappings and the two heads train. The base layers are a fixed function of the data, so
training may start from their cached output: ``from_base_features``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .encoders import Encoder
from .errors import InputError
from .fusion import FusionLayer, Side, Tokens

Length = int | tuple[int, ...]


@dataclass(frozen=True)
class PMFConfig:
    """Sizes of PMF. The defaults are those of the official file.

    Args:
        num_classes: C.
        num_fusion_layers: N_f, at the top of both encoders.
        query_prompts, query_context_prompts, fusion_context_prompts: M_qp, M_qcp, M_fcp; a tuple
            gives one length a fusion layer. 0 leaves a prompt out; without query prompts no
            message is sent and query context prompts are left out too.
        mapping_width: hidden width h of the mappings; None: max(D_image, D_text) // 2. 0 sends
            messages unmapped, which needs equal widths.
        train_fusion_context: True as the paper says; False leaves the fusion context prompts at
            their random start, as the official file does by accident.

    Raises:
        InputError: a field, or a pair of fields, makes no model.
    """

    num_classes: int
    num_fusion_layers: int = 2
    query_prompts: Length = 4
    query_context_prompts: Length = 4
    fusion_context_prompts: Length = 4
    mapping_width: int | None = None
    train_fusion_context: bool = True

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_fusion_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"PMFConfig: {name}={getattr(self, name)} must be at least 1.")
        for name in ("query_prompts", "query_context_prompts", "fusion_context_prompts"):
            value = getattr(self, name)
            lengths = self.lengths(name)
            if len(lengths) != self.num_fusion_layers:
                raise InputError(
                    f"PMFConfig: {name}={value} has {len(lengths)} lengths for "
                    f"num_fusion_layers={self.num_fusion_layers}: give one a layer, or one number."
                )
            if min(lengths) < 0:
                raise InputError(f"PMFConfig: {name}={value} must not be negative.")
        if self.mapping_width is not None and self.mapping_width < 0:
            raise InputError(f"PMFConfig: mapping_width={self.mapping_width} must not be negative.")

    def lengths(self, name: str) -> tuple[int, ...]:
        """Length of the prompt called ``name`` in each fusion layer."""
        value = getattr(self, name)
        return (value,) * self.num_fusion_layers if isinstance(value, int) else tuple(value)


class PMFOutput(NamedTuple):
    """Logits (B, C) of both heads and their mean, which is the model's answer."""

    logits: Tensor
    image_logits: Tensor
    text_logits: Tensor


class BaseFeatures(NamedTuple):
    """What enters the first fusion layer."""

    image_tokens: Tensor  # (B, N_i, D_i)
    text_tokens: Tensor  # (B, N_t, D_t)


class PMF(nn.Module):
    """The model. Both encoders are frozen here, and stay in evaluation mode when it trains.

    Args:
        image_encoder, text_encoder: of any widths and depths; their parameters stop training.
        config: sizes.

    Raises:
        InputError: an encoder has fewer layers than ``num_fusion_layers``.
    """

    def __init__(self, image_encoder: Encoder, text_encoder: Encoder, config: PMFConfig) -> None:
        super().__init__()
        for kind, encoder in (("image", image_encoder), ("text", text_encoder)):
            if config.num_fusion_layers > len(encoder.layers):
                raise InputError(
                    f"PMFConfig: num_fusion_layers={config.num_fusion_layers}, but the {kind} "
                    f"encoder has {len(encoder.layers)} layers: lower it, or load a deeper encoder."
                )
        self.config = config
        self.image_encoder = image_encoder.requires_grad_(False)
        self.text_encoder = text_encoder.requires_grad_(False)
        image, text = image_encoder.config, text_encoder.config
        hidden = config.mapping_width
        hidden = max(image.width, text.width) // 2 if hidden is None else hidden
        lengths = zip(
            config.lengths("query_prompts"),
            config.lengths("query_context_prompts"),
            config.lengths("fusion_context_prompts"),
        )
        self.fusion = nn.ModuleList(
            FusionLayer(
                Side(image.width, text.width, *counts, hidden),
                Side(text.width, image.width, *counts, hidden),
            )
            for counts in lengths
        )
        if not config.train_fusion_context:
            for layer in self.fusion:
                layer.image.fusion_context.requires_grad_(False)
                layer.text.fusion_context.requires_grad_(False)
        self.image_head = nn.Linear(image.readout_width, config.num_classes)
        self.text_head = nn.Linear(text.readout_width, config.num_classes)
        self.train()

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        Raises:
            InputError: batch sizes differ, a text is all padding, or as the encoders' ``embed``.
        """
        base = self.base_features(pixel_values, input_ids, attention_mask)
        return self.from_base_features(*base, attention_mask)

    @torch.no_grad()
    def base_features(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> BaseFeatures:
        """The frozen layers below fusion: a fixed function of the data, so it may be cached."""
        _check_batch(pixel_values, input_ids, attention_mask)
        image = self.image_encoder.embed(pixel_values)  # (B, N_i, D_i)
        for layer in self.image_encoder.layers[: self.image_depth]:
            image = layer(image, None)
        text = self.text_encoder.embed(input_ids)  # (B, N_t, D_t)
        for layer in self.text_encoder.layers[: self.text_depth]:
            text = layer(text, attention_mask)
        return BaseFeatures(image, text)

    def from_base_features(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """The rest: fusion layers, readouts and heads.

        Args:
            image_tokens: (B, N_i, D_i) behind layer ``image_depth`` of the image encoder.
            text_tokens: (B, N_t, D_t) behind layer ``text_depth`` of the text encoder.
            attention_mask: (B, N_t), 1 = keep.

        Raises:
            InputError: batch sizes differ, or a text is all padding.
        """
        seen, said = self.summaries(image_tokens, text_tokens, attention_mask)
        image_logits, text_logits = self.image_head(seen), self.text_head(said)  # 2 x (B, C)
        return PMFOutput((image_logits + text_logits) / 2, image_logits, text_logits)

    def summaries(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the two heads read, (B, R_i) and (B, R_t): fusion layers and readouts."""
        _check_batch(image_tokens, text_tokens, attention_mask)
        image, text = Tokens(image_tokens, None), Tokens(text_tokens, attention_mask)
        for number, (fusion, see, read) in enumerate(self.layers(), start=1):
            last = number == len(self.fusion)
            rows = [1 if last and c == "cls" else None for c in self.readouts]
            image_values, text_values = fusion(see, read, image, text, *rows)
            image, text = image._replace(values=image_values), text._replace(values=text_values)
        seen = self.image_encoder.readout(image.values)  # (B, R_i)
        return seen, self.text_encoder.readout(text.values, attention_mask)

    def layers(self) -> zip:
        """(trained part, frozen image layer, frozen text layer) of every fusion layer."""
        image = self.image_encoder.layers[self.image_depth :]
        text = self.text_encoder.layers[self.text_depth :]
        return zip(self.fusion, image, text)

    @property
    def image_depth(self) -> int:
        """Layers of the image encoder below fusion, L_f."""
        return len(self.image_encoder.layers) - len(self.fusion)

    @property
    def text_depth(self) -> int:
        """Layers of the text encoder below fusion."""
        return len(self.text_encoder.layers) - len(self.fusion)

    @property
    def readouts(self) -> tuple[str, str]:
        """How the two encoders are read: CLS alone lets the last layer skip all other rows."""
        return self.image_encoder.config.readout, self.text_encoder.config.readout

    @property
    def shared(self) -> bool:
        """Fusion layers share the work of their two stages; False: the plain form, same numbers."""
        return all(layer.shared for layer in self.fusion)

    @shared.setter
    def shared(self, value: bool) -> None:
        for layer in self.fusion:
            layer.shared = value

    def train(self, mode: bool = True) -> PMF:
        """As ``nn.Module.train``, but the frozen encoders stay in evaluation mode.

        So their dropout is off and cached features are exact. The official file leaves BERT's
        dropout on; ``model.text_encoder.train()`` does the same here.
        """
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        return self


def _check_batch(image: Tensor, text: Tensor, mask: Tensor | None) -> None:
    if len(image) != len(text):
        raise InputError(
            f"There are {len(image)} images and {len(text)} texts in the batch: give one text an "
            "image."
        )
    if mask is None:
        return
    if mask.shape != text.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)} for texts of shape "
            f"{tuple(text.shape[:2])}: give one value a token, 1 to keep and 0 to hide."
        )
    if mask.is_meta:
        return
    empty = (~mask.bool()).all(dim=1)  # (B,)
    if empty.any():
        raise InputError(
            f"Text {int(empty.nonzero()[0])} of the batch is all padding: give it at least one "
            "token (the tokenizer adds CLS and SEP to an empty text)."
        )
