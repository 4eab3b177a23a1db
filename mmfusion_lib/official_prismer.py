"""Published Prismer checkpoints, read into our model without any other download.

The official file is one flat dict of tensors, in names of CLIP and of transformers 4::

    expert_encoder.*   patches, positions, stems (by number of layer), resampler, blocks
    text_decoder.*     RoBERTa; ``layer.N.0`` is pretrained, ``.1`` cross-attention, ``.2`` adaptor

The head is tied to the word table: a file holds the two once or twice. Positions are those of the
resolution it was trained at; they are resized to the one that is asked for.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .convert import State
from .encoder_config import EncoderConfig
from .errors import InputError
from .official_prismer_names import POSITIONS, TIED, UNUSED, official_names, to_ours
from .prismer import Prismer, build_prismer
from .prismer_config import ENCODERS, PAPER_EXPERTS, PrismerConfig, named_prismer
from .prismer_encoder import resize_positions

Fields = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]

PAD = 1  # RoBERTa's; its position table has PAD + 1 rows that no word uses
FILES = ("pytorch_model.bin", "model.safetensors")  # in the folder of a model
TRAINED = (224, 384, 480)  # pixels a side in the official configurations
SHOWN = 12  # names of one kind that an error lists
DEFAULTS = {"num_latents": 64, "resampler_layers": 4, "resampler_heads": 8}
SIZES = [
    "patch_size",
    "image_resolution",
    "vision_width",
    "vision_layers",
    "vision_heads",
    "text_width",
    "text_layers",
    "text_heads",
    "text_intermediate",
    "vocab_size",
    "max_position_embeddings",
]


def load(state_dict: State, config: Fields) -> Prismer:
    """See :func:`mmfusion_lib.checkpoints.load_official_prismer`."""
    return _load(state_dict, prismer_config(config))


def from_official(folder_or_file: str | Path, name: str) -> Prismer:
    """A published checkpoint, float32, in evaluation mode, with its tokenizer and transform.

    Neither CLIP nor RoBERTa is downloaded; the tokenizer's rules are, where they are not at hand, and
    where they cannot be had ``model.tokenizer`` stays None. Pictures keep the resolution at which
    the file was trained, which its position table tells.

    Args:
        folder_or_file: ``pytorch_model.bin``, a safetensors file, or the folder of one of them.
        name: "prismer-base", "prismerz-base", "prismer-large" or "prismerz-large"; also as the official
            folders say it, such as "vqa_prismerz_large".

    Raises:
        InputError: unknown name, no file, a file that holds more than tensors, or one of another model.
    """
    found = re.fullmatch(r"(?:(?:pretrain|caption|vqa)[-_])?(prismerz?)[-_](base|large)", name)
    if found is None:
        raise InputError(
            f"There is no published checkpoint {name!r}: use prismer-base, prismer-large, "
            "prismerz-base or prismerz-large."
        )
    family, size = found.groups()
    file = _file(Path(folder_or_file))
    state = read_tensors(file)
    _check_name(file, state, f"{family}-{size}")
    ours = f"prismer-{size}"
    patch, side = named_prismer(ours).image.patch_size, _side(state[POSITIONS])
    config = replace(
        named_prismer(ours),
        experts=PAPER_EXPERTS if family == "prismer" else (),
        image=replace(named_prismer(ours).image, image_size=side * patch),
        image_size=side * patch,
    )
    model = _load(state, config)

    from . import checkpoints
    from .data.images import ImageTransform

    image_name, text_name = ENCODERS[ours]
    pixels = next((size for size in TRAINED if size // patch == side), side * patch)
    model.transform = ImageTransform(pixels, *checkpoints.NORMALISATION[image_name])
    try:
        model.tokenizer = checkpoints.load_tokenizer(text_name)
    except InputError:  # not needed to encode and decode; caption() and answer() say how to get it
        model.tokenizer = None
    return model


def read_tensors(file: Path) -> State:
    """A file of tensors and of nothing else: safetensors, or PyTorch's own by its safe loader.

    Raises:
        InputError: it holds more than tensors, or is damaged.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        mapped = zipfile.is_zipfile(file)  # read where it is needed, so that memory holds one copy
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # both libraries raise many kinds
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise InputError(
                f"{file} was refused: it holds more than tensors ({code[1]}), and opening it could "
                "run code; get the file from its publisher, or as safetensors."
            ) from None
        raise InputError(
            f"{file} cannot be read as a file of tensors ({type(error).__name__}): it is damaged or "
            "of another kind; fetch it again."
        ) from error


def prismer_config(fields: Fields) -> PrismerConfig:
    """Ours for the fields of ``load_official_prismer``.

    Raises:
        InputError: a field is missing, or makes no model.
    """
    f = {name: _whole(fields, name) for name in (*SIZES, *DEFAULTS)}
    for side in ("vision", "text"):
        if f[f"{side}_width"] % f[f"{side}_heads"]:
            raise InputError(
                f"config: {side}_width={f[f'{side}_width']} is not a multiple of "
                f"{side}_heads={f[f'{side}_heads']}: give the two with which it was trained."
            )
    positions, patch = f["max_position_embeddings"], f["patch_size"]
    if positions < PAD + 2 or f["image_resolution"] < patch:
        raise InputError(
            f"config: max_position_embeddings={positions} must be {PAD + 2} or more, and "
            f"image_resolution={f['image_resolution']} at least patch_size={patch}: correct them."
        )
    # A resolution that is no multiple of the patch loses its last rows (480 / 14: 34 patches).
    pixels = f["image_resolution"] // patch * patch
    image = EncoderConfig(
        kind="image",
        width=f["vision_width"],
        depth=f["vision_layers"],
        heads=f["vision_heads"],
        mlp_width=4 * f["vision_width"],
        activation="quick_gelu",
        eps=1e-5,
        image_size=pixels,
        patch_size=patch,
        patch_bias=False,
        input_norm=True,
    )
    text = EncoderConfig(
        kind="text",
        width=f["text_width"],
        depth=f["text_layers"],
        heads=f["text_heads"],
        mlp_width=f["text_intermediate"],
        norm="post",
        eps=1e-5,
        dropout=0.1,
        vocab_size=f["vocab_size"],
        max_positions=positions - PAD - 1,
        token_types=1,
        pad_id=PAD,
        position_offset=PAD + 1,
    )
    experts = fields.get("experts") or ()
    experts = (experts,) if isinstance(experts, str) else tuple(experts)
    return PrismerConfig(
        image,
        text,
        experts=() if experts == ("none",) else experts,
        image_size=pixels,
        label_smoothing=fields.get("label_smoothing", 0.1),
        **{name: f[name] for name in DEFAULTS},
    )


def _whole(fields: Fields, name: str) -> int:
    value = fields.get(name, DEFAULTS.get(name))
    if value is None:
        raise InputError(f"config has no {name}: give {', '.join(SIZES)}.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"config: {name}={value!r} must be a whole number of 1 or more.")
    return value


def _load(state_dict: State, config: PrismerConfig) -> Prismer:
    state = dict(state_dict)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"state_dict[{name!r}] is no tensor but {type(value).__name__}: give what the "
                "official model's state_dict() returns."
            )
    for second, first in TIED.items():
        other = state.pop(second, None)
        if first not in state and other is not None:
            state[first] = other
        elif other is not None and not torch.equal(state[first], other):
            raise InputError(
                f"The state dict holds {first} and {second} with different values, but the two are "
                "tied in Prismer: give a file that was saved from a tied model."
            )
    state.pop(UNUSED, None)
    with torch.device("meta"):
        model = build_prismer(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _compare(state, config, expected)
    rows = config.image_size // config.image.patch_size
    if _side(state[POSITIONS]) != rows:
        state[POSITIONS] = resize_positions(state[POSITIONS].float(), rows, rows)
    ours = {}  # copies: the caller keeps its own
    for name, value in to_ours(state).items():
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        ours[name] = value.detach().to(dtype, copy=True)
    model.load_state_dict(ours, assign=True)
    return model.eval()


def _compare(state: State, config: PrismerConfig, ours: Shapes) -> None:
    """Refuse a state dict that is not exactly what the sizes ask for, ``ours`` in our names."""
    names = dict.fromkeys(official_names(config))
    missing, wrong = [name for name in names if name not in state], []
    extra = [name for name in state if name not in names]
    for name in names:
        shape = ours[
            next(iter(to_ours({name: torch.empty(3)})))
        ]  # the query of query, key and value
        asked = (3 * shape[0], *shape[1:]) if "in_proj" in name else shape
        found = tuple(state[name].shape) if name in state else asked
        if name == POSITIONS and len(found) == 2 and math.isqrt(found[0]) ** 2 == found[0]:
            asked = (found[0], asked[1])  # any square grid: it is resized
        if found != asked:
            wrong.append(f"{name} of shape {found} and not {asked}")
    found = {"lacks": missing, "has, too many,": extra, "has": wrong}
    parts = []
    for what, listed in found.items():
        more = f" and {len(listed) - SHOWN} more" * (len(listed) > SHOWN)
        parts += [f"{what} {', '.join(listed[:SHOWN])}{more}"] if listed else []
    if parts:
        raise InputError(
            f"The state dict {'; it '.join(parts)}: give the whole of it, and the config with which "
            "the model was built."
        )


def _file(path: Path) -> Path:
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} holds neither {' nor '.join(FILES)}: give the file itself.")
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder of a checkpoint, or its file.")
    return path


def _check_name(file: Path, state: State, name: str) -> None:
    """Say in one sentence that a file is another model, before hundreds of names are listed."""
    if not isinstance(state, Mapping) or not isinstance(state.get(POSITIONS), Tensor):
        raise InputError(
            f"{file} holds no {POSITIONS}: it is no checkpoint of Prismer; give the file that was "
            "published as pytorch_model.bin."
        )
    family = "prismer" if any(".resampler." in n for n in state) else "prismerz"
    width = state[POSITIONS].shape[-1]
    for size in ("base", "large"):
        found = f"{family}-{size}"
        if width == named_prismer(f"prismer-{size}").image.width and found != name:
            raise InputError(f"{file} is {found}, not {name}: give name={found!r}.")


def _side(table: Tensor) -> int:
    """Patches a side of a square position table (n * n, D)."""
    return math.isqrt(len(table))
