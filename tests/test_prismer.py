"""Prismer whole: its tokens, any subset of experts, what is frozen, counts, the friendly calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmfusion_lib import accounting, prismer_cost, prismer_text
from mmfusion_lib.data.images import ImageTransform
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts import LabelMap
from mmfusion_lib.prismer import FREEZE_MODES, Prismer, build_prismer
from mmfusion_lib.prismer_config import MODELS, PrismerConfig, named_prismer
from mmfusion_lib.prismer_encoder import draw_instance_rows, resize_positions
from mmfusion_lib.train_config import TrainConfig, make_optimizer
from mmfusion_lib.trainable import train_mode

IMAGE = EncoderConfig(
    "image", 16, 2, 2, 24, image_size=32, patch_size=8, input_norm=True, patch_bias=False
)
TEXT = EncoderConfig("text", 8, 2, 2, 12, norm="post", vocab_size=40, max_positions=24)
EXPERTS = ("depth", "normal", "seg_coco", "edge", "obj_detection", "ocr_detection")
CONFIG = PrismerConfig(
    IMAGE, TEXT, EXPERTS, image_size=32, num_latents=3, resampler_layers=2, resampler_heads=2
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(**changes) -> Prismer:
    config = replace(CONFIG, **changes)
    return Prismer(build_encoder(config.image), build_encoder(config.text), config).eval()


def maps(batch: int = 2, side: int = 32) -> dict:
    """Random pictures and integer label maps."""
    draw = torch.Generator().manual_seed(1)

    def integers(*shape, high=256):
        return torch.randint(0, high, shape, generator=draw).to(torch.uint8)

    def classes():
        return {
            "ids": integers(batch, side, side, high=5),
            "table": torch.randn(5, 64, generator=draw),
        }

    return {
        "rgb": torch.randn(batch, 3, 32, 32, generator=draw),
        "depth": integers(batch, 1, side, side),
        "normal": integers(batch, 3, side, side),
        "edge": integers(batch, 1, side, side),
        "seg_coco": classes(),
        "ocr_detection": classes(),
        "obj_detection": {
            "label": classes(),
            "instance": integers(batch, 1, side, side, high=3),
        },
    }


# Tokens


def test_patches_then_latents():
    # (32 / 8)^2 = 16 patches and 3 latents
    assert build().encode(maps()).shape == (2, 19, 16)


def test_prismerz_has_patches_only():
    model = build(experts=())
    assert model.encode({"rgb": maps()["rgb"]}).shape == (2, 16, 16)
    assert model.encoder.resampler is None and not model.encoder.stems


def test_any_subset_of_experts():
    model, experts = build(), maps()
    whole = model.encode(experts)
    for name in EXPERTS:
        fewer = {key: value for key, value in experts.items() if key != name}
        part = model.encode(fewer)
        assert part.shape == whole.shape and not torch.allclose(part, whole)
    assert model.encode({"rgb": experts["rgb"]}).shape == (2, 16, 16)  # no experts, no latents


def test_experts_have_no_order():
    model, experts = build(), maps()
    turned = dict(reversed(experts.items()))
    torch.testing.assert_close(model.encode(experts), model.encode(turned))


def test_images_of_a_batch_do_not_meet():
    model, experts = build(), maps()
    one = {
        "rgb": experts["rgb"][:1],
        "depth": experts["depth"][:1],
        "seg_coco": {**experts["seg_coco"], "ids": experts["seg_coco"]["ids"][:1]},
    }
    both = {name: experts[name] for name in one}
    torch.testing.assert_close(model.encode(both)[:1], model.encode(one))


def test_painted_maps_are_the_same_as_numbers_and_a_table():
    model, experts = build(), maps()
    painted = {}
    for name in ("seg_coco", "ocr_detection"):
        ids, table = experts[name]["ids"].long(), experts[name]["table"]
        painted[name] = table[ids].permute(0, 3, 1, 2)  # (B, h, w, 64) -> (B, 64, h, w)
    torch.testing.assert_close(model.encode({**experts, **painted}), model.encode(experts))


def test_the_same_call_gives_the_same_tokens():
    model, experts = build(), maps()
    assert torch.equal(model.encode(experts), model.encode(experts))


def test_instances_are_told_apart():
    """Two mugs of one class: the same classes, another instance map, other tokens."""
    model, experts = build(), maps()
    single = {**experts["obj_detection"], "instance": torch.zeros(2, 1, 32, 32, dtype=torch.uint8)}
    assert not torch.allclose(
        model.encode(experts), model.encode({**experts, "obj_detection": single})
    )


def test_which_row_an_instance_gets():
    model = build().encoder
    ids = torch.tensor([[[[0, 255], [2, 2]]]])
    grid = model.embed_instances(ids, (2, 2), None)[0]  # (D, 2, 2)
    assert torch.equal(grid[:, 0, 0], model.instances[0])
    assert torch.equal(grid[:, 0, 1], model.instances[127])
    assert torch.equal(grid[:, 1, 1], model.instances[2])
    grid = model.embed_instances(ids, (2, 2), {0: 9, 2: 8, 255: 7})[0]
    assert torch.equal(grid[:, 0, 0], model.instances[9])
    assert torch.equal(grid[:, 0, 1], model.instances[7])


def test_the_official_draw_changes_from_call_to_call():
    ids = torch.tensor([[[[0, 255], [2, 2]]]])
    drawn = [draw_instance_rows(ids) for _ in range(20)]
    assert all(set(rows) == {0, 2, 255} for rows in drawn)
    assert len({tuple(rows.values()) for rows in drawn}) > 1
    assert draw_instance_rows(ids, seed=3) == draw_instance_rows(ids, seed=3)


def test_positions_are_resized_for_another_grid():
    table = torch.arange(4.0)[:, None]  # 2 x 2 cells, D = 1
    assert torch.equal(resize_positions(table, 2, 2), table)
    assert resize_positions(table, 4, 3).shape == (12, 1)
    larger = torch.randn(1, 3, 48, 40)
    assert build(experts=()).encode({"rgb": larger}).shape == (1, 6 * 5, 16)


def test_pixels_that_fill_no_patch_are_left_out():
    model = build(experts=())
    pixels = torch.randn(1, 3, 37, 32)
    assert torch.equal(model.encode({"rgb": pixels}), model.encode({"rgb": pixels[:, :, :32]}))


# Training


def test_gradients_reach_all_that_trains_and_nothing_else():
    model = build()
    model.freeze("lang_vision")
    train_mode(model)
    ids = torch.randint(1, 40, (2, 6))
    model.decode(ids, None, model.encode(maps()), ids).loss.sum().backward()
    for name, parameter in model.named_parameters():
        frozen = ".block." in name
        assert parameter.requires_grad != frozen, name
        if frozen:
            assert parameter.grad is None, name
        elif ".query.bias" not in name and ".key.bias" not in name:
            rows_unused = name in ("encoder.instances",)
            assert rows_unused or parameter.grad.abs().sum() > 0, name


def test_a_step_moves_what_trains_only():
    model = build()
    model.freeze("lang_vision")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(epochs=1, lr=0.1))
    ids = torch.randint(1, 40, (2, 6))
    model.decode(ids, None, model.encode(maps()), ids).loss.sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        if ".block." in name:
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(model.encoder.resampler.latents, before["encoder.resampler.latents"])


def test_freeze_modes():
    model = build()
    found = {}
    for mode in FREEZE_MODES:
        table = model.freeze(mode)
        found[mode] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert found[mode] == prismer_cost.trainable_parameters(CONFIG, mode)
        assert f"{found[mode]:,}" in table
    assert found["lang_vision"] < found["lang"] < found["none"]
    with pytest.raises(InputError, match="'everything'"):
        model.freeze("everything")


# Counts


@pytest.mark.parametrize(
    ("name", "experts", "image_size", "mode", "millions"),
    [
        ("prismer-base", False, 224, None, 274.3),
        ("prismer-base", True, 224, None, 327.5),
        ("prismer-large", False, 224, None, 872.9),
        ("prismer-large", True, 224, None, 967.1),
        ("prismer-huge", True, 224, None, 1414.8),
        ("prismer-base", False, 224, "lang_vision", 104.2),
        ("prismer-base", True, 224, "lang_vision", 157.4),
        ("prismer-large", False, 224, "lang_vision", 268.2),
        ("prismer-large", True, 224, "lang_vision", 362.5),
        ("prismer-huge", True, 224, "lang_vision", 482.8),
        ("prismer-base", False, 480, "vision", 189.8),
        ("prismer-base", True, 480, "vision", 243.0),
        ("prismer-large", False, 476, "vision", 571.5),
        ("prismer-large", True, 476, "vision", 665.8),
        ("prismer-huge", True, 476, "vision", 786.3),
    ],
)
def test_counts_of_the_facts_sheet(name, experts, image_size, mode, millions):
    changes = {"image_size": image_size} if experts else {"experts": (), "image_size": image_size}
    config = named_prismer(name, **changes)
    counted = sum(prismer_cost.parameters(config).values())
    found = counted if mode is None else prismer_cost.trainable_parameters(config, mode)
    assert round(found / 1e6, 1) == millions


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("experts", [True, False])
def test_counts_by_formula_are_those_of_the_model(name, experts):
    config = named_prismer(name, **({} if experts else {"experts": ()}))
    with torch.device("meta"):
        model = build_prismer(config)
    counted = sum(p.numel() for p in model.parameters())
    assert sum(prismer_cost.parameters(config).values()) == counted


@pytest.mark.parametrize("frozen", [True, False])
def test_saved_activations_by_formula(frozen):
    model = build().train()
    model.requires_grad_(True)
    if frozen:
        model.freeze("vision")
    kept = accounting.saved_activation_bytes(lambda: model.encode(floats()), [model])
    predicted = prismer_cost.activation_bytes(CONFIG, EXPERTS, 32, 2, frozen=frozen)
    assert kept == pytest.approx(sum(predicted.values()), rel=0.01)


def floats() -> dict:
    """Maps that need no lookup and no scaling."""
    experts = {"rgb": torch.randn(2, 3, 32, 32)}
    for name, channels in (("depth", 1), ("normal", 3), ("edge", 1)):
        experts[name] = torch.rand(2, channels, 32, 32)
    for name in ("seg_coco", "ocr_detection"):
        experts[name] = torch.randn(2, 64, 32, 32)
    experts["obj_detection"] = {
        "label": torch.randn(2, 64, 32, 32),
        "instance": torch.zeros(2, 1, 32, 32, dtype=torch.uint8),
    }
    return experts


def test_freezing_saves_few_activations():
    """Adaptors sit in every block: the gradient goes through all of them."""
    frozen, free = (
        sum(prismer_cost.activation_bytes(MODELS["prismer-base"], (), 224, 1, frozen=f).values())
        for f in (True, False)
    )
    assert 0.5 < frozen / free < 1


# Bad input


def ids(side: int, value: int = 0) -> dict:
    """A semantic map of one class."""
    return {
        "ids": torch.full((2, side, side), value, dtype=torch.uint8),
        "table": torch.zeros(200, 64),
    }


def detection(instance: torch.Tensor) -> dict:
    return {"label": torch.zeros(2, 64, 32, 32), "instance": instance}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rgb": None}, "rgb"),
        ({"rgb": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "uint8"),
        ({"rgb": torch.zeros(3, 32, 32)}, r"\(3, 32, 32\)"),
        ({"saliency": torch.zeros(2, 1, 32, 32)}, "saliency"),
        ({"smell": torch.zeros(2, 1, 32, 32)}, "smell"),
        ({"depth": torch.zeros(2, 3, 32, 32)}, r"\(2, 3, 32, 32\)"),
        ({"depth": torch.zeros(1, 1, 32, 32)}, "1 maps"),
        ({"seg_coco": torch.zeros(2, 32, 32, 32)}, r"32"),
        ({"rgb": "a.jpg"}, "'rgb'.*str"),
        ({"depth": None}, "'depth'.*NoneType"),
        ({"depth": torch.full((2, 1, 32, 32), 200.0)}, r"200\.0.*\[-1, 1\]"),
        ({"depth": torch.full((2, 1, 32, 32), float("nan"))}, "nan"),
        ({"depth": torch.zeros(2, 1, 0, 0)}, "0 x 0"),
        ({"seg_coco": ids(1)}, "1 x 1"),
        ({"seg_coco": ids(32, 140)}, "class 140 but it has 133"),
        ({"obj_detection": torch.zeros(2, 1, 32, 32)}, "'label' and 'instance'"),
        ({"obj_detection": ids(32)}, "'label' and 'instance'"),
        ({"obj_detection": detection(torch.full((2, 1, 32, 32), 300))}, "300 to 300"),
        ({"obj_detection": detection(torch.full((2, 1, 32, 32), -1))}, "-1 to -1"),
        ({"obj_detection": detection(torch.zeros(1, 1, 32, 32))}, "1 maps for 2 pictures"),
        ({"obj_detection": detection(torch.zeros(2, 2, 32, 32))}, r"\(2, 2, 32, 32\)"),
        ({"obj_detection": detection(torch.zeros(2, 32, 32))}, r"\(2, 32, 32\)"),
    ],
)
def test_bad_maps(change, named):
    experts = {**maps(), **change}
    if change.get("rgb", 0) is None:
        del experts["rgb"]
    with pytest.raises(InputError, match=named):
        build().encode(experts)


def test_experts_that_are_no_dict():
    with pytest.raises(InputError, match="Tensor"):
        build().encode(torch.zeros(2, 3, 32, 32))


def test_a_subset_of_experts_trains_its_own_stems_alone():
    model = build().train()
    model.requires_grad_(True)
    some = {name: maps()[name] for name in ("rgb", "depth", "seg_coco")}
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    before = {name: p.clone() for name, p in model.encoder.stems.named_parameters()}
    model.encode(some).square().mean().backward()
    optimizer.step()
    for name, parameter in model.encoder.stems.named_parameters():
        used = name.split(".")[0] in ("depth", "seg")
        assert (parameter.grad is not None) == used, name
        assert torch.equal(parameter, before[name]) or used


def test_an_instance_without_a_row():
    experts = maps()
    experts["obj_detection"]["instance"] = torch.full((2, 1, 32, 32), 200, dtype=torch.uint8)
    with pytest.raises(InputError, match="200"):
        build().encode(experts)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"experts": "none"}, "'none'"),
        ({"experts": ("depth", "depth")}, "twice"),
        ({"experts": ("smell",)}, "smell"),
        ({"image_size": 30}, "30"),
        ({"resampler_heads": 3}, "3"),
        ({"label_smoothing": 1.0}, r"1\.0"),
        ({"image": TEXT}, "image"),
    ],
)
def test_bad_configuration(change, named):
    with pytest.raises(InputError, match=named):
        replace(CONFIG, **change)


# The friendly calls


class Letters:
    """A tokenizer of letters: 1 begins, 2 ends, 0 pads."""

    pad_id = 0

    def __call__(self, texts):
        rows = [[1, *(3 + ord(c) % 37 for c in text), 2] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, (ids != 0).long()

    def decode(self, ids, special=False):
        return "".join(chr(61 + int(i)) for i in ids if int(i) > 2)


@pytest.fixture
def reader() -> Prismer:
    model = build(experts=())
    model.tokenizer = Letters()
    model.transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model


def pictures(tmp_path):
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    path = tmp_path / "a.png"
    image.save(path)
    return path, image


def test_caption_takes_a_path_a_picture_or_a_tensor(reader, tmp_path):
    path, image = pictures(tmp_path)
    lengths = {"prompt": "ab", "max_length": 8, "min_length": 5}
    text = reader.caption(path, **lengths)
    assert isinstance(text, str) and text
    assert reader.caption(image, **lengths) == text
    assert reader.caption(reader.transform(image), **lengths) == text
    assert reader.caption([path, image], **lengths) == [text, text]


class Bright:
    """An expert that calls the bright half of a picture "sky"."""

    name = "seg_coco"

    def __call__(self, images):
        maps = [(np.asarray(image.convert("L")) > 127).astype(np.uint8) for image in images]
        return [LabelMap(self.name, each, names={0: "ground", 1: "sky"}) for each in maps]


class Lengths:
    """A table of label vectors that tells names by their lengths."""

    def vectors(self, names):
        return torch.tensor([[float(len(name))] * 64 for name in names])


def test_suppliers_are_run_on_pictures_without_maps(tmp_path):
    model = build(experts=("seg_coco",))
    model.transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model.suppliers, model.label_table = [Bright()], Lengths()
    path, image = pictures(tmp_path)
    experts, single = model.read(path)
    assert single and set(experts) == {"rgb", "seg_coco"}
    assert experts["seg_coco"]["ids"].shape == (1, 32, 32)
    assert experts["seg_coco"]["table"][0, 1, 0] == 3  # "sky"
    assert model.encode(experts).shape == (1, 19, 16)
    both, single = model.read([path, image])
    assert not single and len(both["rgb"]) == 2


def test_the_friendly_calls_keep_nothing_for_a_backward_pass(reader, tmp_path, monkeypatch):
    path, _ = pictures(tmp_path)
    encode, seen = reader.encode, []

    def watched(experts):
        seen.append(encode(experts))
        return seen[-1]

    monkeypatch.setattr(reader, "encode", watched)
    reader.caption(path, prompt="ab", max_length=6, min_length=4)
    reader.answer(path, "ab", ["x"])
    assert len(seen) == 2 and not any(latents.requires_grad for latents in seen)


def test_answer_chooses_among_candidates(reader, tmp_path):
    path, image = pictures(tmp_path)
    answer = reader.answer(path, "ab", ["x", "yz"])
    assert answer in ("x", "yz")
    # a longer question beside it changes nothing: prompts are packed to the left
    both = reader.answer([path, image], ["ab", "abcde fg"], ["x", "yz"])
    assert both[0] == answer


def test_a_shortlist_of_one_answers_by_the_first_token(reader, tmp_path):
    path, _ = pictures(tmp_path)
    answers = ["x", "yz", "k", "abcdefgh"]
    experts, _ = reader.read(path)
    latents = reader.eval().encode(experts)
    ids, mask = prismer_text.prompt_ids(reader.tokenizer, [prismer_text.clean_question("ab")])
    first = reader.decoder(ids, latents, mask)[0, -1]  # (V,)
    tokens = [answer[0] for answer in prismer_text.answer_ids(reader.tokenizer, answers)]
    likely = answers[int(first[torch.tensor(tokens)].argmax())]
    assert reader.answer(path, "ab", answers, shortlist=1) == likely


def test_ranking_is_smoothed_as_training_was(reader):
    latents, ids = torch.randn(1, 4, 16), torch.tensor([[1, 5]])
    found = {}
    for smoothing in (0.0, 0.1):
        reader.config = replace(reader.config, label_smoothing=smoothing)
        found[smoothing] = reader.eval().rank(latents, ids, [[5, 2], [7, 2]])
        told = reader.rank(latents, ids, [[5, 2], [7, 2]], smoothing=smoothing)
        assert torch.equal(found[smoothing], told)
    assert not torch.equal(found[0.0], found[0.1])


def test_a_free_answer_does_not_depend_on_the_batch(reader, tmp_path):
    path, image = pictures(tmp_path)
    alone = reader.answer(path, "ab", max_length=4)
    assert reader.answer([path, image], ["ab", "abcde fg"], max_length=4)[0] == alone


def test_answers_do_not_depend_on_the_batch(reader):
    latents = torch.randn(2, 16, 16)
    from mmfusion_lib import prismer_text

    ids, mask = prismer_text.prompt_ids(Letters(), ["ab", "abcdefgh"])
    alone, alone_mask = prismer_text.prompt_ids(Letters(), ["ab"])
    choices = [[5, 6, 2], [7, 2]]
    together = reader.rank(latents, ids, choices, attention_mask=mask)[0]
    single = reader.rank(latents[:1], alone, choices, attention_mask=alone_mask)[0]
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)


def test_low_level_suppliers_need_no_label_table(tmp_path, monkeypatch):
    path, _ = pictures(tmp_path)
    model = build(experts=("edge",))
    model.transform = ImageTransform(32, (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr("mmfusion_lib.prismer_input.label_table", None)

    class Lines:
        name = "edge"

        def __call__(self, images):
            return [LabelMap("edge", np.zeros(i.size[::-1], np.uint8)) for i in images]

    model.suppliers = [Lines()]
    assert set(model.read(path)[0]) == {"rgb", "edge"}


def test_friendly_errors(reader, tmp_path):
    path, _ = pictures(tmp_path)
    with pytest.raises(InputError, match="question"):
        reader.answer(path, " ? ")
    with pytest.raises(InputError, match="3 questions"):
        reader.answer(path, ["ab", "ac", "ad"])
    with pytest.raises(InputError, match="no picture"):
        reader.caption([])
    with pytest.raises(InputError, match=r"b\.png"):
        reader.caption(tmp_path / "b.png")
    with pytest.raises(InputError, match="no answers"):
        reader.answer(path, "ab", [])
    with pytest.raises(InputError, match="list of texts"):
        reader.answer(path, "ab", "red")
    with pytest.raises(InputError, match="list of texts"):
        reader.answer(path, "ab", [1, 2])
    for question in (None, [3]):
        with pytest.raises(InputError, match="must be a text"):
            reader.answer(path, question)
    with pytest.raises(InputError, match="mixes"):
        reader.caption([path, torch.zeros(3, 32, 32)])
    reader.tokenizer = None
    with pytest.raises(InputError, match="tokenizer"):
        reader.caption(path)
