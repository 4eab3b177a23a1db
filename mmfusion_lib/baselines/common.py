"""What all baselines share: how they treat frozen parts, and one way through an encoder."""

from __future__ import annotations

from torch import Tensor, nn

from ..encoders import Encoder
from ..pmf import PMFOutput
from ..trainable import is_frozen


class Baseline(nn.Module):
    """A module whose frozen parts stay in evaluation mode when it trains, as those of PMF do."""

    def train(self, mode: bool = True) -> Baseline:
        """As ``nn.Module.train``, but no dropout in what is frozen: its features stand still."""
        super().train(mode)
        for part in self.children():
            if is_frozen(part):
                part.eval()
        return self


def last_tokens(encoder: Encoder, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """What leaves the last block, before the last norm: (B, N, D). ``readout`` takes it."""
    tokens = encoder.embed(inputs)  # (B, N, D)
    for layer in encoder.layers:
        tokens = layer(tokens, mask)
    return tokens


def one_answer(logits: Tensor) -> PMFOutput:
    """The output of a method with one head: the same logits (B, C) in all three fields."""
    return PMFOutput(logits, logits, logits)
