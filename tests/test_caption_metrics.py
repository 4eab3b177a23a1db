"""Caption metrics: by hand, against the public scorers, and on bad input."""

from __future__ import annotations

import math
import random
import sys
from types import SimpleNamespace

import pytest
import torch

from mmfusion_lib import caption_metrics, metrics
from mmfusion_lib.caption_metrics import bleu, cider, meteor, rouge_l, spice, words
from mmfusion_lib.errors import InputError

VOCABULARY = ["a", "red", "blue", "mug", "ball", "on", "the", "table"]


def made(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts of few words, so that n-grams meet; empty, short and repeated candidates among them."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(rng.choice(VOCABULARY) for _ in range(length))

    candidates = ["", "mug", "the the the the the"]
    candidates += [text(rng.randint(1, 12)) for _ in range(count - len(candidates))]
    return candidates, [
        [text(rng.randint(1, 12)) for _ in range(rng.randint(1, 5))] for _ in candidates
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red Mug, on the table.", "a red mug on the table"),
        ("Don't stop: it's the cat's.", "do n't stop it 's the cat 's"),
        ("'Stop' - says 1,000 T-shirts; 3.5!", "stop says 1,000 t-shirts 3.5"),
        ("...", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == expected.split()


def test_cider_by_hand():
    # "red mug": its two words and one bigram, against itself, in a corpus of two items that share
    # nothing: every weight is log 2 > 0, cosines of 1- and 2-grams are 1, of 3- and 4-grams 0.
    # 10 * (1 + 1) / 4 = 5. The second candidate shares "green" alone, of equal weights: 1-grams
    # 1 / (sqrt(1) * sqrt(2)); its length in bigrams is 0 against 1: exp(-1 / 72).
    scores = cider(["red mug", "green"], [["red mug"], ["green house"]])
    second = 10 * math.exp(-1 / 72) / math.sqrt(2) / 4
    assert scores.items.tolist() == pytest.approx([5.0, second])
    assert scores.corpus == pytest.approx((5.0 + second) / 2)
    # a repeated word counts as often as the reference has it: min(2, 1) * 1 / (2 * 1)
    twice = cider(["red red", "mug"], [["red"], ["mug"]]).items[0].item()
    assert twice == pytest.approx(10 * math.exp(-1 / 72) * 0.5 / 4)
    # what every item's references hold weighs nothing
    assert cider(["a", "a"], [["a"], ["a"]]).corpus == 0


def test_bleu_by_hand():
    # one item "a a b" against "a b" and "a b c d": 1-grams a (clipped to 1) and b of 3; 2-grams
    # "a b" of 2; no 3-gram. Both references are one word off; the shorter counts, so no penalty.
    scores = bleu(["a a b"], [["a b", "a b c d"]])
    assert scores[0].corpus == pytest.approx(2 / 3)
    assert scores[1].corpus == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    assert scores[2].corpus == pytest.approx(0, abs=1e-4)
    # "a b" against "a b c d": all right, but half as long: exp(1 - 4 / 2)
    assert bleu(["a b"], [["a b c d"]])[1].items.item() == pytest.approx(math.exp(-1))


def test_rouge_by_hand():
    # "a c b" and "a b d d": a, b in this order: precision 2/3, recall 2/4; beta^2 = 1.44
    expected = 2.44 * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3)
    assert rouge_l(["a c b"], [["a b d d"]]).items.tolist() == pytest.approx([expected])
    # best precision (2/3, as above) and best recall (1/1 of "c") may be of different references
    expected = 2.44 * (2 / 3) * 1 / (1 + 1.44 * 2 / 3)
    assert rouge_l(["a c b"], [["a b d d", "c"]]).corpus == pytest.approx(expected)


def test_equal_to_the_public_scorers():
    pytest.importorskip(
        "pycocoevalcap", reason="pycocoevalcap, the public scorers, is not installed"
    )
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = made(60)
    truth = dict(enumerate(references))
    ours = {row: [text] for row, text in enumerate(candidates)}
    for mine, theirs in ((cider, Cider()), (rouge_l, Rouge())):
        corpus, items = theirs.compute_score(truth, ours)
        scores = mine(candidates, references)
        assert scores.corpus == pytest.approx(float(corpus), abs=1e-9)
        assert scores.items.tolist() == pytest.approx(list(items), abs=1e-9)
        assert scores.items.std() > 0
    corpus, items = Bleu(4).compute_score(truth, ours, verbose=0)
    for mine, total, each in zip(bleu(candidates, references), corpus, items):
        assert mine.corpus == pytest.approx(total, abs=1e-9) and total > 0
        assert mine.items.tolist() == pytest.approx(each, abs=1e-9)


def test_a_paired_difference_of_items():
    candidates, references = made(40)
    right = [refs[0] for refs in references]
    better, worse = cider(right, references).items, cider(candidates, references).items
    assert metrics.paired_bootstrap(better[None], worse[None], draws=200).beats
    assert not metrics.paired_bootstrap(worse[None], worse[None], draws=200).beats


@pytest.mark.parametrize("metric", [cider, bleu, rouge_l, meteor, spice])
def test_bad_input_is_refused_with_a_remedy(metric):
    with pytest.raises(InputError, match=r"0 candidates .* at least one item"):
        metric([], [])
    with pytest.raises(InputError, match=r"2 candidates .* 1 items"):
        metric(["a", "b"], [["a"]])
    with pytest.raises(InputError, match="Item 1 has no list of references"):
        metric(["a", "b"], [["a"], "b"])


@pytest.mark.parametrize("metric", [meteor, spice])
def test_without_java_the_sentence_says_so(metric, monkeypatch):
    monkeypatch.setattr(caption_metrics.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"java is not on the path.*use cider, bleu and rouge_l"):
        metric(["a"], [["a"]])


@pytest.mark.parametrize(
    ("metric", "given_back"),
    [
        (meteor, [0.25, 0.5]),
        (spice, [{"All": {"f": f, "pr": 0.9}, "Color": {"f": math.nan}} for f in (0.25, 0.5)]),
    ],
)
def test_what_java_is_given_and_gives_back(metric, given_back, monkeypatch):
    """Words as ours, texts by row; one candidate without words is a full stop, not an empty line."""
    name, seen = metric.__name__, []

    class Scorer:  # in place of pycocoevalcap's Meteor or Spice
        def compute_score(self, truth, ours):
            seen.append((truth, ours))
            return 0.3, given_back

    module = SimpleNamespace(**{name.capitalize(): Scorer})
    monkeypatch.setitem(sys.modules, f"pycocoevalcap.{name}.{name}", module)
    monkeypatch.setattr(caption_metrics.shutil, "which", {"java": "/bin/java"}.get)
    scores = metric(["A red Mug!", "..."], [["It's red.", "a mug"], ["Nothing"]])
    assert seen == [({0: ["it 's red", "a mug"], 1: ["nothing"]}, {0: ["a red mug"], 1: ["."]})]
    assert scores.corpus == 0.3  # Java's own, not the mean of the items
    assert scores.items.tolist() == [0.25, 0.5] and scores.items.dtype == torch.double
