"""Adaptors: small residual networks that train inside a frozen transformer (Prismer section 3.3).

Two linear maps around a squared ReLU, added to what comes in. Paper and official code differ: the paper
speaks of a smaller bottleneck and of a start near zero, the code has neither (width D inside, the
usual random start). All of it can be chosen here; the defaults are those of the code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError

NEAR_ZERO = 1e-3  # spread of the second map's weights where an adaptor starts near the identity


def squared_relu(x: Tensor) -> Tensor:
    """max(0, x)^2 (So et al. 2021)."""
    return F.relu(x).square()


class Adaptor(nn.Module):
    """``x + up(squared_relu(down(x)))`` with one LayerNorm, before or after.

    Args:
        width: D.
        norm: "pre" normalises what ``down`` reads (vision), "post" normalises the sum (language).
        bottleneck: width between the two maps; None: D.
        gate: multiply the branch by tanh of a learned number that starts at 0, so that a "pre"
            adaptor starts as the identity (Flamingo's way; "post" starts as its LayerNorm).
        near_zero: draw the weights of ``up`` with spread 0.001, and its bias as 0.
        eps: of the LayerNorm.

    Raises:
        InputError: ``norm`` is unknown or ``bottleneck`` is below 1.
    """

    def __init__(
        self,
        width: int,
        norm: str = "pre",
        bottleneck: int | None = None,
        gate: bool = False,
        near_zero: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        if norm not in ("pre", "post"):
            raise InputError(f"Adaptor: norm={norm!r} is unknown: use 'pre' or 'post'.")
        hidden = width if bottleneck is None else bottleneck
        if hidden < 1:
            raise InputError(f"Adaptor: bottleneck={bottleneck} must be 1 or more, or None for D.")
        self.pre = norm == "pre"
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        self.gate = nn.Parameter(torch.zeros(1)) if gate else None
        if near_zero:
            nn.init.normal_(self.up.weight, std=NEAR_ZERO)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        branch = self.up(squared_relu(self.down(self.norm(tokens) if self.pre else tokens)))
        if self.gate is not None:
            branch = self.gate.tanh() * branch
        tokens = tokens + branch
        return tokens if self.pre else self.norm(tokens)
