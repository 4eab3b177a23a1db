"""Linear probes: the simplest question one can put to frozen features.

A probe is a softmax regression on standardised features. Its only hyper-parameter, the weight
decay, is chosen on validation data, with the same number of trials for every method compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .errors import InputError
from .metrics import accuracy

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Probe:
    """A fitted softmax regression. D features, C classes.

    Attributes:
        mean, scale: (D,) standardisation, from the training features.
        weight: (C, D).  bias: (C,).
        decay: the chosen weight decay.  validation: accuracy there, None without such data.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    decay: float
    validation: float | None = None

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) features -> (N, C) logits."""
        return (features.float() - self.mean) / self.scale @ self.weight.T + self.bias

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) features -> (N,) class indices."""
        return self.logits(features).argmax(-1)

    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of the N items whose class is found."""
        return accuracy(self.predict(features), labels)


def fit_probe(
    features: torch.Tensor,
    labels: torch.Tensor,
    validation_features: torch.Tensor | None = None,
    validation_labels: torch.Tensor | None = None,
    *,
    num_classes: int | None = None,
    decays: Sequence[float] = DECAYS,
) -> Probe:
    """Fit one probe per weight decay and keep the one with the best validation accuracy.

    The loss is mean cross-entropy + decay / 2 * ||W||^2 on standardised features, minimised
    by L-BFGS from zero: convex, so neither a seed nor a learning rate matters. The first of
    equally good decays is the largest, the smoother classifier.

    Args:
        features: (N, D) training features.  labels: (N,) class indices.
        validation_features, validation_labels: (M, D), (M,); needed when several decays are given.
        num_classes: C; None takes the largest label seen.
        decays: weight decays to try.

    Raises:
        InputError: sizes differ, a feature is not finite, or validation data is missing.
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise InputError(
            f"Probe features have shape {tuple(features.shape)} for {len(labels)} labels: give "
            "pooled features (N, D), one row a label."
        )
    if len(decays) > 1 and validation_features is None:
        raise InputError("Several weight decays need validation features to choose among them.")
    features = features.float()
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(1).nonzero()[0])
        raise InputError(f"Row {row} of the probe's features is not finite: extract it again.")
    mean = features.mean(0)  # (D,)
    # A feature that never varies in training carries nothing: scale 1 keeps it at 0.
    scale = features.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))  # (D,)
    inputs = (features - mean) / scale  # (N, D)
    count = num_classes or int(labels.max()) + 1
    best: Probe | None = None
    weight = torch.zeros(count, inputs.shape[1])
    bias = torch.zeros(count)
    for decay in sorted(decays, reverse=True):  # warm start: strong to weak decay
        weight, bias = _minimise(inputs, labels, decay, weight, bias)
        probe = Probe(mean, scale, weight, bias, decay)
        if validation_features is not None:
            score = probe.accuracy(validation_features, validation_labels)
            probe = Probe(mean, scale, weight, bias, decay, score)
        if best is None or (probe.validation or 0.0) > (best.validation or 0.0):
            best = probe
    return best


def _minimise(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    decay: float,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, labels)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
