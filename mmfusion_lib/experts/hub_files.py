"""Weights of the paper's experts: where they are, on which terms, and fetching them.

Commits and sizes are those that public code and the hub's own pages give for these very files; the
hub could not be reached where this was written, so the downloads themselves have not been run. No
commit of the edge weights is known to us: they are taken from the newest one. What was loaded,
commit and SHA-256, is recorded for every expert in ``source``.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import sha256
from ..settings import cache_root


@dataclass(frozen=True)
class HubWeights:
    """Weights of one expert.

    Attributes:
        repository: owner/name on the Hugging Face hub.
        revision: commit; None: not known, the newest is taken and recorded.
        files: what is fetched; the weights come last.
        megabytes: to download; None: not known.
        licence: of the weights, as their page states it.
        packages: that run the model, as module -> what to hand to pip.
    """

    repository: str
    revision: str | None
    files: tuple[str, ...]
    megabytes: float | None
    licence: str
    packages: dict[str, str]


_TRANSFORMERS = {"transformers": "transformers>=5.17"}
WEIGHTS: dict[str, HubWeights] = {
    "depth": HubWeights(
        "Intel/dpt-hybrid-midas",
        "11eaf7a1cf4bd70740697dbc216f98980c0aeb03",
        ("config.json", "pytorch_model.bin"),
        490,
        "Apache-2.0",
        _TRANSFORMERS,
    ),
    "normal": HubWeights(
        "lllyasviel/Annotators",
        "982e7edaec38759d914a963c48c4726685de7d96",
        ("scannet.pt",),
        291,
        "'other': its page names no terms",
        {"controlnet_aux": "controlnet_aux>=0.0.10"},
    ),
    "seg_coco": HubWeights(
        "facebook/mask2former-swin-large-coco-panoptic",
        "a4edee47b1b2662241ceed627430aa22d0647bd0",
        ("config.json", "model.safetensors"),
        866,
        "'other': see its page and the Mask2Former repository",
        {**_TRANSFORMERS, "scipy": "scipy"},
    ),
    "edge": HubWeights(
        "kornia/dexined",
        None,
        ("DexiNed_BIPED_10.pth",),
        None,
        "MIT",
        {"kornia": "kornia>=0.8"},
    ),
    "obj_detection": HubWeights(
        "PekingU/rtdetr_r50vd_coco_o365",
        "457857cec8ac28ddede40ecee9eed2beca321af8",
        ("config.json", "model.safetensors"),
        172,
        "Apache-2.0",
        _TRANSFORMERS,
    ),
}


def need(name: str) -> None:
    """See that the packages behind the expert ``name`` are installed and can be imported.

    Raises:
        InputError: one is missing or broken; the sentence holds the pip command.
    """
    packages = WEIGHTS[name].packages
    missing = [module for module in packages if importlib.util.find_spec(module) is None]
    if missing:
        wanted = " ".join(f"'{packages[module]}'" for module in missing)
        raise InputError(
            f"The expert {name} needs the package {', '.join(missing)}, which is not installed: "
            f"run `python -m pip install {wanted}`."
        )
    for module in packages:
        load_module(module)


def load_module(module: str) -> Any:
    """Import a package that only some experts need.

    transformers and controlnet_aux import torchvision where it is installed; one that was built
    for another torch breaks them.

    Raises:
        InputError: the import fails.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision of the wrong build raises RuntimeError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{module} cannot be imported ({reason}): install a torchvision that fits your torch, "
            "or reinstall the package."
        ) from error


def fetch(name: str, revision: str | None = None) -> tuple[Path, dict[str, str]]:
    """The folder with the weights of an expert, and what to record about them.

    Files put by hand at ``MMFUSION_CACHE/hub/experts/NAME`` are used instead of a download. The
    licence is shown before anything is downloaded.

    Args:
        name: a key of ``WEIGHTS``.
        revision: another commit than the pinned one.

    Returns:
        The folder, and ``repository``, ``file``, ``revision`` (the commit) and ``sha256``.

    Raises:
        InputError: the hub cannot be reached and the files are not there.
    """
    weights = WEIGHTS[name]
    source = {"repository": weights.repository, "file": weights.files[-1]}
    by_hand = cache_root() / "hub" / "experts" / name
    if all((by_hand / file).is_file() for file in weights.files):
        digest = sha256(by_hand / weights.files[-1])
        return by_hand, {**source, "revision": "files put there by hand", "sha256": digest}
    folder = _download(name, revision or weights.revision, by_hand)
    digest = sha256(folder / weights.files[-1])
    return folder, {**source, "revision": folder.name, "sha256": digest}  # .../snapshots/COMMIT


def _download(name: str, revision: str | None, by_hand: Path) -> Path:
    """The snapshot folder in the hub's own cache, filled if need be."""
    import huggingface_hub
    from tqdm.auto import tqdm

    weights = WEIGHTS[name]
    path = None
    try:
        for file in weights.files:
            cached = huggingface_hub.try_to_load_from_cache(
                weights.repository, file, revision=revision
            )
            if not isinstance(cached, str):
                size = "" if weights.megabytes is None else f", {weights.megabytes:.0f} MB in all"
                tqdm.write(
                    f"Fetching {file} of {weights.repository}{size} (licence: {weights.licence})"
                )
            path = huggingface_hub.hf_hub_download(weights.repository, file, revision=revision)
    except Exception as error:  # network, proxy and hub errors have many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.split(". ")[0].rstrip(".:")  # its first sentence
        raise InputError(
            f"The weights of the expert {name} could not be fetched from {weights.repository} "
            f"({reason}): check the network and that HF_HUB_OFFLINE is not set, or put "
            f"{' and '.join(weights.files)} into {by_hand}."
        ) from error
    return Path(path).parent
