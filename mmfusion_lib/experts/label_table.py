"""Label vectors: a name through a text encoder, then the 64 directions in which names differ most.

The official code does so with CLIP ViT-L/14 and a pickled PCA, fitted on texts that are not
documented. Here the encoder is any of ours, the PCA is fitted on the words listed below, and how
much variance it keeps is an attribute. Words on signs go through the same projection as classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..encoders import TextEncoder
from ..errors import InputError
from ..files import atomic_path
from ..tokenizer import Tokenizer
from .painting import WIDTH

# Class names in the order of the public data sets: COCO's 80 things, then the 53 kinds of stuff of
# its panoptic task. "seg_coco" numbers all 133, a COCO detector the first 80.
COCO_THINGS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COCO_STUFF = (
    "banner", "blanket", "bridge", "cardboard", "counter", "curtain", "door-stuff", "floor-wood",
    "flower", "fruit", "gravel", "house", "light", "mirror-stuff", "net", "pillow", "platform",
    "playingfield", "railroad", "river", "road", "roof", "sand", "sea", "shelf", "snow", "stairs",
    "tent", "towel", "wall-brick", "wall-stone", "wall-tile", "wall-wood", "water-other",
    "window-blind", "window-other", "tree-merged", "fence-merged", "ceiling-merged",
    "sky-other-merged", "cabinet-merged", "table-merged", "floor-other-merged", "pavement-merged",
    "mountain-merged", "grass-merged", "dirt-merged", "paper-merged", "food-other-merged",
    "building-other-merged", "rock-merged", "wall-other-merged", "rug-merged",
)  # fmt: skip
# What textbook figures show and say, in our own choice of words.
FIGURE_WORDS = (
    "diagram", "graph", "chart", "map", "photograph", "drawing", "painting", "micrograph",
    "arrow", "axis", "scale", "label", "cell", "nucleus", "membrane", "bacteria", "virus",
    "protein", "molecule", "atom", "electron", "reaction", "acid", "solution", "crystal",
    "beaker", "muscle", "bone", "nerve", "heart", "lung", "brain", "blood", "skin", "eye",
    "planet", "star", "galaxy", "telescope", "moon", "sun", "orbit", "force", "velocity",
    "current", "circuit", "magnet", "lens", "wave", "energy", "temperature", "pressure",
    "congress", "court", "president", "election", "vote", "soldier", "war", "ship", "factory",
    "farm", "city", "village", "temple", "statue", "mask", "family", "child", "student",
    "teacher", "crowd", "protest", "newspaper", "poster", "letter", "coin", "tool", "pottery",
)  # fmt: skip


def spoken(name: str) -> str:
    """A class name as one says it: "wall-other-merged" -> "wall", "wall-brick" -> "wall brick"."""
    for ending in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(ending)
    return name.replace("-", " ").replace("_", " ")


def vocabulary() -> tuple[str, ...]:
    """What tables are fitted on: COCO's classes, words of scenes, signs and figures, none twice."""
    from ..data import scenes

    words = [spoken(name) for name in (*COCO_THINGS, *COCO_STUFF)]
    words += [spoken(kind) for kind in scenes.KINDS]
    words += [*scenes.COLOURS, *scenes.TEXTURES, *scenes.SIZES, *scenes.SURFACES, *scenes.WALLS]
    return tuple(dict.fromkeys([*words, *scenes.WORDS, *FIGURE_WORDS, "background"]))


class LabelTable:
    """Names -> label vectors: ``(readout(name) - mean) @ directions``.

    Attributes:
        mean: (R,) float32, of the readouts of the words fitted on.
        directions: (R, 64) float32, orthonormal, the one of most variance first; each is turned so
            that its largest entry is positive. With under 65 words or R < 64 the last are zeros.
        kept: share of the variance of those words that the 64 directions keep, 0 to 1.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: Tokenizer,
        mean: Tensor,
        directions: Tensor,
        kept: float,
    ):
        self.encoder, self.tokenizer = encoder, tokenizer
        self.mean, self.directions, self.kept = mean, directions, kept
        self._known: dict[str, Tensor] = {}  # vectors so far: words come again and again

    @classmethod
    def fit(
        cls, encoder: TextEncoder, tokenizer: Tokenizer, words: Sequence[str] | None = None
    ) -> LabelTable:
        """Fit the 64 directions.

        Args:
            encoder: a text encoder of readout width R; it is not changed.
            tokenizer: the one that belongs to it.
            words: what to fit on; None: ``vocabulary()``. Repeated words count once.

        Raises:
            InputError: fewer than two different words, or an empty one.
        """
        words = list(dict.fromkeys(vocabulary() if words is None else words))
        if len(words) < 2:
            raise InputError(f"A table is fitted on {words}: give two different words or more.")
        readouts = read_names(encoder, tokenizer, words).double()  # (M, R)
        mean = readouts.mean(0)
        _, spread, axes = torch.linalg.svd(readouts - mean, full_matrices=False)
        rank = min(WIDTH, len(words) - 1, readouts.shape[1])
        axes = axes[:rank]  # (rank, R)
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        directions = torch.zeros(readouts.shape[1], WIDTH)
        directions[:, :rank] = axes.T.float()  # (rank, R) -> (R, rank)
        variance = spread.square()
        kept = float(variance[:rank].sum() / variance.sum().clamp(min=1e-30))
        return cls(encoder, tokenizer, mean.float(), directions, kept)

    def vectors(self, names: Sequence[str]) -> Tensor:
        """K names -> their vectors (K, 64), float32 on the CPU.

        Raises:
            InputError: a name is empty or no string.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._known]
        if new:
            readouts = read_names(self.encoder, self.tokenizer, new)  # (M, R)
            self._known.update(zip(new, (readouts - self.mean) @ self.directions))
        return (
            torch.stack([self._known[name] for name in names]) if names else torch.zeros(0, WIDTH)
        )

    def save(self, path: str | Path) -> None:
        """Write mean and directions as safetensors; the encoder is named by digest."""
        from safetensors.torch import save

        metadata = {"format": _FORMAT, "kept": repr(self.kept), **self._digests()}
        state = {"mean": self.mean, "directions": self.directions.contiguous()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(state, metadata))

    @classmethod
    def load(cls, path: str | Path, encoder: TextEncoder, tokenizer: Tokenizer) -> LabelTable:
        """Read a file of ``save``.

        Raises:
            InputError: the file is missing, damaged, of another kind, or was fitted with another
                encoder or tokenizer.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise InputError(f"{path} is no label table: write one with LabelTable.save.")
                table = cls(
                    encoder,
                    tokenizer,
                    file.get_tensor("mean"),
                    file.get_tensor("directions"),
                    float(metadata["kept"]),
                )
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist: check the path.") from error
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): write it anew.") from error
        for what, digest in table._digests().items():
            if metadata.get(what) != digest:
                raise InputError(
                    f"{path} was fitted with another {what}: fit it anew with this one."
                )
        return table

    def _digests(self) -> dict[str, str]:
        from ..checkpoints import weights_digest

        return {"encoder": weights_digest(self.encoder), "tokenizer": self.tokenizer.digest}


_FORMAT = "mmfusion_lib label table 1"


@torch.no_grad()
def read_names(encoder: TextEncoder, tokenizer: Tokenizer, names: Sequence[str]) -> Tensor:
    """The encoder's readout of each name: (M, R) float32 on the CPU; dropout is off meanwhile.

    Raises:
        InputError: a name is empty or no string.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{name!r} is no name for a label: give a word.")
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        parts = []
        for start in range(0, len(names), 256):
            ids, mask = tokenizer(names[start : start + 256])  # (M, N) each
            ids, mask = ids.to(device), mask.to(device)
            tokens = encoder(ids, mask)  # (M, N, D)
            parts.append(encoder.pool(tokens, mask).float().cpu())  # (M, R)
    finally:
        encoder.train(training)
    return torch.cat(parts)
