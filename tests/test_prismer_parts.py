"""Adaptors, stems and the resampler, worked out by hand on tiny sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmfusion_lib.adaptors import Adaptor, squared_relu
from mmfusion_lib.errors import InputError
from mmfusion_lib.resampler import Resampler, ResamplerLayer
from mmfusion_lib.stems import Stem, stem_of


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def plain(adaptor: Adaptor, down: float, up: float) -> Adaptor:
    """Width 1, no norm, no biases."""
    adaptor.norm = nn.Identity()
    for layer, weight in ((adaptor.down, down), (adaptor.up, up)):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    return adaptor


# Adaptors


def test_adaptor_by_hand():
    adaptor = plain(Adaptor(1), down=2.0, up=3.0)
    tokens = torch.tensor([[[1.0], [-1.0]]])
    # 1 + 3 (2 * 1)^2 = 13; -1 + 3 max(0, -2)^2 = -1
    assert adaptor(tokens).tolist() == [[[13.0], [-1.0]]]


def test_squared_relu():
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_where_the_norm_stands(norm):
    adaptor, tokens = Adaptor(8, norm), torch.randn(2, 3, 8)
    nn.init.normal_(adaptor.norm.weight)
    branch = lambda x: adaptor.up(adaptor.down(x).clamp(min=0) ** 2)  # noqa: E731
    expected = {
        "pre": tokens + branch(adaptor.norm(tokens)),
        "post": adaptor.norm(tokens + branch(tokens)),
    }[norm]
    torch.testing.assert_close(adaptor(tokens), expected)


def test_a_gate_starts_closed_and_opens():
    adaptor, tokens = Adaptor(8, gate=True), torch.randn(2, 3, 8)
    assert torch.equal(adaptor(tokens), tokens)
    adaptor(tokens).square().sum().backward()
    assert adaptor.gate.grad.abs() > 0  # the way out of the identity
    assert not adaptor.up.weight.grad.any()  # nothing passes a closed gate


def test_near_zero_starts_near_the_identity():
    tokens = torch.randn(4, 8, 64)
    near = (Adaptor(64, near_zero=True)(tokens) - tokens).std()
    usual = (Adaptor(64)(tokens) - tokens).std()
    assert near < 0.01 < 0.1 < usual


def test_bottleneck():
    adaptor = Adaptor(8, bottleneck=2)
    # two maps 8 x 2 with biases 2 and 8, one norm of 2 x 8
    assert sum(p.numel() for p in adaptor.parameters()) == 2 * 8 * 2 + 2 + 8 + 16


@pytest.mark.parametrize("options", [{"norm": "late"}, {"bottleneck": 0}])
def test_bad_adaptor(options):
    with pytest.raises(InputError, match=str(next(iter(options.values())))):
        Adaptor(8, **options)


# Stems


@pytest.mark.parametrize(
    ("semantic", "patch", "pixels", "grid"),
    [
        (False, 16, 224, 14),
        (True, 16, 224, 14),
        (False, 14, 224, 16),
        (True, 14, 224, 16),
        (False, 14, 112, 8),
        (True, 14, 112, 8),
    ],
)
def test_a_stem_gives_the_grid_of_the_patches(semantic, patch, pixels, grid):
    channels = 64 if semantic else 1
    stem = Stem(channels, 16, patch, semantic).eval()
    assert stem(torch.rand(1, channels, pixels, pixels)).shape == (1, 16, grid, grid)


def test_a_stem_is_local():
    """A change in one corner of a map leaves the far corner's token alone."""
    stem = Stem(1, 8, 16, semantic=False).eval()
    maps = torch.rand(1, 1, 128, 128)
    changed = maps.clone()
    changed[..., :8, :8] = 0
    before, after = stem(maps), stem(changed)
    assert not torch.allclose(before[..., 0, 0], after[..., 0, 0])
    assert torch.equal(before[..., -1, -1], after[..., -1, -1])


def test_layers_of_a_stem():
    """Official layout: three modules a stage behind the resize, then the 1x1 convolution."""
    kinds = [type(module).__name__ for module in Stem(1, 8, 16, False).network]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 4 + ["Conv2d"]


def test_all_segmentations_share_a_stem():
    assert stem_of("seg_coco") == stem_of("seg_scenes") == "seg"
    assert stem_of("depth") == "depth"
    with pytest.raises(InputError, match="'smell'"):
        stem_of("smell")


def test_bad_stem_input():
    with pytest.raises(InputError, match=r"\(2, 3, 32, 32\)"):
        Stem(1, 8, 16, semantic=False)(torch.rand(2, 3, 32, 32))
    with pytest.raises(InputError, match="width=12"):
        Stem(1, 12, 16, semantic=False)


# Resampler


def test_a_layer_by_hand():
    """Width 1, no norms, equal scores: latents get the mean of themselves and of the tokens."""
    layer = ResamplerLayer(1, 1)
    layer.norm1 = layer.norm2 = layer.norm3 = nn.Identity()
    for part in (layer.attention.query, layer.attention.key):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    for part in (layer.attention.value, layer.attention.out):
        nn.init.ones_(part.weight)
        nn.init.zeros_(part.bias)
    nn.init.zeros_(layer.fc2.weight)
    nn.init.constant_(layer.fc2.bias, 100.0)
    latents, tokens = torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[6.0], [8.0]]])
    # mean of 2, 4, 6, 8 is 5: 2 + 5 = 7 and 4 + 5 = 9; then the MLP adds 100
    assert layer(latents, tokens).tolist() == [[[107.0], [109.0]]]


def test_tokens_have_no_order():
    resampler, tokens = Resampler(8, latents=3, layers=2, heads=2), torch.randn(2, 6, 8)
    order = torch.randperm(6)
    torch.testing.assert_close(resampler(tokens), resampler(tokens[:, order]))


def test_any_number_of_tokens_in_as_many_latents_out():
    resampler = Resampler(8, latents=3, layers=2, heads=2)
    for count in (0, 1, 7):
        assert resampler(torch.randn(2, count, 8)).shape == (2, 3, 8)


def test_norms_of_both_sides_are_their_own():
    """Latents and tokens are normalised apart: scaling LN2 changes how tokens count, not latents."""
    layer = ResamplerLayer(8, 2)
    latents, tokens = torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    before = layer(latents, tokens[:, :0])
    nn.init.constant_(layer.norm2.weight, 5.0)
    assert torch.equal(layer(latents, tokens[:, :0]), before)


@pytest.mark.parametrize("sizes", [{"latents": 0}, {"layers": 0}, {"heads": 3}])
def test_bad_resampler(sizes):
    name, value = next(iter(sizes.items()))
    with pytest.raises(InputError, match=f"{name}={value}"):
        Resampler(8, **sizes)
