"""Two processes learn what one does: with a copy of the model each (DDP), or a slice each (FSDP2).

Both run over gloo on a CPU. ``accelerate launch`` starts them; what happens on several GPUs was not run.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from test_train import CONFIG, Points, accuracy, build
from torch import Tensor, nn

from mmfusion_lib import train as train_module


class Still(nn.Module):
    """The small model without dropout, whose draws differ by process."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build()
        for module in self.inner.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def logits(self, x: Tensor) -> Tensor:  # not forward: a loss may call any method
        return self.inner(x)


def train(folder: Path, shard: bool = False, wait: float = 0.0) -> None:
    """Train in ``folder`` and leave there what this process saw."""
    from accelerate import PartialState
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor

    kinds = set()

    def loss(model, batch):
        return nn.functional.cross_entropy(model.logits(batch["x"]), batch["y"])

    def validate(model):
        found = {type(p) for group in optimizers[0].param_groups for p in group["params"]}
        kinds.update(kind.__name__ for kind in found)
        return accuracy(model.logits)

    optimizers = []
    make = train_module.make_optimizer

    def made(*given):
        optimizers.append(make(*given))
        optimizers[0].register_step_post_hook(lambda *_: time.sleep(wait))
        return optimizers[0]

    train_module.make_optimizer = made
    model = Still()
    config = replace(CONFIG, epochs=2, accumulate=2, select="accuracy", shard=shard)
    config = replace(config, checkpoint_every=3, log_every=1)
    result = train_module.fit(
        model,
        Points(jitter=0.5),  # augmented: random when drawn
        loss,
        config,
        validate=validate,
        folder=folder,
        progress=False,
    )
    train_module.make_optimizer = make
    assert not any(isinstance(p, DTensor) for p in model.parameters())  # whole again
    rank = PartialState().process_index
    seen = {"losses": result.losses, "best": result.best, "of": PartialState().num_processes}
    seen["kinds"] = sorted(kinds)
    (folder / f"seen{rank}.json").write_text(json.dumps(seen))
    save_file(dict(model.state_dict()), folder / f"weights{rank}.safetensors")


def launch(folder: Path, shard: bool, wait: float = 0.0) -> subprocess.Popen:
    """Two processes that train in ``folder``, waiting after each step."""
    # --cpu would start a single process, whatever --num_processes says (accelerate 1.15).
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port {port}"
    command += " --num_machines 1 --mixed_precision no --dynamo_backend no"
    return subprocess.Popen(
        [sys.executable, "-m", *command.split(), __file__, str(folder), str(int(shard)), str(wait)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process sees, and its weights."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFUSION_DEVICE", "cpu")
        train(folder)
    seen = json.loads((folder / "seen0.json").read_text())
    assert seen["of"] == 1 and seen["kinds"] == ["Parameter"]
    return seen, load_file(folder / "weights0.safetensors")


def compare(folder: Path, alone, kind: str) -> None:
    """Hold what two processes left against what one did."""
    from safetensors.torch import load_file

    expected, kept = alone
    weights = [load_file(folder / f"weights{rank}.safetensors") for rank in (0, 1)]
    for rank in (0, 1):
        seen = json.loads((folder / f"seen{rank}.json").read_text())
        assert seen["of"] == 2 and seen["kinds"] == [kind]
        assert seen["losses"] == pytest.approx(expected["losses"], abs=1e-6)
        assert seen["best"] == pytest.approx(expected["best"])
        assert all(torch.equal(weights[0][name], weights[rank][name]) for name in kept)
        assert all((weights[rank][name] - kept[name]).abs().max() < 1e-5 for name in kept)
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len(lines) == 10 + 2  # 10 steps and 2 validations, each written once


@pytest.mark.skipif(os.name == "nt", reason="gloo under accelerate was not run on Windows")
@pytest.mark.parametrize(("shard", "kind"), [(False, "Parameter"), (True, "DTensor")])
def test_two_processes_have_the_curve_of_one_also_after_a_kill(tmp_path, alone, shard, kind):
    """SIGKILL to one of two between checkpoints; the launcher ends the other; the next launch goes on."""
    log = tmp_path / "log.jsonl"
    with launch(tmp_path, shard, wait=0.3) as running:
        end = time.monotonic() + 100
        while not log.exists() or len(log.read_bytes().splitlines()) < 5:
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        ranks = psutil.Process(running.pid).children()
        assert len(ranks) == 2
        ranks[1].kill()  # SIGKILL
        running.communicate(timeout=60)
    assert running.returncode != 0 and not (tmp_path / "seen0.json").exists()
    with launch(tmp_path, shard) as running:
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors[-3000:]
    compare(tmp_path, alone, kind)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), sys.argv[2] == "1", float(sys.argv[3]))
