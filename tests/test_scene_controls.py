"""The scene tasks give nothing away: models of one modality sit at chance, an oracle does not.

The oracle reads sentence and graph and shares no code with the generator of the tasks: it parses
the English with the patterns below and measures the boxes itself.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmfusion_lib.data import scene_tasks
from mmfusion_lib.data.scene_tasks import LABELS

sklearn = pytest.importorskip("sklearn", reason="the controls train scikit-learn classifiers")

from scene_maker import COLOURS, KINDS, WORDS, make_graphs  # noqa: E402

CHANCE, TOLERANCE = 1 / 3, 0.03


@pytest.fixture(scope="module")
def graphs():
    return {"train": make_graphs("train", 900), "test": make_graphs("test", 600)}


@pytest.fixture(scope="module")
def entailment(graphs):
    return {split: scene_tasks.entailment(graphs[split], seed=3) for split in graphs}


@pytest.fixture(scope="module")
def questions(graphs):
    return {split: scene_tasks.vqa(graphs[split], seed=3) for split in graphs}


def text_only(train, test, text, target):
    """Accuracy of a logistic regression on words and pairs of neighbouring words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    bag = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", binary=True)
    features = bag.fit_transform([row[text] for row in train])
    model = LogisticRegression(max_iter=60, tol=1e-2).fit(features, [row[target] for row in train])
    return model.score(bag.transform([row[text] for row in test]), [row[target] for row in test])


def table(train, test, text, target):
    """Accuracy of the most frequent training label of each string (of the set, for new strings)."""
    votes = defaultdict(Counter)
    for row in train:
        votes[row[text]][row[target]] += 1
    default = Counter(row[target] for row in train)
    best = [(votes.get(row[text]) or default).most_common(1)[0][0] for row in test]
    return float(np.mean([guess == row[target] for guess, row in zip(best, test)]))


def scene_features(graph):
    """Counts of every kind, colour, texture, word and colour-kind pair: more than an image shows."""
    counts = np.zeros(len(KINDS) * (len(COLOURS) + 1) + len(COLOURS) + len(WORDS) + 3)
    for item in graph["objects"]:
        kind, colour = KINDS.index(item["kind"]), COLOURS.index(item["colour"])
        counts[kind * (len(COLOURS) + 1) + colour] += 1
        counts[kind * (len(COLOURS) + 1) + len(COLOURS)] += 1
        rest = len(KINDS) * (len(COLOURS) + 1)
        counts[rest + colour] += 1
        counts[rest + len(COLOURS) + ("plain", "striped", "checked").index(item["texture"])] += 1
        if item["word"]:
            counts[rest + len(COLOURS) + 3 + WORDS.index(item["word"])] += 1
    return counts


def image_only(graphs, rows):
    """Accuracy of a logistic regression on everything that stands in the scene."""
    from sklearn.linear_model import LogisticRegression

    data = {s: np.stack([scene_features(graphs[s][r["index"]]) for r in rows[s]]) for s in rows}
    labels = {s: [row["label"] for row in rows[s]] for s in rows}
    model = LogisticRegression(max_iter=60, tol=1e-2).fit(data["train"], labels["train"])
    return model.score(data["test"], labels["test"])


def test_hypothesis_alone_is_at_chance(entailment):
    """Each sentence has each label equally often, so the accuracy is 1/3 whatever was learnt."""
    train, test = entailment["train"], entailment["test"]
    assert len(test) >= 2000
    assert text_only(train, test, "hypothesis", "label") == pytest.approx(CHANCE, abs=TOLERANCE)
    assert table(train, test, "hypothesis", "label") == pytest.approx(CHANCE, abs=TOLERANCE)


def test_picture_alone_is_at_chance(graphs, entailment):
    assert image_only(graphs, entailment) == pytest.approx(CHANCE, abs=TOLERANCE)


def test_the_controls_see_a_broken_balance(graphs, entailment):
    """Leave out rows by a rule that a cheat could learn: the controls must notice."""
    by_text = {  # which label is missing depends on a word
        split: [
            row
            for row in rows
            if ("contradiction" if "colour" in row["hypothesis"] else "neutral") != row["label"]
        ]
        for split, rows in entailment.items()
    }
    assert text_only(*by_text.values(), "hypothesis", "label") > CHANCE + TOLERANCE
    by_scene = {
        split: [
            row
            for row in rows
            if len(graphs[split][row["index"]]["objects"]) > 3 or row["label"] == "neutral"
        ]
        for split, rows in entailment.items()
    }
    assert image_only(graphs, by_scene) > CHANCE + TOLERANCE


def test_balance_is_exact(entailment):
    """What the controls measure, counted: per string and per scene, every label equally often."""
    for rows in entailment.values():
        for field in ("hypothesis", "scene"):
            counts = defaultdict(Counter)
            for row in rows:
                counts[row[field]][row["label"]] += 1
            assert all(len({c[label] for label in LABELS}) == 1 for c in counts.values())


def test_question_alone_is_at_the_prior(questions):
    assert len(questions["test"]) >= 2000
    for kind in scene_tasks.TYPES:
        train, test = ([r for r in questions[s] if r["type"] == kind] for s in ("train", "test"))
        prior = max(Counter(row["answer"] for row in test).values()) / len(test)
        # balanced: the prior is that of the type's number of answers
        answers = len({row["answer"] for row in test})
        assert prior == pytest.approx(1 / answers, abs=TOLERANCE), kind
        assert text_only(train, test, "question", "answer") < prior + TOLERANCE, kind
        assert table(train, test, "question", "answer") < prior + TOLERANCE, kind
        if answers <= 4:  # with many answers a learner may also fall below the prior
            assert table(train, test, "question", "answer") > prior - TOLERANCE, kind


# -- an oracle that reads English -----------------------------------------------------------------

NUMBER = {"None": 0, "Exactly one": 1, "Exactly two": 2, "Exactly three": 3}
PATTERN = {"no pattern": "plain", "stripes": "striped", "checks": "checked"}


class Oracle:
    """Answers by looking things up in one graph, the plain way."""

    def __init__(self, graph):
        self.items = graph["objects"]
        self.size = graph["size"]

    def find(self, **wanted):
        return [o for o in self.items if all(o[k] == v for k, v in wanted.items())]

    def x(self, item):
        return (item["box"][0] + item["box"][2]) / 2

    def left(self, one, other):
        return self.x(one) < self.x(other)

    def most(self, word):
        if word == "nearest":
            return min(self.items, key=lambda o: o["distance"])
        return (min if word == "leftmost" else max)(self.items, key=self.x)

    def label(self, text):
        verdict = self.judge(text)
        return "neutral" if verdict is None else LABELS[0] if verdict else LABELS[2]

    def judge(self, text):
        """True, false, or None where something that the sentence speaks of is not there."""
        colours, kinds = "|".join(COLOURS), "|".join(KINDS)

        def match(pattern):
            return re.fullmatch(
                pattern.replace("K", f"({kinds})").replace("C", f"({colours})"), text
            )

        if m := match(r"The (?:colour of the )?K is C\."):
            one = self.find(kind=m[1])
            return one[0]["colour"] == m[2] if one else None
        if m := match(r"The K (?:is|has) (plain|striped|checked|no pattern|stripes|checks)\."):
            one = self.find(kind=m[1])
            return one[0]["texture"] == PATTERN.get(m[2], m[2]) if one else None
        if m := match(r"The C (?:object|thing) is an? K\."):
            one = self.find(colour=m[1])
            return one[0]["kind"] == m[2] if one else None
        if m := match(r"The K (?:is to the|stands) (left|right) of the K\."):
            one, other = self.find(kind=m[1]), self.find(kind=m[3])
            return self.left(one[0], other[0]) == (m[2] == "left") if one and other else None
        if m := match(r"The K is (nearer to|farther from) the camera than the K\."):
            one, other = self.find(kind=m[1]), self.find(kind=m[3])
            if not (one and other):
                return None
            return (one[0]["distance"] < other[0]["distance"]) == (m[2] == "nearer to")
        if m := match(r"The K and the K have (the same colour|different colours)\."):
            one, other = self.find(kind=m[1]), self.find(kind=m[2])
            if not (one and other):
                return None
            return (one[0]["colour"] == other[0]["colour"]) == ("same" in m[3])
        if m := match(r"(.*?)(?: of the| other) .*\b(?:is|are) to the (left|right) of the K\."):
            one = self.find(kind=m[3])
            if not one:
                return None
            others = [o for o in self.items if o is not one[0]]
            left = sum(self.left(o, one[0]) for o in others)
            return NUMBER[m[1]] == (left if m[2] == "left" else len(others) - left)
        if m := match(
            r"The K is (the|not the) object (furthest to the left|furthest to the right|nearest to the camera)\."
        ):
            one = self.find(kind=m[1])
            word = {"ft": "leftmost", "ht": "rightmost", "ra": "nearest"}[m[3][-2:]]
            return (self.most(word) is one[0]) == (m[2] == "the") if one else None
        if m := match(r"The K is in the (left|right) half of the picture\."):
            one = self.find(kind=m[1])
            return (self.x(one[0]) < self.size / 2) == (m[2] == "left") if one else None
        m = match(r'The (?:word on the )?sign (?:says|is) "(\w+)"\.')
        assert m, text
        one = self.find(kind="sign")
        return one[0]["word"] == m[1] if one else None

    def answer(self, text, kind):
        colours, kinds = "|".join(COLOURS), "|".join(KINDS)
        words = re.findall(
            rf"\b({colours}|{kinds}|leftmost|rightmost|nearest|striped|checked|plain)(?:s|es)?\b",
            text,
        )
        if kind == "exists":
            return "yes" if self.find(colour=words[0], kind=words[1]) else "no"
        if kind == "count":
            word = "snowman" if "snowmen" in text else words[0]
            if m := re.search(r"to the (left|right) of", text):
                one = self.find(kind=word)[0]
                others = [o for o in self.items if o is not one]
                left = sum(self.left(o, one) for o in others)
                return str(left if m[1] == "left" else len(others) - left)
            field = "kind" if word in KINDS else "colour" if word in COLOURS else "texture"
            return str(len(self.find(**{field: word})))
        if kind in ("colour", "kind"):
            known = self.find(kind=words[0]) + self.find(colour=words[0])
            return (known[0] if known else self.most(words[0]))[kind]
        if kind == "word":
            return self.find(kind="sign")[0]["word"]
        if "half" in text:
            return "left" if self.x(self.find(kind=words[0])[0]) < self.size / 2 else "right"
        one, other = (self.find(kind=word)[0] for word in words)
        if text.startswith(("On which", "Compared")):
            one, other = other, one
        if kind == "near":
            return "nearer" if one["distance"] < other["distance"] else "farther"
        return "left" if self.left(one, other) else "right"


def test_reading_both_gets_everything_right(graphs, entailment, questions):
    oracles = [Oracle(graph) for graph in graphs["test"]]
    for row in entailment["test"]:
        assert oracles[row["index"]].label(row["hypothesis"]) == row["label"], row
    for row in questions["test"]:
        assert oracles[row["index"]].answer(row["question"], row["type"]) == row["answer"], row


def test_reading_another_scene_is_at_chance(graphs, entailment):
    """Shuffled within a hypothesis's own rows the oracle is right once in three, as it must be."""
    oracles = [Oracle(graph) for graph in graphs["test"]]
    rows, rng = entailment["test"], random.Random(0)
    groups = defaultdict(list)
    for row in rows:
        groups[row["hypothesis"]].append(row)
    right = []
    for group in groups.values():
        for row in group:
            other = rng.choice(group)
            right.append(oracles[other["index"]].label(row["hypothesis"]) == row["label"])
    assert np.mean(right) == pytest.approx(CHANCE, abs=TOLERANCE)


def test_matching_words_is_not_enough(graphs, entailment):
    """A reader that only checks which words occur in the scene misses much of what is asked."""
    right = []
    for row in entailment["test"]:
        items = graphs["test"][row["index"]]["objects"]
        words = {o[f] for o in items for f in ("kind", "colour", "texture", "word")}
        asked = set(re.findall(r"\w+", row["hypothesis"])) & {*KINDS, *COLOURS, *WORDS, "striped"}
        anchor = asked & set(KINDS) or asked
        if not anchor <= words:
            guess = "neutral"
        else:
            guess = "entailment" if asked <= words else "contradiction"
        right.append(guess == row["label"])
    assert np.mean(right) < 0.85
