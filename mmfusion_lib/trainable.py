"""Small checkpoints: only what trains is stored, tied by a digest to the frozen weights under it.

Both papers freeze large pretrained encoders and train a few per cent of the parameters. A file of
the trained part alone is small, but worthless on top of other encoders: so it carries a digest of
everything that it leaves out, and loading checks that digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from .errors import InputError
from .files import atomic_path

FORMAT = "mmfusion-trainable-1"


def freeze(module: nn.Module, except_: Iterable[str] = ()) -> nn.Module:
    """Stop the parameters of ``module`` from training, but for those under a named sub-module.

    Args:
        module: changed in place.
        except_: names of sub-modules or parameters that go on training, e.g. ``"layers.5"``. They
            keep the ``requires_grad`` that they have.

    Raises:
        InputError: a name in ``except_`` matches no parameter.
    """
    if isinstance(except_, str):
        except_ = (except_,)
    kept = {
        prefix: {n for n, _ in module.named_parameters() if f"{n}.".startswith(f"{prefix}.")}
        for prefix in except_
    }
    for prefix, names in kept.items():
        if not names:
            raise InputError(
                f"freeze: {prefix!r} names no parameter of {type(module).__name__}: use a name "
                "from named_parameters(), or the start of one."
            )
    for name, parameter in module.named_parameters():
        if not any(name in names for names in kept.values()):
            parameter.requires_grad_(False)
    return module


def is_frozen(module: nn.Module) -> bool:
    """True when ``module`` has parameters and none of them trains."""
    flags = [p.requires_grad for p in module.parameters()]
    return bool(flags) and not any(flags)


def train_mode(model: nn.Module) -> nn.Module:
    """``model.train()``, but every frozen module stays in evaluation mode with all that is in it.

    So dropout inside a frozen encoder is off and its BatchNorm statistics stand still: the features
    of a frozen part are the same in training, in evaluation and from a cache. PMF's released code
    leaves dropout on inside frozen BERT; the paper does not say which it used.
    A module without parameters, such as a dropout layer, follows the module that owns it: in an
    encoder whose top layers train, dropout on the embeddings is on, unless its configuration has 0.
    """
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()
    return model


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that require a gradient, and buffers outside frozen modules
    (BatchNorm's running statistics). The tensors are the model's own, not copies."""
    return {name: value.detach() for name, value, trains in _named(model) if trains}


def frozen_digest(model: nn.Module) -> str:
    """Digest (16 hexadecimal digits) of all that training leaves alone: names, types, shapes, bytes."""
    total = hashlib.sha256()
    for name, value, trains in sorted(_named(model), key=lambda item: item[0]):
        if trains:
            continue
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)  # any shape -> (elements,)
        total.update(flat.view(torch.uint8).numpy())  # bytes, so that bfloat16 works too
    return total.hexdigest()[:16]


def save_trainable(
    model: nn.Module, path: str | Path, config: dict[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write what trains as one safetensors file, atomically.

    Args:
        model: its trainable parameters and buffers are stored; the rest becomes a digest.
        path: the file.
        config: JSON-like values that rebuild the model; ``load_trainable`` gives them back.
        half: store floating-point values as float16, for publishing.

    Raises:
        InputError: nothing trains, a value is too large for float16, or the disk is full.
    """
    from safetensors.torch import save

    state = {name: value.cpu().contiguous() for name, value in trainable_state(model).items()}
    if not state:
        raise InputError(f"{type(model).__name__} has no trainable parameter: nothing to save.")
    if half:
        state = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
        for name, value in state.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(f"{name!r} does not fit float16: save it with half=False.")
    metadata = {
        "format": FORMAT,
        "frozen": frozen_digest(model),
        "config": json.dumps(config or {}, sort_keys=True),
        "library": __version__,
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, metadata))


def read_trainable(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``save_trainable`` without a model: (tensors by name, metadata).

    The metadata has ``frozen`` (digest), ``config`` (as saved) and ``library`` (version).

    Raises:
        InputError: the file is missing, damaged, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the path.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is no readable safetensors file ({error}): get it again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} was not written by save_trainable: load it with safetensors.")
    return tensors, {**metadata, "config": json.loads(metadata["config"])}


def load_trainable(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fill the trainable part of ``model`` from ``path``; the model is unchanged if anything differs.

    Returns:
        The ``config`` that was saved.

    Raises:
        InputError: names, shapes or the frozen weights differ from those the file was trained with.
    """
    tensors, metadata = read_trainable(path)
    state = trainable_state(model)
    if tensors.keys() != state.keys():
        missing, extra = sorted(state.keys() - tensors), sorted(tensors.keys() - state)
        what = (
            f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which does not train here"
        )
        raise InputError(
            f"{path} {what} ({len(missing)} missing, {len(extra)} unexpected): build and freeze the "
            "model as for the run that wrote it."
        )
    for name, value in state.items():
        if value.shape != tensors[name].shape:
            raise InputError(
                f"{path}: {name!r} has shape {tuple(tensors[name].shape)} but the model's is "
                f"{tuple(value.shape)}: build the model with the saved configuration."
            )
    digest = frozen_digest(model)
    if digest != metadata["frozen"]:
        raise InputError(
            f"{path} was trained on other frozen weights (digest {metadata['frozen']}, this model "
            f"has {digest}): load the same encoders, in the same precision, first."
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])
    return metadata["config"]


def trainable_table(model: nn.Module) -> str:
    """Text table of what trains; layers of one name are one line, e.g. ``layers.*.norm.weight x12``."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)
            groups.setdefault((pattern, tuple(parameter.shape)), []).append(parameter.numel())
    rows = [
        (name + (f" x{len(sizes)}" if len(sizes) > 1 else ""), str(shape), f"{sum(sizes):,}")
        for (name, shape), sizes in groups.items()
    ]
    total = sum(p.numel() for p in model.parameters())
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows.append((f"trains, of {total:,}", f"{trains / max(total, 1):.2%}", f"{trains:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)


def _named(model: nn.Module) -> list[tuple[str, Tensor, bool]]:
    """(name, tensor, trains) of every parameter and stored buffer; a tied parameter comes once."""
    result, seen = [], set()
    frozen = {name: is_frozen(module) for name, module in model.named_modules()}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Parameter):
            result.append((name, value, value.requires_grad))
        else:
            result.append((name, value, not _inside_frozen(name, frozen)))
    return result


def _inside_frozen(name: str, frozen: dict[str, bool]) -> bool:
    """Is the owner of buffer ``name``, or any module around it, frozen?"""
    parts = name.split(".")[:-1]
    return any(frozen.get(".".join(parts[:depth]), False) for depth in range(len(parts) + 1))
