"""Two processes learn what one does: with a copy of the model each (DDP), or a slice each (FSDP2).

A small model, killed on the way and resumed, and a tiny Prismer. All run over gloo on a CPU.
``accelerate launch`` starts them; what happens on several GPUs was not run.
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
from prismer_maker import make_prismer
from test_train import CONFIG, Points, accuracy, build, fit_steps
from torch import Tensor, nn

from mmfusion_lib import checkpoints, prismer_training
from mmfusion_lib import train as train_module
from mmfusion_lib.encoder_config import CONFIGS, EncoderConfig
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_training import PrismerItems
from mmfusion_lib.train import TrainConfig

no_windows = pytest.mark.skipif(
    os.name == "nt", reason="gloo under accelerate was not run on Windows"
)


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


def fit(folder: Path, model, data, loss, config: TrainConfig, validate, wait: float = 0.0) -> None:
    """Train in ``folder``, waiting after each step, and leave there what this process saw."""
    from accelerate import PartialState
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor

    kinds, steps, optimizers = set(), [], []

    def noting(model):
        found = {type(p) for group in optimizers[0].param_groups for p in group["params"]}
        kinds.update(kind.__name__ for kind in found)
        return validate(model)

    make = train_module.make_optimizer

    def made(*given):
        optimizers.append(make(*given))
        optimizers[0].register_step_post_hook(lambda *_: steps.append(time.sleep(wait)))
        return optimizers[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "make_optimizer", made)
        result = train_module.fit(
            model, data, loss, config, validate=noting, folder=folder, progress=False
        )
    assert not any(isinstance(p, DTensor) for p in model.parameters())  # whole again
    state = PartialState()
    seen = {"losses": result.losses, "validations": result.validations, "best": result.best}
    seen |= {"of": state.num_processes, "kinds": sorted(kinds), "steps": len(steps)}
    (folder / f"seen{state.process_index}.json").write_text(json.dumps(seen))
    save_file(dict(model.state_dict()), folder / f"weights{state.process_index}.safetensors")


def left(folder: Path, rank: int = 0) -> tuple[dict, dict[str, Tensor]]:
    """What a process left in ``folder``: what it saw, and its weights."""
    from safetensors.torch import load_file

    seen = json.loads((folder / f"seen{rank}.json").read_text())
    return seen, load_file(folder / f"weights{rank}.safetensors")


# ---------------------------------------------------------------- a small model, killed on the way


def train_points(folder: Path, shard: bool = False, wait: float = 0.0) -> None:
    """Two epochs of five steps, with a checkpoint after every third."""

    def loss(model, batch):
        return nn.functional.cross_entropy(model.logits(batch["x"]), batch["y"])

    config = replace(CONFIG, epochs=2, accumulate=2, select="accuracy", shard=shard)
    config = replace(config, checkpoint_every=3, log_every=1, clip=0.1)  # every gradient is longer
    data = Points(jitter=0.5)  # augmented: random when drawn
    fit(folder, Still(), data, loss, config, lambda model: accuracy(model.logits), wait)


def launch(folder: Path, what: str, shard: bool = False, wait: float = 0.0) -> subprocess.Popen:
    """Two processes that train "points" or "prismers" in ``folder``."""
    # --cpu would start a single process, whatever --num_processes says (accelerate 1.15).
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port {port}"
    command += " --num_machines 1 --mixed_precision no --dynamo_backend no"
    given = [what, str(folder), str(int(shard)), str(wait)]
    return subprocess.Popen(
        [sys.executable, "-m", *command.split(), __file__, *given],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process sees, and its weights."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFUSION_DEVICE", "cpu")
        train_points(folder)
    seen, weights = left(folder)
    assert seen["of"] == 1 and seen["kinds"] == ["Parameter"] and seen["steps"] == 10
    return seen, weights


def compare(folder: Path, alone, kind: str) -> None:
    """Hold what two processes left against what one did."""
    expected, kept = alone
    both = [left(folder, rank) for rank in (0, 1)]
    for seen, weights in both:
        assert seen["of"] == 2 and seen["kinds"] == [kind]
        assert seen["losses"] == pytest.approx(expected["losses"], abs=1e-6)
        assert seen["best"] == pytest.approx(expected["best"])
        assert all(torch.equal(both[0][1][name], weights[name]) for name in kept)
        assert all((weights[name] - kept[name]).abs().max() < 1e-5 for name in kept)
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len(lines) == 10 + 2  # 10 steps and 2 validations, each written once


@no_windows
@pytest.mark.parametrize(
    ("shard", "kind", "killed"), [(False, "Parameter", 1), (True, "DTensor", 0)]
)
def test_two_processes_have_the_curve_of_one_also_after_a_kill(
    tmp_path, alone, shard, kind, killed
):
    """SIGKILL to one of two between checkpoints; the launcher ends the other; the next launch goes on.

    Process 0 is the one that writes the log and the checkpoint.
    """
    log = tmp_path / "log.jsonl"
    with launch(tmp_path, "points", shard, wait=0.3) as running:
        end = time.monotonic() + 100
        while not log.exists() or len(log.read_bytes().splitlines()) < 5:
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(running.pid).children()}
        assert set(ranks) == {0, 1}
        ranks[killed].kill()  # SIGKILL
        running.communicate(timeout=60)
    assert running.returncode != 0 and not (tmp_path / "seen0.json").exists()
    following = fit_steps(tmp_path)
    assert following in (4, 7, 10)  # there is a checkpoint, and steps are left
    with launch(tmp_path, "points", shard) as running:
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors[-3000:]
    compare(tmp_path, alone, kind)
    assert left(tmp_path)[0]["steps"] == 11 - following  # it went on, and did not start afresh


# ---------------------------------------------------------------- Prismer

EXPERTS = {"none": (), "depth": ("depth",)}
KINDS = {False: ["Parameter"], True: ["DTensor"]}
# Comparable to rounding: AdamW would enlarge it where a gradient is 0 (biases of keys), and the norm of
# half a million numbers has errors that show.
PRISMER = TrainConfig(epochs=2, batch_size=4, lr=0.02, optimizer="sgd", momentum=0.9, clip=None)


def tiny_prismer(experts: str) -> Prismer:
    """Two layers a side, without dropout; pretrained blocks frozen, all else trains."""
    image = EncoderConfig("image", 16, 2, 2, 24, image_size=28, patch_size=14)
    text = replace(CONFIGS["minilm-l6"], width=16, depth=2, heads=2, mlp_width=24, dropout=0.0)
    model = make_prismer(image, text, checkpoints.load_tokenizer(), experts=EXPERTS[experts])
    with torch.no_grad():
        for layer in model.decoder.layers:  # else what the maps say would hardly show in the loss
            layer.cross.value.weight.mul_(20)
            layer.cross.out.weight.mul_(20)
    return model


def train_prismer(folder: Path, experts: str, model: Prismer | None = None, **changes) -> None:
    """A tiny Prismer on twelve noisy pictures, each with one of two captions."""
    folder.mkdir(exist_ok=True)
    model = model or tiny_prismer(experts)
    generator = torch.Generator().manual_seed(2)
    seen = {"rgb": torch.randn(12, 3, 28, 28, generator=generator)}
    seen |= {name: torch.rand(12, 1, 28, 28, generator=generator) for name in EXPERTS[experts]}
    texts = [[f"{number} red cats", "a big dog"] for number in ("two", "three", "many") * 4]
    data = PrismerItems(seen, ["A picture of"] * 12, texts, model.tokenizer, ["one"] * 12)
    fit(
        folder, model, data, prismer_training.objective, replace(PRISMER, **changes),
        lambda model: {"loss": prismer_training.mean_loss(model, data)},
    )  # fmt: skip


def train_prismers(folder: Path) -> None:
    """All cases in one launch, which costs more than they do."""
    for experts in EXPERTS:
        for shard in KINDS:
            train_prismer(folder / f"{experts}-{shard}", experts, shard=shard)


@pytest.fixture(scope="module")
def prismers(tmp_path_factory) -> Path:
    """A folder for each case that two processes trained."""
    folder = tmp_path_factory.mktemp("prismers")
    with launch(folder, "prismers") as running:
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors[-3000:]
    return folder


@no_windows
@pytest.mark.parametrize("shard", KINDS)
def test_prismerz_is_the_same_on_two_processes(tmp_path, monkeypatch, prismers, shard):
    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")
    model = tiny_prismer("none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    train_prismer(tmp_path / "one", "none", model)
    expected, kept = left(tmp_path / "one")
    assert expected["losses"][-1] < 0.95 * expected["losses"][0]
    both = [left(prismers / f"none-{shard}", rank) for rank in (0, 1)]
    for seen, weights in both:
        assert seen["of"] == 2 and seen["kinds"] == KINDS[shard]
        assert seen["losses"] == pytest.approx(expected["losses"], abs=2e-5)
        for ours, theirs in zip(seen["validations"], expected["validations"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        assert weights.keys() == kept.keys()
        for name, value in weights.items():
            assert torch.equal(value, both[0][1][name]), name
            if name in frozen:
                assert torch.equal(value, before[name]), name
            else:
                assert (value - kept[name]).abs().max() < 1e-6, name
    for part in ("decoder.words", "encoder.layers.0.adaptor.up", "decoder.layers.1.cross.query"):
        assert not torch.equal(kept[f"{part}.weight"], before[f"{part}.weight"])


@no_windows
def test_batchnorm_sees_the_pictures_of_one_process(tmp_path, monkeypatch, prismers):
    """In Prismer's stems. So two processes are one that takes a batch in two parts, not one whole."""
    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")
    train_prismer(tmp_path / "whole", "depth")
    model, means = tiny_prismer("depth"), []
    norm = "encoder.stems.depth.network.1"  # the first

    def note(module, given):
        if module.training:
            means.append(given[0].mean((0, 2, 3)).detach())  # (B, C, h, w) -> (C,)

    model.get_submodule(norm).register_forward_pre_hook(note)
    train_prismer(tmp_path / "parts", "depth", model, accumulate=2)
    (whole, _), (parts, kept) = left(tmp_path / "whole"), left(tmp_path / "parts")
    assert max(abs(a - b) for a, b in zip(whole["losses"], parts["losses"])) > 5e-3
    average = torch.zeros_like(means[0])  # as the first process forms it: of its own parts alone
    for mean in means[::2]:
        average = 0.9 * average + 0.1 * mean
    for shard in KINDS:
        for rank in (0, 1):
            seen, weights = left(prismers / f"depth-{shard}", rank)
            assert seen["of"] == 2 and seen["kinds"] == KINDS[shard]
            assert seen["losses"] == pytest.approx(parts["losses"], abs=2e-5)
            for name, _ in model.named_parameters():
                assert (weights[name] - kept[name]).abs().max() < 1e-6, name
        weights = left(prismers / f"depth-{shard}")[1]
        assert torch.allclose(weights[f"{norm}.running_mean"], average, atol=1e-6)
        assert int(weights[f"{norm}.num_batches_tracked"]) == 6
    assert int(kept[f"{norm}.num_batches_tracked"]) == 12


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "points":
        train_points(Path(sys.argv[2]), sys.argv[3] == "1", float(sys.argv[4]))
    else:
        train_prismers(Path(sys.argv[2]))
