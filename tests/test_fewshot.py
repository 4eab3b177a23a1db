"""Few-shot naming: what is learnt and hidden, tokens from a cache, ranking, and the simple ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from mmfusion_lib import checkpoints, features, fewshot, metrics, prismer_training, train
from mmfusion_lib.encoder_config import CONFIGS
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import PrismerConfig
from mmfusion_lib.recipes import groceries_fewshot as recipe
from mmfusion_lib.trainable import freeze

IMAGE = EncoderConfig("image", 16, 2, 2, 24, image_size=16, patch_size=8, readout="cls+mean")
NAMES = ["red apple", "sour milk", "kiwi"]


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoints.load_tokenizer()


@pytest.fixture
def model(tokenizer) -> Prismer:
    torch.manual_seed(0)
    text = replace(CONFIGS["minilm-l6"], width=16, depth=1, heads=2, mlp_width=24, dropout=0.0)
    config = PrismerConfig(IMAGE, text, (), image_size=16)
    model = Prismer(build_encoder(IMAGE), build_encoder(text), config).eval()
    model.tokenizer = tokenizer
    return model


# ---------------------------------------------------------------- shots


def test_fewer_shots_are_among_more_and_seeds_differ():
    labels = [0, 1, 0, 1, 0, 1, 0, 1]
    two, three = fewshot.draw(labels, 2, 0), fewshot.draw(labels, 3, 0)
    assert sorted(labels[row] for row in two) == [0, 0, 1, 1]
    assert set(two) < set(three)
    assert len({tuple(fewshot.draw(labels, 2, seed)) for seed in range(8)}) > 1
    with pytest.raises(InputError, match="has 4 objects but 5"):
        fewshot.draw(labels, 5, 0)


# ---------------------------------------------------------------- tokens


def test_silent_adaptors_leave_the_image_encoder_as_it_was(model):
    pixels = torch.randn(2, 3, 16, 16)
    tokens = model.encoder.embed_image(pixels)
    for layer in model.encoder.layers:
        tokens = layer.block(tokens)  # without the adaptor
    expected = model.encoder.norm(tokens)
    assert not torch.allclose(model.encode({"rgb": pixels}), expected)
    fewshot.silence(model.encoder)
    torch.testing.assert_close(model.encode({"rgb": pixels}), expected)
    adaptors = [layer.adaptor for layer in model.encoder.layers]
    drawn = [part for adaptor in adaptors for part in (adaptor.down, adaptor.up)]
    assert not any(p.any() for part in drawn for p in part.parameters())  # no seed is left


def test_tokens_from_the_cache_are_those_of_encode(cache, model):
    pictures = [torch.randn(3, 16, 16) for _ in range(3)]

    class Ready:  # pictures that need no file, in the form of features.Images
        def __len__(self):
            return len(pictures)

        def batch(self, start, stop):
            return features.Batch(torch.stack(pictures[start:stop]), None)

        def digest(self):
            return "three"

    encoder = fewshot.VisionTokens(model.encoder, 2)
    found = features.extract(encoder, Ready(), depths=[0], dtype="float32", progress=False)[0]
    expected = fewshot.middle(model.encode({"rgb": torch.stack(pictures)}), 2)
    torch.testing.assert_close(found.values, expected.detach())


@pytest.mark.parametrize("cls", [[], [16]])
def test_the_middle_of_a_picture(cls):
    tokens = torch.tensor([*cls, *range(16)], dtype=torch.float)[None, :, None]  # 4 x 4 patches
    assert fewshot.middle(tokens, 2).flatten().tolist() == [*cls, 5, 6, 9, 10]
    assert fewshot.middle(tokens, 4).equal(tokens)
    with pytest.raises(InputError, match="middle=5 of 4 patches a side"):
        fewshot.middle(tokens, 5)


def test_whitened_tokens_vary_alike_in_all_directions():
    torch.manual_seed(0)
    tokens = torch.randn(40, 25, 3) @ torch.tensor([[9.0, 1, 0], [0, 1, 0], [0, 0, 0.1]]) + 5
    mean, matrix = fewshot.whitening(tokens, shrinkage=0)
    white = ((tokens - mean) @ matrix).flatten(0, 1)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3), atol=1e-3, rtol=0)
    _, gentle = fewshot.whitening(tokens, shrinkage=0.5)  # v becomes v / (v + 0.5 * mean v)
    before = torch.linalg.eigvalsh((tokens - mean).flatten(0, 1).T.cov(correction=0))
    after = ((tokens - mean) @ gentle).flatten(0, 1).var(0, correction=0)
    torch.testing.assert_close(after, before / (before + 0.5 * before.mean()), atol=1e-4, rtol=0)


def test_only_some_tokens_are_seen_anew_each_time(tokenizer):
    latents = torch.arange(8.0).reshape(1, 8, 1)  # token i holds the number i
    data = fewshot.Named(latents, torch.tensor([0]), NAMES, tokenizer, seen=3)
    torch.manual_seed(0)
    drawn = [data[0]["latents"].flatten().tolist() for _ in range(8)]
    assert all(len(set(row)) == 3 for row in drawn)  # three different ones
    assert len({tuple(sorted(row)) for row in drawn}) > 1
    whole = fewshot.Named(latents, torch.tensor([0]), NAMES, tokenizer)
    assert whole[0]["latents"].flatten().tolist() == list(range(8))
    with pytest.raises(InputError, match="seen=9 of 8 tokens"):
        fewshot.Named(latents, torch.tensor([0]), NAMES, tokenizer, seen=9)
    with pytest.raises(InputError, match="2 labels for 1 pictures"):
        fewshot.Named(latents, torch.tensor([0, 1]), NAMES, tokenizer)


# ---------------------------------------------------------------- Prismer


def test_objective_is_that_of_training_on_whole_pictures(model, tokenizer):
    pixels, labels = torch.randn(3, 3, 16, 16), torch.tensor([2, 0, 1])
    latents = model.encode({"rgb": pixels}).detach()
    ours = fewshot.Named(latents, labels, NAMES, tokenizer)
    items = prismer_training.PrismerItems(
        {"rgb": pixels}, ["A photo of a"] * 3, [[NAMES[i]] for i in labels], tokenizer, list("abc")
    )
    # Also where every name of the batch is shorter than the longest of all.
    for rows in (range(3), range(1)):
        found = fewshot.objective(model, default_collate([ours[i] for i in rows]))
        batch = default_collate([items[i] for i in rows])
        torch.testing.assert_close(found, prismer_training.objective(model, batch))


def test_ranking_agrees_with_answers_and_learns(model, tokenizer):
    pixels, labels = torch.randn(3, 3, 16, 16), torch.tensor([2, 0, 1])
    latents = model.encode({"rgb": pixels}).detach()
    data = fewshot.Named(latents, labels, NAMES, tokenizer)
    freeze(model.encoder)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    config = train.TrainConfig(epochs=30, batch_size=3, lr=3e-2)
    train.fit(model, data, fewshot.objective, config, progress=False)
    found = fewshot.rank_names(model, latents, NAMES, batch_size=2)
    assert found.tolist() == labels.tolist()
    assert all(torch.equal(before[k], v) for k, v in model.encoder.state_dict().items())
    items = prismer_training.PrismerItems(
        {"rgb": pixels}, ["A photo of a"] * 3, [["x"]] * 3, tokenizer, list("abc")
    )
    assert prismer_training.answers(model, items, NAMES) == [NAMES[i] for i in labels]
    model.tokenizer = None
    with pytest.raises(InputError, match=r"set model\.tokenizer"):
        fewshot.rank_names(model, latents, NAMES)


# ---------------------------------------------------------------- the simple ways


def test_nearest_mean_is_by_direction():
    features_ = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    labels = torch.tensor([0, 0, 1])
    # Sums (4, 2) and (0, 5). (1, 1) has cosines 6 / sqrt(40) = 0.95 and 1 / sqrt(2) = 0.71 with
    # them, (1, 3) 10 / sqrt(200) = 0.71 and 3 / sqrt(10) = 0.95; length plays no part.
    queries = torch.tensor([[1.0, 1.0], [1.0, 3.0], [100.0, 100.0]])
    assert fewshot.nearest_mean(features_, labels, queries, 2).tolist() == [0, 1, 0]
    with pytest.raises(InputError, match="Class 2 has no item"):
        fewshot.nearest_mean(features_, labels, queries, 3)


def test_tail_goes_on_from_cached_tokens():
    encoder = build_encoder(IMAGE).eval()
    pixels = torch.randn(2, 3, 16, 16)
    batch = features.Batch(pixels, None)
    tail = fewshot.Tail(encoder, 1, 3)
    below = features.run_to(encoder, batch, [1])[1].detach()
    whole = tail.head(encoder.pool(encoder(pixels)))
    torch.testing.assert_close(tail(below), whole)
    assert fewshot.predict(tail, below, batch_size=1).tolist() == whole.argmax(1).tolist()
    tail.loss({"tokens": below, "labels": torch.tensor([0, 2])}).backward()
    assert all(p.grad is not None for p in tail.parameters())
    with pytest.raises(InputError, match="depth=3 is asked of an encoder with 2 blocks"):
        fewshot.Tail(encoder, 3, 3)


def test_a_view_is_a_crop_near_the_middle_and_stays_the_same():
    from PIL import Image

    x = torch.arange(200, dtype=torch.uint8).repeat(100, 1)  # (100, 200), columns are numbered
    wide = Image.fromarray(x.numpy()).convert("RGB")
    cut = [fewshot.view(wide, str(i)) for i in range(40)]
    assert all(53 <= size <= 110 for one in cut for size in one.size)  # 0.6 * 0.9 to 1 * 1.1
    ends = [one.getpixel((x, 0))[0] for one in cut for x in (0, one.width - 1)]
    assert min(ends) >= 20 and max(ends) <= 180  # 200 wide, at least 53 of them kept near 100
    mirrored = [one.getpixel((0, 0)) > one.getpixel((one.width - 1, 0)) for one in cut]
    assert 10 < sum(mirrored) < 30
    assert len({one.size for one in cut}) > 10
    assert fewshot.view(wide, "7").tobytes() == cut[7].tobytes()
    assert fewshot.view(wide.crop((0, 0, 1, 1)), "0").size == (1, 1)


def test_views_are_read_as_pictures_are():
    from PIL import Image

    transform = checkpoints.image_transform("dinov2-small", size=28)
    pictures = [Image.new("RGB", (40, 30), (90 * i, 0, 0)) for i in range(2)]
    images = features.Images(pictures, transform)
    some = fewshot.Views(images, [(1, 0), (0, 3), (1, 0)])
    assert len(some) == 3
    batch = some.batch(0, 3).inputs
    assert torch.equal(batch[[0, 2]], images.batch(1, 2).inputs.expand(2, -1, -1, -1))
    assert torch.allclose(batch[1], images.batch(0, 1).inputs[0], atol=1e-5)  # of one colour
    assert some.digest() != fewshot.Views(images, [(1, 0), (0, 2), (1, 0)]).digest()


# ---------------------------------------------------------------- the recipe


def test_a_class_is_learnt_from_as_many_pictures_whatever_the_shots(monkeypatch):
    labels = torch.arange(3).repeat(20)
    monkeypatch.setattr(recipe, "pictures", lambda s, split: (None, labels))
    found = {k: recipe.chosen({"views": 16}, k, seed=1) for k in (1, 4, 16)}
    assert all(len(set(pairs)) == 48 for pairs in found.values())
    assert {number for _, number in found[4]} == {0, 1, 2, 3}
    assert {number for _, number in found[16]} == {0}
    assert {row for row, _ in found[1]} < {row for row, _ in found[4]}


def test_units_come_ends_first_and_are_summed_up(monkeypatch):
    s = recipe.LAB | {"seeds": [0, 1], "ways": ["probe", "prismer", "tuned"], "shots": [1, 4]}
    names = recipe.units(s)
    assert names[:4] == ["probe-1-0", "probe-1-1", "prismer-1-0", "prismer-1-1"]
    assert names[-1] == "tuned-4-1" and len(names) == 12
    monkeypatch.setattr(recipe, "table", lambda *a: ([], torch.tensor([0, 0, 1, 1])))

    def unit(name):  # prismer gets 3 of 4, all else 1 of 4
        hits = "1101" if name.startswith("prismer") else "1000"
        return {"hits": hits, "validation": 0.5, "held_out": 0.25}

    found = recipe.summarise(s, {name: unit(name) for name in names})
    assert found["results"]["prismer-1"]["mean"] == 0.75
    assert found["results"]["probe-4-validation"]["mean"] == 0.5
    assert found["curves"]["prismer"] == {"x": [1, 4], "mean": [0.75, 0.75], "std": [0.0, 0.0]}
    # By product: 2 - 1 of the first, 1 - 0 of the second: half of the pictures, in every draw.
    difference = found["comparisons"]["prismer-1 - probe-1"]
    assert difference == metrics.Interval(0.5, 0.5, 0.5)._asdict()
    assert "prismer-4 - tuned-4" in found["comparisons"]


def test_smoke_scale_runs_whole(cache, data_root, minilm, dinov2, monkeypatch):
    from mmfusion_lib import runs

    s = {"shots": [1], "count": {"train": 40, "validation": 5, "test": 10}}
    record = runs.run(recipe.RECIPE, "smoke", **s)
    assert set(record.curves) == {"mean", "whitened", "probe", "prismer", "tuned"}
    assert 0 <= record.results["prismer-1"]["mean"] <= 1
