"""The captioner of scenes that comes with the book: a Prismer ``small`` cut down to what it needs.

Chosen so that it trains in half an hour on a core and fits in a few megabytes: the picture is read by the
encoder that chapter 3 tuned on scenes, the first three blocks of MiniLM write, the resampler has one
layer, and word table, patches and positions stay as they were pretrained. The adaptors have a bottleneck and start near zero,
as the paper says and its code does not: eight fresh ones would blur what the encoder knows. Weights are
published as 8-bit integers, one scale for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import records, scene_tuning
from .errors import InputError
from .files import atomic_path
from .prismer import Prismer, load_prismer
from .prismer_config import MODELS, SCENE_EXPERTS
from .trainable import freeze, trainable_state

SIZES = {
    "image": 8,
    "text": 3,
    "adaptor_bottleneck": 96,
    "adaptor_near_zero": True,
    "resampler_layers": 1,
}
PART_BYTES = 9_000_000  # of a published file


def build(
    experts: Sequence[str] = SCENE_EXPERTS,
    seed: int = 0,
    *,
    image: int | None = None,
    text: int | None = None,
    **changes: Any,
) -> Prismer:
    """The captioner before training: what is pretrained is frozen, all else is drawn.

    Args:
        experts: maps that it can read; () is PrismerZ.
        seed: of what is drawn.
        image, text: blocks of DINOv2-small and of MiniLM that are used; None: as published.
        changes: further fields of ``PrismerConfig``.
    """
    small = MODELS["small"]
    sizes = {name: value for name, value in SIZES.items() if name not in ("image", "text")}
    model = load_prismer(
        "small",
        seed=seed,
        experts=tuple(experts),
        image=replace(small.image, depth=image or SIZES["image"]),
        text=replace(small.text, depth=text or SIZES["text"]),
        **sizes | changes,
    )
    tuned = scene_tuning.load_encoder(SIZES["image"])
    for own, block in zip(
        model.encoder.layers[scene_tuning.DEPTH :], tuned.layers[scene_tuning.DEPTH :]
    ):
        own.block.load_state_dict(block.state_dict())
    # At a rate that teaches the new parts in minutes, these would unlearn what they know.
    for part in (model.decoder.words, model.encoder.patch, model.encoder.norm):
        freeze(part)
    model.encoder.positions.requires_grad_(False)
    return model


def folder() -> Path:
    """Where published weights lie."""
    return records.results_root() / "weights"


def load(name: str = "scene-captioner", experts: Sequence[str] = SCENE_EXPERTS) -> Prismer:
    """The published captioner, ready to write.

    Args:
        experts: those that it was trained with.

    Raises:
        InputError: a file is missing or belongs to another model.
    """
    from safetensors.torch import load_file

    model = build(experts)
    state = trainable_state(model)
    found: dict[str, Tensor] = {}
    paths = sorted(folder().glob(f"{name}-*.safetensors"))
    for path in paths:
        found |= load_file(path)
    missing = [key for key in state if key not in found]
    if missing:
        raise InputError(
            f"{folder() / name}-*.safetensors lack {len(missing)} tensors, the first is "
            f"{missing[0]}: run the recipe prismer-captions, which publishes them."
        )
    with torch.no_grad():
        for key, value in state.items():
            scale = found.get(f"{key}.scale")
            stored = found[key]
            if stored.shape != value.shape:
                raise InputError(
                    f"{key} has shape {tuple(stored.shape)} in the published weights but "
                    f"{tuple(value.shape)} here: publish them again."
                )
            value.copy_(stored if scale is None else stored.float() * scale)
    return model.eval()


def publish(model: Prismer, metadata: dict[str, str], name: str = "scene-captioner") -> list[Path]:
    """Write what was trained as 8-bit integers, in files of at most ``PART_BYTES``."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for key, value in trainable_state(model).items():
        tensors |= _packed(key, value.detach().cpu())
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if size + value.nbytes > PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][key] = value
        size += value.nbytes
    for old in folder().glob(f"{name}-*.safetensors"):
        old.unlink()
    paths = [folder() / f"{name}-{number}.safetensors" for number in range(len(parts))]
    for path, part in zip(paths, parts):
        with atomic_path(path) as temporary:
            save_file(part, temporary, metadata)
    return paths


def _packed(key: str, value: Tensor) -> dict[str, Tensor]:
    """A matrix or convolution as int8 with one scale for each row, all else as float32."""
    if value.ndim < 2 or value.numel() < 4096:
        return {key: value.contiguous()}
    rows = value.flatten(1).abs().amax(1).clamp(min=1e-12) / 127  # (R, ...) -> (R,)
    scale = rows.reshape(-1, *[1] * (value.ndim - 1))
    return {key: (value / scale).round().to(torch.int8).contiguous(), f"{key}.scale": scale}
