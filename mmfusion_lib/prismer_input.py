"""What a person gives Prismer - files, pictures, tensors - as the batch that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from .experts import LabelTable
    from .prismer import Prismer

MAP_SIZE = 224  # pixels a side of maps beside larger pictures (official code)


def read(model: Prismer, source: Any) -> tuple[dict[str, Any], bool]:
    """Pictures, with the maps of the model's suppliers, on its device.

    Args:
        model: its ``transform``, ``suppliers`` and ``label_table`` are used.
        source: a path, PIL image or tensor (3, H, W), normalised; a list of these; or a batch of
            ``experts``, which is passed on.

    Returns:
        The batch of ``experts``, and whether the source was a single picture.

    Raises:
        InputError: an empty list, a mixture of tensors and pictures, a picture that cannot be read, or
            a model without a transform.
    """
    if isinstance(source, Mapping):
        return dict(source), False
    single = not isinstance(source, list | tuple)
    sources = [source] if single else list(source)
    if not sources:
        raise InputError("There is no picture in the list: give one or more.")
    device = model.encoder.positions.device
    tensors = sum(isinstance(each, Tensor) for each in sources)
    if tensors:
        shapes = {tuple(each.shape) if isinstance(each, Tensor) else None for each in sources}
        if len(shapes) > 1:
            raise InputError(
                "The list mixes tensors with pictures or with tensors of another size: give one kind."
            )
        return {"rgb": torch.stack(sources).to(device)}, single  # B x (3, H, W) -> (B, 3, H, W)
    if model.transform is None:
        raise InputError(
            "This model does not know how its pictures are normalised: set model.transform "
            "(checkpoints.image_transform gives one), or pass a batch of experts."
        )
    from .data.images import open_image
    from .experts import tensors as maps

    images = [open_image(each) for each in sources]
    experts: dict[str, Any] = {"rgb": torch.stack([model.transform(image) for image in images])}
    if model.suppliers:
        names = [supplier.name for supplier in model.suppliers]
        labels = zip(*(supplier(images) for supplier in model.suppliers))
        samples = [dict(zip(names, row)) for row in labels]
        size = min(MAP_SIZE, model.transform.size)
        experts |= maps.batch(samples, size, label_tables(model, names), names)
    return maps.to(experts, device), single


def label_tables(model: Prismer, experts: Iterable[str]) -> dict[str, LabelTable]:
    """What ``experts.tensors.batch`` needs to name what semantic experts say; {} where none does."""
    from .experts.label_map import kind_of

    semantic = [name for name in experts if kind_of(name).semantic]
    return dict.fromkeys(semantic, label_table(model)) if semantic else {}


def stack(
    pictures: Sequence[Mapping[str, Any]],
    size: int,
    tables: Mapping[str, LabelTable],
    experts: Sequence[str],
) -> dict[str, Any]:
    """Opened pictures -> a batch of experts as ``Prismer.encode`` takes it.

    Args:
        pictures: B times ``rgb`` (3, S, S) and ``maps``, by expert.
        size: pixels a side of the maps.
        tables: see ``label_tables``.
        experts: those that are given, () for none.
    """
    from .experts import tensors

    rgb = torch.stack([each["rgb"] for each in pictures])  # B x (3, S, S) -> (B, 3, S, S)
    if not experts:
        return {"rgb": rgb}
    return {"rgb": rgb} | tensors.batch([p["maps"] for p in pictures], size, tables, experts)


def label_table(model: Prismer) -> LabelTable:
    """The model's table of label vectors; fitted with MiniLM where it has none yet."""
    if model.label_table is None:
        from . import checkpoints
        from .experts import LabelTable

        encoder, tokenizer = checkpoints.load_text_encoder(), checkpoints.load_tokenizer()
        model.label_table = LabelTable.fit(encoder, tokenizer)
    return model.label_table
