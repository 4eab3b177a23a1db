"""Checkers of chapter 5: every solution passes, every fault that a learner may ship is named."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from exercise_code import functions
from torch.nn import functional as F

from mmfusion_lib.checks import prismer as checks
from mmfusion_lib.checks import prismer_faults as faults
from mmfusion_lib.decoder import IGNORED

ROOT = Path(__file__).resolve().parents[1]
PAIRS = {
    "loss": checks.check_loss,
    "is_sound": faults.check_label_test,
    "first_logits": checks.check_first_logits,
    "is_same": faults.check_cache_test,
    "scores": checks.check_scores,
    "is_honest": faults.check_choice_test,
}


@pytest.mark.parametrize("name", PAIRS)
def test_solution_passes(name):
    result = PAIRS[name](functions("05_solutions.ipynb")[name])
    assert result.passed, str(result)
    assert str(result).endswith(": passed")


STUBS = {
    "loss": "nothing predicts itself",
    "is_sound": "padding that is learnt",
    "first_logits": "as published: the last column is padding",
    "is_same": "forgets positions: take a second step",
    "scores": "the score is smoothed, as published",
    "is_honest": "chosen by its test score, as published",
}


@pytest.mark.parametrize("name", STUBS)
def test_what_the_exercise_hands_out_does_not_pass(name):
    result = PAIRS[name](functions("05_exercises.ipynb")[name])
    assert not result.passed and re.search(STUBS[name], result.hint), result.hint


# --- 1: the loss --------------------------------------------------------------------------------


def loss(logits, labels, e, *, shift=1, mean=False, batch=False, skip=True, smooth=True, own=True):
    """Our own, with faults to switch on."""
    e = e if smooth else 0.0
    last = logits.shape[1]
    logs = logits[:, max(0, -shift) : last - max(0, shift)].log_softmax(-1)
    wanted = labels[:, max(0, shift) : last - max(0, -shift)]
    right = logs.gather(2, wanted.clamp(min=0)[..., None])[..., 0]
    spread = logs.mean(-1) if own else (logs.sum(-1) - right) / (logs.shape[-1] - 1)
    each = -(1 - e) * right - e * spread
    kept = wanted != IGNORED
    total = (each * kept if skip else each).sum(1)
    total = total / kept.sum(1) if mean else total
    return total / len(total) if batch else total


def spoiling(logits, labels, e):
    found = loss(logits, labels, e)
    labels[labels == IGNORED] = 0
    return found


LOSS = [
    (partial(loss, shift=0), "nothing predicts itself"),
    (partial(loss, skip=False), "where the label is -100 nothing is learnt"),
    (partial(loss, mean=True), "the sum over its tokens, not the mean"),
    (partial(loss, batch=True), "averaged over the batch"),
    (partial(loss, smooth=False), "with smoothing 0.3: the smoothing is missing"),
    (partial(loss, own=False), "the right word gets its share"),
    (partial(loss, shift=2), "values not"),
    (spoiling, "what was given has changed"),
    (lambda logits, labels, e: loss(logits, labels, e).mean(), r"\(3,\); yours is \(\)"),
]


# --- 2: what is learnt --------------------------------------------------------------------------


def is_sound(pack, *, prompts=((1, 7, 8), (1,)), texts=((5, 6, 1, 2), (9, 2)), blind=None):
    """Our own, with blind spots: other batches, or places that are not looked at."""
    ids, mask, labels = pack(prompts, texts)
    if blind == "padding":
        labels = labels.masked_fill(mask == 0, IGNORED)
    if blind == "first":  # the first label of each row alone
        return bool((labels[:, 0] == IGNORED).all())
    right = torch.full_like(ids, IGNORED)
    for row, (prompt, text) in enumerate(zip(prompts, texts)):
        right[row, len(prompt) : len(prompt) + len(text)] = torch.tensor(text)
    if blind == "end":
        right, labels = right.masked_fill(ids == 2, 0), labels.masked_fill(ids == 2, 0)
    return torch.equal(labels, right)


LABELS = [
    (partial(is_sound, blind="padding"), "padding that is learnt"),
    (partial(is_sound, blind="end"), "an end mark that is not learnt"),
    (partial(is_sound, prompts=((1, 7), (1, 8))), "one prompt length"),
    (partial(is_sound, texts=((5, 6, 4, 2), (9, 2))), "equal the first token of the first prompt"),
    (partial(is_sound, blind="first"), "padding that is learnt"),
    (lambda pack: False, "calls a sound function faulty"),
]


# --- 3: the question beside it ------------------------------------------------------------------


def first_logits(decoder, latents, questions, *, side="left", masked=True, at="last"):
    """Our own, with faults to switch on."""
    longest = max(len(question) for question in questions)
    fill = [[0] * (longest - len(q)) for q in questions]
    right = side == "right"
    ids = torch.tensor([q + pad if right else pad + q for q, pad in zip(questions, fill)])
    mask = (ids != 0).long() if masked else None
    logits = decoder(ids, latents, mask)
    if at == "last":
        return logits[:, -1]
    places = torch.tensor([len(q) - (at == "own") for q in questions]).clamp(max=longest - 1)
    return logits[torch.arange(len(ids)), places]


def test_reading_at_the_own_last_word_is_as_good():
    assert PAIRS["first_logits"](partial(first_logits, side="right", at="own")).passed


FIRST = [
    (partial(first_logits, side="right"), "as published"),
    (partial(first_logits, side="right", masked=False), "padding is read like a word"),
    (partial(first_logits, masked=False), "packed to the left, but"),
    (partial(first_logits, side="right", at="behind"), "that is where you read"),
    (lambda d, z, q: first_logits(d, z, q)[:2], r"\(3, 20\); yours is \(2, 20\)"),
    (lambda d, z, q: first_logits(d, z.flip(0), q), "question 0 alone"),
]


# --- 4: the cache that forgets ------------------------------------------------------------------


def is_same(writer, *, pad=True, steps=4, select=(2, 0, 0), last=4, exact=False):
    """Our own, with blind spots to switch on."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 20, (3, 4 + steps + last), generator=generator)
    mask = torch.ones_like(ids)
    if pad:
        mask[1, :2] = mask[2, :1] = 0
    writer.start()
    pieces = [writer.step(ids[:, :4], mask[:, :4])]
    pieces += [writer.step(ids[:, n : n + 1]) for n in range(4, 4 + steps)]
    if select:
        rows = list(select)
        writer.select(rows)
        ids = torch.cat([ids[rows][:, : 4 + steps], ids[:, 4 + steps :]], 1)
        mask, pieces = mask[rows], [piece[rows] for piece in pieces]
    if last:
        pieces.append(writer.step(ids[:, 4 + steps :]))
    found, right = torch.cat(pieces, 1), writer.full(ids, mask)
    return torch.equal(found, right) if exact else torch.allclose(
        found[mask == 1], right[mask == 1], atol=1e-4
    )  # fmt: skip


CACHE = [
    (partial(is_same, pad=False), "padding becomes visible"),
    (partial(is_same, select=None), "put in order"),
    (partial(is_same, select=(0, 1, 2)), "put in order"),
    (partial(is_same, last=1), "each sees the next"),
    (partial(is_same, steps=0, last=0), "forgets positions"),
    (partial(is_same, exact=True), "calls a sound cache faulty"),
]


# --- 5: scores of endings -----------------------------------------------------------------------


def scores(
    logits, candidates, shortlist, *, e=0.0, mean=True, sign=1, end=True, pad=False, by="first"
):
    """Our own, with faults to switch on."""
    logs = logits.log_softmax(-1)
    logs = (1 - e) * logs + e * logs.mean(-1, keepdim=True)
    found = []
    for k, candidate in enumerate(candidates):
        tokens = candidate if end else candidate[:-1]
        tokens = tokens + [0] * (logits.shape[1] - len(tokens)) if pad else tokens
        each = torch.stack([logs[k, m, token] for m, token in enumerate(tokens)])
        found.append(each.mean() if mean else each.sum())
    found = torch.stack(found)
    key = found if by == "score" else logits[0, 0, [c[0] for c in candidates]]
    if by == "nobody":
        return sign * found
    out = torch.ones_like(found).bool()
    out[key.topk(shortlist).indices] = False
    return sign * found.masked_fill(out, float("-inf"))


SCORES = [
    (partial(scores, e=0.1), "the score is smoothed"),
    (partial(scores, mean=False), "else short ones win"),
    (partial(scores, sign=-1), "the sign is turned"),
    (partial(scores, end=False), "the end mark is a token"),
    (partial(scores, pad=True), "what stands behind a shorter candidate"),
    (partial(scores, by="nobody"), "none was left out"),
    (partial(scores, by="score"), "goes by the first token alone"),
    (lambda logits, c, s: scores(logits, c, s)[:3], r"\(5,\); yours is \(3,\)"),
    (lambda logits, c, s: 2 * scores(logits, c, s), "values are off"),
]


# --- 6: chosen on the test set ------------------------------------------------------------------

APART = [0.9, 0.5, 0.6, 0.7], [0.3, 0.8, 0.4, 0.5]
LATER = [0.1, 0.2, 0.8, 0.3], [0.6, 0.5, 0.2, 0.9]
TIE = [0.2, 0.7, 0.7, 0.1], [0.1, 0.4, 0.9, 0.2]


def is_honest(choose, *, cases=(APART, LATER, TIE), epoch=True, score=True):
    """Our own, with blind spots to switch on."""
    for validation, test in cases:
        best = validation.index(max(validation))
        kept, reported = choose(validation, test)
        if (epoch and kept != best) or (score and reported != test[best]):
            return False
    return True


CHOICE = [
    (partial(is_honest, cases=(LATER, TIE)), "that the first epoch is never kept"),
    (partial(is_honest, cases=(APART, LATER)), "a tie in validation"),
    (partial(is_honest, score=False), "a validation score that is reported"),
    (partial(is_honest, cases=(([0.1, 0.2], [0.1, 0.2]),)), "chosen by its test score"),
    (lambda choose: False, "calls an honest choice faulty"),
]


def test_what_exercise_6_calls_honest():
    """The published choice: by the test score, and the first epoch is only ever compared with."""
    found = {name: fault for name, (fault, _) in faults.CHOICE_FAULTS.items()}
    # Validation is best after epoch 0, where the test gives 0.3; the test is best after epoch 1.
    assert faults.choose(*APART) == (0, 0.3)
    assert found["an epoch that is chosen by its test score, as published"](*APART) == (1, 0.8)
    # Without epoch 0 the best validation score is 0.7, after epoch 3.
    assert found["that the first epoch is never kept, as published"](*APART) == (3, 0.5)


def test_a_case_of_one_epoch_is_no_crash():
    honest = partial(is_honest, cases=(([0.5], [0.3]), APART, LATER, TIE))
    assert faults.check_choice_test(honest).passed


# --- all ----------------------------------------------------------------------------------------

FAULTS = {
    "loss": LOSS,
    "is_sound": LABELS,
    "first_logits": FIRST,
    "is_same": CACHE,
    "scores": SCORES,
    "is_honest": CHOICE,
}
OURS = {
    "loss": loss,
    "is_sound": is_sound,
    "first_logits": first_logits,
    "is_same": is_same,
    "scores": scores,
    "is_honest": is_honest,
}
CASES = [(name, number) for name, faults in FAULTS.items() for number in range(len(faults))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_fault_is_named(name, number):
    fault, words = FAULTS[name][number]
    result = PAIRS[name](fault)
    assert not result.passed
    assert ": not yet:" in str(result)
    assert re.search(words, result.hint), result.hint


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


def test_no_two_faults_of_the_labels_are_alike():
    """In the batch of the solution; a fault that no batch can show would be unfair."""
    prompts, texts = [[1, 7, 8], [1]], [[5, 6, 1, 2], [9, 2]]
    packs = [faults.pack, *faults.PACK_FAULTS.values()]
    labels = [tuple(make(prompts, texts)[2].flatten().tolist()) for make in packs]
    assert len(set(labels)) == len(packs)


def test_pack_by_hand():
    ids, mask, labels = faults.pack([[1, 7], [1]], [[5, 2], [2]])
    assert ids.tolist() == [[1, 7, 5, 2], [1, 2, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert labels.tolist() == [[-100, -100, 5, 2], [-100, 2, -100, -100]]


def test_the_loss_of_the_exercise_is_that_of_torch():
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[1, 2, 3, 4], [0, 1, -100, -100]])
    each = F.cross_entropy(
        logits[:, :-1].mT, labels[:, 1:], reduction="none", label_smoothing=0.2
    )  # (2, 3)
    torch.testing.assert_close(loss(logits, labels, 0.2), each.sum(1))


def test_tests_that_the_chapter_names_are_there():
    chapter = (ROOT / "book/05_training_and_few_shot.ipynb").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", chapter))
    written = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    assert len(named) > 8
    assert sorted(name for name in named if f"def {name}(" not in written) == []
