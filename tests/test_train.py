"""The training loop: learning, repeatability, resuming after a kill, and stopping well."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmfusion_lib.errors import InputError
from mmfusion_lib.train import TrainConfig, TrainResult, fit, learning_rate, make_optimizer
from mmfusion_lib.trainable import freeze


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bitwise comparisons: on a GPU some kernels add in any order."""
    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")


class Points(torch.utils.data.Dataset):
    """x ~ N(0, 1) in 4 dimensions, label x_0 + x_1 > 0; optionally jittered when drawn."""

    def __init__(self, count: int = 40, jitter: float = 0.0) -> None:
        self.x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
        self.y = (self.x[:, 0] + self.x[:, 1] > 0).long()
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index] + self.jitter * torch.randn(4), "y": self.y[index]}


def build(seed: int = 0) -> nn.Sequential:
    """A frozen layer with dropout under a trainable head with dropout."""
    torch.manual_seed(seed)
    tower = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.5))
    head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    model = nn.Sequential(tower, head)
    freeze(model[0])
    return model


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]).float(), batch["y"])


def accuracy(model: nn.Module) -> dict[str, float]:
    data = Points(200)
    return {"accuracy": (model(data.x).argmax(1) == data.y).float().mean().item()}


CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.01, log_every=2)  # 5 steps an epoch, 15 in all


def run(config: TrainConfig = CONFIG, data=None, **options) -> TrainResult:
    return fit(build(), data or Points(), loss, config, progress=False, **options)


# ---------------------------------------------------------------- learning


def test_it_learns_and_frozen_weights_stand_still():
    model = build()
    before = [p.clone() for p in model[0].parameters()]
    config = TrainConfig(epochs=20, batch_size=20, lr=0.01, select="accuracy")
    result = fit(model, Points(200), loss, config, validate=accuracy, progress=False)
    assert accuracy(model)["accuracy"] > 0.93
    assert all(torch.equal(a, b) for a, b in zip(before, model[0].parameters()))
    assert all(p.grad is None for p in model[0].parameters())
    assert result.steps == 200 == len(result.losses)
    assert len(result.validations) == 20
    assert result.samples_per_second > 0 and 0 <= result.data_wait_share < 1
    assert result.peak_bytes > 0 or sys.platform == "win32"
    assert not model.training


def test_the_best_weights_are_given_back():
    # accuracy peaks at the first epoch: a rate of 50 then throws the weights about
    model = build()
    config = TrainConfig(
        epochs=4, batch_size=20, lr=50.0, optimizer="sgd", clip=None, select="accuracy"
    )
    result = fit(model, Points(200), loss, config, validate=accuracy, progress=False)
    assert accuracy(model)["accuracy"] == result.best["accuracy"]
    assert result.best["accuracy"] == max(row["accuracy"] for row in result.validations)


def test_lowest_can_be_best_and_ties_go_to_the_earlier_epoch():
    values = iter([3.0, 1.0, 1.0])
    config = replace(CONFIG, select="error", select_lowest=True)
    result = run(config, validate=lambda model: {"error": next(values)})
    assert result.best == {"step": 10, "epoch": 2, "error": 1.0}


def test_one_step_of_sgd_by_hand():
    # w = 1, loss = mean(w x) over x = 1, 3 -> gradient 2 -> w = 1 - 0.1 * 2 = 0.8.
    # Weight decay 0.5 must not touch the 1-D w: else it would be 0.75.
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

    data = [{"x": torch.tensor(1.0)}, {"x": torch.tensor(3.0)}]
    model = One()
    config = TrainConfig(
        epochs=1, batch_size=2, lr=0.1, optimizer="sgd", weight_decay=0.5, clip=None
    )
    result = fit(model, data, lambda m, b: (m.w * b["x"]).mean(), config, progress=False)
    assert torch.allclose(model.w, torch.tensor([0.8]))
    assert result.history == [{"step": 1, "epoch": 1, "loss": 2.0, "lr": 0.1}]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(1.0, [0.94, 0.92]), (6.0, [0.7, 0.6])],
)
def test_one_clipped_step_by_hand(clip, expected):
    # loss = 3 v + 4 w -> gradient (3, 4), of norm 5 over both parameters together. Above clip=1 it
    # becomes (0.6, 0.8), below clip=6 it stays; a step of rate 0.1 from (1, 1).
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.w = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    model, config = Two(), TrainConfig(epochs=1, batch_size=1, lr=0.1, optimizer="sgd", clip=clip)
    fit(model, [0], lambda m, _: (3 * m.v + 4 * m.w).sum(), config, progress=False)
    assert torch.allclose(torch.cat([model.v, model.w]), torch.tensor(expected))


def test_weight_decay_spares_vectors():
    decay, spared = make_optimizer(
        nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), CONFIG
    ).param_groups
    assert [tuple(p.shape) for p in decay["params"]] == [(3, 2)]
    assert decay["weight_decay"] == 0.01
    assert [tuple(p.shape) for p in spared["params"]] == [(3,), (3,), (3,)]
    assert spared["weight_decay"] == 0


def test_learning_rate():
    # 4 of 12 steps rise; then cosine over 8: full at step 4, half at 8
    config = TrainConfig(epochs=1, lr=1.0, warmup=1 / 3)
    assert [learning_rate(s, 12, config) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(8, 12, config) == pytest.approx(0.5)
    assert learning_rate(11, 12, config) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(11, 12, replace(config, schedule="constant")) == 1.0


def test_accumulation_changes_nothing_but_memory():
    still = build().eval()
    for module in still.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    state = {k: v.clone() for k, v in still.state_dict().items()}
    whole = fit(still, Points(), loss, CONFIG, progress=False)
    still.load_state_dict(state)
    parts = fit(still, Points(), loss, replace(CONFIG, accumulate=4), progress=False)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-6)


def test_bf16_is_autocast_and_weights_stay_float32():
    model = build()
    seen = []

    def spying(model, batch):
        out = model(batch["x"])
        seen.append(out.dtype)
        return nn.functional.cross_entropy(out.float(), batch["y"])

    fit(model, Points(), spying, replace(CONFIG, precision="bf16"), progress=False)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# ---------------------------------------------------------------- repeatability and resuming


def test_same_seed_same_curve_whatever_the_workers_and_the_logging():
    data = Points(jitter=0.5)  # augmentation: random in __getitem__
    one = run(data=data)
    two = run(replace(CONFIG, workers=2, log_every=100), data=data)
    assert one.losses == two.losses
    assert run(replace(CONFIG, seed=1), data=data).losses != one.losses


def test_every_epoch_has_its_own_order_and_augmentation():
    seen = []

    def spy(model, batch):
        seen.append(batch["x"].clone())
        return loss(model, batch)

    fit(build(), Points(8, jitter=0.5), spy, CONFIG, progress=False)  # one batch an epoch
    assert len(seen) == 3
    assert not torch.equal(seen[0].sort(0).values, seen[1].sort(0).values)


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_finished_run_is_not_run_again(tmp_path):
    config = replace(CONFIG, select="accuracy")
    one = run(config, folder=tmp_path, validate=accuracy)
    two = run(config, folder=tmp_path, validate=accuracy)
    assert (two.history, two.best, two.steps) == (one.history, one.best, one.steps)
    assert two.samples_per_second == 0
    assert read_log(tmp_path) == one.history
    again = run(config, folder=tmp_path, validate=accuracy, resume=False)
    assert again.samples_per_second > 0 and again.history == one.history


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_train import *
torch.set_num_threads(1)
class Slow(Points):
    def __getitem__(self, index):
        time.sleep({sleep})
        return super().__getitem__(index)
config = replace(CONFIG, checkpoint_every=4, log_every=1, select="accuracy")
result = run(config, data=Slow(jitter=0.5), folder={folder!r}, validate=accuracy)
"""


def start(folder: Path, sleep: float) -> subprocess.Popen:
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder), sleep=sleep)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen) -> None:
    log = folder / "log.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def resumed(folder: Path) -> TrainResult:
    config = replace(CONFIG, checkpoint_every=4, log_every=1, select="accuracy")
    return run(config, data=Points(jitter=0.5), folder=folder, validate=accuracy)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_killed_in_the_middle_of_an_epoch_it_goes_on_exactly(tmp_path):
    whole = resumed(tmp_path / "whole")
    process = start(tmp_path / "killed", sleep=0.01)
    wait_for_lines(tmp_path / "killed", 8, process)  # step 7 of 15 (one line is a validation)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = read_log(tmp_path / "killed")
    assert 8 <= len(lines) < len(whole.history)  # it died on the way
    result = resumed(tmp_path / "killed")
    assert result.history == whole.history  # dropout, augmentation, order, rates, validations
    assert result.best == whole.best
    assert read_log(tmp_path / "killed") == whole.history  # no line twice, none missing


def fit_steps(folder: Path) -> int:
    """The step at which a run in ``folder`` would go on."""
    from safetensors import safe_open

    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["state"])["step"] + 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_ctrl_c_saves_the_step_and_moments_are_resumed(tmp_path, optimizer):
    config = replace(CONFIG, optimizer=optimizer, momentum=0.9 * (optimizer == "sgd"))
    whole = run(config)
    stop_at(7, config, tmp_path)
    assert fit_steps(tmp_path) == 8  # the half-done step was finished, then saved
    assert run(config, folder=tmp_path).losses == whole.losses


def test_the_best_weights_survive_a_restart(tmp_path):
    # validation 2, 1, 0: the first epoch's weights are the best, the run is stopped in the third
    config = replace(CONFIG, select="score")

    def trained(folder, stop):
        model, calls = build(), iter(range(1, 100))

        def interrupting(model, batch):
            if next(calls) == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return loss(model, batch)

        scores = iter([2, 1, 0])
        fit(
            model,
            Points(),
            interrupting,
            config,
            validate=lambda model: {"score": next(scores)},
            folder=folder,
            progress=False,
        )
        return model.state_dict()

    whole = trained(None, stop=None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=12)
    model = build()
    result = fit(
        model,
        Points(),
        loss,
        config,
        validate=lambda model: {"score": 0},
        folder=tmp_path,
        progress=False,
    )
    assert result.best == {"step": 5, "epoch": 1, "score": 2.0}
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())


def stop_at(step: int, config: TrainConfig, folder: Path) -> None:
    """Run up to a Ctrl-C in the middle of ``step``."""
    calls = iter(range(1, 1000))

    def interrupting(model, batch):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch)

    with pytest.raises(KeyboardInterrupt, match=f"Stopped at step {step} of 15"):
        fit(build(), Points(), interrupting, config, folder=folder, progress=False)


def test_interrupt_without_a_folder_says_that_nothing_was_saved():
    def interrupting(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch)

    before = signal.getsignal(signal.SIGINT)  # a shell may start background jobs with it ignored
    with pytest.raises(KeyboardInterrupt, match=r"Stopped at step 1 of 15\. Not saved"):
        fit(build(), Points(), interrupting, CONFIG, progress=False)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config=replace(CONFIG, lr=0.02)), "made with lr=0.01 but this run has 0.02"),
        (dict(data=Points(48)), "made with number of samples=40 but this run has 48"),
        (dict(model=build(seed=1)), "made with frozen weights="),
        (dict(model=freeze(build(), except_=["1.3"])), "made with trainable parameters="),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    stop_at(7, CONFIG, tmp_path)
    given = {"model": build(), "data": Points(), "config": CONFIG} | change
    with pytest.raises(InputError, match=message):
        fit(given["model"], given["data"], loss, given["config"], folder=tmp_path, progress=False)
    assert fit_steps(tmp_path) == 8  # untouched


def test_data_digests_are_compared(tmp_path):
    data = Points()
    data.digest = "aa"
    run(data=data, folder=tmp_path)
    data.digest = "bb"
    with pytest.raises(InputError, match="data digest='aa' but this run has 'bb'"):
        run(data=data, folder=tmp_path)


def test_damaged_files_are_named(tmp_path):
    run(folder=tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match=r"log.jsonl has 0 bytes but the checkpoint"):
        run(folder=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"checkpoint.safetensors cannot be read .* resume=False"):
        run(folder=tmp_path)
    assert run(folder=tmp_path, resume=False).steps == 15


# ---------------------------------------------------------------- things that go wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_step(tmp_path, bad):
    calls = iter(range(1, 1000))

    def breaking(model, batch):
        return loss(model, batch) * (bad if next(calls) == 9 else 1.0)

    config = replace(CONFIG, log_every=7)
    with pytest.raises(InputError, match=rf"The loss became {bad} at step 9; .*lower lr=0.01"):
        fit(build(), Points(), breaking, config, folder=tmp_path, progress=False)
    assert fit_steps(tmp_path) == 6  # the checkpoint of step 5, the end of epoch 1
    assert [row["step"] for row in read_log(tmp_path)] == list(range(1, 9))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Root(nn.Module):  # loss 0, but an infinite gradient: sqrt at 0
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    config = TrainConfig(epochs=1, batch_size=8, lr=0.1, checkpoint_every=1, clip=None)
    with pytest.raises(InputError, match="A weight is no longer finite at step 1"):
        fit(
            Root(), Points(), lambda m, b: m.w.sqrt().sum(), config, folder=tmp_path, progress=False
        )
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    real = Path.write_bytes
    calls = []

    def full(path, data):
        calls.append(path)
        if len(calls) == 2:  # the second checkpoint: half of it fits
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        InputError, match=r"The disk is full while writing .*checkpoint.safetensors"
    ):
        run(folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    assert fit_steps(tmp_path) == 6
    assert run(folder=tmp_path).losses == run().losses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(epochs=0), "epochs=0 must be at least 1"),
        (dict(optimizer="adam"), "optimizer='adam' must be one of adamw, sgd"),
        (dict(schedule="linear"), "schedule='linear' must be one of cosine, constant"),
        (dict(precision="fp16"), "precision='fp16' must be one of no, bf16"),
        (dict(lr=0.0), "lr=0.0 must be positive"),
        (dict(momentum=0.9), "optimizer='adamw' has no use for momentum=0.9"),
        (dict(batch_size=10, accumulate=4), "batch_size=10 is not a multiple of accumulate=4"),
        (dict(warmup=1.0), "warmup=1.0"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"epochs": 1, **fields})


def test_what_does_not_fit_together_is_named():
    with pytest.raises(InputError, match="batch_size=41 is more than the 40 samples"):
        run(replace(CONFIG, batch_size=41))
    with pytest.raises(InputError, match="select='f1' needs validate"):
        run(replace(CONFIG, select="f1"))
    with pytest.raises(InputError, match=r"select='f1' is not among .* accuracy"):
        run(replace(CONFIG, select="f1"), validate=accuracy)
    with pytest.raises(InputError, match="no trainable parameter"):
        fit(freeze(build()), Points(), loss, CONFIG, progress=False)
