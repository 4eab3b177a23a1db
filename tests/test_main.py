"""The command line: quick, and one sentence for bad input."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmfusion_lib.__main__ import main

HERE = Path(__file__).parent


def test_help_names_every_command_without_importing_torch():
    code = (
        "import sys\nfrom mmfusion_lib.__main__ import parser\nprint(parser().format_help())\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    commands = (
        "env",
        "run",
        "lab",
        "records",
        "card",
        "build",
        "fit",
        "predict",
        "tune",
        "caption",
    )
    for command in (*commands, "experts"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "nothing"], "Unknown recipe 'nothing'"),
        (["run", "figures-probes", "--scale", "huge"], "Unknown scale 'huge'"),
        (["run", "prismer-coco", "--set", "model"], "--set 'model' is not NAME=VALUE"),
        (["run", "prismer-coco", "--set", "modle=x", "--scale", "smoke"], "no setting 'modle'"),
        (["records", "gossip"], "Unknown table 'gossip'"),
        (["build", "imagenet", "--out", "x"], "Unknown data set 'imagenet'"),
        (["predict", "nowhere.safetensors", "--text", "a"], "nowhere.safetensors does not exist"),
        (["fit", "x", "--out", "m.safetensors", "--model", "gossip"], "Unknown model 'gossip'"),
        (["fit", "x", "--out", "m.safetensors", "--epochs", "3"], "A probe has no --epochs"),
        (["fit", "x", "--out", "m.safetensors", "--model", "pmf"], "x does not exist"),
        (["fit", "x", "--out", "m.bin", "--model", "pmf"], "m.bin does not end in .safetensors"),
        (["fit", "x", "--out", "m.bin", "--model", "pmf", "--epochs", "0"], "epochs=0 must be"),
        (["tune", "x", "--out", "m.safetensors"], "x does not exist: give a folder, or a table"),
        (["tune", "x", "--out", "m.bin"], "m.bin does not end in .safetensors"),
        (["tune", "x", "--out", "m.safetensors", "--task", "poem"], "Unknown task 'poem'"),
        (["tune", "x", "--out", "m.safetensors", "--epochs", "0"], "epochs=0 must be"),
        (["tune", "x", "--out", "m.safetensors", "--start", "m.safetensors"], "to start from"),
        (["caption", "x\ny", "--model", "m", "--out", "c.csv"], r"'x\ny' is no folder"),
        (["caption", str(HERE), "--model", "m", "--out", "c.csv"], "holds no pictures"),
        (["experts", "x", "--experts", "edge", "--to", "y"], "x is no folder"),
        (["experts", "x", "--experts", "smell", "--to", "y"], "no expert 'smell'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(cache, capsys, argv, words):
    assert main(argv) == 2
    out = capsys.readouterr()
    assert words in out.err
    assert out.err.startswith("error: ")
    assert out.err.strip().count("\n") == 0
    assert "Traceback" not in out.err


def test_a_missing_data_root_is_named(cache, capsys, monkeypatch):
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    assert main(["run", "figures-probes", "--scale", "smoke"]) == 2
    assert "MMFUSION_DATA" in capsys.readouterr().err


def test_a_missing_device_is_named(cache, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MMFUSION_DEVICE", "cuda")
    assert main(["run", "scratch-vit", "--scale", "smoke"]) == 2
    assert "'cuda' was asked for" in capsys.readouterr().err


def test_ctrl_c_is_status_130(monkeypatch, capsys):
    from mmfusion_lib import runs

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run", stop)
    assert main(["run", "scratch-vit"]) == 130
    assert "again to go on" in capsys.readouterr().err


def test_records_are_listed(capsys):
    assert main(["records"]) == 0
    assert "`figures-probes`" in capsys.readouterr().out


def test_settings_are_given_on_the_command_line(monkeypatch):
    from mmfusion_lib import runs

    given = {}
    monkeypatch.setattr(runs, "run", lambda *a, **named: given.update(named) or sys.exit(0))
    line = ["--set", "model=prismer-large", "--set", "train.lr=1e-4", "--set", "experts=[]"]
    with pytest.raises(SystemExit):
        main(["run", "prismer-pretrain", *line, "--set", "recompute=true", "--seeds", "0"])
    assert given["model"] == "prismer-large" and given["experts"] == []
    assert given["train.lr"] == 1e-4 and given["recompute"] is True and given["seeds"] == [0]
