"""The explorer: trees of captions against plain decoding, where the decoder looks, pictures, sizes."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from explorer_maker import EXPERTS, HOSTILE, explorer, pictures, tiny
from PIL import Image

from mmfusion_lib import caption_tree, generate
from mmfusion_lib import explorer as module
from mmfusion_lib.caption_tree import ENDS, UNKNOWN, Writing
from mmfusion_lib.data import images
from mmfusion_lib.decoder_layer import CrossAttention
from mmfusion_lib.errors import InputError
from mmfusion_lib.explorer import Explorer, Noise

START = [1, 3, 4, 5]  # [CLS] a picture of
LENGTHS = {"max_length": 9, "min_length": 6}


@pytest.fixture(scope="module")
def one():
    return explorer()


def grown(one, branches=True, writing=None, **options):
    writing = writing or one.writing
    latents = one.latents(0, EXPERTS)
    return caption_tree.grow(
        one.model, latents, START, writing, branches=branches, **options
    ), latents


def followed(nodes, node):
    """Token ids of the text that goes on from a node."""
    ids = []
    while node >= 0:
        token, _, following = nodes[node].choices[nodes[node].taken]
        ids, node = [*ids, token], following
    assert node == ENDS
    return ids


def greedy(one, latents, begin):
    """What plain decoding writes behind ``begin``, to its end mark."""
    row = one.model.generate(latents, torch.tensor([begin]), num_beams=1, **LENGTHS)[0].tolist()
    row = row[len(begin) :]
    return row[: row.index(2) + 1] if 2 in row else row


# Trees


def test_the_trunk_is_what_greedy_decoding_weighs_up(one):
    nodes, latents = grown(one, branches=False)
    steps = list(
        generate.alternatives(
            one.model.decoder, latents, torch.tensor([START]), count=4, eos_id=2, **LENGTHS
        )
    )
    assert len(nodes) == len(steps) >= 3
    assert followed(nodes, 0) == [int(step.tokens) for step in steps]
    for node, step in zip(nodes, steps):
        assert [choice.token for choice in node.choices] == step.alternatives[0].tolist()
        found = [choice.probability for choice in node.choices]
        torch.testing.assert_close(torch.tensor(found), step.probabilities[0])


def test_every_branch_is_greedy_decoding_from_there(one):
    nodes, latents = grown(one)
    trunk, seen = followed(nodes, 0), 0
    for place in range(len(trunk)):
        for number, choice in enumerate(nodes[place].choices):
            if number == nodes[place].taken:
                continue
            begin = [*START, *trunk[:place], choice.token]
            over = choice.token == 2 or len(begin) == LENGTHS["max_length"]
            found = [] if choice.node == ENDS else followed(nodes, choice.node)
            assert choice.node != UNKNOWN
            assert found == ([] if over else greedy(one, latents, begin))
            seen += bool(found)
    assert seen >= 3  # the test looked at something


def test_many_branches_are_the_same_in_parts(one, monkeypatch):
    whole, _ = grown(one)
    monkeypatch.setattr(caption_tree, "TEXTS", 2)
    parts, _ = grown(one)
    assert followed(whole, 0) == followed(parts, 0) and len(whole) == len(parts)
    for node, other in zip(whole[:5], parts[:5]):  # numbers of nodes differ, texts do not
        for a, b in zip(node.choices, other.choices):
            assert a.token == b.token and followed(whole, a.node) == followed(parts, b.node)


def test_unlikely_words_are_shown_but_not_followed(one, monkeypatch):
    nodes, _ = grown(one)
    others = [c for n in nodes[:3] for i, c in enumerate(n.choices) if i != n.taken]
    middle = sorted(choice.probability for choice in others)[len(others) // 2]
    monkeypatch.setattr(caption_tree, "LEAST", middle)
    for node, known in zip(grown(one)[0][:3], nodes):
        assert [c.token for c in node.choices] == [c.token for c in known.choices]
        for number, choice in enumerate(node.choices):
            likely = choice.probability >= middle or number == node.taken
            assert (choice.node != UNKNOWN) == likely


def test_probabilities_of_all_words_sum_to_one(one):
    writing = replace(one.writing, shortest=0)
    nodes, _ = grown(one, writing=writing, count=20)  # the whole vocabulary
    for node in nodes:
        found = [choice.probability for choice in node.choices]
        assert sum(found) == pytest.approx(1, abs=1e-5)
        assert found == sorted(found, reverse=True)


def test_no_end_before_the_shortest(one):
    nodes, _ = grown(one, count=20)
    for place, node in enumerate(nodes[:2]):  # 4 and 5 tokens stand there, fewer than 6
        (end,) = (choice for choice in node.choices if choice.token == 2)
        assert end.probability == 0, place


@pytest.mark.parametrize(
    "writing", [Writing(3, 9, 6), Writing(1, 9, 6, 1.5, 3)], ids=["beams", "drawn"]
)
def test_other_ways_of_writing(one, writing):
    nodes, latents = grown(one, writing=writing)
    row = one.model.generate(latents, torch.tensor([START]), **writing.options())[0].tolist()[4:]
    assert followed(nodes, 0) == (row[: row.index(2) + 1] if 2 in row else row)


def test_a_given_beginning_is_kept_and_told_apart(one):
    nodes, latents = grown(one, branches=False, prefix=[19, 7])  # "?" and "blue"
    assert followed(nodes, 0) == [19, 7, *greedy(one, latents, [*START, 19, 7])]
    assert len(nodes[0].choices) == 4
    top = [choice.token for choice in grown(one, branches=False)[0][0].choices]
    assert 19 not in top and nodes[0].choices[-1].token == 19 and nodes[0].taken == 3


def test_a_beginning_that_fills_the_caption(one):
    nodes, _ = grown(one, branches=False, prefix=[6, 7, 8, 9, 10])  # 9 tokens with the prompt
    assert followed(nodes, 0) == [6, 7, 8, 9, 10]


# Where it looked


def test_looks_are_shares_of_patches_and_latents(one):
    nodes, _ = grown(one)
    for node in nodes:
        assert node.look.shape == (19,)  # 16 patches of 8 x 8 pixels, and 3 latents
        assert float(node.look.sum()) == pytest.approx(1, abs=1e-5)
    bare = caption_tree.grow(one.model, one.latents(0, ()), START, one.writing)
    assert bare[0].look.shape == (16,)


def test_attention_is_that_of_the_layer():
    """With one head the output can be made from the weights: LN(x + out(weights @ values))."""
    torch.manual_seed(0)
    cross = CrossAttention(8, 6, 1, 1e-5, 0.0)
    layer = torch.nn.Module()
    layer.cross = cross
    tokens, (keys, values) = torch.randn(2, 3, 8), cross.project(torch.randn(1, 5, 6))
    with caption_tree.watched([layer]) as looks:
        expected = cross(tokens, keys, values)
    assert looks[0].shape == (2, 3, 5)
    found = cross.norm(tokens + cross.out(looks[0] @ values[0, 0]))
    torch.testing.assert_close(found, expected)
    cross(tokens, keys, values)
    assert len(looks) == 1  # the hook is gone


def test_the_look_of_a_branch_is_that_of_its_text(one):
    nodes, latents = grown(one)
    place, number = 1, 1 - nodes[1].taken  # another choice than the taken, if it is 0 or 1
    choice = nodes[place].choices[number]
    text = [*followed(nodes, 0)[:place], choice.token]
    again = caption_tree.grow(one.model, latents, START, one.writing, prefix=text)
    torch.testing.assert_close(nodes[choice.node].look, again[place + 1].look)


def test_eight_bits_are_enough(one):
    nodes, _ = grown(one)
    kept = json.loads(json.dumps(caption_tree.stored(nodes, one.model)))
    rows = np.frombuffer(base64.b64decode(kept["looks"]), np.uint8).reshape(-1, kept["width"])
    shares = (rows / 255.0) ** 2
    shares /= shares.sum(1, keepdims=True)
    assert len(rows) == len(nodes) and kept["end"] == 2
    for row, node in zip(shares, nodes):
        assert np.abs(row - node.look.numpy()).max() < 0.005
    for (taken, choices), node in zip(kept["nodes"], nodes):
        assert taken == node.taken
        assert [c[::2] for c in choices] == [[c.token, c.node] for c in node.choices]
        assert {str(c[0]) for c in choices} <= set(kept["words"])


def test_pieces_of_words():
    model = tiny()
    assert caption_tree.piece(model, 8) == ["mug", 0]
    assert caption_tree.piece(model, 18) == ["s", 1]  # ##s


# Pictures, experts, answers


def test_all_none_and_each_left_out(one):
    assert one.subsets(0) == [
        EXPERTS, (), ("seg_scenes", "ocr_detection"), ("depth", "ocr_detection"),
        ("depth", "seg_scenes"),
    ]  # fmt: skip
    single = Explorer(tiny(), [replace(pictures()[0], labels={})], trained_on="nothing")
    assert single.subsets(0) == [()]


def test_experts_and_noise_change_what_is_read(one):
    every = one.latents(0, EXPERTS)
    assert every.shape == (1, 19, 16) and one.latents(0, ()).shape == (1, 16, 16)
    assert not torch.equal(every[:, :16], one.latents(0, EXPERTS[:2])[:, :16])
    noisy = one.latents(0, EXPERTS, Noise("noise", 1.0, ("depth",)))
    assert not torch.equal(every, noisy)
    assert torch.equal(every, one.latents(0, EXPERTS, Noise("noise", 0.0, ("depth",))))
    before, after = one.maps(0), one.maps(0, Noise("dropout", 1.0, ("seg_scenes",)))
    assert [a["expert"] for a, b in zip(before, after) if a != b] == ["seg_scenes"]
    assert before[1]["says"] == "mug" and after[1]["says"] == "none"


def test_answers_are_ranked_as_the_model_ranks_them(one):
    found = one.answer(0, EXPERTS, "two mug on the left")
    scores = [score for _, score in found["ranked"]]
    assert found["question"] == "Two mug on the left?"
    assert sorted(text for text, _ in found["ranked"]) == sorted(one.answers)
    assert scores == sorted(scores, reverse=True)
    picture = {"rgb": one.model.transform(one.pictures[0].image)[None]}
    best = one.answer(0, (), "two mug on the left")["ranked"][0][0]
    assert [best] == one.model.answer(picture, "two mug on the left", one.answers)


def test_a_question_of_ten_thousand_words(one):
    asked = one.answer(0, (), "mug " * 10_000)["question"]
    assert len(asked.split()) == 30 and asked.endswith("?")


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.new("RGB", (1, 1)), "PNG"),
        saved(Image.new("CMYK", (9, 7)), "JPEG"),
        saved(Image.new("P", (8, 8)), "GIF", save_all=True, append_images=[Image.new("P", (8, 8), 3)]),
    ],
    ids=["1 x 1", "CMYK", "animated"],
)  # fmt: skip
def test_odd_pictures_are_taken(data):
    one = explorer()
    number = one.add(data, "../" + HOSTILE + "\n\x00" + "x" * 500)
    shown = one.shown(number)
    assert number == 2 and shown["maps"] == [] and not shown["scene"]
    assert len(shown["name"]) == 60 and "\n" not in shown["name"]
    assert "Experts of this model that cannot run here: depth, seg scenes, ocr" in shown["note"]
    assert "trained on nothing yet" in shown["note"]
    assert one.caption(number, [])["width"] == 16
    with pytest.raises(InputError, match="generated scene"):
        one.maps(number, Noise("blur", 0.5, ()))


def test_a_huge_picture_is_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    one = explorer()
    with pytest.raises(InputError, match=r"big\.png has more than 50 pixels: shrink it"):
        one.add(saved(Image.new("L", (8, 8)), "PNG"), "big.png")
    assert len(one.pictures) == 2


def test_suppliers_run_on_a_new_picture():
    class Grey:
        name = "depth"

        def __call__(self, images):
            return [replace(pictures()[0].labels["depth"]) for _ in images]

    one = explorer()
    one.model.suppliers = [Grey()]
    number = one.add(Image.new("RGB", (32, 32)), "mine")
    assert one.experts(number) == ("depth",)
    assert "Experts that ran on it: depth." in one.pictures[number].note
    assert one.latents(number, ["depth"]).shape == (1, 19, 16)


# What a page carries


def test_a_still_page_has_every_set_of_experts(one):
    payload = json.loads(json.dumps(one.still("caption")))
    assert [set(stored) for stored in payload["stored"]] == [
        {"+".join(names) for names in one.subsets(0)}
    ] * 2
    assert payload["stored"][0][""]["nodes"] != payload["stored"][0]["+".join(EXPERTS)]["nodes"]
    assert payload["grid"] == 4 and payload["prompt"] == "a picture of"
    asked = one.still("ask")
    assert [a["question"] for a in asked["stored"][1]["depth+seg_scenes"]] == one.questions


def test_too_large_a_page_is_refused(one, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 5_000)
    with pytest.raises(InputError, match=r"MB, more than 0: show fewer pictures"):
        one.still("caption")


# Bad input


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda one: one.latents(0, ["smell"]), "'smell'"),
        (lambda one: one.latents(7, []), "no picture 7"),
        (lambda one: one.caption(0, [], prefix=[99]), "99"),
        (lambda one: one.answer(0, [], " ? "), "no words"),
        (lambda one: one.maps(0, Noise("smoke", 0.5, EXPERTS)), "'smoke'"),
        (lambda one: one.caption(0, [], writing=Writing(length=4)), "max_length=4"),
        (lambda one: Writing(beams=0), "beams is 0: use 1 to 8"),
        (lambda one: Writing(length=2.5), r"length is 2\.5"),
        (lambda one: Writing(temperature="hot"), "'hot'"),
        (lambda one: Writing(temperature=float("nan")), "nan"),
        (lambda one: Explorer(one.model, [], trained_on="x"), "no pictures"),
        (lambda one: explorer(answers=()), "no answers"),
        (lambda one: explorer(questions=()).still("ask"), "no questions"),
    ],
)
def test_bad_input(one, call, named):
    with pytest.raises(InputError, match=named):
        call(one)
