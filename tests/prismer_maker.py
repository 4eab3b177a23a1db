"""Prismers with a layer or two and random weights, in place of the pretrained ones."""

from __future__ import annotations

from typing import Any

import torch

from mmfusion_lib import checkpoints
from mmfusion_lib.encoder_config import EncoderConfig
from mmfusion_lib.encoders import build_encoder
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import PrismerConfig
from mmfusion_lib.tokenizer import Tokenizer


def make_prismer(
    image: EncoderConfig,
    text: EncoderConfig,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    experts: tuple[str, ...] = (),
    image_size: int = 28,
    **changes: Any,
) -> Prismer:
    """As ``load_prismer`` gives it; what stands for pretrained is the same whatever the seed."""
    config = PrismerConfig(
        image, text, tuple(experts), image_size, num_latents=2, resampler_layers=1, **changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(99)
        encoders = build_encoder(image), build_encoder(text)
        torch.manual_seed(seed)
        model = Prismer(*encoders, config)
    model.tokenizer = tokenizer
    model.transform = checkpoints.image_transform("dinov2-small", size=image_size)
    model.freeze("lang_vision")
    return model
