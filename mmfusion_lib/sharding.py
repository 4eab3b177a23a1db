"""A model whose trained state is shared out over several processes (FSDP2), for ``train.fit``.

Plain data parallelism (DDP) keeps a whole copy of everything in each process. Here each process keeps a
slice of every parameter, of its gradient and of its moments. PyTorch's ``fully_shard`` gathers the
parameters for each step and spreads the gradients after it. Frozen and trained parameters need no lists:
what has no gradient is sliced and gathered like the rest, and that is all.

The whole model is one group, since a loss may call any method of any part: whole parameters are there
during a step, slices between steps. So what is saved is moments, gradients and the parameters at rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def shard(objective: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """Slice all parameters of ``objective`` over the processes, in place.

    Its ``forward`` gathers them; elsewhere they are ``DTensor``, see ``gathered``.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(objective, mesh=init_device_mesh(device.type, (processes,)))


def whole(value: Tensor) -> Tensor:
    """A sliced tensor whole; others as they are. All processes have to call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sliced as ``parameter`` is; as it is where that is whole or has another shape."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements
    )


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Inside, parameters are whole, for calls that do not go through ``objective``; nothing may train."""
    sliced = hasattr(objective, "unshard")
    if sliced:
        objective.unshard()
    try:
        yield
    finally:
        if sliced:
            objective.reshard()


@torch.no_grad()
def join(model: nn.Module) -> None:
    """Put whole parameters back in place of slices, at the end."""
    made: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, slice_ in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if hasattr(slice_, "full_tensor"):
                if id(slice_) not in made:  # a tied parameter stays one
                    made[id(slice_)] = nn.Parameter(slice_.full_tensor(), slice_.requires_grad)
                setattr(module, name, made[id(slice_)])
