"""Your own images and texts with PMF: train, save, load, predict.

The ten lines of :mod:`mmfusion_lib.classifier`, with prompts that let two frozen encoders talk to
each other in place of a linear probe on what each of them says alone::

    model = PMFClassifier.fit(images, texts, labels, validation=(images2, texts2, labels2))
    model.save("mine.safetensors")
    answer = PMFClassifier.load("mine.safetensors").predict(["a.jpg"], ["what is said of it"])

The frozen layers run once (``features``); training starts from what they said. It is resumable: the
same call goes on from the last epoch of an interrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoints, classifier, pair_training, train, trainable
from .classifier import FeatureClassifier, FitReport, Prediction
from .data import pairs
from .encoders import Encoder
from .errors import InputError
from .files import digest
from .pmf import PMF, PMFConfig
from .settings import cache_root

KIND = "PMFClassifier"
Part = tuple[Sequence[Any] | None, Sequence[str] | None, Sequence[str]]


@dataclass(frozen=True)
class PMFClassifierConfig:
    """The two encoders, PMF between them, and how it is trained. The values are chosen by us.

    Attributes:
        image_encoder, text_encoder: names of :mod:`mmfusion_lib.checkpoints`.
        image_depth, text_depth: number of layers that are kept; None keeps all of them.
        image_size: pixels a side. 112 has a quarter of the tokens of 224: a quarter of disk and
            time.
        max_length: longer texts are cut to this many tokens.
        num_fusion_layers: N_f, of the kept layers.
        prompts: length of each of the three prompts.
        epochs, batch_size, lr: as in :class:`mmfusion_lib.train.TrainConfig`. A batch is never
            larger than the training part.
        seed: of the initial weights and of the order of training.

    Raises:
        InputError: a field that makes no model, or no training.
    """

    image_encoder: str = "dinov2-small"
    text_encoder: str = "minilm-l6"
    image_depth: int | None = 8
    text_depth: int | None = None
    image_size: int = 112
    max_length: int = 64
    num_fusion_layers: int = 2
    prompts: int = 4
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        self.sizes(2)  # these two name the field that is wrong
        self.training(self.batch_size)

    def sizes(self, num_classes: int) -> PMFConfig:
        """Of the model."""
        return PMFConfig(num_classes, self.num_fusion_layers, *[self.prompts] * 3)

    def training(self, count: int) -> train.TrainConfig:
        """Of the training on ``count`` items."""
        return train.TrainConfig(
            self.epochs, min(self.batch_size, count), self.lr, weight_decay=0.05, warmup=0.1,
            seed=self.seed, select="score",
        )  # fmt: skip


class PMFClassifier:
    """PMF on two frozen encoders, with class names.

    Attributes:
        config, classes, model: how it was made, C names, the :class:`mmfusion_lib.pmf.PMF`.
        epoch: the chosen one, from 1.  validation: accuracy on the validation part there.
    """

    modalities = ("images", "texts")

    def __init__(
        self,
        config: PMFClassifierConfig,
        classes: Sequence[str],
        model: PMF,
        epoch: int,
        validation: float,
    ) -> None:
        self.config, self.classes, self.model = config, tuple(classes), model
        self.epoch, self.validation = epoch, validation

    @property
    def chosen(self) -> str:
        """What was chosen on the validation part."""
        return f"epoch {self.epoch} of {self.config.epochs}"

    @classmethod
    def fit(
        cls,
        images: Sequence[Any] | None,
        texts: Sequence[str] | None,
        labels: Sequence[str],
        validation: Part,
        config: PMFClassifierConfig | None = None,
        folder: str | Path | None = None,
    ) -> PMFClassifier:
        """Extract base features, train, keep the epoch with the best validation accuracy.

        Of epochs with equal accuracy, which are common where few items are held out, the one with
        the lowest validation loss is kept.

        Args:
            images: N pictures (paths, bytes, PIL images).
            texts: N texts; an empty one is a text too.
            labels: N class names.
            validation: the same three for held-out items.
            config: None: the defaults.
            folder: for the checkpoint and the log; None: a folder in the cache that is named by
                configuration and data. The same call goes on from there, or is done at once.

        Raises:
            InputError: images or texts are not given, lengths differ, fewer than two classes, a
                validation class has no training item, a picture cannot be read, more fusion layers
                than layers, or the loss is not finite: then the last good checkpoint stays.
            KeyboardInterrupt: after Ctrl-C, when the step is finished and saved.
        """
        config = PMFClassifierConfig() if config is None else config
        classes = tuple(sorted({*labels, *validation[2]}))
        found = _pairs("training", images, texts, labels, classes)
        held_out = _pairs("validation", *validation, classes)
        if len(pairs.present(found)) < 2:
            raise InputError(
                f"All training labels are {labels[0]!r}: a classifier needs at least two classes."
            )
        pairs.check(found, validation=held_out)
        model = _build(config, len(classes))
        base, other = _cached(config, model, found), _cached(config, model, held_out)
        if folder is None:
            name = digest(asdict(config), base.digest, other.digest)
            folder = cache_root() / "classifiers" / name
        result = train.fit(
            model, base, pair_training.objective(), config.training(len(base)),
            validate=_validator(other), folder=folder,
        )  # fmt: skip
        return cls(config, classes, model, result.best["epoch"], result.best["accuracy"])

    def predict(self, images: Sequence[Any], texts: Sequence[str]) -> Prediction:
        """Class and probabilities of each of N pairs.

        Raises:
            InputError: images or texts are not given, lengths differ, a picture cannot be read.
        """
        found = _pairs("prediction", images, texts, None, self.classes)
        logits = pair_training.logits(self.model, _cached(self.config, self.model, found))  # (N, C)
        names = [self.classes[i] for i in logits.argmax(-1).tolist()]
        return Prediction(names, logits.softmax(-1))

    def save(self, path: str | Path) -> None:
        """Write what was trained as one safetensors file; the encoders are named by digest.

        Raises:
            InputError: the disk is full, or the folder cannot be written to.
        """
        meta = {
            "kind": KIND,
            "config": asdict(self.config),
            "classes": self.classes,
            "encoders": _digests(self.config, self.model),
            "epoch": self.epoch,
            "validation": self.validation,
        }
        trainable.save_trainable(self.model, path, meta)

    @classmethod
    def load(cls, path: str | Path) -> PMFClassifier:
        """Read what :meth:`save` wrote, onto the encoders of this machine.

        Raises:
            InputError: missing file, another kind of file, or other encoder weights here.
        """
        if _kind(path) != KIND:
            raise InputError(
                f"{path} is not a classifier with PMF: give a file that `fit --model pmf` has "
                "saved."
            )
        meta = trainable.read_trainable(path)[1]["config"]
        try:
            config = PMFClassifierConfig(**meta["config"])
            classes, encoders = meta["classes"], meta["encoders"]
            chosen = meta["epoch"], meta["validation"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} comes from another version of this library ({error}): fit it again."
            ) from error
        model = _build(config, len(classes))
        for name, found in _digests(config, model).items():
            if encoders.get(name) != found:
                raise InputError(
                    f"{path} was trained on other weights of {name}: fit it again with the "
                    "weights of this machine."
                )
        trainable.load_trainable(model, path)
        return cls(config, classes, model.eval(), *chosen)


def load(path: str | Path) -> FeatureClassifier | PMFClassifier:
    """A saved classifier of either kind; the file says which.

    Raises:
        InputError: missing file, another kind of file, or other encoder weights here.
    """
    kind = _kind(path)
    if kind is None:
        raise InputError(
            f"{path} is not a classifier of this library: give a file that `fit` has saved."
        )
    return PMFClassifier.load(path) if kind == KIND else FeatureClassifier.load(path)


def fit_table(
    path: str | Path,
    out: str | Path,
    image_column: str | None = "image",
    text_column: str | None = "text",
    label_column: str | None = "label",
    seed: int = 0,
    config: PMFClassifierConfig | None = None,
) -> FitReport:
    """Fit PMF on a folder or table that has images and texts, and save it.

    Arguments and errors are those of :func:`mmfusion_lib.classifier.fit_table`; ``seed`` is of the
    split alone, ``config.seed`` of the training.
    """
    return classifier.fit_table(
        path, out, image_column, text_column, label_column, seed, config, PMFClassifier.fit
    )


def _kind(path: str | Path) -> str | None:
    """What the metadata of a file call it: this kind, a probe, or nothing that we know."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "mmfusion_classifier" in metadata:
            return "FeatureClassifier"
        saved = json.loads(metadata["config"])  # of any file of trainable.save_trainable
        return KIND if saved.get("kind") == KIND else None
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the path.") from error
    except (SafetensorError, OSError, KeyError, AttributeError, json.JSONDecodeError):
        return None


def _pairs(
    part: str,
    images: Sequence[Any] | None,
    texts: Sequence[str] | None,
    labels: Sequence[str] | None,
    classes: tuple[str, ...],
) -> pairs.Pairs:
    """One part as pairs, checked; None for labels when they are to be predicted."""
    for kind, values in (("images", images), ("texts", texts)):
        if values is None:
            raise InputError(
                f"PMF fuses images with texts, and the {part} has no {kind}: give one an item, or "
                "use a probe, which reads either alone (`fit --model probe`)."
            )
    count = len(images if labels is None else labels)
    if not count:
        raise InputError(f"The {part} has no items: give at least one.")
    for kind, values in (("images", images), ("texts", texts)):
        if len(values) != count:
            raise InputError(
                f"There are {len(values)} {kind} for {count} items of {part}: give one "
                f"{kind[:-1]} each."
            )
    index = {name: i for i, name in enumerate(classes)}
    target = torch.zeros(count, dtype=torch.long)  # (N,)
    if labels is not None:
        target = torch.tensor([index[name] for name in labels])  # (N,)
    return pairs.Pairs(images, torch.arange(count), texts, target, [""] * count, classes)


def _build(config: PMFClassifierConfig, num_classes: int) -> PMF:
    """Encoders by name, and untrained prompts, mappings and heads."""
    image = checkpoints.load_image_encoder(config.image_encoder, depth=config.image_depth)
    text = checkpoints.load_text_encoder(config.text_encoder, depth=config.text_depth)
    torch.manual_seed(config.seed)
    return PMF(image, text, config.sizes(num_classes))


def _cached(
    config: PMFClassifierConfig, model: PMF, found: pairs.Pairs
) -> pair_training.CachedPairs:
    """Base features of pairs, in float32: exactly what the live model computes."""
    return pair_training.cache(
        model.image_encoder, model.text_encoder, found,
        checkpoints.image_transform(config.image_encoder, size=config.image_size),
        checkpoints.load_tokenizer(config.text_encoder),
        (model.image_depth, model.text_depth), max_length=config.max_length,
    )  # fmt: skip


def _validator(data: pair_training.CachedPairs) -> Callable[[PMF], dict[str, float]]:
    """Accuracy, loss, and a score: the accuracy, less a share of one item that grows with loss."""
    plain = pair_training.validator(data)

    def validate(model: PMF) -> dict[str, float]:
        found = plain(model)
        doubt = 1 - 1 / (1 + found["loss"])  # 0 to 1
        return {**found, "score": found["accuracy"] - doubt / (len(data) + 1)}

    return validate


def _digests(config: PMFClassifierConfig, model: PMF) -> dict[str, str]:
    named: tuple[tuple[str, Encoder], ...] = (
        (config.image_encoder, model.image_encoder),
        (config.text_encoder, model.text_encoder),
    )
    return {name: checkpoints.weights_digest(encoder) for name, encoder in named}
