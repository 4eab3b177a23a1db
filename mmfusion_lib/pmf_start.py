"""A better start than random: PMF's two heads begin as the linear probe of both encoders.

With messages silenced (the last map of every mapping at zero) PMF is its own baseline "Linear": the
sum of one linear score of the picture and one of the text. So the heads can be *fitted* before
training, by a convex problem whose weight decay is chosen on validation data, and training starts at
Linear's accuracy instead of at chance. The paper does not do this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import probes
from .fusion import Mapping
from .pmf import PMF


@torch.no_grad()
def start_from_probe(
    model: PMF, data: Dataset, held_out: Dataset, decays: Sequence[float] = probes.DECAYS
) -> probes.Probe:
    """Silence the messages, fit a probe on what both heads read, and put it into the heads.

    Args:
        model: on its device; heads and mappings are changed in place.
        data, held_out: ``CachedPairs`` with class indices, to fit on and to choose the decay.
        decays: as in :func:`mmfusion_lib.probes.fit_probe`.

    Returns:
        The probe, on (N, R_image + R_text).
    """
    for module in model.modules():
        if isinstance(module, Mapping):
            module.fc2.weight.zero_()
            module.fc2.bias.zero_()
    probe = probes.fit_probe(
        read(model, data), data.labels, read(model, held_out), held_out.labels,
        num_classes=model.config.num_classes, decays=decays,
    )  # fmt: skip
    weight = probe.weight / probe.scale  # (C, R_i + R_t): standardisation goes into the heads
    bias = probe.bias - weight @ probe.mean  # (C,)
    image = model.image_head.in_features
    # The model halves the sum of its heads.
    model.image_head.weight.copy_(2 * weight[:, :image])
    model.text_head.weight.copy_(2 * weight[:, image:])
    model.image_head.bias.copy_(bias)
    model.text_head.bias.copy_(bias)
    return probe


@torch.no_grad()
def read(model: PMF, data: Dataset, batch_size: int = 128) -> Tensor:
    """What both heads read, side by side: (N, R_image + R_text), on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(data), batch_size):
        items = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        names = "image_tokens", "text_tokens", "attention_mask"
        batch = [torch.stack([item[name] for item in items]).to(device) for name in names]
        rows.append(torch.cat(model.summaries(*batch), dim=1).cpu())  # (B, R_i + R_t)
    return torch.cat(rows)  # (N, R_i + R_t)
