"""What PMF's official file gets wrong: each fault made again in a few lines, beside our behaviour.

The faulty lines are re-creations, numbered as in the chapter's list. Sizes: two images of 4 patches,
two texts of 5 tokens, encoders of width 8 and 2 layers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmfusion_lib.blocks import attention_weights
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.fusion import Tokens, appended
from mmfusion_lib.pmf import PMF, PMFConfig

IMAGE = EncoderConfig("image", 8, 2, 2, 16, image_size=8, patch_size=4)
TEXT = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=20, max_positions=6)
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(text: EncoderConfig = TEXT, **fields) -> PMF:
    fields = {"num_classes": 3, "num_fusion_layers": 1} | fields
    return PMF(build_encoder(IMAGE), build_encoder(text), PMFConfig(**fields))


def logits(model: PMF, mask: torch.Tensor = MASK) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 2 * 3 * 8 * 8).sin().view(2, 3, 8, 8)  # (384,) -> (B, 3, H, W)
    return model(pixels, IDS, mask).logits


# 1. Fusion context prompts never train


def test_a_switch_that_tests_for_a_name_nobody_sets_stays_off():
    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_fcp, self.head = nn.Parameter(torch.ones(2)), nn.Linear(2, 1)
            trains = [*self.head.parameters()]
            if hasattr(self, "fcp"):  # it is called vision_fcp
                trains.append(self.vision_fcp)
            self.requires_grad_(False)
            for parameter in trains:
                parameter.requires_grad_(True)

    model = Faulty()
    model.head(model.vision_fcp).sum().backward()
    assert model.head.weight.grad is not None
    assert model.vision_fcp.grad is None


@pytest.mark.parametrize("trains", [True, False])
def test_ours_says_whether_fusion_context_trains(trains):
    model = small(train_fusion_context=trains)
    logits(model).square().sum().backward()
    for side in (model.fusion[0].image, model.fusion[0].text):
        assert (side.fusion_context.grad is not None) == trains
        assert side.query.grad.abs().max() > 0  # the rest trains either way
        if trains:
            assert side.fusion_context.grad.abs().max() > 0


# 2. No fusion context prompts


def test_a_prompt_that_is_bound_in_an_if_and_used_outside_it():
    def faulty(tokens: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        if len(prompt):
            batch_prompt = prompt.expand(len(tokens), -1, -1)  # (M, D) -> (B, M, D)
        return torch.cat([tokens, batch_prompt], dim=1)

    tokens = torch.zeros(2, 4, 8)
    assert faulty(tokens, torch.zeros(1, 8)).shape == (2, 5, 8)
    with pytest.raises(UnboundLocalError):
        faulty(tokens, torch.zeros(0, 8))
    assert appended(Tokens(tokens, None), torch.zeros(0, 8)).values.shape == (2, 4, 8)
    assert logits(small(fusion_context_prompts=0)).isfinite().all()


# 3. Fusion in all layers


def test_a_loop_variable_that_is_used_after_a_loop_that_never_ran():
    def faulty(depth: int, fused: int) -> list[int]:
        used = []
        for layer in range(depth - fused):
            used.append(layer)
        for k in range(fused):
            used.append(layer + k + 1)
        return used

    assert faulty(depth=2, fused=1) == [0, 1]
    with pytest.raises(UnboundLocalError):
        faulty(depth=2, fused=2)
    model = small(num_fusion_layers=2)
    used = [(see, read) for _, see, read in model.layers()]
    assert used == list(zip(model.image_encoder.layers, model.text_encoder.layers))
    assert logits(model).isfinite().all()


# 4. Slices counted from the end


@pytest.mark.parametrize("form", ["shared", "plain"])
def test_a_slice_of_minus_zero_takes_everything_or_nothing(form):
    out, count = torch.arange(6).view(1, 6, 1), 0  # 6 tokens and no prompt; (6,) -> (B, N, D)
    assert out[:, -count:].shape[1] == 6  # "the last 0" are all
    assert out[:, :-count].shape[1] == 0  # "all but the last 0" are none
    assert out[:, out.shape[1] - count :].shape[1] == 0  # counted from the front
    model = small(query_prompts=0, fusion_context_prompts=0)
    model.shared = form == "shared"
    # With nothing appended and no message, a fusion layer is a plain layer.
    base = model.base_features(torch.zeros(2, 3, 8, 8), IDS, MASK)
    image, text = model.fusion[0](
        model.image_encoder.layers[1], model.text_encoder.layers[1],
        Tokens(base.image_tokens, None), Tokens(base.text_tokens, MASK),
    )  # fmt: skip
    torch.testing.assert_close(image, model.image_encoder.layers[1](base.image_tokens))
    torch.testing.assert_close(text, model.text_encoder.layers[1](base.text_tokens, MASK))


# 5. A mask of -10000

HALVES = [torch.float16, torch.bfloat16]


def added(scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The official way to hide: a large number is taken from the score."""
    return (scores + (~keep).to(scores.dtype) * -10000).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_an_added_constant_hides_only_while_scores_are_small(dtype):
    keep = torch.tensor([[[[True, False]]]])
    # Scores q k / sqrt(4): 2 x -16 / 2 = -16 for the key that is kept, 0 for the hidden one. With
    # 2000 x -16 / 2 = -16000 the kept key lies below 0 - 10000, and the hidden one is read.
    for q, faulty in ((2.0, [1.0, 0.0]), (2000.0, [0.0, 1.0])):
        query = torch.tensor([[[[q, 0, 0, 0]]]], dtype=dtype)
        key = torch.tensor([[[[-16.0, 0, 0, 0], [0, 0, 0, 0]]]], dtype=dtype)
        assert added(query @ key.mT / 2, keep).tolist() == [[[faulty]]]
        assert attention_weights(query, key, keep).tolist() == [[[[1.0, 0.0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_text_that_is_all_hidden_is_read_all_the_same(dtype):
    weights = added(torch.tensor([0.0, 3.0], dtype=dtype), torch.tensor([False, False]))
    # float32 knows -10000 from -9997: e^3 / (1 + e^3) = 0.953. In half precision neighbours are 8
    # or 64 apart there, so both scores become one number.
    assert weights[1].item() == pytest.approx(0.5 if dtype in HALVES else 0.953, abs=1e-3)
    with pytest.raises(InputError, match="Text 1 of the batch is all padding"):
        logits(small(), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]))


# 6. Dropout inside the frozen encoder


@torch.no_grad()
def test_dropout_stays_on_in_a_frozen_encoder_that_is_put_in_training_mode():
    model = small(replace(TEXT, dropout=0.5)).train()
    assert model.training
    assert torch.equal(logits(model), logits(model))
    model.text_encoder.train()  # what calling train() on the official model does
    assert not torch.equal(logits(model), logits(model))


# 11. The first element of what a layer returns


@torch.no_grad()
def test_the_first_element_of_a_tensor_is_the_first_sample_of_the_batch():
    tokens = torch.randn(2, 5, 8)
    now = build_encoder(TEXT).eval().layers[0]  # returns a tensor, as transformers 5 does

    def before(tokens: torch.Tensor) -> tuple[torch.Tensor]:  # and as transformers 4 did
        return (now(tokens),)

    assert before(tokens)[0].shape == (2, 5, 8)
    assert now(tokens)[0].shape == (5, 8)  # no error: sample 1 is gone
    torch.testing.assert_close(now(tokens)[0], now(tokens[:1])[0])
    # Ours: each sample of the batch is answered as if it were alone.
    model, pixels = small(), torch.randn(2, 3, 8, 8)
    together = model(pixels, IDS, MASK).logits
    for i in range(2):
        alone = model(pixels[i : i + 1], IDS[i : i + 1], MASK[i : i + 1]).logits
        torch.testing.assert_close(together[i : i + 1], alone)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
