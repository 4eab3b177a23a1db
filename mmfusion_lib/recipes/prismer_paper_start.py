"""Where a stage of Prismer begins, and where it leaves what it has learnt for the next one.

``start`` in a recipe's settings is one of:

- None: pretrained encoders, all that joins them drawn from the seed;
- the name of a recipe, such as ``"prismer-pretrain"``: what that recipe left in the cache, trained with
  the same model and experts, by its first seed, 0;
- a path to a ``.safetensors`` file that a recipe left;
- a path to a folder, or a ``.bin`` file: a published checkpoint. Its label vectors are not ours to hand
  on, so ours stand in for those that it was trained with: without training it reads maps badly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import checkpoints, settings, trainable
from ..errors import InputError
from ..files import digest
from ..official_prismer import from_official
from ..prismer import Prismer, load_prismer
from ..prismer_config import ENCODERS, named_prismer
from ..prismer_encoder import resize_positions
from ..runs import Settings

STAGES = ("prismer-pretrain", "prismer-coco", "prismer-vqa")  # what they learn is kept
SAME = ("model", "experts", "layers")  # have to be those of the start


def stage_file(s: Settings, recipe: str, seed: int = 0) -> Path:
    """Where a recipe leaves its weights; the name tells model, experts and seed."""
    experts = digest(list(s["experts"]), s["layers"])[:8]
    name = f"{recipe}-{s['model']}-{experts}-{seed}.safetensors"
    return settings.cache_root() / "stages" / name


def own_file(s: Settings, seed: int) -> Path:
    """Where a run with these settings leaves its weights; what it writes for a server lies beside them.

    Weights that were trained on VQAv2's val, too, never take the place of others.
    """
    return stage_file(s, s["name"] + ("-server" if s.get("protocol") == "server" else ""), seed)


def start_file(s: Settings) -> Path | None:
    """The file, or folder, that ``start`` names; None for none.

    Raises:
        InputError: it is not there.
    """
    start = s["start"]
    if start is None:
        return None
    stage = start in STAGES
    path = stage_file(s, start) if stage else Path(start).expanduser()
    if not path.exists():
        remedy = f"run the recipe {start} with this model first" if stage else "correct the path"
        raise InputError(f"start={start!r}: {path} does not exist: {remedy}, or set start to None.")
    return path


def build(s: Settings, seed: int) -> tuple[Prismer, dict[str, Any]]:
    """The model as a stage begins with it, frozen as the settings say, and what is saved about it.

    Raises:
        InputError: weights that cannot be had, or a start with another model or other experts.
    """
    path, about = start_file(s), {"official": None} | {key: s[key] for key in (*SAME, "pixels")}
    if path is None:
        model = _fresh(about, seed)
    elif path.is_dir() or path.suffix == ".bin":
        about["official"] = str(path.resolve())
        model = _fresh(about, seed)
    else:
        before = trainable.read_trainable(path)[1]["config"]
        for key in SAME:
            was, now = before.get(key), s[key]
            if was != (list(now) if key == "experts" else now):
                raise InputError(
                    f"{path} was trained with {key}={was!r}: give the same, not {now!r}."
                )
        about["official"] = before["official"]
        model = _fresh(before, seed)
        model.freeze(before["freeze"])
        trainable.load_trainable(model, path)
    resize(model, s["pixels"])
    model.freeze(s["freeze"])
    return model, {**about, "experts": list(s["experts"]), "freeze": s["freeze"]}


def resize(model: Prismer, pixels: int) -> None:
    """Make pictures and the table of positions another size, as the official code does between stages.

    A size that is no multiple of the patch is rounded down.
    """
    rows = pixels // model.config.image.patch_size
    if rows**2 == len(model.encoder.positions):
        return
    with torch.no_grad():
        positions = resize_positions(model.encoder.positions, rows, rows).clone()
    model.encoder.positions = nn.Parameter(positions, model.encoder.positions.requires_grad)
    side = rows * model.config.image.patch_size
    model.config = model.encoder.config = replace(model.config, image_size=side)
    model.transform = replace(model.transform, size=side)


def _fresh(about: dict[str, Any], seed: int) -> Prismer:
    """A model before any of our stages."""
    name, experts = about["model"], tuple(about["experts"])
    base = named_prismer(name)
    if about["official"]:
        model = from_official(about["official"], name if experts else name.replace("-", "z-", 1))
        if model.config.experts != experts:
            raise InputError(
                f"{about['official']} reads the experts {', '.join(model.config.experts)}: name "
                "these in this order, or () for PrismerZ."
            )
        model.tokenizer = model.tokenizer or checkpoints.load_tokenizer(ENCODERS[name][1])
        return model
    patch = base.image.patch_size
    changes: dict[str, Any] = {"image_size": about["pixels"] // patch * patch}
    if about["layers"] is not None:  # a rehearsal
        cut = {"depth": about["layers"]}
        changes |= {"image": replace(base.image, **cut), "text": replace(base.text, **cut)}
        changes["resampler_layers"] = about["layers"]
    return load_prismer(name, seed=seed, experts=experts, **changes)
