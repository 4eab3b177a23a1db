"""Files of the papers' encoders from the Hugging Face hub, each pinned to one commit.

The commits are those from which public code loads these very files. The hub could not be reached
where this library was written, so the downloads themselves have not been run; converters and
forward passes are tested on files of the same layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .settings import cache_root


@dataclass(frozen=True)
class HubFile:
    """Where the weights of one encoder are."""

    repository: str  # owner/name on the hub
    revision: str  # commit
    file: str  # safetensors file
    layout: str  # key of ``convert.CONVERTERS``


def _transformers(repository: str, revision: str, layout: str) -> HubFile:
    return HubFile(repository, revision, "model.safetensors", layout)


def _open_clip(repository: str, revision: str) -> HubFile:
    return HubFile(repository, revision, "open_clip_model.safetensors", "open_clip")


HUB: dict[str, HubFile] = {
    "vit-base": _transformers(
        "google/vit-base-patch16-224-in21k", "b4569560a39a0f1af58e3ddaf17facf20ab919b0", "hf_image"
    ),
    "vit-large": _transformers(
        "google/vit-large-patch16-224-in21k", "6074eaf2211423e928c93b93ef773d5da618aa7e", "hf_image"
    ),
    "clip-b16": _open_clip(
        "timm/vit_base_patch16_clip_224.openai", "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d"
    ),
    "clip-l14-336": _open_clip(
        "timm/vit_large_patch14_clip_336.openai", "81e38efc4637de5023b10e75a7f9bd1c6fa6b010"
    ),
    "clip-h14": _open_clip(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"
    ),
    "bert-base": _transformers(
        "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", "hf_text"
    ),
    "bert-large": _transformers(
        "google-bert/bert-large-uncased", "6da4b6a26a1877e173fca3225479512db81a5e5b", "hf_text"
    ),
    "roberta-base": _transformers(
        "FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b", "hf_text"
    ),
    "roberta-large": _transformers(
        "FacebookAI/roberta-large", "722cf37b1afa9454edce342e7895e588b6ff1d59", "hf_text"
    ),
}


def fetch_hub(name: str, file: str) -> Path:
    """A file of the repository behind encoder ``name``, downloaded or from the hub's own cache.

    A file put by hand at ``MMFUSION_CACHE/hub/NAME/FILE`` is used instead.

    Raises:
        InputError: the hub cannot be reached and the file is not there.
    """
    by_hand = cache_root() / "hub" / name / file
    if by_hand.is_file():
        return by_hand
    import huggingface_hub

    source = HUB[name]
    try:
        path = huggingface_hub.hf_hub_download(source.repository, file, revision=source.revision)
    except Exception as error:  # network, proxy and hub errors have many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.split(". ")[0].rstrip(".:")  # its first sentence
        raise InputError(
            f"{file} of {source.repository} could not be fetched from the Hugging Face hub "
            f"({reason}): check the network and that HF_HUB_OFFLINE is not set, or download the "
            f"file at revision {source.revision} elsewhere and put it at {by_hand}."
        ) from error
    return Path(path)


def hub_source(name: str) -> dict[str, str]:
    """Where the weights of ``name`` come from, for a run record."""
    source = HUB[name]
    by_hand = cache_root() / "hub" / name / source.file
    revision = "file put there by hand" if by_hand.is_file() else source.revision
    return {"repository": source.repository, "file": source.file, "revision": revision}
