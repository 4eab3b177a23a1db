"""Activation checkpointing: keep what enters a layer, and compute the rest again in the backward pass."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn


def recompute_layers(model: nn.Module) -> int:
    """Let each layer of every ``nn.ModuleList`` named ``layers`` be computed again when its gradient is.

    The gradient is the same, dropout included; memory falls to about what enters each layer and what
    one layer keeps. Each step does the layers' forward pass twice: a third more work where all trains,
    half more where the layers are frozen. Without gradients nothing changes.

    Args:
        model: changed in place, for instance a ``Prismer``; its layers have to be called as modules.

    Returns:
        How many layers.
    """
    count = 0
    for name, layers in model.named_modules():
        if name.split(".")[-1] == "layers" and isinstance(layers, nn.ModuleList):
            for layer in layers:
                layer.forward = MethodType(_again, layer)  # a method, so that copies are sound
                count += 1
    return count


def _again(layer: nn.Module, *inputs: Any, **options: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *inputs, **options)
    return checkpoint(forward, layer, *inputs, use_reentrant=False, **options)
