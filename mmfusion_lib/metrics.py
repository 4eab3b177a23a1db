"""Classification metrics, and the interval that decides whether a difference is a finding."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right predictions; both arguments are class indices of shape (N,)."""
    _same_length(predictions, labels)
    return (predictions == labels).double().mean().item()


def f1(predictions: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[float, float]:
    """F1 over all decisions (micro) and averaged over classes (macro).

    Args:
        predictions: class indices (N,), or yes/no decisions (N, C) for several labels an item.
        labels: the truth, in the same form.
        num_classes: C; a class that neither occurs nor is predicted counts as 0 in macro-F1.
    """
    _same_length(predictions, labels)
    if predictions.ndim == 1:
        predictions = torch.nn.functional.one_hot(predictions, num_classes)  # (N, C)
        labels = torch.nn.functional.one_hot(labels, num_classes)  # (N, C)
    predictions, labels = predictions.bool(), labels.bool()
    hits = (predictions & labels).sum(0).double()  # (C,)
    total = predictions.sum(0).double() + labels.sum(0).double()  # (C,)
    macro = torch.where(total > 0, 2 * hits / total.clamp(min=1), 0.0).mean().item()
    micro = (2 * hits.sum() / total.sum().clamp(min=1)).item()
    return micro, macro


class Interval(NamedTuple):
    """A difference of means and its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float

    @property
    def beats(self) -> bool:
        """True when the whole interval lies above 0."""
        return self.low > 0


def text_alone(texts: Sequence[str], labels: Sequence[Hashable]) -> float:
    """Accuracy if each text gets the label that is its most common in these very N pairs.

    No model of the text alone can do better on them.

    Raises:
        ValueError: the lengths differ.
    """
    found: dict[str, Counter] = defaultdict(Counter)
    for text, label in zip(texts, labels, strict=True):
        found[text][label] += 1
    return sum(max(each.values()) for each in found.values()) / len(labels)


def paired_bootstrap(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    groups: list | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(ours) - mean(theirs), over test groups and seeds drawn with replacement.

    Items of one group (a textbook section, a scene) resemble each other, so whole groups are
    drawn, never single items; both methods see the same draw, which is what pairs them.

    Args:
        ours, theirs: a score per seed and test item, (S, N), for instance 1 where right.
        groups: N group names; None makes each item its own group.
        draws: number of bootstrap samples.
        seed: of the bootstrap itself.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(f"scores must both be (S, N), not {ours.shape} and {theirs.shape}")
    seeds, items = ours.shape
    difference = (ours - theirs).double()  # (S, N)
    names = list(range(items)) if groups is None else list(groups)
    if len(names) != items:
        raise ValueError(f"{len(names)} groups were given for {items} items")
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = torch.tensor([index[name] for name in names])  # (N,)
    sums = torch.zeros(seeds, len(index), dtype=torch.double).index_add_(1, member, difference)
    sizes = torch.bincount(member, minlength=len(index)).double()  # (G,)
    generator = torch.Generator().manual_seed(seed)
    samples = torch.empty(draws, dtype=torch.double)
    for i in range(draws):
        group = torch.randint(len(index), (len(index),), generator=generator)  # (G,)
        which = torch.randint(seeds, (seeds,), generator=generator)  # (S,)
        samples[i] = sums[which][:, group].sum() / (seeds * sizes[group].sum())
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(difference.mean().item(), low, high)


def _same_length(predictions: torch.Tensor, labels: torch.Tensor) -> None:
    if predictions.shape != labels.shape or not len(labels):
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} must have "
            "the same shape and at least one item"
        )
