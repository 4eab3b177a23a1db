"""How many parameters each baseline trains, from shapes alone.

Symbols: D width, L layers, R width of the readout, C classes.
"""

from __future__ import annotations

from ..accounting import encoder_parameters
from ..encoder_config import EncoderConfig
from ..errors import InputError
from . import deep_prompts, mbt, promptfuse
from .methods import NAMES


def trainable_parameters(
    name: str, image: EncoderConfig, text: EncoderConfig, num_classes: int
) -> int:
    """Trainable parameters of ``build(name, ...)`` with encoders of these sizes.

    Raises:
        InputError: unknown name.
    """
    if name not in NAMES:
        raise InputError(f"Unknown baseline {name!r}: use one of {', '.join(NAMES)}.")
    whole_image, whole_text = encoder_parameters(image), encoder_parameters(text)
    image_head = linear(image.readout_width, num_classes)  # (R_i + 1) C
    text_head = linear(text.readout_width, num_classes)  # (R_t + 1) C
    both = linear(image.readout_width + text.readout_width, num_classes)  # (R_i + R_t + 1) C
    deep = deep_prompts.PROMPTS
    shallow = promptfuse.PROMPTS * text.width + text_head
    if image.readout_width != text.width:
        shallow += linear(image.readout_width, text.width)
    bottlenecks = mbt.BOTTLENECKS * image.width
    if image.width != text.width:
        bottlenecks += linear(image.width, text.width) + linear(text.width, image.width)
    return {
        "linear": both,
        "late-concat": whole_image + whole_text + both,
        "image-only": whole_image + image_head,
        "text-only": whole_text + text_head,
        "vpt": image.depth * deep * image.width + image_head,
        "p-bert": text.depth * deep * text.width + text_head,
        "mmbt": whole_image + whole_text + linear(image.width, text.width) + text_head,
        "mbt": whole_image + whole_text + bottlenecks + image_head + text_head,
        "promptfuse": shallow,
        "blindprompt": shallow,
        "late-average": whole_image + image_head + whole_text + text_head,
    }[name]


def linear(inputs: int, outputs: int) -> int:
    """Weights and biases of a linear map."""
    return (inputs + 1) * outputs
