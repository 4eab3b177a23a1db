"""One network that holds every PMF of a search space, so that all of them are trained at once.

PMF's paper searches its fusion structure with AutoFormer (Chen et al., ICCV 2021); its space is in
a supplement that was not available, so the one here is chosen. A *design* is a ``PMFConfig`` with
one prompt length a fusion layer. Its weights are a corner of the shared ones::

    prompts    first rows              query[:M_qp]
    mappings   first hidden units      fc1.weight[:h], fc1.bias[:h], fc2.weight[:, :h]
    layers     counted from the top    the last of N_f layers is the last of N_max
    heads      whole

Training draws one design a batch (``objective``). A design computes what a PMF of its own would
compute with these weights, because it *is* one: ``Supernet.lend`` hands the corners to a PMF.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import pair_training
from .encoders import Encoder
from .errors import InputError
from .pmf import PMF, PMFConfig, PMFOutput

Layer = tuple[int, ...]  # M_qp, M_qcp, M_fcp of one fusion layer
PROMPTS = ("query_prompts", "query_context_prompts", "fusion_context_prompts")


@dataclass(frozen=True)
class SearchSpace:
    """The designs to choose from.

    Args:
        num_classes: C.
        max_fusion_layers: N_max; a design has 1 to N_max fusion layers, at the top.
        query_prompts, query_context_prompts, fusion_context_prompts: lengths to choose from, in
            every fusion layer anew, ascending. A layer always sends a message: no 0 for query.
        mapping_widths: hidden widths h to choose from, one for the whole design, ascending.

    Raises:
        InputError: a field gives nothing to choose from.
    """

    num_classes: int
    max_fusion_layers: int = 4
    query_prompts: tuple[int, ...] = (1, 2, 4, 8)
    query_context_prompts: tuple[int, ...] = (0, 1, 2, 4, 8)
    fusion_context_prompts: tuple[int, ...] = (0, 1, 2, 4, 8)
    mapping_widths: tuple[int, ...] = (48, 96, 192)

    def __post_init__(self) -> None:
        for name in ("num_classes", "max_fusion_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"SearchSpace: {name}={getattr(self, name)} must be at least 1.")
        for name in (*PROMPTS, "mapping_widths"):
            choices = getattr(self, name)
            least = 1 if name in ("query_prompts", "mapping_widths") else 0
            if not choices or list(choices) != sorted(set(choices)) or choices[0] < least:
                raise InputError(
                    f"SearchSpace: {name}={choices} must be one or more different numbers, "
                    f"ascending, from {least} on."
                )

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """What each number of a ``Layer`` is chosen from."""
        return tuple(getattr(self, name) for name in PROMPTS)

    @property
    def size(self) -> int:
        """Number of designs."""
        query, query_context, fusion_context = map(len, self.choices)
        layer = query * query_context * fusion_context
        depths = range(1, self.max_fusion_layers + 1)
        return len(self.mapping_widths) * sum(layer**depth for depth in depths)

    @property
    def largest(self) -> PMFConfig:
        """The design that contains all others."""
        layer = tuple(choices[-1] for choices in self.choices)
        return self.design(self.mapping_widths[-1], [layer] * self.max_fusion_layers)

    def design(self, mapping_width: int, layers: list[Layer]) -> PMFConfig:
        """The design with these layers, the lowest first."""
        lengths = dict(zip(PROMPTS, zip(*layers)))
        return PMFConfig(self.num_classes, len(layers), **lengths, mapping_width=mapping_width)

    def draw_layer(self, rng: random.Random) -> Layer:
        """Every length with equal chances."""
        return tuple(rng.choice(choices) for choices in self.choices)

    def draw(self, rng: random.Random) -> PMFConfig:
        """Every number of layers, mapping width and length with equal chances."""
        depth = rng.randint(1, self.max_fusion_layers)
        width = rng.choice(self.mapping_widths)
        return self.design(width, [self.draw_layer(rng) for _ in range(depth)])


def layers_of(design: PMFConfig) -> list[Layer]:
    """One ``Layer`` for each fusion layer, the lowest first."""
    return list(zip(*(design.lengths(name) for name in PROMPTS)))


class Supernet(nn.Module):
    """The shared weights. Called like a PMF, it computes its current ``design``.

    Args:
        image_encoder, text_encoder: frozen here; each has at least ``max_fusion_layers`` layers.
        space: the designs.

    Attributes:
        design: what a forward pass computes; the largest at first. Not stored in checkpoints.
        largest: a PMF that owns the shared weights.
    """

    def __init__(self, image_encoder: Encoder, text_encoder: Encoder, space: SearchSpace) -> None:
        super().__init__()
        self.space, self.design = space, space.largest
        self.largest = PMF(image_encoder, text_encoder, space.largest)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """As ``PMF.forward``."""
        base = self.largest.base_features(pixel_values, input_ids, attention_mask)
        return self.from_base_features(*base, attention_mask)

    def from_base_features(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """As ``PMF.from_base_features``, from the tokens below N_max layers of each encoder.

        The lowest of them, where the design does not fuse yet, run frozen and keep nothing.
        """
        below = self.space.max_fusion_layers - self.design.num_fusion_layers
        layers = list(self.largest.layers())[:below]
        with torch.no_grad():
            for _, see, read in layers:
                image_tokens = see(image_tokens, None)  # (B, N_i, D_i)
                text_tokens = read(text_tokens, attention_mask)  # (B, N_t, D_t)
        model = self.lend(self.design)
        return model.from_base_features(image_tokens, text_tokens, attention_mask)

    def lend(self, design: PMFConfig) -> PMF:
        """A PMF whose weights are corners of the shared ones: gradients arrive there.

        Raises:
            InputError: the design is larger than the supernet.
        """
        return self._filled(design, lambda shared, _: shared)

    def extract(self, design: PMFConfig) -> PMF:
        """A PMF with copies of its corners. It stands alone, but for the frozen encoders.

        Raises:
            InputError: the design is larger than the supernet.
        """

        def copy(shared: Tensor, own: nn.Parameter) -> nn.Parameter:
            return nn.Parameter(shared.detach().clone(), requires_grad=own.requires_grad)

        return self._filled(design, copy)

    @property
    def image_depth(self) -> int:
        """Layers of the image encoder below the earliest fusion: where base features are taken."""
        return self.largest.image_depth

    @property
    def text_depth(self) -> int:
        """The same of the text encoder."""
        return self.largest.text_depth

    def _filled(self, design: PMFConfig, own: Callable[[Tensor, nn.Parameter], Tensor]) -> PMF:
        """A PMF of this design with ``own(corner, parameter)`` in the place of each parameter."""
        earliest = self.space.max_fusion_layers - design.num_fusion_layers
        if earliest < 0:
            raise InputError(
                f"num_fusion_layers={design.num_fusion_layers} is more than the supernet's "
                f"max_fusion_layers={self.space.max_fusion_layers}: search a larger space."
            )
        theirs = self.largest
        with torch.random.fork_rng(devices=[]):  # the random start is thrown away: draw nothing
            model = PMF(theirs.image_encoder, theirs.text_encoder, design)
        pairs = [
            *zip(model.fusion, theirs.fusion[earliest:]),
            (model.image_head, theirs.image_head),
            (model.text_head, theirs.text_head),
        ]
        for part, shared in pairs:
            for name, parameter in list(part.named_parameters()):
                corner = _corner(shared.get_parameter(name), parameter.shape, name)
                path, _, leaf = name.rpartition(".")
                owner = part.get_submodule(path)
                delattr(owner, leaf)  # a corner is no nn.Parameter, and may not take its place
                setattr(owner, leaf, own(corner, parameter))
        return model


def objective(weights: Tensor | None = None) -> Callable[[Supernet, pair_training.Batch], Tensor]:
    """The loss of PMF on one random design a batch, as AutoFormer trains its supernet.

    The design comes from torch's generator, which ``train.fit`` seeds at every step: so it is a
    function of (seed, step), and of the process where there are several.

    Args:
        weights: as in ``pair_training.objective``.
    """
    plain = pair_training.objective(weights)

    def loss(supernet: Supernet, batch: pair_training.Batch) -> Tensor:
        rng = random.Random(int(torch.randint(2**62, ())))
        supernet.design = supernet.space.draw(rng)
        return plain(supernet, batch)

    return loss


def _corner(shared: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The first ``shape`` numbers of ``shared`` along every axis, as a view."""
    if any(need > there for need, there in zip(shape, shared.shape)):
        raise InputError(
            f"The design needs {name} of shape {tuple(shape)}, but the supernet has "
            f"{tuple(shared.shape)}: search a larger space."
        )
    return shared[tuple(slice(length) for length in shape)]
