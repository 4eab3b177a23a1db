"""The paper's experts through libraries that are kept up (Prismer Table 1).

========= ====================== ============================ =================================
expert    paper                  here                         package
========= ====================== ============================ =================================
depth     DPT-Hybrid             the same                     transformers
normal    NLL-AngMF, ScanNet     the same                     controlnet_aux (torchvision, timm)
seg_coco  Mask2Former Swin-L     the same                     transformers
edge      DexiNed                the same                     kornia
detection UniDet, 722 classes    RT-DETR R50, 80 COCO classes transformers
words     CharNet                RapidOCR: see `ocr`          rapidocr-onnxruntime, Python < 3.13
========= ====================== ============================ =================================

We know of no package that keeps UniDet up; RT-DETR is trained on Objects365 and COCO, two of
UniDet's four sets. The packages are no dependencies of this library: an expert whose package is
missing says which pip command installs it. transformers 5 and kornia 0.9 need Python 3.11 or newer,
as we do. Everything runs in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import hub_maps
from .hub_files import WEIGHTS, fetch, load_module, need
from .label_map import LabelMap

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


class HubExpert:
    """A network between a function before it and a function after it.

    Args:
        name: of the expert, a key of ``hub_files.WEIGHTS``.
        model: the network, in evaluation mode.
        device: where it runs.
        source: what was loaded, for the record that lies beside the labels.

    Attributes:
        megabytes: memory of the weights alone.
    """

    uses_depth = False

    def __init__(
        self, name: str, model: nn.Module, device: str = "cpu", source: dict[str, str] | None = None
    ):
        self.name, self.device, self.source = name, device, source or {}
        self.model_module = model.eval().requires_grad_(False).to(device)
        self.model = f"{type(model).__name__} of {WEIGHTS[name].repository}"
        self.licence = WEIGHTS[name].licence
        stored = sum(each.numel() * each.element_size() for each in model.parameters())
        self.megabytes = stored / 2**20

    def before(self, image: Image) -> Tensor:
        """RGB picture -> (3, h, w)."""
        raise NotImplementedError

    def run(self, batch: Tensor) -> list[Any]:
        """(B, 3, h, w) -> one output a picture."""
        raise NotImplementedError

    def after(self, output: Any, size: tuple[int, int], depth: LabelMap | None) -> LabelMap:
        """The output for one picture -> its map, of the picture's (width, height)."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[Image], depth: Sequence[LabelMap | None] | None = None
    ) -> list[LabelMap]:
        """RGB pictures of any sizes -> one map each.

        Pictures of one input size run together; what comes out does not depend on the others.

        Args:
            images: RGB.
            depth: maps of the same pictures, used where ``uses_depth`` is True.
        """
        groups = defaultdict(list)
        inputs = [self.before(image) for image in images]
        for number, tensor in enumerate(inputs):
            groups[tensor.shape].append(number)
        maps: list[Any] = [None] * len(images)
        for numbers in groups.values():
            batch = torch.stack([inputs[number] for number in numbers]).to(self.device)
            for number, output in zip(numbers, self.run(batch)):
                near = None if depth is None else depth[number]
                maps[number] = self.after(output, images[number].size, near)
        return maps


class Depth(HubExpert):
    """DPT: inverse depth."""

    def before(self, image):
        return hub_maps.depth_input(image)

    def run(self, batch):
        return list(self.model_module(batch).predicted_depth)  # (B, h, w)

    def after(self, output, size, depth):
        return hub_maps.depth_map(output, size)


class Normal(HubExpert):
    """NLL-AngMF: unit normals, of the finest of its scales."""

    def before(self, image):
        return hub_maps.normal_input(image)

    def run(self, batch):
        return list(self.model_module(batch)[0][-1][:, :3])  # (B, 3, h, w); the fourth is certainty

    def after(self, output, size, depth):
        return hub_maps.normal_map(output, size)


class Edge(HubExpert):
    """DexiNed: its fused map."""

    def before(self, image):
        return hub_maps.edge_input(image)

    def run(self, batch):
        return list(self.model_module(batch)[:, 0])  # (B, 1, h, w) -> (B, h, w)

    def after(self, output, size, depth):
        return hub_maps.edge_map(output, size)


class Segmentation(HubExpert):
    """Mask2Former, panoptic: 133 classes, read as a semantic map."""

    def before(self, image):
        return hub_maps.segmentation_input(image)

    def run(self, batch):
        found = self.model_module(pixel_values=batch)
        return list(zip(found.class_queries_logits, found.masks_queries_logits))

    def after(self, output, size, depth):
        names = dict(self.model_module.config.id2label)
        return hub_maps.segmentation_map(*output, size, names)


class Detection(HubExpert):
    """RT-DETR: boxes with classes and instances; a depth map settles who lies in front."""

    uses_depth = True

    def before(self, image):
        return hub_maps.detection_input(image)

    def run(self, batch):
        found = self.model_module(pixel_values=batch)
        return list(zip(found.logits, found.pred_boxes))  # (Q, C), (Q, 4)

    def after(self, output, size, depth):
        names = dict(self.model_module.config.id2label)
        return hub_maps.detection_map(*output, size, names, depth)


def load_hub_expert(name: str, device: str = "cpu", revision: str | None = None) -> HubExpert:
    """Fetch and build one of the paper's experts.

    Args:
        name: "depth", "normal", "seg_coco", "edge" or "obj_detection"; words are read by `ocr`.
        device: "cpu", "cuda", "cuda:1", ...
        revision: another commit of its repository than the pinned one; see `hub_files`.

    Raises:
        InputError: unknown name, a package is missing, or the weights cannot be fetched.
    """
    if name not in _KINDS:
        raise InputError(f"The hub supplies no expert {name!r}: use one of {', '.join(_KINDS)}.")
    need(name)
    kind, build = _KINDS[name]
    folder, source = fetch(name, revision)
    return kind(name, build(folder), device, source)


def _dpt(folder: Path) -> nn.Module:
    model = _pretrained("DPTForDepthEstimation", folder)
    # Built for 384 pixels; it resizes its positions, but not before this number is changed.
    model.dpt.embeddings.image_size = (hub_maps.SIDE, hub_maps.SIDE)
    return model


def _pretrained(name: str, folder: Path) -> nn.Module:
    """A transformers model from files; weights other than safetensors need the safe loader."""
    kind = getattr(load_module("transformers"), name)
    return kind.from_pretrained(str(folder), local_files_only=True, weights_only=True)


def _dexined(folder: Path) -> nn.Module:
    model = load_module("kornia.filters.dexined").DexiNed(pretrained=False)
    model.load_state_dict(_weights(folder / WEIGHTS["edge"].files[-1]))
    return model


def _angmf(folder: Path) -> nn.Module:
    from types import SimpleNamespace

    network = load_module("controlnet_aux.normalbae.nets.NNET").NNET
    model = network(SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7))
    state = _weights(folder / WEIGHTS["normal"].files[-1])["model"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model


def _weights(file: Path) -> dict[str, Any]:
    """A file of tensors; anything else in it is refused, not run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged, or a pickle with code in it
        raise InputError(
            f"{file} holds no plain tensors or is damaged: delete it and fetch it again."
        ) from error


_KINDS: dict[str, tuple[type[HubExpert], Callable[[Path], nn.Module]]] = {
    "depth": (Depth, _dpt),
    "normal": (Normal, _angmf),
    "seg_coco": (
        Segmentation,
        lambda folder: _pretrained("Mask2FormerForUniversalSegmentation", folder),
    ),
    "edge": (Edge, _dexined),
    "obj_detection": (Detection, lambda folder: _pretrained("RTDetrForObjectDetection", folder)),
}
