"""Two processes under ``accelerate launch`` (on a CPU this is DDP over gloo) learn what one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import CONFIG, Points, accuracy, build
from torch import Tensor, nn

from mmfusion_lib.train import fit


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


def train(folder: Path) -> None:
    """Train in ``folder`` and leave there what this process saw."""
    from accelerate import PartialState
    from safetensors.torch import save_file

    def loss(model, batch):
        return nn.functional.cross_entropy(model.logits(batch["x"]), batch["y"])

    model = Still()
    config = replace(CONFIG, epochs=2, accumulate=2, select="accuracy")
    result = fit(
        model,
        Points(jitter=0.5),  # augmented: random when drawn
        loss,
        config,
        validate=lambda model: accuracy(model.logits),
        folder=folder,
        progress=False,
    )
    rank = PartialState().process_index
    seen = {"losses": result.losses, "best": result.best, "of": PartialState().num_processes}
    (folder / f"seen{rank}.json").write_text(json.dumps(seen))
    save_file(dict(model.state_dict()), folder / f"weights{rank}.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="gloo under accelerate was not run on Windows")
def test_two_processes_have_the_loss_curve_of_one(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")
    train(tmp_path / "one")

    # --cpu would start a single process, whatever --num_processes says (accelerate 1.15).
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port {port}"
    command += " --num_machines 1 --mixed_precision no --dynamo_backend no"
    two = tmp_path / "two"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), __file__, str(two)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    expected = json.loads((tmp_path / "one" / "seen0.json").read_text())
    assert expected["of"] == 1
    alone = load_file(tmp_path / "one" / "weights0.safetensors")
    weights = [load_file(two / f"weights{rank}.safetensors") for rank in (0, 1)]
    for rank in (0, 1):
        seen = json.loads((two / f"seen{rank}.json").read_text())
        assert seen["of"] == 2
        assert seen["losses"] == pytest.approx(expected["losses"], abs=1e-6)
        assert seen["best"] == pytest.approx(expected["best"])
        assert all(torch.equal(weights[0][name], weights[rank][name]) for name in alone)
        assert all((weights[rank][name] - alone[name]).abs().max() < 1e-5 for name in alone)
    lines = (two / "log.jsonl").read_text().splitlines()
    assert len(lines) == 10 + 2  # 10 steps and 2 validations, each written once


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
