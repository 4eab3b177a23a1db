"""The supernet computes what its designs compute alone; the search keeps its rules and resumes."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mmfusion_lib import train
from mmfusion_lib.accounting import saved_activation_bytes
from mmfusion_lib.data.pairs import Pairs
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.features import Features
from mmfusion_lib.pair_training import CachedPairs
from mmfusion_lib.pmf import PMF, PMFConfig
from mmfusion_lib.recipes import fusion_common, pmf_search, pmf_search_steps
from mmfusion_lib.search import (
    Found,
    SearchConfig,
    at_random,
    best,
    choose,
    cross,
    design_from,
    mutate,
    search,
)
from mmfusion_lib.supernet import SearchSpace, Supernet, layers_of, objective

IMAGE = EncoderConfig("image", 8, 4, 2, 16, image_size=8, patch_size=4, readout="cls+mean")
TEXT = EncoderConfig("text", 4, 3, 2, 8, norm="post", vocab_size=20, max_positions=6)
SPACE = SearchSpace(
    num_classes=3,
    max_fusion_layers=3,
    query_prompts=(1, 2),
    query_context_prompts=(0, 2),
    fusion_context_prompts=(0, 1, 3),
    mapping_widths=(2, 5),
)
SMALL = PMFConfig(3, 1, (1,), (0,), (1,), 2)
MIDDLE = PMFConfig(3, 2, (1, 2), (2, 0), (0, 3), 2)
PIXELS = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
QUICK = SearchConfig(population=8, generations=4, parents=3, mutants=4, crossings=2)


def encoders():
    return build_encoder(IMAGE), build_encoder(TEXT)


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(*encoders(), SPACE)


def total(design: PMFConfig) -> float:
    """A score, and a cost, that can be worked out: the sum of all lengths."""
    return float(sum(map(sum, layers_of(design))))


# The space


def test_size_by_hand_and_every_design_is_drawn():
    space = replace(SPACE, max_fusion_layers=2, fusion_context_prompts=(1,))
    # 2 x 2 x 1 = 4 kinds of layer; 4 designs of one layer and 16 of two; two widths each
    assert space.size == (4 + 16) * 2
    rng = random.Random(0)
    drawn = Counter(space.draw(rng) for _ in range(2000))
    assert len(drawn) == space.size
    # one layer as often as two: 1000 each, spread 22
    assert abs(sum(n for d, n in drawn.items() if d.num_fusion_layers == 1) - 1000) < 100


def test_largest_design_and_layers():
    assert SPACE.largest == PMFConfig(3, 3, (2, 2, 2), (2, 2, 2), (3, 3, 3), 5)
    assert layers_of(MIDDLE) == [(1, 2, 0), (2, 0, 3)]  # the lowest first
    assert SPACE.design(2, layers_of(MIDDLE)) == MIDDLE
    assert layers_of(PMFConfig(3)) == [(4, 4, 4), (4, 4, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_fusion_layers": 0}, "max_fusion_layers=0 must be at least 1"),
        ({"query_prompts": (0, 1)}, r"query_prompts=\(0, 1\) must be .* from 1 on"),
        ({"fusion_context_prompts": ()}, r"fusion_context_prompts=\(\) must be"),
        ({"mapping_widths": (5, 2)}, r"mapping_widths=\(5, 2\) must be .* ascending"),
        ({"mapping_widths": (5, 5)}, "different numbers"),
    ],
)
def test_a_bad_space_names_its_field(change, message):
    with pytest.raises(InputError, match=message):
        replace(SPACE, **change)


# The supernet


def test_weights_of_a_design_are_corners_counted_from_the_top(supernet):
    model, shared = supernet.extract(MIDDLE), supernet.largest
    # Two of three layers: its first is the second of the supernet.
    for mine, theirs, (query, query_context, fusion_context) in (
        (model.fusion[0], shared.fusion[1], (1, 2, 0)),
        (model.fusion[1], shared.fusion[2], (2, 0, 3)),
    ):
        for a, b in ((mine.image, theirs.image), (mine.text, theirs.text)):
            assert torch.equal(a.query, b.query[:query])
            assert torch.equal(a.query_context, b.query_context[:query_context])
            assert torch.equal(a.fusion_context, b.fusion_context[:fusion_context])
            assert torch.equal(a.mapping.fc1.weight, b.mapping.fc1.weight[:2])  # h = 2 of 5
            assert torch.equal(a.mapping.fc1.bias, b.mapping.fc1.bias[:2])
            assert torch.equal(a.mapping.fc2.weight, b.mapping.fc2.weight[:, :2])
            assert torch.equal(a.mapping.fc2.bias, b.mapping.fc2.bias)
    assert torch.equal(model.image_head.weight, shared.image_head.weight)
    assert torch.equal(model.text_head.bias, shared.text_head.bias)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in PMF(*encoders(), MIDDLE).named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("design", [SMALL, MIDDLE, SPACE.largest])
def test_a_design_computes_what_a_pmf_of_its_own_computes(supernet, design):
    image, text = supernet.largest.image_encoder, supernet.largest.text_encoder
    own = PMF(image, text, design)  # made in the ordinary way, filled with the extracted weights
    own.load_state_dict(supernet.extract(design).state_dict())
    supernet.design = design
    expected = own(PIXELS, IDS, MASK)
    assert torch.equal(supernet(PIXELS, IDS, MASK).logits, expected.logits)
    base = supernet.largest.base_features(PIXELS, IDS, MASK)
    assert torch.equal(supernet.from_base_features(*base, MASK).text_logits, expected.text_logits)
    assert (supernet.image_depth, supernet.text_depth) == (1, 0)  # 4 - 3, 3 - 3


def test_extracted_weights_are_copies(supernet):
    model = supernet.extract(SMALL)
    with torch.no_grad():
        model.fusion[0].image.query.add_(1)
        model.image_head.bias.add_(1)
    assert not torch.equal(model.fusion[0].image.query, supernet.largest.fusion[2].image.query[:1])
    assert not torch.equal(model.image_head.bias, supernet.largest.image_head.bias)


def test_lending_and_extracting_draw_no_random_number(supernet):
    before = torch.get_rng_state()
    supernet.lend(SMALL)
    supernet.extract(MIDDLE)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_arrive_at_the_corner_and_nowhere_else(supernet):
    supernet.design = MIDDLE
    own = supernet.extract(MIDDLE)
    for model in (supernet, own):
        model(PIXELS, IDS, MASK).logits.square().sum().backward()
    first, second = (own.fusion[i].image for i in (0, 1))
    shared = [layer.image for layer in supernet.largest.fusion]
    assert all(p.grad is None for p in supernet.largest.fusion[0].parameters())  # not in use
    torch.testing.assert_close(shared[1].query.grad[:1], first.query.grad)
    torch.testing.assert_close(shared[2].fusion_context.grad, second.fusion_context.grad)
    fc2 = shared[1].mapping.fc2.weight.grad
    torch.testing.assert_close(fc2[:, :2], first.mapping.fc2.weight.grad)
    assert first.mapping.fc2.weight.grad.abs().sum() > 0
    assert fc2[:, 2:].abs().max() == 0 and shared[1].query.grad[1:].abs().max() == 0
    assert all(p.grad is None for p in supernet.largest.image_encoder.parameters())


def test_layers_below_fusion_keep_nothing_for_the_backward_pass(supernet):
    """One design, reached from lower tokens by the supernet and from its own by a PMF."""
    own = supernet.extract(SMALL)
    lower = supernet.largest.base_features(PIXELS, IDS, MASK)
    higher = own.base_features(PIXELS, IDS, MASK)
    supernet.design = SMALL
    kept = saved_activation_bytes(lambda: supernet.from_base_features(*lower, MASK), [supernet])
    assert kept == saved_activation_bytes(lambda: own.from_base_features(*higher, MASK), [own])
    supernet.design = SPACE.largest
    assert kept < saved_activation_bytes(
        lambda: supernet.from_base_features(*lower, MASK), [supernet]
    )


@pytest.mark.parametrize(
    ("design", "message"),
    [
        (PMFConfig(3, 1, 4, 0, 1, 2), r"query of shape \(4, 8\), but the supernet has \(2, 8\)"),
        (PMFConfig(3, 1, 1, 0, 1, 6), r"mapping.fc1.weight of shape \(6, 8\)"),
        (PMFConfig(3, 4, 1, 0, 1, 2), "num_fusion_layers=4 is more than .* max_fusion_layers=3"),
    ],
)
def test_a_design_larger_than_the_supernet_is_refused(supernet, design, message):
    with pytest.raises(InputError, match=message):
        supernet.extract(design)


# Training the supernet


class Items(torch.utils.data.Dataset):
    """Eight pairs with random pixels, half of them of each of two classes."""

    labels = torch.tensor([0, 1] * 4)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, 8, 8, generator=generator) + self.labels[index],
            "input_ids": torch.randint(1, 20, (4,), generator=generator),
            "attention_mask": torch.ones(4, dtype=torch.long),
            "labels": self.labels[index],
        }


def trained(folder, stop_at: int | None = None):
    """Supernet after six steps, and the designs drawn in this call."""
    torch.manual_seed(0)
    supernet, drawn, plain = Supernet(*encoders(), SPACE), [], objective()

    def loss(model, batch):
        if len(drawn) == stop_at:
            raise RuntimeError("killed")
        value = plain(model, batch)
        drawn.append(model.design)
        return value

    config = train.TrainConfig(epochs=3, batch_size=4, lr=0.01, checkpoint_every=1)
    try:
        train.fit(supernet, Items(), loss, config, folder=folder, progress=False)
    except RuntimeError as error:
        assert str(error) == "killed"
    return supernet, drawn


def test_training_draws_one_design_a_batch_and_resumes_exactly(tmp_path):
    whole, drawn = trained(tmp_path / "whole")
    assert len(drawn) == 6 and len(set(drawn)) > 3
    _, before = trained(tmp_path / "killed", stop_at=4)
    resumed, after = trained(tmp_path / "killed")
    assert before + after == drawn and len(before) == 4
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    start = Supernet(*encoders(), SPACE).largest.image_encoder.layers[0].mlp.fc1.weight
    assert not whole.largest.image_encoder.layers[0].mlp.fc1.weight.requires_grad
    assert start.shape == whole.largest.image_encoder.layers[0].mlp.fc1.weight.shape


# Children


def test_mutation_with_certain_and_with_no_chance():
    rng = random.Random(0)
    never = replace(QUICK, layer_chance=0.0, whole_chance=0.0)
    assert mutate(SPACE, MIDDLE, never, rng) == MIDDLE
    whole = replace(QUICK, layer_chance=0.0, whole_chance=1.0)
    mutants = [mutate(SPACE, MIDDLE, whole, rng) for _ in range(60)]
    assert {m.num_fusion_layers for m in mutants} == {1, 2, 3}
    assert {m.mapping_width for m in mutants} == {2, 5}
    for mutant in mutants:  # the layers from the top stay; what is new is at the bottom
        kept = min(mutant.num_fusion_layers, 2)
        assert layers_of(mutant)[-kept:] == layers_of(MIDDLE)[-kept:]
    parts = replace(QUICK, layer_chance=1.0, whole_chance=0.0)
    mutants = [mutate(SPACE, MIDDLE, parts, rng) for _ in range(200)]
    assert {m.num_fusion_layers for m in mutants} == {2}
    assert {m.mapping_width for m in mutants} == {2}
    assert {layers_of(m)[0] for m in mutants} == {
        (q, c, f) for q in (1, 2) for c in (0, 2) for f in (0, 1, 3)
    }


def test_crossing_takes_each_number_from_either_parent():
    other = PMFConfig(3, 2, (2, 1), (2, 2), (1, 1), 5)
    children = {cross(SPACE, MIDDLE, other, random.Random(i)) for i in range(400)}
    # Five of six lengths differ, and the width: 2^6 children
    assert len(children) == 64 and {MIDDLE, other} < children
    assert {layers_of(c)[0] for c in children} == {(q, 2, f) for q in (1, 2) for f in (0, 1)}


# The loop


def test_every_design_is_legal_scored_once_and_counted():
    calls = []

    def score(design):
        calls.append(design)
        return -total(design)

    found = search(SPACE, score, total, 9, QUICK)
    assert len(found) == len(calls) == len(set(calls)) == 8 * 4
    assert [f.design for f in found] == calls
    assert Counter(f.generation for f in found) == {0: 8, 1: 8, 2: 8, 3: 8}
    assert max(f.cost for f in found) <= 9 and all(f.cost == -f.score for f in found)


def test_children_come_from_the_best_so_far():
    def score(design):  # all designs of two layers are better than any other
        return 100.0 * (design.num_fusion_layers == 2) + total(design)

    config = replace(QUICK, whole_chance=0.0, population=12)
    found = search(SPACE, score, total, 99, config)
    for generation in (1, 2, 3):
        children = [f for f in found if f.generation == generation]
        assert all(c.design.num_fusion_layers == 2 for c in children[:6])  # 4 mutants, 2 crossings
        assert {c.design.num_fusion_layers for c in children[6:]} > {2}  # the rest is random


def test_evolution_beats_random_search_where_good_designs_resemble_each_other():
    space = SearchSpace(num_classes=2, max_fusion_layers=6)

    def gain(seed: int) -> float:
        config = SearchConfig(population=20, generations=8, mutants=10, crossings=10, seed=seed)
        tops = [
            best(search(space, total, total, 100, c), 1)[0].score
            for c in (config, at_random(config))
        ]
        return tops[0] - tops[1]

    gains = [gain(seed) for seed in range(4)]
    assert min(gains) > 0


def test_random_search_makes_as_many_evaluations_from_the_same_first_population():
    evolved, drawn = (
        search(SPACE, total, total, 9, config) for config in (QUICK, at_random(QUICK))
    )
    assert len(evolved) == len(drawn)
    assert evolved[:8] == drawn[:8] and evolved[8:] != drawn[8:]


def test_an_exhausted_space_is_searched_once():
    space = replace(SPACE, max_fusion_layers=1, mapping_widths=(2,))  # 2 x 2 x 3 = 12 designs
    found = search(space, total, total, 5, QUICK)
    # lengths sum to more than 5 for (2, 2, 3) alone, and to 6 for (1, 2, 3): 10 are left
    assert len(found) == len({f.design for f in found}) == 10


def test_a_killed_search_goes_on_to_the_same_result(tmp_path):
    path, calls = tmp_path / "search.json", []
    whole = search(SPACE, total, total, 9, QUICK)

    def score(design):
        calls.append(design)
        if len(calls) == 21:  # in the third generation of eight
            raise KeyboardInterrupt
        return total(design)

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, score, total, 9, QUICK, path)
    assert len(json.loads(path.read_text())["found"]) == 16
    assert search(SPACE, score, total, 9, QUICK, path) == whole
    assert calls[21:] == [f.design for f in whole[16:]]  # two generations were not scored again
    assert search(SPACE, score, total, 9, QUICK, path) == whole and len(calls) == 37
    with pytest.raises(InputError, match=r"search.json holds a search with another space"):
        search(SPACE, score, total, 8, QUICK, path)


def test_a_limit_that_nothing_meets_is_named():
    with pytest.raises(InputError, match="None of 250 random designs costs at most 0"):
        search(SPACE, total, total, 0, QUICK)


def test_designs_survive_json():
    assert design_from(json.loads(json.dumps(asdict(MIDDLE)))) == MIDDLE


# The choice


def test_best_prefers_the_cheaper_of_equals():
    rows = [
        Found(SMALL, 0.5, 3.0, 0),
        Found(MIDDLE, 0.5, 2.0, 0),
        Found(SPACE.largest, 0.6, 9.0, 0),
    ]
    assert [f.cost for f in best(rows, 3)] == [9.0, 2.0, 3.0]
    assert len(best(rows, 2)) == 2


def test_the_choice_is_made_on_validation_among_the_finalists():
    rows = [Found(d, s, 1.0, 0) for d, s in ((SMALL, 0.4), (MIDDLE, 0.5), (SPACE.largest, 0.6))]
    validation = {SMALL: 0.9, MIDDLE: 0.7, SPACE.largest: 0.6}
    assert choose(rows, validation.get, finalists=2) == (rows[1], 0.7)
    assert choose(rows, validation.get, finalists=3) == (rows[0], 0.9)
    assert choose(rows, lambda design: 0.5, finalists=3)[0] == rows[2]  # a tie: the search's best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generations": 0}, "generations=0 must be at least 1"),
        ({"tries": 0}, "tries=0 must be at least 1"),
        ({"layer_chance": 1.5}, "layer_chance=1.5 is a probability"),
        ({"mutants": 7}, "mutants=7 and crossings=2 .* more than population=8"),
        ({"crossings": -1}, "crossings=-1 must not be negative"),
    ],
)
def test_a_bad_search_names_its_fields(change, message):
    with pytest.raises(InputError, match=message):
        replace(QUICK, **change)


def test_defaults_are_those_of_autoformers_code():
    # evolution.py: population 50, 20 generations, 10 kept, 25 + 25 children, 0.2 and 0.4
    assert SearchConfig() == SearchConfig(50, 20, 10, 25, 25, 0.2, 0.4, 250, 0)


# The recipe, on noise


def pairs_of(split: str, count: int) -> Pairs:
    """Two pairs a group; pictures and words are random, the labels take turns."""
    generator = torch.Generator().manual_seed(len(split))
    return Pairs(
        list(torch.randn(count, 3, 8, 8, generator=generator)),
        torch.arange(count),
        [str(i % 7 + 1) for i in range(count)],
        torch.arange(count) % 2,
        [f"{split}-{i // 2}" for i in range(count)],
        ("a", "b"),
    )


def from_noise(s, model, part, items=None):
    """``common.cached`` without tokenizer and cache: a text is the id of its one word."""
    ids = torch.tensor([[2, int(text)] for text in part.texts])
    mask = torch.ones_like(ids)
    image, text = model.base_features(torch.stack(list(part.images)), ids, mask)
    image, text = Features(image, None, Path("image")), Features(text, mask, Path("text"))
    return CachedPairs([image], text, part.rows, part.labels, items)


@pytest.fixture
def recipe(monkeypatch, cache):
    """Settings of a small run, and the splits that have been loaded so far."""
    parts = {"train": pairs_of("train", 24), "validation": pairs_of("validation", 8)}
    parts["test"], loaded = pairs_of("test", 12), []

    def pairs(s, split):
        loaded.append(split)
        return parts[split]

    def small_encoders(s):
        torch.manual_seed(7)
        return encoders()

    monkeypatch.setattr(fusion_common, "pairs", pairs)
    monkeypatch.setattr(fusion_common, "encoders", small_encoders)
    monkeypatch.setattr(fusion_common, "cached", from_noise)
    monkeypatch.setattr(pmf_search, "_code", lambda: "code")
    s = pmf_search.RECIPE.scales["smoke"]
    fit = {"epochs": 2, "batch_size": 4, "lr": 0.01}
    space = {"max_fusion_layers": 2, "query_prompts": [1, 2], "mapping_widths": [2, 4]}
    return s | {
        "share": 1.0,
        "slice": 7,
        "limits": [1.0],
        "pmf": {"query_prompts": 2},
        "space": s["space"] | space,
        "supernet": fit,
        "train": fit,
    }, loaded


def test_search_units_never_load_test_data_and_trained_ones_do(recipe):
    s, loaded = recipe
    done = {}
    for unit in pmf_search.units(s):
        loaded.clear()
        done[unit] = pmf_search.run_unit(s, unit)
        assert ("test" in loaded) == unit.startswith("trained-"), unit
    assert done["random-1.0-0"]["evaluations"] == done["evolution-1.0-0"]["evaluations"] == 8
    for way in ("random", "evolution"):  # what was chosen is what was trained
        trained, chosen = (design_from(done[f"{x}{way}-1.0-0"]["design"]) for x in ("trained-", ""))
        assert trained == chosen
        assert done[f"trained-{way}-1.0-0"]["memory"] <= done["trained-hand-0"]["memory"]
    summary = pmf_search.summarise(s, done)
    assert {"searched", "random", "hand-chosen"} < summary["results"].keys()
    assert summary["curves"]["frontier-searched"]["mean"] == [
        summary["results"]["searched"]["mean"]
    ]
    assert summary["curves"]["progress-random"]["x"] == [4, 8]
    assert "searched - hand-chosen" in summary["comparisons"]


def test_a_search_is_not_repeated_for_training(recipe, monkeypatch):
    s, _ = recipe
    first = pmf_search.run_unit(s, "random-1.0-0")
    monkeypatch.setattr(pmf_search_steps, "search", None)  # cannot be called again
    assert pmf_search.run_unit(s, "random-1.0-0") == first


def test_slice_and_supernet_share_no_group(recipe):
    s, _ = recipe
    part = fusion_common.pairs(s, "train")
    ours, held = pmf_search_steps.halves(s, part, 0)
    assert sorted(ours + held) == list(range(24)) and len(held) == 8  # 4 groups of 2 reach 7
    assert not {part.groups[i] for i in ours} & {part.groups[i] for i in held}
    assert pmf_search_steps.halves(s, part, 1)[1] != held
