"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two tests run at a time, each on one thread; results do not depend on the machine's size.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def data_root() -> Path:
    """The filled data root, or a skip that says what to set."""
    from mmfusion_lib import settings

    root = settings.data_root()
    if root is None:
        pytest.skip("MMFUSION_DATA is not set: the real data sets are absent")
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def minilm():
    """The real packaged text encoder, or a skip when no package index can be reached."""
    return _weights("load_text_encoder", "minilm-l6")


@pytest.fixture(scope="session")
def dinov2():
    """The real packaged image encoder, or a skip when no package index can be reached."""
    return _weights("load_image_encoder", "dinov2-small")


def _weights(loader: str, name: str):
    from mmfusion_lib import InputError, checkpoints

    try:
        return getattr(checkpoints, loader)(name)
    except InputError as error:
        pytest.skip(f"weights of {name} are not at hand: {error}")
