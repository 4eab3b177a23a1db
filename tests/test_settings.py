"""The four environment variables and their errors."""

import sys
from pathlib import Path

import pytest

from mmfusion_lib import InputError, settings


def test_data_root_is_none_when_unset_and_named_when_wrong(monkeypatch, tmp_path):
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    assert settings.data_root() is None
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path))
    assert settings.data_root() == tmp_path
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere.*unset it"):
        settings.data_root()


def test_cache_root_is_made_and_a_bad_one_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "a" / "b"))
    assert settings.cache_root().is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cache folder.*MMFUSION_CACHE"):
        settings.cache_root()


def test_cache_root_defaults_to_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("MMFUSION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert settings.cache_root() == tmp_path / "mmfusion"


def test_scale_comes_from_argument_then_environment(monkeypatch):
    monkeypatch.setenv("MMFUSION_SCALE", "lab")
    assert settings.scale() == "lab"
    assert settings.scale("paper") == "paper"
    with pytest.raises(InputError, match=r"'huge'.*smoke, lab, paper"):
        settings.scale("huge")


def test_device_asked_for_and_absent(monkeypatch):
    import torch

    assert settings.device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MMFUSION_DEVICE", "cuda")
    with pytest.raises(InputError, match=r"'cuda' was asked for.*0 CUDA devices"):
        settings.device()
    with pytest.raises(InputError, match="Unknown device 'gpu9x'"):
        settings.device("gpu9x")


def test_importing_the_library_does_not_import_torch():
    import subprocess

    code = "import sys, mmfusion_lib; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
