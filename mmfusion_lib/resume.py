"""What a training run needs in order to go on after a kill: one checkpoint file and one log.

The checkpoint is a single safetensors file, replaced atomically, so weights, moments and step
always belong together. It records how many bytes of the log it has seen: on resuming, the log is
cut there, and the steps after it are run, and logged, again.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .files import atomic_path, digest
from .sharding import like, whole
from .trainable import frozen_digest, trainable_state

if TYPE_CHECKING:
    from .train_config import TrainConfig

# These fields do not change what is learnt, so a resumed run may have other values.
FREE_FIELDS = ("checkpoint_every", "log_every", "workers", "shard")


class Checkpoint:
    """``folder/checkpoint.safetensors``: what trains, the optimizer's state, the best weights, and
    as metadata the step and a description of the run. Nothing is pickled.

    Args:
        folder: None: nothing is ever saved or found.
        model: its trainable part is saved and filled; whole, not yet shared out over processes.
        config: of the run.
        data: its length and, where it has one, its ``digest`` are recorded.
    """

    def __init__(
        self,
        folder: str | Path | None,
        model: nn.Module,
        config: TrainConfig,
        data: Any,
    ) -> None:
        self.path = None if folder is None else Path(folder) / "checkpoint.safetensors"
        self.model = model
        self.run: dict[str, Any] = {}
        if folder is not None:
            self.run = {k: v for k, v in asdict(config).items() if k not in FREE_FIELDS} | {
                "number of samples": len(data),
                "data digest": getattr(data, "digest", None),
                "trainable parameters": digest(_shapes(model)),
                "frozen weights": frozen_digest(model),
            }

    def exists(self) -> bool:
        return self.path is not None and self.path.exists()

    def save(
        self,
        state: dict[str, Any],
        weights: dict[str, Tensor],
        moments: dict[str, dict[str, Tensor]],
        best: dict[str, Tensor] | None,
    ) -> None:
        """Replace the file.

        Raises:
            InputError: the disk is full; the old file stays.
        """
        from safetensors.torch import save

        if self.path is None:
            return
        tensors = {f"model.{name}": value for name, value in weights.items()}
        tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
        for name, found in moments.items():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in found.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"state": json.dumps(state), "run": json.dumps(self.run)}
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(save(tensors, metadata))

    def load(
        self, resume: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None, dict[str, dict[str, Tensor]]]:
        """Fill the model: (state as saved, best weights, moments). A fresh state without a file.

        Args:
            resume: False deletes the file and starts afresh.

        Raises:
            InputError: the file is damaged, or belongs to a run with another configuration, other
                frozen weights or other data.
        """
        from safetensors import SafetensorError, safe_open

        fresh = {"step": 0, "best": None, "seconds": 0.0, "log_bytes": 0}
        if not self.exists():
            return fresh, None, {}
        if not resume:
            self.path.unlink(missing_ok=True)
            return fresh, None, {}
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self.path} cannot be read ({error}): pass resume=False to start afresh."
            ) from error
        self._compare(json.loads(metadata.get("run", "{}")))

        with torch.no_grad():
            for name, value in trainable_state(self.model).items():
                value.copy_(tensors[f"model.{name}"])
        moments: dict[str, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            kind, _, rest = full.partition(".")
            if kind == "optimizer":
                key, _, name = rest.partition(".")
                moments.setdefault(name, {})[key] = value
        best = {
            name.removeprefix("best."): value
            for name, value in tensors.items()
            if name.startswith("best.")
        }
        return json.loads(metadata["state"]), best or None, moments

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state by parameter, whole."""
        return {
            name: {
                key: whole(value)
                for key, value in optimizer.state[parameter].items()
                if isinstance(value, Tensor)
            }
            for name, parameter in self._parameters().items()
        }

    def restore(
        self, optimizer: torch.optim.Optimizer, moments: dict[str, dict[str, Tensor]]
    ) -> None:
        """Give the optimizer, over parameters of the model, the state that ``load`` found."""
        if not moments:
            return
        order = [p for group in optimizer.param_groups for p in group["params"]]
        index = {id(parameter): i for i, parameter in enumerate(order)}
        named = self._parameters()
        state = {
            index[id(named[name])]: {key: like(value, named[name]) for key, value in found.items()}
            for name, found in moments.items()
        }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def _compare(self, saved: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.run))
        for name in now:
            if saved.get(name) != now[name]:
                raise InputError(
                    f"{self.path} was made with {name}={saved.get(name)!r} but this run has "
                    f"{now[name]!r}: use the same, another folder, or resume=False."
                )


class Log:
    """``folder/log.jsonl``: one JSON object a line, only ever appended to.

    Args:
        folder: None: nothing is written.
        size: bytes that the checkpoint vouches for; what follows is cut off.
        writes: False on all but the main process.
    """

    def __init__(self, folder: str | Path | None, size: int, writes: bool = True) -> None:
        self.path = None if folder is None else Path(folder) / "log.jsonl"
        self.size, self.writes = size, writes and folder is not None
        if self.path is None:
            return
        found = self.path.stat().st_size if self.path.exists() else 0
        if found < size:
            raise InputError(
                f"{self.path} has {found} bytes but the checkpoint beside it has seen {size}: put "
                "the log back, or pass resume=False to start afresh."
            )
        if self.writes and found > size:
            os.truncate(self.path, size)

    def read(self) -> list[dict[str, Any]]:
        """The lines that the checkpoint vouches for."""
        if self.path is None or not self.size:
            return []
        with open(self.path, "rb") as file:
            return [json.loads(line) for line in file.read(self.size).splitlines()]

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add lines.

        Raises:
            InputError: the disk is full.
        """
        if not (self.writes and rows):
            return
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"The disk is full while writing {self.path}: free some space and run again; "
                "training goes on from the last checkpoint."
            ) from error
        self.size += len(data)

    def sync(self) -> None:
        """Put the lines on the disk itself, before a checkpoint vouches for them."""
        if self.writes and self.size:
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())


def _shapes(model: nn.Module) -> list[list[Any]]:
    return [[name, list(value.shape)] for name, value in trainable_state(model).items()]
