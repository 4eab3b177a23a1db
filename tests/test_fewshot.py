"""Few shots: how they are drawn, what is learnt, how names are ranked, and the simpler ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from mmfusion_lib import checkpoints, fewshot, train
from mmfusion_lib.encoder_config import CONFIGS
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import PrismerConfig
from mmfusion_lib.recipes import groceries_fewshot

IMAGE = EncoderConfig("image", 16, 2, 2, 24, image_size=16, patch_size=8)
NAMES = ("golden apple", "milk", "red onion")


@pytest.fixture
def model() -> Prismer:
    torch.manual_seed(0)
    text = replace(CONFIGS["minilm-l6"], width=16, depth=1, heads=2, mlp_width=24)
    config = PrismerConfig(IMAGE, text, (), image_size=16)
    model = Prismer(build_encoder(IMAGE), build_encoder(text), config).eval()
    model.tokenizer = checkpoints.load_tokenizer()
    return model


def test_more_shots_hold_the_fewer():
    labels = [0, 1] * 6
    one, four = fewshot.draw(labels, 1, seed=3), fewshot.draw(labels, 4, seed=3)
    assert sorted(labels[row] for row in four) == [0] * 4 + [1] * 4
    assert set(one) < set(four)
    assert fewshot.draw(labels, 4, seed=4) != four
    with pytest.raises(InputError):
        fewshot.draw(labels, 7, seed=0)


def test_silent_adaptors_leave_the_frozen_encoder(model):
    pixels = {"rgb": torch.randn(1, 3, 16, 16)}
    before = model.encode(pixels)
    fewshot.silence(model.encoder)
    tokens = model.encode(pixels)
    for layer in model.encoder.layers:
        x = torch.randn(1, 3, 16)
        torch.testing.assert_close(layer.adaptor(x), x)
    assert not torch.allclose(before, tokens)


def test_objective_is_the_loss_of_decode(model):
    latents = torch.randn(3, 4, 16)
    items = fewshot.Named(latents, torch.tensor([2, 0, 1]), NAMES, model.tokenizer)
    batch = default_collate([items[i] for i in range(3)])
    mask = (batch["ids"] != model.tokenizer.pad_id).long()
    losses = model.decode(batch["ids"], mask, latents, batch["labels"]).loss
    torch.testing.assert_close(fewshot.objective(model, batch), losses.mean())


def test_some_tokens_are_shown_at_a_time():
    tokenizer = checkpoints.load_tokenizer()
    latents = torch.arange(4.0)[None, :, None].expand(1, 4, 2)
    items = fewshot.Named(latents, torch.tensor([0]), NAMES, tokenizer, seen=2)
    seen = {tuple(sorted(items[0]["latents"][:, 0].tolist())) for _ in range(40)}
    assert all(len(set(pair)) == 2 for pair in seen)
    assert len(seen) == 6  # 2 of 4
    with pytest.raises(InputError, match="seen=5"):
        fewshot.Named(latents, torch.tensor([0]), NAMES, tokenizer, seen=5)


def test_names_are_learnt_and_ranked(model):
    """Three pictures of constant tokens, three names."""
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    model.decoder.words.requires_grad_(False)
    latents = torch.nn.functional.one_hot(torch.arange(3), 16).float()[:, None] * 4
    labels = torch.tensor([2, 0, 1])
    items = fewshot.Named(latents.expand(3, 4, 16), labels, NAMES, model.tokenizer)
    config = train.TrainConfig(epochs=60, batch_size=3, lr=2e-2)
    train.fit(model, items, fewshot.objective, config, progress=False)
    found = fewshot.rank_names(model, items.latents, NAMES, batch_size=2)
    assert found.tolist() == [2, 0, 1]


def test_nearest_mean_by_hand():
    features = torch.tensor([[1.0, 0], [3, 0], [0, 2]])
    labels = torch.tensor([0, 0, 1])
    # means point along x and along y; (1, 5) is nearer to y, (9, 1) to x.
    queries = torch.tensor([[1.0, 5], [9, 1]])
    assert fewshot.nearest_mean(features, labels, queries, 2).tolist() == [1, 0]
    with pytest.raises(InputError, match="Class 2"):
        fewshot.nearest_mean(features, labels, queries, 3)


def test_the_tail_goes_on_where_the_cache_ends():
    torch.manual_seed(0)
    encoder = build_encoder(IMAGE).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokens = encoder.layers[0](encoder.embed(pixels))
        tail = fewshot.Tail(encoder, 1, 3).eval()
        whole = tail.head(encoder.readout(encoder.layers[1](tokens)))
        torch.testing.assert_close(tail(tokens), whole)
    with pytest.raises(InputError, match="depth=3"):
        fewshot.Tail(encoder, 3, 3)


def test_units_come_ends_first():
    chosen = groceries_fewshot.LAB
    names = groceries_fewshot.units(chosen)
    assert names[0] == "mean-1-0"
    assert [n for n in names if n.startswith("tuned")] == [
        f"tuned-{shots}-{seed}" for shots in (1, 16) for seed in chosen["seeds"]
    ]
    assert len(names) == len(set(names))
