"""Activation checkpointing changes memory, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from mmfusion_lib import accounting, prismer_training
from mmfusion_lib.encoders import CONFIGS, build_encoder
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import MODELS, PrismerConfig
from mmfusion_lib.recompute import recompute_layers


def build() -> Prismer:
    """4 + 4 + 4 random layers; dropout in the decoder's own layer, which trains."""
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 4, "heads": 2, "mlp_width": 64}
    image = replace(MODELS["small"].image, **sizes)
    text = replace(CONFIGS["minilm-l6"], **sizes, vocab_size=100)
    config = PrismerConfig(image, text, ("depth",), image_size=112, num_latents=8)
    return Prismer(build_encoder(image), build_encoder(text), config).train()


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 99, (2, 12), generator=generator)
    maps = {
        "rgb": torch.randn(2, 3, 112, 112, generator=generator),
        "depth": torch.randn(2, 1, 112, 112, generator=generator),
    }
    return {"experts": maps, "ids": ids, "mask": torch.ones_like(ids), "labels": ids.clone(),
            "weight": torch.ones(2)}  # fmt: skip


def step(model: Prismer) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(1)  # the same dropout
    model.zero_grad()
    loss = prismer_training.objective(model, batch())
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def kept(model: Prismer) -> int:
    given = batch()
    return accounting.saved_activation_bytes(
        lambda: prismer_training.objective(model, given), [model]
    )


def test_the_gradient_stays_and_the_memory_goes():
    plain, thrifty = build(), build()
    loss, gradients = step(plain)
    assert recompute_layers(thrifty) == 4 + 4 + 4  # encoder, resampler, decoder
    assert recompute_layers(thrifty) == 12  # a second time changes nothing
    again, found = step(thrifty)
    assert again == loss and found.keys() == gradients.keys()
    assert all(torch.equal(found[name], value) for name, value in gradients.items())
    assert kept(thrifty) < 0.5 * kept(plain)
    assert {n for n, _ in thrifty.named_parameters()} == {n for n, _ in plain.named_parameters()}


def test_a_copy_has_weights_of_its_own():
    model = build().eval()
    recompute_layers(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model.encode(batch()["experts"])
        for parameter in twin.parameters():
            parameter.add_(0.1)
        assert torch.equal(model.encode(batch()["experts"]), before)
        for parameter in twin.encoder.layers.parameters():
            parameter.mul_(3)
        changed = twin.encode(batch()["experts"])
        for parameter in model.encoder.layers.parameters():
            parameter.zero_()
        assert torch.equal(twin.encode(batch()["experts"]), changed)


def test_without_gradients_it_is_the_same_model():
    plain, thrifty = build().eval(), build().eval()
    recompute_layers(thrifty)
    with torch.no_grad():
        torch.testing.assert_close(
            thrifty.encode(batch()["experts"]), plain.encode(batch()["experts"]), rtol=0, atol=0
        )
