"""Checkers of chapter 3: every solution passes, every fault that a learner may ship is named."""

from __future__ import annotations

import itertools
import math
import re
from functools import cache

import pytest
import torch
from exercise_code import functions
from torch.nn import functional as F

from mmfusion_lib import fusion, pmf
from mmfusion_lib.blocks import Block
from mmfusion_lib.checks import fusion as checks
from mmfusion_lib.encoders import build_encoder, named_config

PAIRS = {
    "query_stage": checks.check_query_stage,
    "text_side": checks.check_text_side,
    "set_trainable": checks.check_set_trainable,
    "side_bytes": checks.check_side_bytes,
    "margin": checks.check_margin,
    "pair_features": checks.check_pair_features,
    "build": checks.check_build,
}


@pytest.mark.parametrize("name", PAIRS)
def test_solution_passes(name):
    result = PAIRS[name](functions("03_solutions.ipynb")[name])
    assert result.passed, str(result)
    assert str(result).endswith(": passed")


STUBS = {
    "query_stage": "the values are not",
    "text_side": "fusion: the tokens that count change with what stands at padded",
    "set_trainable": "fusion.0.image.fusion_context",
    "side_bytes": "times what autograd keeps",
    "margin": "accuracy",
    "pair_features": r"f\(picture\) \+ g\(sentence\)",
    "build": "holds other encoders",
}


@pytest.mark.parametrize("name", STUBS)
def test_what_the_exercise_hands_out_does_not_pass(name):
    result = PAIRS[name](functions("03_exercises.ipynb")[name])
    assert not result.passed and re.search(STUBS[name], result.hint), result.hint


# --- 1: the query stage -------------------------------------------------------------------------


def query_stage(
    layer, tokens, mask, context, query, order="tcq", ones=1, dropped=False, rows=slice(-2, None),
    behind=True,
):  # fmt: skip
    """Our own, with faults to switch on. The checker's context has 3 rows, its query has 2."""
    batch = len(tokens)
    parts = {"t": tokens, "c": context.expand(batch, -1, -1), "q": query.expand(batch, -1, -1)}
    joined = torch.cat([parts[name] for name in order], 1)
    count = joined.shape[1] - tokens.shape[1]
    if mask is not None and "t" in order:
        mask = F.pad(mask, (0, count) if behind else (count, 0), value=ones)
    else:
        mask = None
    return layer(joined, None if dropped else mask)[:, rows]


def in_place(which):
    def fault(layer, tokens, mask, context, query):
        found = query_stage(layer, tokens, mask, context, query)
        {"tokens": tokens, "mask": mask, "context": context, "query": query}[which].mul_(0)
        return found

    return fault


def no_grad(layer, tokens, mask, context, query):
    with torch.no_grad():
        return query_stage(layer, tokens, mask, context, query)


def unpadded_mask(layer, tokens, mask, context, query):
    joined = fusion.appended(fusion.Tokens(tokens, None), context, query)
    return layer(joined.values, mask)[:, -2:]


def mask_always(layer, tokens, mask, context, query):
    mask = torch.cat([mask, torch.ones(2, 5)], 1)
    return query_stage(layer, tokens, mask[:, :4], context, query)


def post_norm_only(layer, tokens, mask, context, query):
    if layer.pre_norm:
        tokens, context, query = (layer.norm1(t) for t in (tokens, context, query))
    return query_stage(layer, tokens, mask, context, query)


def pre_norm_only(layer, tokens, mask, context, query):
    found = query_stage(layer, tokens, mask, context, query)
    return found if layer.pre_norm else layer.norm2(found)


def detached(layer, tokens, mask, context, query):
    return query_stage(layer, tokens, mask, context.detach(), query)


def with_(function, **fault):
    return lambda *arguments: function(*arguments, **fault)


QUERY = [
    (with_(query_stage, rows=slice(4, 6)), "outputs at the query context"),
    (with_(query_stage, order="tqc"), "outputs at the query context"),
    (with_(query_stage, rows=slice(0, 2)), "outputs at the tokens"),
    (with_(query_stage, rows=slice(4, None)), "the context's rows too"),
    (with_(query_stage, rows=slice(None)), "all rows"),
    (with_(query_stage, order="cqt", behind=False), "outputs at the tokens: in what order"),
    (with_(query_stage, order="cqt"), "out of step: prompts in front"),
    (with_(query_stage, order="cqt", rows=slice(3, 5)), "out of step: prompts in front"),
    (with_(query_stage, order="tq"), "context is not in the sequence"),
    (with_(query_stage, order="cq"), "tokens are not in the sequence"),
    (with_(query_stage, dropped=True), "padding is read"),
    (with_(query_stage, ones=0), "hidden from each other"),
    (lambda *a: 2 * query_stage(*a), "the values are not"),
    (post_norm_only, "^pre-norm layer: the shape is right"),
    (pre_norm_only, "^post-norm layer: the shape is right"),
    (unpadded_mask, r"mask has shape \(2, 4\) but there are \(2, 9\) tokens"),
    (mask_always, "with mask None, .* it raised"),
    (
        lambda layer, tokens, mask, *prompts: query_stage(
            layer, tokens, mask, *prompts, order="tq" if mask is None else "tcq"
        ),
        "^mask None: the query context is not in the sequence",
    ),
    (no_grad, "no gradient arrives"),
    (detached, "no gradient arrives"),
    (lambda layer, tokens, *rest: tokens[0], r"must be \(2, 2, 8\), yours is \(4, 8\)"),
    *((in_place(name), f"the {name} changed") for name in ("tokens", "mask", "context", "query")),
]


def test_prompts_in_front_pass_when_mask_and_rows_follow():
    """Attention without positions does not see the order, so this is no fault."""
    assert checks.check_query_stage(
        with_(query_stage, order="cqt", behind=False, rows=slice(3, 5))
    ).passed


@pytest.mark.parametrize("form", [fusion._Plain, fusion._Shared])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_solutions_are_the_library_s_stages(form, pre_norm):
    torch.manual_seed(0)
    layer, side = Block(8, 2, 16, pre_norm=pre_norm).eval(), fusion.Side(8, 8, 2, 3, 1, 4)
    tokens, message = torch.randn(2, 4, 8), torch.randn(2, 2, 8)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    solved, stages = functions("03_solutions.ipynb"), form(layer, fusion.Tokens(tokens, mask))
    expected = stages.query(side), stages.fuse(side.fusion_context, message, None)
    found = solved["query_stage"](layer, tokens, mask, side.query_context, side.query)
    answers, after = solved["text_side"](layer, tokens, mask, side, message)
    for value, wanted in ((found, expected[0]), (answers, expected[0]), (after, expected[1])):
        assert torch.allclose(value, wanted, atol=1e-6)


# --- 2: padding that leaks ----------------------------------------------------------------------


def text_side(layer, tokens, mask, side, message, query="right", fuse="right", cut=True):
    """Our own; ``query`` and ``fuse`` name a fault of a stage."""
    batch, count, _ = tokens.shape
    results = []
    for fault, parts in (
        (query, [side.query_context, side.query]),
        (fuse, [side.fusion_context, message]),
    ):
        if fault == "swapped":
            parts = parts[::-1]
        if fault == "half":
            parts = parts[1:]
        extra = torch.cat([part.expand(batch, -1, -1) for part in parts], 1)
        own = tokens * mask[..., None] if fault == "zeroed" else tokens
        seen = torch.ones(batch, extra.shape[1])
        if fault == "hidden":
            seen[:] = 0
        if fault == "last hidden":
            seen[:, -1] = 0
        whole = torch.cat([seen, mask] if fault == "shifted" else [mask, seen], 1)
        whole = None if fault in ("dropped", "zeroed") else whole
        whole = 1 - whole if fault == "inverted" else whole
        results.append(layer(torch.cat([own, extra], 1), whole))
    return results[0][:, -2:], results[1][:, :count] if cut else results[1]


QUERYING = "querying: the answers change with "
FUSION = "fusion: the tokens that count change with "
TEXT_SIDE = [
    (with_(text_side, query="dropped"), f"{QUERYING}what stands"),
    (with_(text_side, query="shifted"), f"{QUERYING}what stands"),
    (with_(text_side, query="inverted"), f"{QUERYING}what stands"),
    (with_(text_side, query="zeroed"), f"{QUERYING}the amount of padding"),
    (with_(text_side, query="hidden"), "query_context changes nothing"),
    (with_(text_side, query="half"), "query_context changes nothing"),
    (with_(text_side, query="last hidden"), "querying: no leak, yet"),
    (with_(text_side, query="swapped"), "querying: no leak, yet"),
    (with_(text_side, fuse="dropped"), f"{FUSION}what stands"),
    (with_(text_side, fuse="shifted"), f"{FUSION}what stands"),
    (with_(text_side, fuse="zeroed"), f"{FUSION}the amount of padding"),
    (with_(text_side, fuse="half"), "fusion_context changes nothing"),
    (with_(text_side, fuse="hidden"), "fusion_context changes nothing"),
    (with_(text_side, fuse="last hidden"), "fusion: no leak, yet"),
    (lambda layer, tokens, mask, side, message:
     text_side(layer, tokens, mask, side, torch.zeros(2, 2, 8)), "message changes nothing"),
    (with_(text_side, cut=False), r"yours are \(2, 2, 8\) and \(2, 8, 8\)"),
]  # fmt: skip


# --- 3: the message that never trains -----------------------------------------------------------


def set_trainable(model, but=(), also=(), freeze=True):
    if freeze:
        model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        wanted = "encoder" not in name and not any(word in name for word in but)
        if wanted or any(word in name for word in also):
            parameter.requires_grad_(True)


TRAINABLE = [
    (with_(set_trainable, but=["fusion_context"]),
     r"no gradient at fusion\.0\.image\.fusion_context, \S+ and 2 more: which line"),
    (with_(set_trainable, but=["mapping"]), r"fusion\.0\.image\.mapping\.fc1\.weight"),
    (with_(set_trainable, but=["text_head"]),
     r"no gradient at text_head\.weight, text_head\.bias: which"),
    (with_(set_trainable, but=["fusion.1.text.query_c"]), r"at fusion\.1\.text\.query_context: w"),
    (with_(set_trainable, but=["fusion", "head"]), "nothing trains"),
    (with_(set_trainable, also=["norm"]), "image_encoder.*would train"),
    (with_(set_trainable, also=["text_encoder.words"]), r"text_encoder\.words\.weight would train"),
    (with_(set_trainable, freeze=False), "would train"),
    (lambda model: model.requires_grad_(True), "would train"),
    (lambda model: None, "nothing trains"),
    (lambda model: [e.requires_grad_(False) for e in (model.image_encoder, model.text_encoder)],
     "nothing trains"),
]  # fmt: skip


# --- 4: the memory of a fusion layer ------------------------------------------------------------


def side_bytes(
    b, n, m, d, f, heads, h, bytes=4, runs=2, prompts=2, norms=2, inputs=0, qkv=3, maps=None, mlp=1
):
    rows = n + prompts * m
    maps = heads if maps is None else maps
    layer = rows * ((norms + qkv) * d + norms * 2 + inputs * (2 * d + f) + mlp * f)
    return bytes * b * (runs * (layer + maps * rows * rows) + m * (d + h))


MEMORY = [
    (with_(side_bytes, bytes=1), "float32 takes 4"),
    (with_(side_bytes, runs=1), "runs twice"),
    (with_(side_bytes, prompts=0), "prompts are rows like any others"),
    (with_(side_bytes, prompts=1), "two kinds of prompts"),
    (with_(side_bytes, inputs=1), "who needs their inputs"),
    (with_(side_bytes, maps=0), "is the matrix of attention weights in it"),
    (with_(side_bytes, maps=1), "one matrix of attention weights a head"),
    (with_(side_bytes, qkv=0), "queries, keys and values"),
    (with_(side_bytes, norms=0), "inputs of both norms"),
    (with_(side_bytes, mlp=0), "activation of the MLP"),
    (with_(side_bytes, bytes=9), "width 16: yours is 2.25 times .* go through the table"),
]


def test_a_tenth_may_be_missing():
    """Without the mapping and the statistics of the norms, less than a tenth is missing."""

    def rough(b, n, m, d, f, heads, h):
        rows = n + 2 * m
        return 8 * b * rows * (5 * d + f + heads * rows)

    assert checks.check_side_bytes(rough).passed
    assert not checks.check_side_bytes(lambda *sizes: 0.89 * side_bytes(*sizes)).passed


def test_the_prediction_is_exact():
    """The formula of the solution is what autograd keeps, to the byte."""
    for sizes in ((2, 24, 4, 16, 64, 8, 8), (3, 5, 8, 64, 256, 1, 32), (2, 7, 3, 24, 40, 3, 5)):
        predicted = functions("03_solutions.ipynb")["side_bytes"](*sizes)
        assert predicted == checks._measured(*sizes) == side_bytes(*sizes)


# --- 5: why additive scores fail ----------------------------------------------------------------


def right(scores, labels):
    return scores.gather(2, labels[..., None])[..., 0]


def over_best_other(scores, labels):
    others = scores.scatter(2, labels[..., None], float("-inf"))
    return (right(scores, labels) - others.max(2).values).mean()


def over_others(scores, labels):
    others = (scores.sum(2) - right(scores, labels)) / (scores.shape[2] - 1)
    return (right(scores, labels) - others).mean()


MARGIN = [
    (lambda s, y: (s.argmax(2) == y).float().mean(), "accuracy"),
    (lambda s, y: right(s, y).mean(), "right class alone"),
    (over_best_other, "best of the others"),
    (over_others, "right one included"),
    (lambda s, y: (right(s, y) - s.mean(2)).sum(), "not the sum"),
    (lambda s, y: 0.0, "it is 2.5; yours is 0"),
    (lambda s, y: (right(s, y) - s.mean(2))[0].mean(), "additive score gets 0"),
]


def lift(tensor):
    return torch.cat([tensor, tensor**2, tensor.exp(), tensor.sin()], 1)


ADDITIVE = r"f\(picture\) \+ g\(sentence\).* Right on 0\.\d\d of new pairs; guessing gives 0\.33"
FEATURES = [
    (lambda a, b: torch.cat([a, b], 1), ADDITIVE),
    (lambda a, b: torch.cat([lift(a), lift(b)], 1), ADDITIVE),
    (lambda a, b: a, ADDITIVE),
    (lambda a, b: b, ADDITIVE),
    (lambda a, b: a[:, :1] * b[:, :1], r"a probe is right on 0\.\d\d of new pairs: how much"),
    (lambda a, b: a[:, :, None] * b[:, None], r"must be \(360, K\), yours is \(360, 4, 5\)"),
    (lambda a, b: a * b, "RuntimeError"),
]


def test_a_probe_on_additive_features_is_near_chance():
    (a, b, labels), other = checks._blocks(40, seed=0), checks._blocks(40, seed=100)
    accuracy = checks._probe(
        torch.cat([a, b], 1).double(), labels, torch.cat(other[:2], 1).double(), other[2]
    )
    assert accuracy == pytest.approx(1 / 3, abs=0.05)
    for tensor in (a.view(40, 3, 3, 4)[:, :, 0], b.view(40, 3, 3, 5)[:, 0]):
        assert len(tensor.flatten(0, 1).unique(dim=0)) == 120  # no two alike


def test_no_additive_score_has_a_lower_loss_than_guessing():
    """What solution 5 says. Minimised over f and g, the loss is log 3 on a balanced block; where
    labels depend on the picture alone it goes to 0."""
    balanced = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    for labels, best in ((balanced, math.log(3)), (balanced[:, :1].expand(-1, 3), 0.0)):
        f, g = checks._random(3, 1, 3), checks._random(1, 3, 3, seed=1)
        for _ in range(300):
            f, g = f.detach().requires_grad_(), g.detach().requires_grad_()
            loss = F.cross_entropy((f + g).flatten(0, 1), labels.flatten())
            steps = torch.autograd.grad(loss, (f, g))
            f, g = f - 2 * steps[0], g - 2 * steps[1]
        assert loss.item() == pytest.approx(best, abs=0.02)


# --- 6: swap an encoder -------------------------------------------------------------------------


@cache
def encoder(name):
    """On the meta device. PMF keeps no state in an encoder, so models may share one."""
    with torch.device("meta"):
        return build_encoder(name)


def build(
    image_name, text_name, classes, layers=2, swapped=False, clamp=False, share=None, **fields
):
    names = (text_name, image_name) if swapped else (image_name, text_name)
    encoders = [encoder(name) for name in names]
    if clamp:
        layers = min(layers, *(named_config(name).depth for name in names))
    model = pmf.PMF(*encoders, pmf.PMFConfig(classes, layers, **fields))
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return model, trains / total if share is None else share(trains, total)


def in_memory(image_name, text_name, classes, layers):
    text = build_encoder(text_name)
    return pmf.PMF(encoder(image_name), text, pmf.PMFConfig(classes, layers)), 0.0


def own_words(image_name, text_name, classes, layers):
    if layers > named_config(text_name).depth:
        raise checks.InputError("There are too few layers.")
    return build(image_name, text_name, classes, layers)


def own_error(image_name, text_name, classes, layers):
    assert layers <= named_config(text_name).depth, "too deep"
    return build(image_name, text_name, classes, layers)


BUILD = [
    (in_memory, "encoders take memory"),
    (with_(build, swapped=True), "holds other encoders"),
    (lambda i, t, c, n: build("dinov2-small", "minilm-l6", c, n), "vit-base .* other encoders"),
    (lambda i, t, c, n: build(i, t, 11, n), "asked for 101 classes"),
    (lambda i, t, c, n: build(i, t, c), "and 3 fusion layers"),
    (with_(build, train_fusion_context=False), "numbers should train"),
    (with_(build, mapping_width=100), "numbers should train"),
    (with_(build, share=lambda trains, total: 100 * trains / total), "percentage"),
    (with_(build, share=lambda trains, total: 1 - trains / total), "frozen share"),
    (with_(build, share=lambda trains, total: 1.0), "frozen ones too"),
    (with_(build, share=lambda trains, total: trains / (total - trains)), "by all parameters"),
    (with_(build, share=lambda trains, total: 0.0), "your share is 0.0000"),
    (with_(build, clamp=True), "must be refused"),
    (own_words, "let the library say so, not: There are too few"),
    (own_error, "AssertionError: too deep"),
]


def test_counts_are_those_of_the_official_file():
    """2,543,818 train there for base/base and 101 classes, without the fusion context prompts:
    2 layers, 2 sides, 4 prompts of 768 are 12,288 more."""
    model, share = functions("03_solutions.ipynb")["build"]("vit-base", "bert-base", 101)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trains == 2_543_818 + 12_288
    assert share == trains / sum(p.numel() for p in model.parameters())


def test_less_than_three_per_cent_trains():
    """As the abstract says, for the smallest and the largest encoder of each kind."""
    for pair in itertools.product(("dinov2-small", "clip-h14"), ("minilm-l6", "roberta-large")):
        assert build(*pair, 101)[1] < 0.03


# --- all ----------------------------------------------------------------------------------------

FAULTS = {
    "query_stage": QUERY,
    "text_side": TEXT_SIDE,
    "set_trainable": TRAINABLE,
    "side_bytes": MEMORY,
    "margin": MARGIN,
    "pair_features": FEATURES,
    "build": BUILD,
}
CASES = [(name, number) for name, faults in FAULTS.items() for number in range(len(faults))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_fault_is_named(name, number):
    fault, words = FAULTS[name][number]
    result = PAIRS[name](fault)
    assert not result.passed
    assert ": not yet:" in str(result)
    assert re.search(words, result.hint), result.hint


OURS = {
    "query_stage": query_stage,
    "text_side": text_side,
    "set_trainable": set_trainable,
    "side_bytes": side_bytes,
    "build": build,
}


@pytest.mark.parametrize("name", OURS)
def test_without_a_fault_ours_passes(name):
    result = PAIRS[name](OURS[name])
    assert result.passed, str(result)


@pytest.mark.parametrize("name", PAIRS)
def test_an_exception_becomes_a_hint(name):
    def broken(*args, **kwargs):
        raise RuntimeError("not written")

    result = PAIRS[name](broken)
    assert not result.passed and "RuntimeError: not written" in result.hint
