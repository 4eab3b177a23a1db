"""Your own data in ten lines: frozen encoders, pooled features, one linear probe.

This is the simplest multimodal classifier that works, and the baseline that every fusion method
of the book has to beat: PMF's "Linear" (what both towers say, side by side, into one linear layer).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import checkpoints, features, probes
from .errors import InputError
from .files import atomic_path


@dataclass(frozen=True)
class ClassifierConfig:
    """Which frozen features the probe reads.

    Attributes:
        image_encoder, text_encoder: names of :mod:`mmfusion_lib.checkpoints`; None leaves the
            modality out.
        image_depth, text_depth: number of layers that are run; None runs all of them.
        image_size: pixels a side.
        max_length: longest text, in tokens.
        dtype: of the extraction.
    """

    image_encoder: str | None = "dinov2-small"
    text_encoder: str | None = "minilm-l6"
    image_depth: int | None = 8
    text_depth: int | None = None
    image_size: int = 224
    max_length: int = 64
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.image_encoder is None and self.text_encoder is None:
            raise InputError("image_encoder and text_encoder are both None: name at least one.")


class Prediction(NamedTuple):
    """Class names and probabilities of N items."""

    labels: list[str]  # N
    probabilities: torch.Tensor  # (N, C)


class FeatureClassifier:
    """Frozen encoders and a linear probe on their mean-pooled tokens, side by side."""

    def __init__(self, config: ClassifierConfig, classes: Sequence[str], probe: probes.Probe):
        self.config, self.classes, self.probe = config, tuple(classes), probe

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it reads: images, texts, or both."""
        kinds = (("images", self.config.image_encoder), ("texts", self.config.text_encoder))
        return tuple(kind for kind, encoder in kinds if encoder)

    @property
    def validation(self) -> float:
        """Accuracy on the validation part."""
        return self.probe.validation

    @property
    def chosen(self) -> str:
        """What was chosen on the validation part."""
        return f"weight decay {self.probe.decay:g}"

    @classmethod
    def fit(
        cls,
        images: Sequence[Any] | None,
        texts: Sequence[str] | None,
        labels: Sequence[str],
        validation: tuple[Sequence[Any] | None, Sequence[str] | None, Sequence[str]],
        config: ClassifierConfig | None = None,
    ) -> FeatureClassifier:
        """Extract features, choose the weight decay on the validation part, fit.

        Args:
            images: N pictures (paths, bytes, PIL images), or None.
            texts: N texts, or None.
            labels: N class names.
            validation: the same three for held-out items.
            config: None reads whichever of images and texts is given.

        Raises:
            InputError: lengths differ, a validation class has no training item, or a picture
                cannot be read.
        """
        if config is None:
            config = ClassifierConfig(
                image_encoder=None if images is None else ClassifierConfig.image_encoder,
                text_encoder=None if texts is None else ClassifierConfig.text_encoder,
            )
        classes = sorted(set(labels))
        if len(classes) < 2:
            raise InputError(f"All labels are {classes}: a classifier needs at least two classes.")
        unknown = sorted(set(validation[2]) - set(classes))
        if unknown:
            raise InputError(
                f"The validation label {unknown[0]!r} never occurs in training: correct it, or "
                "add training items."
            )
        index = {name: i for i, name in enumerate(classes)}
        target = torch.tensor([index[name] for name in labels])  # (N,)
        held_out = torch.tensor([index[name] for name in validation[2]])  # (M,)
        found = read(config, images, texts, expected=len(target))  # (N, D)
        other = read(config, *validation[:2], expected=len(held_out))  # (M, D)
        probe = probes.fit_probe(found, target, other, held_out, num_classes=len(classes))
        return cls(config, classes, probe)

    def predict(
        self, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None
    ) -> Prediction:
        """Class and probabilities of each item; give what the classifier was trained on."""
        logits = self.probe.logits(read(self.config, images, texts))  # (N, C)
        names = [self.classes[i] for i in logits.argmax(-1).tolist()]
        return Prediction(names, logits.softmax(-1))

    def save(self, path: str | Path) -> None:
        """Write the probe as safetensors; the encoders are named by digest, not copied."""
        from safetensors.torch import save_file

        probe = self.probe
        meta = {
            "config": asdict(self.config),
            "classes": self.classes,
            "encoders": _digests(self.config),
            "decay": probe.decay,
            "validation": probe.validation,
        }
        tensors = {name: getattr(probe, name) for name in ("mean", "scale", "weight", "bias")}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"mmfusion_classifier": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | Path) -> FeatureClassifier:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: missing file, another kind of file, or other encoder weights here.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["mmfusion_classifier"])
                config = ClassifierConfig(**meta["config"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            encoders, classes = meta["encoders"], meta["classes"]
            probe = probes.Probe(**tensors, decay=meta["decay"], validation=meta["validation"])
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist: check the path.") from error
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{path} is not a classifier with a probe: give a file that `fit --model probe` "
                "has saved."
            ) from error
        for name, found in _digests(config).items():
            if encoders.get(name) != found:
                raise InputError(
                    f"{path} was trained on other weights of {name}: fit it again with the "
                    "weights of this machine."
                )
        return cls(config, classes, probe)


def read(
    config: ClassifierConfig,
    images: Sequence[Any] | None,
    texts: Sequence[str] | None,
    expected: int | None = None,
) -> torch.Tensor:
    """Mean-pooled features of both modalities side by side: (N, D_image + D_text), float32."""
    columns = []
    for kind, name, values in (
        ("images", config.image_encoder, images),
        ("texts", config.text_encoder, texts),
    ):
        if (name is None) != (values is None):
            raise InputError(
                f"This classifier {'does not read' if name is None else 'needs'} {kind}: "
                f"{'leave them out' if name is None else 'give one an item'}."
            )
        if values is None:
            continue
        if expected is not None and len(values) != expected:
            raise InputError(
                f"There are {len(values)} {kind} for {expected} items: give one {kind[:-1]} each."
            )
        columns.append(_column(config, kind, name, values))
        expected = len(values)
    return torch.cat(columns, dim=1)  # (N, D_image + D_text)


def _column(config: ClassifierConfig, kind: str, name: str, values: Sequence[Any]) -> torch.Tensor:
    if kind == "images":
        encoder = checkpoints.load_image_encoder(name)
        transform = checkpoints.image_transform(name, size=config.image_size)
        data, depth = features.Images(values, transform), config.image_depth
    else:
        encoder = checkpoints.load_text_encoder(name)
        tokenizer = checkpoints.load_tokenizer(name)
        data, depth = features.Texts(values, tokenizer, config.max_length), config.text_depth
    depth = len(encoder.layers) if depth is None else depth
    found = features.extract(encoder, data, depths=[depth], pool="mean", dtype=config.dtype)
    return found[depth].values.float()  # (N, D)


def _digests(config: ClassifierConfig) -> dict[str, str]:
    found = {}
    if config.image_encoder:
        encoder = checkpoints.load_image_encoder(config.image_encoder)
        found[config.image_encoder] = checkpoints.weights_digest(encoder)
    if config.text_encoder:
        encoder = checkpoints.load_text_encoder(config.text_encoder)
        found[config.text_encoder] = checkpoints.weights_digest(encoder)
    return found


# --- from a folder or a table to a saved classifier -------------------------------------------


@dataclass(frozen=True)
class FitReport:
    """What ``fit_table`` did; printed by the command line.

    Attributes:
        out: the file that was written.
        classes: C names.
        counts: items of train, validation and test.
        modalities: what the classifier reads.
        accuracy: on the test part, which took no part in fitting or choosing; None without one.
        majority: accuracy there of always saying the commonest training class.
        validation: accuracy on the validation part.  chosen: what was chosen there.
    """

    out: Path
    classes: tuple[str, ...]
    counts: dict[str, int]
    modalities: tuple[str, ...]
    accuracy: float | None
    majority: float | None
    validation: float
    chosen: str

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {part}" for part, count in self.counts.items())
        lines = [
            f"classes     {len(self.classes)}: {', '.join(self.classes)}",
            f"reads       {' and '.join(self.modalities)}",
            f"items       {counts}",
            f"validation  {self.validation:.3f} ({self.chosen} chosen there)",
        ]
        if self.accuracy is None:
            lines.append("test        no test part: nothing is known about new items")
        else:
            lines.append(
                f"test        {self.accuracy:.3f} (always the commonest class: {self.majority:.3f})"
            )
        return "\n".join([*lines, f"saved       {self.out}"])


def fit_table(
    path: str | Path,
    out: str | Path,
    image_column: str | None = "image",
    text_column: str | None = "text",
    label_column: str | None = "label",
    seed: int = 0,
    config: Any = None,
    fit: Callable[..., Any] = FeatureClassifier.fit,
) -> FitReport:
    """Fit a classifier on a folder or table (:mod:`mmfusion_lib.data.folder`) and save it.

    Args:
        path: folder of class sub-folders, or a .csv, .tsv or .jsonl file.
        out: file to write, ending in .safetensors.
        image_column, text_column, label_column: columns of the table. The default names are used
            where they exist; any other name must exist.
        seed: of the split into train, validation and test, unless the data brings its own.
        config: of the classifier; a probe's may be None, which reads whichever of images and texts
            the data has.
        fit: called as :meth:`FeatureClassifier.fit`; returns a classifier with the same methods
            and properties, such as :class:`mmfusion_lib.pmf_classifier.PMFClassifier`.

    Raises:
        InputError: whatever the reader or ``fit`` finds wrong, or another ending of ``out``.
    """
    from collections import Counter

    from .data import folder

    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out} does not end in .safetensors: rename it.")
    rows = folder.load(
        path,
        image_column=None if image_column == "image" else image_column,
        text_column=None if text_column == "text" else text_column,
        label_column=None if label_column == "label" else label_column,
    )
    parts = {name: _columns(part) for name, part in folder.split(rows, seed=seed).items()}
    model = fit(*parts["train"], validation=parts["validation"], config=config)
    images, texts, labels = parts["test"]
    accuracy = majority = None
    if labels:
        found = model.predict(images, texts).labels
        commonest = Counter(parts["train"][2]).most_common(1)[0][0]
        accuracy = sum(a == b for a, b in zip(found, labels)) / len(labels)
        majority = labels.count(commonest) / len(labels)
    model.save(out)
    return FitReport(
        out=out,
        classes=model.classes,
        counts={name: len(part[2]) for name, part in parts.items()},
        modalities=model.modalities,
        accuracy=accuracy,
        majority=majority,
        validation=model.validation,
        chosen=model.chosen,
    )


def _columns(part: Any) -> tuple[list[Any] | None, list[str] | None, list[str]]:
    """Pictures (not decoded), texts and class names of a `datasets.Dataset`; None where absent."""
    import datasets

    images = texts = None
    if "image" in part.column_names:
        images = part.cast_column("image", datasets.Image(decode=False))["image"][:]
    if "text" in part.column_names:
        texts = part["text"][:]
    names = part.features["label"].names
    return images, texts, [names[label] for label in part["label"]]
