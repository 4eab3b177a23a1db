"""Faults of the official Prismer that lie in its model, its loader and its texts, beside our behaviour.

Each fault is made again in a few lines, from its description; numbers are those of the chapter's
list. Sizes: pictures of 4 x 4 patches, width 16; text of width 24; 5 latents.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from prismer_oracle import TINY, random_oracle, stored

from mmfusion_lib import prismer_text
from mmfusion_lib.experts.geometry import Geometry
from mmfusion_lib.official_prismer import load
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import named_prismer
from mmfusion_lib.prismer_encoder import draw_instance_rows, resize_positions


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        torch.manual_seed(0)
        yield


def tiny(**changes) -> Prismer:
    config = TINY | changes
    return load(stored(random_oracle(config)), config)


# 12. Three of the ten operations of its RandAugment do nothing


def test_brightness_and_sharpness_of_factor_one_change_no_pixel():
    from PIL import Image, ImageEnhance

    picture = Image.effect_noise((8, 8), 60).convert("RGB")
    for operation in (ImageEnhance.Brightness, ImageEnhance.Sharpness):
        # Magnitude 5 of 10 is the middle of the range, and the middle is a factor of 1.
        assert operation(picture).enhance(1.0).tobytes() == picture.tobytes()
        assert operation(picture).enhance(1.4).tobytes() != picture.tobytes()
    # Ours has no such operation: what it draws is a crop, a mirror image and a shift.
    assert [field.name for field in fields(Geometry)] == ["box", "flip", "shift"]


# 14. Instance vectors are drawn at random at every call, at test time too


def test_the_same_picture_is_seen_differently_from_call_to_call():
    model = tiny(experts=("obj_detection",))
    instance = torch.full((1, 1, 28, 28), 255)  # nothing, but for two objects
    instance[:, :, :14, :14], instance[:, :, 14:, 14:] = 0, 1
    detection = {"label": torch.randn(1, 64, 28, 28), "instance": instance}
    maps = {"rgb": torch.randn(1, 3, 64, 64), "obj_detection": detection}

    def faulty(seed: int) -> torch.Tensor:
        return model.encode(maps, draw_instance_rows(instance, seed))

    assert (faulty(1) - faulty(2)).abs().max() > 1e-2
    assert torch.equal(faulty(1), faulty(1))  # reproducible by who seeds Python's generator
    assert set(draw_instance_rows(instance)) == {0, 1, 255}  # nothing gets a row too
    assert torch.equal(model.encode(maps), model.encode(maps))
    # Ours: instance i has row i in every batch, nothing has the last.
    assert torch.equal(model.encode(maps), model.encode(maps, {0: 0, 1: 1, 255: 127}))


# 16. Answers to short questions are read off padding

SHORT, LONG = [0, 5, 6], [0, 7, 8, 9, 10]


def first_words(model: Prismer, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the first word of the answer, predicted from the last place of the question."""
    return model.decode(ids, (ids != 1).long(), latents).logits[:, -1]  # (B, V)


def test_an_answer_depends_on_the_questions_beside_it_where_they_are_padded_on_the_right():
    model = tiny(experts=())
    latents = model.encode({"rgb": torch.randn(2, 3, 64, 64)})
    alone = [
        first_words(model, latents[i : i + 1], torch.tensor([question]))[0]
        for i, question in enumerate((SHORT, LONG))
    ]
    # As published: the short question ends with two paddings, and the second of them predicts.
    right = first_words(model, latents, torch.tensor([[*SHORT, 1, 1], LONG]))
    assert (right[0] - alone[0]).abs().max() > 0.1
    torch.testing.assert_close(right[1], alone[1])  # the longest question never notices
    # Ours: padding stands before the question.
    ids, mask = prompts()
    left = first_words(model, latents, ids)
    torch.testing.assert_close(left, torch.stack(alone), atol=1e-5, rtol=0)
    together = model.generate(latents, ids, attention_mask=mask, num_beams=3, max_length=9)
    for i, question in enumerate((SHORT, LONG)):
        single = model.generate(
            latents[i : i + 1], torch.tensor([question]), num_beams=3, max_length=9
        )
        written = together[i, ids.shape[1] :].tolist()
        new = single[0, len(question) :].tolist()
        assert [word for word in written if word != 1] == [word for word in new if word != 1]


def test_ranked_answers_do_not_depend_on_the_questions_beside_them():
    model = tiny(experts=())
    latents = model.encode({"rgb": torch.randn(2, 3, 64, 64)})
    answers = [[11, 2], [12, 13, 2], [11, 14, 2]]
    ids, mask = prompts()
    together = model.rank(latents, ids, answers, attention_mask=mask)  # (B, K)
    for i, question in enumerate((SHORT, LONG)):
        single = model.rank(latents[i : i + 1], torch.tensor([question]), answers)
        torch.testing.assert_close(together[i : i + 1], single, atol=1e-5, rtol=0)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = prismer_text.pack_left([torch.tensor(SHORT), torch.tensor(LONG)], pad_id=1)
    assert ids.tolist() == [[1, 1, *SHORT], LONG]
    return ids, mask


# 20. A number of heads that loads without a word and computes something else


def test_heads_leave_no_trace_in_a_checkpoint():
    # Width 80 instead of 1280: 16 heads of 5 numbers there, 20 of 4 where width / heads is fixed.
    config = TINY | {"vision_width": 80, "vision_heads": 16, "experts": ()}
    state = stored(random_oracle(config))
    trained, faulty = load(state, config), load(state, config | {"vision_heads": 20})
    assert {n: v.shape for n, v in trained.state_dict().items()} == {
        n: v.shape for n, v in faulty.state_dict().items()
    }
    picture = {"rgb": torch.randn(1, 3, 64, 64)}
    assert (trained.encode(picture) - faulty.encode(picture)).abs().max() > 1e-2
    ours = named_prismer("prismer-huge").image
    assert (ours.width, ours.heads, ours.activation) == (1280, 16, "gelu")
    assert ours.width // 64 == 20  # as published, and with QuickGELU


# 21. Positions are resized to the larger picture and, for the experts, back again


def test_resizing_there_and_back_is_not_the_identity():
    table = torch.randn(14 * 14, 8)
    back = resize_positions(resize_positions(table, 30, 30), 14, 14)
    assert (back - table).abs().max() > 0.1
    torch.testing.assert_close(resize_positions(table, 14, 14), table)


def test_positions_of_experts_stay_where_the_table_keeps_its_size():
    config = TINY | {"experts": ("depth",)}
    state = stored(random_oracle(config))
    maps = torch.randn(1, 1, 64, 64)  # 4 x 4 tokens, as the table
    before = load(state, config).encoder.embed_map("depth", maps)
    # As published: the table becomes 7 x 7 for pictures of 112 pixels.
    faulty = load(state, config | {"image_resolution": 112})
    assert (faulty.encoder.embed_map("depth", maps) - before).abs().max() > 0.1
    # Ours can leave the table alone and resize it for the picture only.
    ours = load(state, config)
    seen = ours.encode({"rgb": torch.randn(1, 3, 112, 112), "depth": maps})
    assert seen.shape == (1, 7 * 7 + 5, 16)
    assert torch.equal(ours.encoder.embed_map("depth", maps), before)


# 26. Names lose their capitals


@pytest.mark.parametrize(
    ("text", "faulty", "ours"),
    [
        ("who won the NFL cup", "Who won the nfl cup", "Who won the NFL cup"),
        ("a view of Paris", "A view of paris", "A view of Paris"),
        ("I am reading", "I am reading", "I am reading"),
    ],
)
def test_capitalise_also_makes_letters_small(text, faulty, ours):
    assert text.capitalize() == faulty
    assert prismer_text.clean_caption(text) == ours
    assert prismer_text.clean_question(text) == f"{ours}?"
