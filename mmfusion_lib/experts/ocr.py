"""Words by RapidOCR (PP-OCRv4 mobile, Chinese and English): which word stands on each pixel.

Prismer's own expert, CharNet, finds single words; this one finds lines. A line is cut at its spaces, each
word getting the share of the line's box that its letters have. As published: words below a score of 0.8
are dropped (a word has the score of its line) and all are lower-cased. Not as published: nothing is
snapped to a lexicon.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .labels import NOTHING, LabelMap
from .packaged import PackagedExpert, need

THRESHOLD = 0.8
NARROW = 4  # longer side over shorter, at most: the reader would make a strip enormous
UPRIGHT = 1.5  # a box this many times as high as wide is read from the top down


class Word(NamedTuple):
    """A word and where it stands."""

    text: str
    score: float  # 0 to 1
    corners: np.ndarray  # (4, 2): x, y in pixels of top left, top right, bottom right, bottom left


class OCR(PackagedExpert):
    """Maps of words: each pixel holds the number of its word, ``names`` the words; 255 = no word."""

    name = "ocr_detection"
    model = "PP-OCRv4 mobile (RapidOCR)"
    licence = "RapidOCR and the weights it carries, Apache-2.0"
    megabytes = 410.0

    def __init__(self, device: str | None = None):
        import torch

        if sys.version_info >= (3, 13) and find_spec("rapidocr_onnxruntime") is None:
            raise InputError(
                "The expert ocr_detection runs on rapidocr-onnxruntime, which exists for Python below "
                "3.13: use Python 3.11 or 3.12, or leave this expert out."
            )
        package = need("rapidocr_onnxruntime", "rapidocr-onnxruntime", self.name)
        self.reader = package.RapidOCR(intra_op_num_threads=torch.get_num_threads())

    @classmethod
    def at_hand(cls) -> bool:
        """Whether the package is installed: it carries the weights."""
        return find_spec("rapidocr_onnxruntime") is not None

    def label(self, pixels: np.ndarray) -> LabelMap:
        """Small pictures are enlarged by the reader, to 736 pixels on the shorter side."""
        return paint_words(self.words(pixels), pixels.shape[:2])

    def words(self, pixels: np.ndarray) -> list[Word]:
        """Words of one picture, uint8 RGB (H, W, 3), from the top."""
        found, _ = self.reader(widen(pixels)[:, :, ::-1].copy())  # it takes blue-green-red
        return read_lines(found)


def widen(pixels: np.ndarray) -> np.ndarray:
    """Add plain ground at the right or below a strip (H, W, 3), so that no pixel changes its place."""
    height, width = pixels.shape[:2]
    size = max(height, -(-width // NARROW)), max(width, -(-height // NARROW))
    if size == (height, width):
        return pixels
    ground = np.median(pixels, axis=(0, 1)).astype(np.uint8)  # (H, W, 3) -> (3,)
    wide = np.broadcast_to(ground, (*size, 3)).copy()
    wide[:height, :width] = pixels
    return wide


def read_lines(lines: list | None) -> list[Word]:
    """Lines ``[corners, text, score]`` (None: nothing was found) -> words, in the same order.

    Lines below ``THRESHOLD`` and words without a letter or digit are dropped.
    """
    words = []
    for corners, text, score, *_ in lines or []:
        if float(score) >= THRESHOLD:
            words += cut(np.asarray(corners, np.float32), text.lower(), float(score))
    return words


def cut(corners: np.ndarray, text: str, score: float) -> list[Word]:
    """A line (4, 2) at its spaces; all letters are taken to be equally wide."""
    if corners.shape != (4, 2):
        raise InputError(f"A line of text has corners {corners.shape}: give four points (4, 2).")
    width = max(np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[2] - corners[3]))
    height = max(np.linalg.norm(corners[3] - corners[0]), np.linalg.norm(corners[2] - corners[1]))
    down = height >= UPRIGHT * width
    # The two long edges, each in reading direction: (from, to).
    edges = ((0, 3), (1, 2)) if down else ((0, 1), (3, 2))
    words, start = [], 0
    for text_part in text.split(" "):
        end = start + len(text_part)
        if any(letter.isalnum() for letter in text_part):
            # (begin, end) on each edge, then around the quadrilateral
            (a, b), (c, d) = (
                [corners[i] + (corners[j] - corners[i]) * (at / len(text)) for at in (start, end)]
                for i, j in edges
            )
            words.append(Word(text_part, score, np.stack([a, c, d, b] if down else [a, b, d, c])))
        start = end + 1
    return words


def paint_words(words: list[Word], size: tuple[int, int]) -> LabelMap:
    """Paint each word's quadrilateral with its number, the largest first.

    Args:
        words: at most 255 can be numbered: of more, those with the best scores.
        size: (height, width) of the picture.

    Returns:
        The map; with no words, 255 everywhere and no names.
    """
    from PIL import Image, ImageDraw

    best = sorted(range(len(words)), key=lambda n: -words[n].score)[:NOTHING]
    words = [words[n] for n in sorted(best)]
    image = Image.new("L", size[::-1], NOTHING)
    draw = ImageDraw.Draw(image)
    for number in sorted(range(len(words)), key=lambda n: -area(words[n].corners)):
        draw.polygon([tuple(point) for point in words[number].corners.tolist()], fill=number)
    names = {number: word.text for number, word in enumerate(words)}
    return LabelMap("ocr_detection", np.array(image), names=names)


def area(corners: np.ndarray) -> float:
    """Of a quadrilateral (4, 2), by the shoelace formula, in square pixels."""
    x, y = corners.T  # (4, 2) -> 2 x (4,)
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
