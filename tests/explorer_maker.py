"""A tiny Prismer that writes words, and two small pictures, for tests of the explorer."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from mmfusion_lib.data.images import ImageTransform
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.experts import LabelMap
from mmfusion_lib.explorer import Explorer, Picture, Writing
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import PrismerConfig

WORDS = "[PAD] [CLS] [SEP] a picture of red blue mug tree book sign on the left right and two ##s ?"
IMAGE = EncoderConfig(
    "image", 16, 2, 2, 24, image_size=32, patch_size=8, input_norm=True, patch_bias=False
)
TEXT = EncoderConfig("text", 8, 2, 2, 12, norm="post", vocab_size=20, max_positions=48)
EXPERTS = ("depth", "seg_scenes", "ocr_detection")
CONFIG = PrismerConfig(
    IMAGE, TEXT, EXPERTS, image_size=32, num_latents=3, resampler_layers=1, resampler_heads=2
)
HOSTILE = '</script><img src=x onerror="window.hurt=1">&amp;'


class Words:
    """A tokenizer of twenty words; others are "the"."""

    pad_id = 0

    def __call__(self, texts):
        rows = [[1, *(self.number(word) for word in text.lower().split()), 2] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, (ids != 0).long()

    def number(self, word):
        return self.tokens(range(20)).index(word) if word in self.tokens(range(20)) else 13

    def tokens(self, ids):
        return [WORDS.split()[int(i)] for i in ids]

    def decode(self, ids, special=False):
        return " ".join(self.tokens(i for i in ids if int(i) > 2)).replace(" ##", "")


class Lengths:
    """A table of label vectors that tells names by their lengths."""

    def vectors(self, names):
        return torch.tensor([[float(len(name))] * 64 for name in names])


def tiny() -> Prismer:
    """Random weights, large enough for each word and each expert to matter."""
    torch.manual_seed(0)
    model = Prismer(build_encoder(IMAGE), build_encoder(TEXT), CONFIG).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.tokenizer, model.label_table = Words(), Lengths()
    model.transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model


def pictures(name: str = "one") -> list[Picture]:
    """Two pictures of 32 x 32, a mug on the left in the first and on the right in the second."""
    found = []
    for number, (title, left) in enumerate(((name, 4), ("two", 18))):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        classes, words = np.full((32, 32), 255, np.uint8), np.full((32, 32), 255, np.uint8)
        classes[8:20, left : left + 10], words[10:14, left : left + 8] = 0, 0
        labels = {
            "depth": LabelMap("depth", np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))),
            "seg_scenes": LabelMap("seg_scenes", classes, names={0: "mug"}),
            "ocr_detection": LabelMap("ocr_detection", words, names={0: "open"}),
        }
        alt = "A mug."
        found.append(Picture(title, Image.fromarray(pixels), labels, alt, scene=True))
    return found


def explorer(name: str = "one", **changes) -> Explorer:
    """Captions of at most nine tokens, two questions, four answers."""
    options = {
        "trained_on": "nothing yet",
        "questions": ["two mug on the left", "book"],
        "answers": ["red", "blue mug", "two", "tree"],
        "writing": Writing(length=9, shortest=6),
    }
    return Explorer(tiny(), pictures(name), **{**options, **changes})
