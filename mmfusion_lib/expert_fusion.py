"""Both papers together: Prismer's label maps meet a text in PMF's fusion layers, on one of two roads.

Prismer turns label maps into tokens (``stems``), sums these up in latents (``resampler``) and lets its
frozen blocks read them beside the picture's patches. PMF asks the tokens of one modality through
prompts, in a frozen block, and sends the answers to the other modality as a message. Neither paper
does the other's. Here both read the same expert tokens, in the same two frozen encoders::

    none        picture <-> text                                  PMF, the maps are not seen
    resampler   [picture; resampler(expert tokens)] <-> text      latents are more tokens of the picture
    prompts     picture <-> text <- prompts ask expert tokens     experts are a third modality
    both        both of these

Shapes: B batch, N_i, N_t tokens of picture and text, D_i, D_t their widths, M expert tokens, L latents,
M_e prompts that ask the experts.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block
from .encoder_config import EncoderConfig
from .encoders import Encoder, ImageEncoder, build_encoder
from .errors import InputError
from .experts.label_map import kind_of
from .experts.painting import low, paint
from .fusion import Mapping, Tokens, appended, prompt
from .pmf import PMF, PMFConfig, PMFOutput
from .resampler import Resampler
from .stems import Stem, channels_of, stem_of

WAYS = ("none", "resampler", "prompts", "both")


@dataclass(frozen=True)
class ExpertFusionConfig:
    """Sizes of the model.

    Attributes:
        pmf: of picture and text; ``pmf.mapping_width`` also is the hidden width of the mappings that
            carry the experts' messages, and must be a number.
        way: one of ``WAYS``.
        experts: whose maps are read, by stems; () makes any way plain PMF.
        expert_prompts: M_e, in each fusion layer.
        latents, resampler_layers, resampler_heads: of the Experts Resampler.

    Raises:
        InputError: an unknown way, no mapping width, or no prompts.
    """

    pmf: PMFConfig
    way: str
    experts: tuple[str, ...] = ("obj_detection", "ocr_detection")
    expert_prompts: int = 16
    latents: int = 16
    resampler_layers: int = 1
    resampler_heads: int = 8

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise InputError(f"ExpertFusionConfig: way={self.way!r}: use one of {', '.join(WAYS)}.")
        if not self.pmf.mapping_width:
            raise InputError(
                f"ExpertFusionConfig: pmf.mapping_width={self.pmf.mapping_width}: give a number of "
                "1 or more, the same for all mappings."
            )
        if self.expert_prompts < 1:
            raise InputError(
                f"ExpertFusionConfig: expert_prompts={self.expert_prompts} must be at least 1."
            )

    @property
    def resamples(self) -> bool:
        return bool(self.experts) and self.way in ("resampler", "both")

    @property
    def asks(self) -> bool:
        return bool(self.experts) and self.way in ("prompts", "both")


class ExpertQuery(nn.Module):
    """Prompts that ask the expert tokens inside a frozen layer, and the mapping of what they hear.

    Args:
        width: D_i, of expert tokens and layer.  other: D_t, of who is told.
        prompts: M_e.  hidden: width inside the mapping.
    """

    def __init__(self, width: int, other: int, prompts: int, hidden: int) -> None:
        super().__init__()
        self.query = prompt(prompts, width)  # (M_e, D_i)
        self.mapping = Mapping(width, hidden, other)

    def forward(self, layer: Block, tokens: Tensor) -> Tensor:
        """Expert tokens (B, M, D_i) -> message (B, M_e, D_t). ``layer`` is pre-norm and frozen.

        The layer reads [expert tokens; prompts]; only the rows of the prompts are computed.
        """
        asked = self.query.expand(len(tokens), -1, -1)  # (M_e, D_i) -> (B, M_e, D_i)
        normed = layer.norm1(torch.cat([tokens, asked], dim=1))  # (B, M + M_e, D_i)
        heads = layer.attention
        query = heads.split(heads.query(normed[:, -asked.shape[1] :]))  # (B, H, M_e, D_i / H)
        key, value = heads.split(heads.key(normed)), heads.split(heads.value(normed))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, H, M_e, D_i / H)
        heard = heads.out(mixed.transpose(1, 2).flatten(2))  # -> (B, M_e, D_i)
        asked = asked + layer.scale1(heard)
        return self.mapping(asked + layer.scale2(layer.mlp(layer.norm2(asked))))


class ExpertPMF(nn.Module):
    """PMF whose text, or picture, or both, also learn what experts see. The encoders are frozen.

    Args:
        image_encoder: pre-norm.  text_encoder: any.
        config: sizes.

    Raises:
        InputError: as ``PMF``, or experts beside an image encoder that is not pre-norm.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: Encoder, config: ExpertFusionConfig
    ) -> None:
        super().__init__()
        image, text = image_encoder.config, text_encoder.config
        if image.norm != "pre":
            raise InputError(f"image.norm={image.norm!r}: give a pre-norm image encoder.")
        self.config = config
        self.pmf = PMF(image_encoder, text_encoder, config.pmf)
        self.stems = nn.ModuleDict()
        if config.resamples or config.asks:
            for name in dict.fromkeys(map(stem_of, config.experts)):
                semantic = kind_of(name).semantic
                self.stems[name] = Stem(channels_of(name), image.width, image.patch_size, semantic)
        sizes = config.latents, config.resampler_layers, config.resampler_heads
        self.resampler = Resampler(image.width, *sizes) if config.resamples else None
        sizes = image.width, text.width, config.expert_prompts, config.pmf.mapping_width
        layers = config.pmf.num_fusion_layers if config.asks else 0
        self.queries = nn.ModuleList(ExpertQuery(*sizes) for _ in range(layers))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        experts: Dict[str, Any] | None = None,
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t), maps by expert -> logits (B, C)."""
        base = self.pmf.base_features(pixel_values, input_ids, attention_mask)
        return self.from_base_features(*base, attention_mask, experts)

    def from_base_features(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor | None = None,
        experts: Dict[str, Any] | None = None,
    ) -> PMFOutput:
        """Fusion layers, readouts and heads.

        Args:
            image_tokens: (B, N_i, D_i).  text_tokens: (B, N_t, D_t).  attention_mask: (B, N_t).
            experts: maps by expert, as ``experts.tensors.batch`` gives them. Without any, this is
                PMF.

        Raises:
            InputError: a map of an expert that the model was not made for, or a bad map.
        """
        pictures, count, words = *image_tokens.shape[:2], text_tokens.shape[1]
        if len(text_tokens) != pictures:
            raise InputError(
                f"There are {pictures} images and {len(text_tokens)} texts: give one text an image."
            )
        image, text = Tokens(image_tokens, None), Tokens(text_tokens, attention_mask)
        seen = self.expert_tokens(experts or {}, pictures)  # (B, M, D_i), or None
        if seen is not None and self.resampler is not None:
            image = appended(image, self.resampler(seen))  # (B, N_i + L, D_i)
        for number, (fusion, see, read) in enumerate(self.pmf.layers(), start=1):
            told = text
            if seen is not None and self.queries:
                message = self.queries[number - 1](see, seen)  # (B, M_e, D_t)
                told = appended(text, message)  # (B, N_t + M_e, D_t)
            last = number == len(self.pmf.fusion)
            few = [1 if last and readout == "cls" else None for readout in self.pmf.readouts]
            image_values, text_values = fusion(see, read, image, told, few[0], few[1] or words)
            image, text = image._replace(values=image_values), text._replace(values=text_values)
        saw = self.pmf.image_encoder.readout(image.values[:, :count])  # (B, R_i)
        read = self.pmf.text_encoder.readout(text.values, attention_mask)  # (B, R_t)
        image_logits, text_logits = self.pmf.image_head(saw), self.pmf.text_head(read)
        return PMFOutput((image_logits + text_logits) / 2, image_logits, text_logits)

    def expert_tokens(self, experts: Dict[str, Any], pictures: int) -> Tensor | None:
        """Maps by expert -> their tokens side by side (B, M, D_i), with the positions of patches."""
        if not self.stems or not experts:
            return None
        found = []
        for name, value in experts.items():
            stem = stem_of(name)
            if stem not in self.stems:
                raise InputError(
                    f"This model was not made for the expert {name!r}: give some of "
                    f"{', '.join(self.config.experts)}."
                )
            value = value["label"] if name == "obj_detection" else value
            maps = paint(value) if kind_of(stem).semantic else low(value)
            grid = self.stems[stem](maps)  # (B, D_i, h, w)
            if len(grid) != pictures:
                raise InputError(
                    f"experts[{name!r}] has {len(grid)} maps but there are {pictures} pictures: "
                    "give one for each."
                )
            positions = self.pmf.image_encoder.resized_positions(*grid.shape[-2:])[:, 1:]
            found.append(grid.flatten(2).transpose(1, 2) + positions)  # -> (B, h * w, D_i)
        return torch.cat(found, dim=1)  # (B, M, D_i)


def trained_parameters(
    config: ExpertFusionConfig, image: EncoderConfig, text: EncoderConfig
) -> int:
    """How many parameters train between two encoders; nothing is built in memory."""
    with torch.device("meta"):
        model = ExpertPMF(build_encoder(image), build_encoder(text), config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def equalised(
    config: ExpertFusionConfig, like: ExpertFusionConfig, image: EncoderConfig, text: EncoderConfig
) -> ExpertFusionConfig:
    """``config`` with mappings so wide that it trains as many parameters as ``like`` does.

    Whatever a way lacks - stems, resampler, messages of experts - it gets as width of all mappings.
    """

    def count(width: int) -> int:
        pmf = replace(config.pmf, mapping_width=width)
        return trained_parameters(replace(config, pmf=pmf), image, text)

    one, two = count(1), count(2)  # parameters are linear in the width
    wanted = trained_parameters(like, image, text)
    width = max(1, 1 + round((wanted - one) / (two - one)))
    return replace(config, pmf=replace(config.pmf, mapping_width=width))
