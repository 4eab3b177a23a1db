"""Labels of patches, the tuning loss, and the published encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmfusion_lib import InputError, records, scene_tuning, trainable
from mmfusion_lib.encoders import EncoderConfig, build_encoder

pytest.importorskip("embreex", reason="the extra `scenes` is not installed")


@pytest.fixture(scope="module")
def row():
    from mmfusion_lib.data import scenes

    return scenes.encode(scenes.make_scene("train", 0))


def test_a_patch_is_named_after_the_object_that_covers_most_of_it(row):
    from mmfusion_lib.data import scenes

    labels = scene_tuning.patch_labels([row], side=8)[0]  # (64, 3)
    scene = scenes.decode(row)
    words = scene_tuning.vocabulary()
    for patch in range(64):
        y, x = 14 * (patch // 8), 14 * (patch % 8)
        inside = scene.instances[y : y + 14, x : x + 14].ravel()
        counts = {i: int((inside == i).sum()) for i in np.unique(inside) if i != scenes.NOTHING}
        most = max(counts, key=counts.get, default=None)
        if most is None or counts[most] < 49:  # a quarter of 14 x 14
            assert labels[patch].tolist() == [0, 0, 0]
        else:
            item = scene.graph["objects"][most]
            names = [words[n][labels[patch, i] - 1] for i, n in enumerate(scene_tuning.ATTRIBUTES)]
            assert names == [item["kind"], item["colour"], item["texture"]]
    assert (labels[:, 0] > 0).any()


def test_a_grid_that_does_not_divide_the_picture_is_refused(row):
    with pytest.raises(InputError, match="112 pixels does not divide into 9 patches"):
        scene_tuning.patch_labels([row], side=9)


def reader():
    torch.manual_seed(0)
    config = EncoderConfig(
        "image", width=8, depth=3, heads=2, mlp_width=16, image_size=8, patch_size=4
    )
    return scene_tuning.SceneReader(build_encoder(config), depth=2)


def test_only_the_top_blocks_and_the_heads_train():
    model = reader()
    trains = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {"layers", "weight", "bias"}
    assert not model.encoder.layers[1].norm1.weight.requires_grad
    tokens, labels = torch.randn(2, 5, 8), torch.randint(0, 3, (2, 4, 3))
    scene_tuning.loss(model, {"tokens": tokens, "labels": labels}).backward()
    assert model.encoder.layers[2].mlp.fc1.weight.grad.abs().max() > 0


def test_accuracy_counts_patches_on_objects_alone():
    """The heads say class 1 of every attribute everywhere: one of two object patches is right."""
    model = reader().eval()
    with torch.no_grad():
        model.patches.weight.zero_()
        model.patches.bias.zero_()
        for start in (0, model.sizes[0], model.sizes[0] + model.sizes[1]):
            model.patches.bias[start + 1] = 1.0
    labels = torch.tensor([[[1, 1, 1], [2, 2, 1], [0, 0, 0], [0, 0, 0]]])  # (1, 4, 3)

    class Data:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"tokens": torch.randn(5, 8), "labels": labels[index]}

    found = scene_tuning.patch_accuracy(model, Data())
    assert found == {"kind": 0.5, "colour": 0.5, "texture": 1.0}


def test_published_encoder_is_small_and_tied_to_its_record():
    file = scene_tuning.weights_file()
    assert file.stat().st_size <= 10e6
    _, metadata = trainable.read_trainable(file)
    record = records.load(metadata["config"]["recipe"])
    assert record is not None and metadata["config"]["seed"] in record.seeds


def test_published_encoder_replaces_two_blocks():
    from mmfusion_lib import checkpoints

    try:
        plain = checkpoints.load_image_encoder("dinov2-small", depth=9)
    except InputError as error:
        pytest.skip(f"weights of dinov2-small are not at hand: {error}")
    tuned = scene_tuning.load_encoder(9)
    changed = [
        number
        for number, (a, b) in enumerate(zip(plain.layers, tuned.layers), start=1)
        if not torch.equal(a.mlp.fc1.weight, b.mlp.fc1.weight)
    ]
    assert changed == [7, 8] and trainable.is_frozen(tuned)
