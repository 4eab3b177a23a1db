"""What tells one encoder from another, and the encoders that the two papers name."""

from __future__ import annotations

from dataclasses import dataclass

from .blocks import ACTIVATIONS
from .errors import InputError

READOUTS = ("cls", "mean", "cls+mean")


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that tells one encoder from another.

    Raises:
        InputError: a field, or a pair of fields, makes no model.
    """

    kind: str  # "image" or "text"
    width: int  # D, numbers in a token
    depth: int  # number of blocks
    heads: int  # attention heads in a block; divides width
    mlp_width: int  # width between the two linear maps of the MLP
    norm: str = "pre"  # "pre": norm before each branch; "post": after each sum
    activation: str = "gelu"  # "gelu" (exact) or "quick_gelu"
    eps: float = 1e-6  # added to the variance in every LayerNorm
    layer_scale: float | None = None  # initial factor on each branch; None: no factor
    dropout: float = 0.0  # on embeddings, attention weights and branch outputs, in training only
    readout: str = "cls"  # "cls", "mean" (over kept tokens) or "cls+mean" (CLS beside mean patch)
    # images
    image_size: int = 224  # pixels a side at which the position table was learned
    patch_size: int = 16  # pixels a side of a patch; divides image_size
    channels: int = 3  # of the image
    patch_bias: bool = True  # bias in the patch projection (CLIP: none)
    input_norm: bool = False  # LayerNorm before the first block (CLIP's ln_pre)
    # text
    vocab_size: int = 30522  # rows of the word table
    max_positions: int = 512  # longest text, in tokens
    token_types: int = 2  # rows of the segment table; row 0 is used unless told otherwise
    pad_id: int = 0  # id of the padding token
    position_offset: int = 0  # row of the first position: 0, or pad_id + 1 (RoBERTa)

    def __post_init__(self):
        choices = {
            "kind": ("image", "text"),
            "norm": ("pre", "post"),
            "activation": tuple(ACTIVATIONS),
            "readout": READOUTS,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise InputError(
                    f"EncoderConfig: {field}={getattr(self, field)!r} is unknown: "
                    f"use one of {', '.join(allowed)}."
                )
        for field in ("width", "depth", "heads", "mlp_width", "image_size", "patch_size"):
            if getattr(self, field) < 1:
                raise InputError(
                    f"EncoderConfig: {field}={getattr(self, field)} must be 1 or more."
                )
        if self.width % self.heads:
            raise InputError(
                f"EncoderConfig: width={self.width} is not a multiple of heads={self.heads}: "
                "choose heads that divide the width."
            )
        if self.kind == "image" and self.image_size % self.patch_size:
            raise InputError(
                f"EncoderConfig: image_size={self.image_size} is not a multiple of "
                f"patch_size={self.patch_size}: change one of the two."
            )
        if self.kind == "text" and self.position_offset not in (0, self.pad_id + 1):
            raise InputError(
                f"EncoderConfig: position_offset={self.position_offset} does not go with "
                f"pad_id={self.pad_id}: use 0 (BERT) or pad_id + 1 (RoBERTa)."
            )

    @property
    def patches(self) -> int:
        """Patches of an image of ``image_size``; the encoder has one token more, the CLS."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def readout_width(self) -> int:
        """R."""
        return 2 * self.width if self.readout == "cls+mean" else self.width


_VIT = {"kind": "image", "depth": 12, "heads": 12, "width": 768, "mlp_width": 3072}
_LARGE = {"depth": 24, "heads": 16, "width": 1024, "mlp_width": 4096}
_HUGE = {"depth": 32, "heads": 16, "width": 1280, "mlp_width": 5120, "activation": "gelu"}
_CLIP = {**_VIT, "activation": "quick_gelu", "eps": 1e-5, "patch_bias": False, "input_norm": True}
_BERT = {**_VIT, "kind": "text", "norm": "post", "eps": 1e-12, "dropout": 0.1}
_ROBERTA = {
    **_BERT,
    "eps": 1e-5,
    "vocab_size": 50265,
    "token_types": 1,
    "pad_id": 1,
    "position_offset": 2,
}
_SMALL = {"heads": 6, "width": 384, "mlp_width": 1536}

CONFIGS: dict[str, EncoderConfig] = {
    "dinov2-small": EncoderConfig(
        **{**_VIT, **_SMALL}, image_size=518, patch_size=14, layer_scale=1.0, readout="cls+mean"
    ),
    # eps as in the transformers files that PMF loads; timm's copies of the same weights say 1e-6.
    "vit-base": EncoderConfig(**_VIT, eps=1e-12),
    "vit-large": EncoderConfig(**{**_VIT, **_LARGE}, eps=1e-12),
    "clip-b16": EncoderConfig(**_CLIP),
    "clip-l14-336": EncoderConfig(**{**_CLIP, **_LARGE}, image_size=336, patch_size=14),
    "clip-h14": EncoderConfig(**{**_CLIP, **_HUGE}, patch_size=14),  # heads of width 80
    "minilm-l6": EncoderConfig(**{**_BERT, **_SMALL, "heads": 12, "depth": 6}, readout="mean"),
    "bert-base": EncoderConfig(**_BERT),
    "bert-large": EncoderConfig(**{**_BERT, **_LARGE}),
    "roberta-base": EncoderConfig(**_ROBERTA),
    "roberta-large": EncoderConfig(**{**_ROBERTA, **_LARGE}),
}


def named_config(name: str) -> EncoderConfig:
    """The configuration called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in CONFIGS:
        raise InputError(f"Unknown encoder {name!r}: use one of {', '.join(CONFIGS)}.")
    return CONFIGS[name]
