"""Live and cached pairs give the same logits; losses and scores by hand; every method trains."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from mmfusion_lib import baselines, pair_training, pmf_start, train
from mmfusion_lib.data.images import ImageTransform
from mmfusion_lib.data.pairs import Pairs
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.pmf import PMF, PMFConfig, PMFOutput


class Letters:
    """A tokenizer: CLS, one id a letter, SEP, padding."""

    def __call__(self, texts, max_length):
        rows = [[1, *(3 + ord(c) % 29 for c in t), 2][:max_length] for t in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, (ids != 0).long()


TRANSFORM = ImageTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def encoders():
    torch.manual_seed(0)
    image = EncoderConfig(
        "image", width=8, depth=3, heads=2, mlp_width=16, image_size=8, patch_size=4
    )
    text = EncoderConfig(
        "text", width=8, depth=3, heads=2, mlp_width=16, norm="post", vocab_size=32,
        max_positions=40, readout="mean",
    )  # fmt: skip
    return build_encoder(image).eval(), build_encoder(text).eval()


def make_pairs(several=False) -> Pairs:
    images = [Image.new("RGB", (8, 8), (40 * i, 255 - 40 * i, 90)) for i in range(4)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    if several:
        labels = torch.nn.functional.one_hot(labels, 3).float()
    texts = ["a", "bb", "abc", "c", "cab", "b", "", "ab"]
    return Pairs(images, torch.arange(8) % 4, texts, labels, list("abcdefgh"), ("x", "y", "z"))


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path))
    return PMF(*encoders(), PMFConfig(3, query_prompts=2))


def cached(model, pairs, **options):
    depths = model.image_depth, model.text_depth
    encoders = model.image_encoder, model.text_encoder
    return pair_training.cache(*encoders, pairs, TRANSFORM, Letters(), depths, **options)


def test_cached_and_live_pairs_give_the_same_logits(model):
    pairs = make_pairs()
    live = pair_training.logits(model, pair_training.LivePairs(pairs, TRANSFORM, Letters()))
    from_cache = pair_training.logits(model, cached(model, pairs))
    assert live.shape == (8, 3) and torch.allclose(live, from_cache, atol=1e-5)
    lazily = pair_training.LivePairs(pairs, TRANSFORM, Letters(), hold=False)
    assert torch.equal(pair_training.logits(model, lazily), live)


def test_a_subset_reads_the_same_cache(model):
    data, part = cached(model, make_pairs()), cached(model, make_pairs(), items=[6, 1])
    assert len(part) == 2 and part.labels.tolist() == [0, 1]
    assert part.views[0].folder == data.views[0].folder and part.digest != data.digest
    for name in ("image_tokens", "text_tokens", "attention_mask"):
        assert torch.equal(part[0][name], data[6][name])


def test_one_of_several_views_is_drawn(model):
    pairs = make_pairs()
    other = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    depths = model.image_depth, model.text_depth
    both = pair_training.cache(
        model.image_encoder, model.text_encoder, pairs, [TRANSFORM, other], Letters(), depths
    )
    torch.manual_seed(0)
    seen = {both[0]["image_tokens"].sum().item() for _ in range(20)}
    assert len(seen) == 2


class Fixed(torch.nn.Module):
    """Answers the same logits, whatever is asked."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, pixel_values, input_ids, attention_mask):
        return PMFOutput(self.rows, self.rows, self.rows)


def batch(labels):
    return dict.fromkeys(("pixel_values", "input_ids", "attention_mask")) | {"labels": labels}


def test_cross_entropy_with_class_weights_by_hand():
    """Logits (0, 0) give log 2 for either class, so any weights give log 2; logits (log 3, 0) give
    log(4/3) for class 0 and log 4 for class 1. Weights 1, 3: (log(4/3) + 3 log 4) / 4."""
    model = Fixed([math.log(3), 0.0], [math.log(3), 0.0])
    labels = torch.tensor([0, 1])
    plain = pair_training.objective()(model, batch(labels)).item()
    assert plain == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    weighted = pair_training.objective(torch.tensor([1.0, 3.0]))(model, batch(labels)).item()
    assert weighted == pytest.approx((math.log(4 / 3) + 3 * math.log(4)) / 4)


def test_binary_cross_entropy_for_several_labels_by_hand():
    """All logits 0: every decision costs log 2. With weight 3 on the positives of class 0, of which
    there is one among four decisions: (3 + 1 + 1 + 1) log 2 / 4."""
    model, labels = Fixed([0.0, 0.0], [0.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert pair_training.objective()(model, batch(labels)).item() == pytest.approx(math.log(2))
    weighted = pair_training.objective(torch.tensor([3.0, 1.0]))(model, batch(labels)).item()
    assert weighted == pytest.approx(6 * math.log(2) / 4)


def test_scores_by_hand():
    scores = torch.tensor([[1.0, -1.0], [-1.0, 2.0], [3.0, 1.0]])
    assert pair_training.score(scores, torch.tensor([0, 1, 1])) == {"accuracy": 2 / 3}
    # Decisions (1,0) (0,1) (1,1) against (1,0) (0,1) (0,1): class 0 has 1 hit of 2 + 1, F1 2/3;
    # class 1 has 2 hits of 2 + 2, F1 1; micro 2 * 3 / (4 + 3).
    found = pair_training.score(scores, torch.tensor([[1.0, 0], [0, 1], [0, 1]]))
    assert found["f1_macro"] == pytest.approx(5 / 6) and found["f1_micro"] == pytest.approx(6 / 7)


@pytest.mark.parametrize("name", ["pmf", *baselines.NAMES])
@pytest.mark.parametrize("several", [False, True])
def test_every_method_learns_eight_pairs(name, several, tmp_path, monkeypatch):
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path))
    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")
    image, text = encoders()
    model = (
        PMF(image, text, PMFConfig(3))
        if name == "pmf"
        else baselines.build(name, image, text, 3, several)
    )
    data = pair_training.LivePairs(make_pairs(several), TRANSFORM, Letters())
    select = "f1_micro" if several else "accuracy"
    config = train.TrainConfig(epochs=12, batch_size=8, lr=0.02, weight_decay=0, select=select)
    result = train.fit(
        model, data, pair_training.objective(), config,
        validate=pair_training.validator(data), progress=False,
    )  # fmt: skip
    assert result.losses[-1] < result.losses[0]
    assert set(result.validations[0]) >= {select, "loss"}


def test_heads_that_start_as_the_probe_answer_as_the_probe(model):
    data = cached(model, make_pairs())
    probe = pmf_start.start_from_probe(model, data, data, decays=[0.1])
    expected = probe.logits(pmf_start.read(model, data))
    assert torch.allclose(pair_training.logits(model, data), expected, atol=1e-5)
    torch.manual_seed(0)
    data.labels = data.labels.flip(0)  # training still moves the messages from zero
    config = train.TrainConfig(epochs=2, batch_size=8, lr=0.01)
    train.fit(model, data, pair_training.objective(), config, progress=False)
    assert model.fusion[0].image.mapping.fc2.weight.abs().max() > 0
