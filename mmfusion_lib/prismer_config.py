"""Sizes of Prismer, and the models that the paper and this book name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .encoder_config import CONFIGS, EncoderConfig
from .errors import InputError
from .stems import stem_of

# The paper's six, in the order of the official configuration.
PAPER_EXPERTS = ("depth", "normal", "seg_coco", "edge", "obj_detection", "ocr_detection")
SCENE_EXPERTS = ("depth", "normal", "seg_scenes", "edge", "obj_detection", "ocr_detection")


@dataclass(frozen=True)
class PrismerConfig:
    """Everything that tells one Prismer from another.

    Attributes:
        image, text: the two pretrained encoders; the text encoder becomes the decoder.
        experts: names of label maps that it can read beside the picture; none of them: PrismerZ.
        image_size: pixels a side of the picture for which the position table is made; a multiple of the
            patch size. Other sizes work, the table is then resized on the fly.
        num_latents, resampler_layers, resampler_heads: of the Experts Resampler.
        label_smoothing: of the loss.
        adaptor_bottleneck, adaptor_gate, adaptor_near_zero: see ``Adaptor``; the defaults are
            those of the official code.

    Raises:
        InputError: a field, or a pair of fields, makes no model.
    """

    image: EncoderConfig
    text: EncoderConfig
    experts: tuple[str, ...] = PAPER_EXPERTS
    image_size: int = 224
    num_latents: int = 64
    resampler_layers: int = 4
    resampler_heads: int = 8
    label_smoothing: float = 0.1
    adaptor_bottleneck: int | None = None
    adaptor_gate: bool = False
    adaptor_near_zero: bool = False

    def __post_init__(self):
        for field, kind in (("image", "image"), ("text", "text")):
            if getattr(self, field).kind != kind:
                raise InputError(
                    f"PrismerConfig: {field} is a configuration of {getattr(self, field).kind}s: "
                    f"give one of {kind}s."
                )
        if isinstance(self.experts, str):
            raise InputError(
                f"PrismerConfig: experts={self.experts!r} is one string: give a tuple of names, "
                "() for PrismerZ."
            )
        object.__setattr__(self, "experts", tuple(self.experts))
        stems = [stem_of(expert) for expert in self.experts]
        if len(set(self.experts)) < len(stems):
            raise InputError(f"PrismerConfig: experts={self.experts} names one twice: drop it.")
        if self.image.norm != "pre" or self.text.norm != "post":
            raise InputError(
                f"PrismerConfig: image.norm={self.image.norm!r} and text.norm={self.text.norm!r}: "
                "a pre-norm image encoder and a post-norm text encoder are needed."
            )
        if self.image_size < 1 or self.image_size % self.image.patch_size:
            raise InputError(
                f"PrismerConfig: image_size={self.image_size} is not a multiple of the patch size "
                f"{self.image.patch_size}: use a multiple."
            )
        if self.experts and self.image.width % self.resampler_heads:
            raise InputError(
                f"PrismerConfig: resampler_heads={self.resampler_heads} does not divide the width "
                f"{self.image.width}: use heads that do."
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"PrismerConfig: label_smoothing={self.label_smoothing} must be in [0, 1)."
            )

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the stems that its experts need, each once."""
        return tuple(dict.fromkeys(stem_of(expert) for expert in self.experts))


def _config(image: str, text: str, **changes: object) -> PrismerConfig:
    return PrismerConfig(CONFIGS[image], CONFIGS[text], **changes)


# The book's own: the first 8 blocks of the packaged encoder, whose top blocks drift; small pictures, and
# as many latents for their 64 patches as the paper has for 196, rounded down.
_SMALL = PrismerConfig(
    replace(CONFIGS["dinov2-small"], depth=8),
    CONFIGS["minilm-l6"],
    experts=SCENE_EXPERTS,
    image_size=112,
    num_latents=16,
    resampler_layers=2,
)

MODELS: dict[str, PrismerConfig] = {
    "small": _SMALL,
    "prismer-base": _config("clip-b16", "roberta-base"),
    "prismer-large": _config("clip-l14-336", "roberta-large"),
    # The paper's code reads this encoder with 20 heads of width 64; it was trained with 16 of 80.
    "prismer-huge": _config("clip-h14", "roberta-large"),
}
ENCODERS = {
    "small": ("dinov2-small", "minilm-l6"),
    "prismer-base": ("clip-b16", "roberta-base"),
    "prismer-large": ("clip-l14-336", "roberta-large"),
    "prismer-huge": ("clip-h14", "roberta-large"),
}


def named_prismer(name: str, **changes: object) -> PrismerConfig:
    """The configuration called ``name``; ``changes`` replace fields (``experts=()``: PrismerZ).

    Raises:
        InputError: there is none, or a change makes no model.
    """
    if name not in MODELS:
        raise InputError(f"There is no Prismer {name!r}: use one of {', '.join(MODELS)}.")
    return replace(MODELS[name], **changes)
