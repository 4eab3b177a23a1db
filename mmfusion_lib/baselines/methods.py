"""From the name of a baseline to its model.

| name | trains | reads |
| --- | --- | --- |
| ``linear`` | one linear layer on both readouts | image, text |
| ``late-concat`` | the same wiring, everything | image, text |
| ``image-only``, ``text-only`` | everything | one of the two |
| ``vpt``, ``p-bert`` | prompts in every layer, and a head | one of the two |
| ``mmbt`` | everything | image, text |
| ``mbt`` | everything | image, text |
| ``promptfuse``, ``blindprompt`` | prompts at the text encoder's input, and a head | image, text |
| ``late-average`` | everything, as two models | image, text |
"""

from __future__ import annotations

from torch import nn

from ..encoders import ImageEncoder, TextEncoder
from ..errors import InputError
from .concat import LateConcat, LinearProbe
from .deep_prompts import VPT, PBert
from .mbt import MBT
from .mmbt import MMBT
from .promptfuse import BlindPrompt, PromptFuse
from .single import ImageOnly, LateAverage, TextOnly

NAMES = (
    "linear",
    "late-concat",
    "image-only",
    "text-only",
    "vpt",
    "p-bert",
    "mmbt",
    "mbt",
    "promptfuse",
    "blindprompt",
    "late-average",
)


def build(
    name: str,
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    num_classes: int,
    several: bool = False,
) -> nn.Module:
    """The baseline called ``name``, in training mode.

    Args:
        name: one of ``NAMES``.
        image_encoder, text_encoder: become part of the model, uncopied, and are frozen or set
            training as the method says. An encoder that the method does not read is left out.
        num_classes: C.
        several: an item may have several labels; tells ``late-average`` which probabilities to
            average. No other method asks.

    Raises:
        InputError: unknown name, no class, or encoders that the method cannot join.
    """
    if num_classes < 1:
        raise InputError(f"num_classes={num_classes} must be at least 1.")
    both = (image_encoder, text_encoder, num_classes)
    if name == "linear":
        return LinearProbe(*both)
    if name == "late-concat":
        return LateConcat(*both)
    if name == "image-only":
        return ImageOnly(image_encoder, num_classes)
    if name == "text-only":
        return TextOnly(text_encoder, num_classes)
    if name == "vpt":
        return VPT(image_encoder, num_classes)
    if name == "p-bert":
        return PBert(text_encoder, num_classes)
    if name == "mmbt":
        return MMBT(*both)
    if name == "mbt":
        return MBT(*both)
    if name == "promptfuse":
        return PromptFuse(*both)
    if name == "blindprompt":
        return BlindPrompt(*both)
    if name == "late-average":
        return LateAverage(*both, several)
    raise InputError(f"Unknown baseline {name!r}: use one of {', '.join(NAMES)}.")
