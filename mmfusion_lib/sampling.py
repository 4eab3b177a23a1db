"""Drawing tokens by their probability, with random numbers of its own for each text.

So a text does not depend on its neighbours in the batch, nor on the device.
Shapes: B texts, A of them that go on, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError


class Sampler:
    """Draws one token for each text.

    Args:
        temperature, top_k, top_p: as in ``generate.generate_scored``.
        seeds: one for each of the B texts.
        longest: tokens that each may have.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        temperature: float,
        top_k: int | None,
        top_p: float,
        seeds: Sequence[int],
        longest: Sequence[int],
    ):
        if not temperature > 0:
            raise InputError(
                f"temperature={temperature} must be above 0: 1 leaves the logits alone."
            )
        if not 0 < top_p <= 1:
            raise InputError(f"top_p={top_p} must be above 0 and at most 1: 1 keeps all tokens.")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k} must be 1 or more, or None to keep all tokens.")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        streams = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        # On the CPU, so that every device draws the same.
        self.numbers = torch.stack([torch.rand(max(longest), generator=each) for each in streams])

    def __call__(self, logs: Tensor, images: list[int], written: int) -> Tensor:
        """Log probabilities (A, V) -> tokens (A,)."""
        likely, order = (logs / self.temperature).softmax(dim=1).sort(dim=1, descending=True)
        if self.top_k is not None:
            likely[:, self.top_k :] = 0
        total = likely.cumsum(dim=1)
        likely = likely.masked_fill(total - likely >= self.top_p * total[:, -1:], 0)
        total = likely.cumsum(dim=1)
        point = self.numbers[images, written, None].to(total.device) * total[:, -1:]  # (A, 1)
        place = (total <= point).sum(dim=1, keepdim=True)  # the first whose sum is beyond the point
        place = place.minimum((likely > 0).sum(dim=1, keepdim=True) - 1)
        return order.gather(1, place)[:, 0]  # (A, 1) -> (A,)
