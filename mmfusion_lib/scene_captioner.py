"""The captioner of scenes that comes with the book: a Prismer ``small`` cut down to what it needs.

Chosen so that it trains in less than an hour on a core and fits in a few megabytes: the picture is read by the
encoder that chapter 3 tuned on scenes, the first three blocks of MiniLM write, the resampler has one
layer, and word table, patches and positions stay as they were pretrained. The adaptors have a bottleneck
and start near zero, as the paper says and its code does not: eight fresh ones would blur what the encoder
knows. Weights are published as 8-bit integers, one scale for each row.
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
from .trainable import freeze, frozen_digest, trainable_state

SIZES = {
    "image": 8,
    "text": 3,
    "adaptor_bottleneck": 96,
    "adaptor_near_zero": True,
    "resampler_layers": 1,
}
PART_BYTES = 9_000_000  # of a published file
SCALE = ".scale"  # ends the names of what 8-bit integers are multiplied with


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


def load(name: str = "scene-captioner", experts: Sequence[str] = SCENE_EXPERTS) -> Prismer:
    """The published captioner, ready to write.

    Args:
        name: of the files in ``book/results/weights``, or a path without "-0.safetensors".
        experts: those that it was trained with.

    Raises:
        InputError: a file is missing or belongs to another model.
    """
    from safetensors import safe_open

    first = records.results_root() / "weights" / name  # an absolute name stays what it is
    paths = sorted(first.parent.glob(f"{first.name}-*.safetensors"))
    remedy = "run the recipe prismer-longer, which writes them."
    if not paths:
        raise InputError(f"{first}-0.safetensors does not exist: {remedy}")
    found: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = build(experts)
    state = trainable_state(model)
    stored = {key for key in found if not key.endswith(SCALE)}
    shapes = {key: found[key].shape for key in stored}
    if str(len(paths)) != metadata.get("parts") or shapes != {k: v.shape for k, v in state.items()}:
        raise InputError(f"{first}-*.safetensors hold another model, or a part is lost: {remedy}")
    if metadata["frozen"] != frozen_digest(model):
        raise InputError(f"{first}-*.safetensors were trained on other frozen weights: {remedy}")
    with torch.no_grad():
        for key, value in state.items():
            scale = found.get(key + SCALE)
            value.copy_(found[key] if scale is None else found[key].float() * scale)
    return model.eval()


def save(model: Prismer, path: str | Path, about: dict[str, str] | None = None) -> list[Path]:
    """Write what was trained as 8-bit integers, in files of at most ``PART_BYTES``.

    Args:
        model: of ``build``.
        path: without "-0.safetensors".
        about: kept beside the tensors.
    """
    from safetensors.torch import save_file

    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in trainable_state(model).items():
        packed = _packed(key, value.detach().cpu())
        more = sum(tensor.nbytes for tensor in packed.values())
        if size + more > PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1] |= packed
        size += more
    metadata = {"frozen": frozen_digest(model), "parts": str(len(parts)), **(about or {})}
    path = Path(path)
    paths = [path.with_name(f"{path.name}-{n}.safetensors") for n in range(len(parts))]
    for file, part in zip(paths, parts):
        with atomic_path(file) as temporary:
            save_file(part, temporary, metadata)
    for old in set(path.parent.glob(f"{path.name}-*.safetensors")) - set(paths):
        old.unlink()
    return paths


def _packed(key: str, value: Tensor) -> dict[str, Tensor]:
    """A matrix or convolution as int8 with one scale for each row, all else as float32."""
    if value.ndim < 2 or value.numel() < 4096:
        return {key: value.contiguous()}
    rows = value.flatten(1).abs().amax(1).clamp(min=1e-12) / 127  # (R, ...) -> (R,)
    scale = rows.reshape(-1, *[1] * (value.ndim - 1))
    return {key: (value / scale).round().to(torch.int8).contiguous(), key + SCALE: scale}
