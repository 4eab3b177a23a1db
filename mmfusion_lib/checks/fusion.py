"""Checkers of the exercises of chapter 3. Each takes the learner's function and says what is wrong.

They compare with the library's plain form of a fusion layer, on random blocks too small to wait for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..accounting import block_activation_bytes, saved_activation_bytes
from ..blocks import Block
from ..encoders import EncoderConfig, build_encoder, named_config
from ..errors import InputError
from ..fusion import FusionLayer, Side, Tokens, appended
from ..pmf import PMF, PMFConfig
from .result import checker


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _filled(module: nn.Module) -> nn.Module:
    """The module, frozen, with random values that are the same in every run."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(False).copy_(0.4 * _random(*parameter.shape, seed=seed))
    return module.eval()


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-5)


# ------------------------------------------------------------------ 1. the query stage


@checker("1 the query stage")
def check_query_stage(fn: Callable[..., Tensor]) -> str:
    """``fn(layer, tokens (B, N, D), mask (B, N), context, query)`` -> (B, M_qp, D).

    Context is (M_qcp, D), query (M_qp, D); the mask may be None.
    """
    padded = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = _random(2, 4, 8, seed=50), _random(3, 8, seed=51), _random(2, 8, seed=52)
    for pre_norm in (True, False):
        layer = _filled(Block(8, 2, 16, pre_norm=pre_norm))
        if hint := _query_hint(fn, layer, padded, *inputs):
            return f"{'pre' if pre_norm else 'post'}-norm layer: {hint}"
        try:
            if hint := _query_hint(fn, layer, None, *inputs):
                return f"mask None: {hint}"
        except Exception as error:
            return f"with mask None, which says that all tokens count, it raised: {error}"
    with torch.enable_grad():
        prompts = [prompt.clone().requires_grad_() for prompt in inputs[1:]]
        out = fn(layer, inputs[0], padded, *prompts)
        grads = [None, None]
        if out.requires_grad:
            grads = torch.autograd.grad((out**3).sum(), prompts, allow_unused=True)
    if any(grad is None for grad in grads):
        return (
            "no gradient arrives at the prompts: a frozen layer does not learn, but passes it on."
        )
    return ""


def _query_hint(fn, layer, mask, tokens, context, query) -> str:
    given = {"tokens": tokens, "mask": mask, "context": context, "query": query}
    handed = {name: None if t is None else t.clone() for name, t in given.items()}
    found = fn(layer, *handed.values())
    for name, tensor in given.items():
        if tensor is not None and not torch.equal(tensor, handed[name]):
            return f"the {name} changed in place: this stage only reads, the next one reads again."
    (count, _), joined = query.shape, appended(Tokens(tokens, mask), context, query)
    rows = layer(joined.values, joined.mask)  # (B, N + M_qcp + M_qp, D)
    if _close(found, rows[:, -count:]):
        return ""
    if found.shape != (2, count, 8):
        shapes = {len(context) + count: "the context's rows too: ", rows.shape[1]: "all rows: "}
        what = shapes.get(found.shape[1] if found.ndim == 3 else 0, "")
        return f"{what}the result must be {(2, count, 8)}, yours is {tuple(found.shape)}."
    for start in range(rows.shape[1] - count):
        if _close(found, rows[:, start : start + count]):
            what = "the tokens" if start < tokens.shape[1] else "the query context"
            return (
                f"these are outputs at {what}: in what order do you join, which rows do you keep?"
            )
    bare = appended(Tokens(tokens, mask), query)
    if _close(found, layer(bare.values, bare.mask)[:, -count:]):
        return "the query context is not in the sequence: the answers should depend on it."
    extra = joined.values[:, tokens.shape[1] :]  # (B, M_qcp + M_qp, D)
    if _close(found, layer(extra, None)[:, -count:]):
        return "the tokens are not in the sequence: there is nothing to ask."
    if mask is not None:
        if _close(found, layer(joined.values, None)[:, -count:]):
            return "padding is read: the mask did not arrive at the layer."
        if _close(found, layer(joined.values, F.pad(mask, (0, len(extra[0]))))[:, -count:]):
            return "the prompts are hidden from each other: in a mask, 1 = keep."
        front = torch.cat([extra, tokens], dim=1)
        swapped = layer(front, joined.mask)  # prompts in front, and their ones behind
        if _close(found, swapped[:, -count:]) or _close(found, swapped[:, 3:5]):
            return "mask and sequence are out of step: prompts in front, but their ones at the end."
    return (
        "the shape is right, the values are not: does the layer run on [tokens; context; query]? "
        "Compare with fusion.appended."
    )


# ------------------------------------------------------------------ 2. padding that leaks


@checker("2 padding that leaks")
def check_text_side(fn: Callable[..., tuple[Tensor, Tensor]]) -> str:
    """``fn(layer, tokens (B, N, D), mask (B, N), side, message (B, M_qp, D))`` -> both stages.

    The result is the answers (B, M_qp, D) and the tokens (B, N, D); ``side`` is a ``fusion.Side``.
    """
    layer, side = _filled(Block(8, 2, 16, pre_norm=False)), _filled(Side(8, 8, 2, 3, 1, 4))
    tokens, message = _random(2, 5, 8, seed=50), _random(2, 2, 8, seed=51)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    keep = mask.bool()

    def run(tokens=tokens, mask=mask, message=message) -> tuple[Tensor, Tensor]:
        answers, after = fn(layer, tokens.clone(), mask.clone(), side, message)
        return answers, after[:, :5][keep]  # tokens that count

    answers, after = fn(layer, tokens.clone(), mask.clone(), side, message)
    if answers.shape != (2, 2, 8) or after.shape != tokens.shape:
        found = tuple(answers.shape), tuple(after.shape)
        return f"the results must be (2, 2, 8) and (2, 5, 8); yours are {found[0]} and {found[1]}."
    first, loud = run(), torch.where(keep[..., None], tokens, 5 * _random(2, 5, 8, seed=52))
    longer = F.pad(tokens, (0, 0, 0, 3)), F.pad(mask, (0, 3))
    stages = "querying: the answers", "fusion: the tokens that count"
    for stage, old, new, more in zip(stages, first, run(loud), run(*longer)):
        if not _close(new, old):
            return f"{stage} change with what stands at padded positions: follow the mask."
        if not _close(more, old):
            return f"{stage} change with the amount of padding: made zero is not yet hidden."
    for name, stage in (("query_context", 0), ("fusion_context", 1)):
        prompt = getattr(side, name)
        prompt.add_(_random(*prompt.shape, seed=53))
        if _close(run()[stage], first[stage]):
            return f"the {name} changes nothing: is it in the sequence, and can it be seen?"
    if _close(run()[1], run(message=message + _random(2, 2, 8, seed=54))[1]):
        return "the message changes nothing: is it in the sequence, and can it be seen?"
    asked = appended(Tokens(tokens, mask), side.query_context, side.query)
    told = appended(Tokens(tokens, mask), side.fusion_context, message)
    if not _close(run()[0], layer(asked.values, asked.mask)[:, -2:]):
        return "querying: no leak, yet the answers differ: in which order do you join, is all seen?"
    if not _close(run()[1], layer(told.values, told.mask)[:, :5][keep]):
        return "fusion: no leak, yet the tokens differ: in which order do you join, is all seen?"
    return ""


# ------------------------------------------------------------------ 3. the message that never trains


@checker("3 the message that never trains")
def check_set_trainable(fn: Callable[[PMF], None]) -> str:
    """``fn(model)`` sets ``requires_grad``: prompts, mappings and heads train, encoders do not."""
    image = EncoderConfig("image", 8, 2, 2, 16, image_size=4, patch_size=2)
    text = EncoderConfig("text", 12, 3, 2, 16, "post", vocab_size=9, max_positions=4)
    model = _filled(PMF(build_encoder(image), build_encoder(text), PMFConfig(3)))
    inputs = _random(2, 3, 4, 4), torch.tensor([[1, 2, 3, 4], [1, 5, 0, 0]])
    for before in (False, True):  # whatever was set before must not matter
        model.requires_grad_(before).zero_grad()
        fn(model)
        with torch.enable_grad():
            logits = model(*inputs, inputs[1].sign()).logits  # (2, 3)
            if not logits.requires_grad:
                return "nothing trains: the backward pass has no parameter to go to."
            (logits * _random(2, 3, seed=50)).sum().backward()
        named = [(name, "encoder" in name, p) for name, p in model.named_parameters()]
        if names := [n for n, frozen, p in named if frozen and p.requires_grad]:
            return f"{_some(names)} would train: of the encoders, nothing may."
        if names := [n for n, frozen, p in named if not frozen and p.grad is None]:
            return f"no gradient at {_some(names)}: which line lets it train, and is it reached?"
    return ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


# ------------------------------------------------------------------ 4. the memory of a fusion layer


@checker("4 the memory of a fusion layer")
def check_side_bytes(fn: Callable[..., float]) -> str:
    """``fn(batch, tokens, prompts, width, mlp_width, heads, mapping_width)`` -> bytes of one side.

    Plain form, attention written out, no dropout; M_qp = M_qcp = M_fcp = prompts.
    """
    for b, n, m, d, f, heads, h in (
        (2, 24, 4, 16, 64, 8, 8),
        (3, 5, 8, 64, 256, 1, 32),
        (2, 30, 2, 32, 32, 2, 16),
    ):
        measured, found = _measured(b, n, m, d, f, heads, h), fn(b, n, m, d, f, heads, h)
        if abs(found - measured) <= measured / 10:
            continue
        config = EncoderConfig("text", d, 1, heads, f)

        def blocks(s: int, trainable: bool = False, b=b, config=config) -> int:
            return 2 * block_activation_bytes(config, s, b, trainable=trainable, fused=False)

        s = n + 2 * m
        right = blocks(s) + 4 * b * m * (d + h)
        guesses = {
            "count bytes: a value of float32 takes 4.": right / 4,
            "the frozen layer runs twice, and both runs are kept.": right / 2,
            "prompts are rows like any others, in both runs.": blocks(n),
            "in each run the layer reads two kinds of prompts.": blocks(n + m),
            "frozen weights need no gradient, so who needs their inputs?": blocks(s, True),
            "is the matrix of attention weights in it, one a head?": right - 8 * b * heads * s * s,
            "one matrix of attention weights a head.": right - 8 * b * (heads - 1) * s * s,
            "are queries, keys and values in it?": right - 24 * b * s * d,
            "are the inputs of both norms in it?": right - 16 * b * s * d,
            "is what enters the activation of the MLP in it?": right - 8 * b * s * f,
        }
        hint = min(guesses, key=lambda words: abs(guesses[words] - found))
        near = abs(guesses[hint] - found) <= 0.05 * measured
        about = hint if near else "go through the table in accounting.block_activation_bytes."
        return f"width {d}: yours is {found / measured:.2f} times what autograd keeps; {about}"
    return ""


def _measured(b: int, n: int, m: int, d: int, f: int, heads: int, h: int) -> float:
    """What autograd keeps for one of two equal sides."""
    layer = Block(d, heads, f, pre_norm=False).requires_grad_(False)
    layer.attention.fused = False
    fusion = FusionLayer(Side(d, d, m, m, m, h), Side(d, d, m, m, m, h), shared=False)
    see, read = Tokens(_random(b, n, d), None), Tokens(_random(b, n, d), None)
    return saved_activation_bytes(lambda: fusion(layer, layer, see, read), (layer, fusion)) / 2


# ------------------------------------------------------------------ 5. why additive scores fail


@checker("5a the margin")
def check_margin(fn: Callable[[Tensor, Tensor], float]) -> str:
    """``fn(scores (P, S, C), labels (P, S))``: by how much the right class beats the mean class."""
    # Cell 1: 4 - (4 + 1 + 1) / 3 = 2. Cell 2: 5 - (0 + 5 + 1) / 3 = 3. Mean 2.5.
    found = float(fn(torch.tensor([[[4.0, 1, 1], [0, 5, 1]]]), torch.tensor([[0, 1]])))
    slips = {
        1.0: "that is accuracy: use the scores themselves, not which is largest.",
        4.5: "that is the score of the right class alone: what have the others got?",
        3.5: "compare with the mean over the classes, not with the best of the others.",
        3.75: "the mean is over all classes, the right one included.",
        5.0: "take the mean over the cells, not the sum.",
    }
    for value, hint in slips.items():
        if abs(found - value) < 1e-4:
            return hint
    if abs(found - 2.5) > 1e-4:
        return f"scores (4, 1, 1) and (0, 5, 1), classes 0 and 1: it is 2.5; yours is {found:.3g}."
    square = (torch.arange(3) - torch.arange(3)[:, None]) % 3  # (3, 3)
    scores = _random(3, 1, 3) + _random(1, 3, 3, seed=1)
    if abs(float(fn(scores, square))) > 1e-5:
        return "on a balanced block any additive score gets 0: is each cell in, with its own label?"
    return ""


@checker("5b features of a pair")
def check_pair_features(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """``fn(pictures (R, 4), sentences (R, 5)) -> (R, K)``: what a linear probe reads."""
    (pictures, sentences, labels), other = _blocks(40, seed=0), _blocks(40, seed=100)
    train, test = fn(pictures, sentences).double(), fn(*other[:2]).double()
    if train.ndim != 2 or len(train) != len(labels):
        return f"for 360 pairs the result must be (360, K), yours is {tuple(train.shape)}."
    # Rows 0, 1, 3, 4 of a block are two pictures with two sentences.
    corners = train.unflatten(0, (-1, 9))[:, [0, 1, 3, 4]]  # (360, K) -> (40, 4, K)
    mixed = corners[:, 0] - corners[:, 1] - corners[:, 2] + corners[:, 3]
    accuracy = _probe(train, labels, test, other[2])
    if mixed.abs().max() < 1e-5 * (1 + train.abs().max()):
        return (
            "your features are f(picture) + g(sentence): no number in them depends on both. "
            f"Right on {accuracy:.2f} of new pairs; guessing gives 0.33."
        )
    if accuracy < 0.99:
        return (
            f"some features read both, yet a probe is right on {accuracy:.2f} of new pairs: how much "
            "of the picture meets how much of the sentence?"
        )
    return ""


def _blocks(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of three pictures and three sentences whose labels are a Latin square: 9 pairs each."""
    state = torch.arange(3)
    pictures, sentences = _random(3, 4, seed=40), _random(3, 5, seed=41)  # one code a state
    pictures = pictures + 0.05 * _random(count, 3, 4, seed=seed)
    sentences = sentences + 0.05 * _random(count, 3, 5, seed=seed + 1)
    labels = (state - state[:, None]) % 3  # (3, 3)
    return (
        pictures[:, :, None].expand(-1, -1, 3, -1).reshape(-1, 4),  # -> (9 count, 4)
        sentences[:, None].expand(-1, 3, -1, -1).reshape(-1, 5),
        labels.expand(count, -1, -1).reshape(-1),
    )


def _probe(train: Tensor, labels: Tensor, test: Tensor, expected: Tensor) -> float:
    """Accuracy of a ridge regression on the one-hot labels."""
    train, test = (F.pad(features, (0, 1), value=1.0) for features in (train, test))
    gram = train.T @ train + 1e-6 * torch.eye(train.shape[1]).double()
    weights = torch.linalg.solve(gram, train.T @ F.one_hot(labels).double())
    return ((test @ weights).argmax(1) == expected).double().mean().item()


# ------------------------------------------------------------------ 6. swap an encoder


@checker("6 swap an encoder")
def check_build(fn: Callable[..., tuple[PMF, float]]) -> str:
    """``fn(image_name, text_name, num_classes, num_fusion_layers) -> (model, trainable share)``."""
    for image_name, text_name, classes, layers in (
        ("dinov2-small", "minilm-l6", 11, 2),
        ("vit-base", "bert-large", 101, 2),
        ("clip-h14", "roberta-base", 3, 3),
    ):
        model, share = fn(image_name, text_name, classes, layers)
        pair = f"{image_name} + {text_name}"
        encoders = nn.ModuleList([model.image_encoder, model.text_encoder])
        if not all(p.is_meta for p in encoders.parameters()):
            return "the encoders take memory: on which device are they built?"
        image, text = named_config(image_name), named_config(text_name)
        if (model.image_encoder.config, model.text_encoder.config) != (image, text):
            return f"{pair}: the model holds other encoders; use both names, in this order."
        if len(model.fusion) != layers or model.image_head.out_features != classes:
            return f"{pair}: asked for {classes} classes and {layers} fusion layers; use both."
        # Three prompts of 4 and a mapping, each way; then two heads.
        both, h = image.width + text.width, max(image.width, text.width) // 2
        trains = layers * (12 * both + 2 * h * (both + 1) + both)
        trains += (image.readout_width + text.readout_width + 2) * classes
        total = sum(p.numel() for p in model.parameters())
        if sum(p.numel() for p in model.parameters() if p.requires_grad) != trains:
            return f"{pair}: {trains:,} numbers should train; keep the defaults of PMFConfig."
        slips = {
            100 * trains / total: "that is a percentage: give a share between 0 and 1.",
            1.0: "that counts the frozen ones too: which parameters have requires_grad?",
            1 - trains / total: "that is the frozen share.",
            trains / (total - trains): "divide by all parameters, not by the frozen ones.",
        }
        for value, hint in slips.items():
            if abs(share - value) < 1e-9 * value:
                return hint
        if abs(share - trains / total) > 1e-9:
            return f"{pair}: {trains:,} of {total:,} numbers train; your share is {share:.4f}."
    try:
        fn("vit-base", "minilm-l6", 3, 7)
    except InputError as error:
        told = "num_fusion_layers=7" in str(error) and "the text encoder has 6 layers" in str(error)
        return "" if told else f"too many fusion layers: let the library say so, not: {error}"
    return "minilm-l6 has 6 layers: a model with 7 fusion layers must be refused, not made smaller."
