"""Unimodal classifiers learn, and augmentation touches training pictures only."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfusion_lib import InputError, unimodal
from mmfusion_lib.data.images import ImageTransform
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.train import TrainConfig, fit

TRANSFORM = ImageTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def pictures(count: int = 16):
    """Half of them dark, half of them bright; the label says which."""
    rng = np.random.default_rng(0)
    labels = torch.arange(count) % 2
    made = []
    for label in labels.tolist():
        noise = rng.integers(0, 60, (8, 8, 3)) + 180 * label
        made.append(Image.fromarray(noise.astype(np.uint8)))
    return made, labels


def classifier() -> unimodal.UnimodalClassifier:
    torch.manual_seed(0)
    config = EncoderConfig(
        kind="image", width=8, depth=1, heads=2, mlp_width=16, image_size=8, patch_size=4
    )
    return unimodal.UnimodalClassifier(build_encoder(config), 2)


def test_pixels_are_normalised_as_the_transform_says():
    made, labels = pictures(2)
    data = unimodal.LabelledImages(made, labels, TRANSFORM)
    assert torch.allclose(data[1]["inputs"], TRANSFORM(made[1]), atol=1e-6)
    assert data[1]["labels"] == 1


def test_augmentation_follows_torchs_generator():
    made, labels = pictures(2)
    data = unimodal.LabelledImages(made, labels, TRANSFORM, augmented=True)
    torch.manual_seed(3)
    first, second = data[0]["inputs"], data[0]["inputs"]
    torch.manual_seed(3)
    assert torch.equal(data[0]["inputs"], first)
    assert not torch.equal(first, second)


def test_a_tiny_vit_learns_dark_from_bright(cache):
    made, labels = pictures()
    data = unimodal.LabelledImages(made, labels, TRANSFORM)
    model = classifier()
    config = TrainConfig(epochs=20, batch_size=8, lr=1e-2)
    result = fit(model, data, unimodal.loss, config, progress=False)
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert (unimodal.predict(model, data) == labels).all()


def test_lengths_must_agree():
    made, labels = pictures(4)
    with pytest.raises(InputError, match="4 inputs for 3 labels"):
        unimodal.LabelledImages(made, labels[:3], TRANSFORM)
