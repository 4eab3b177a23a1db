"""VQA accuracy worked out by hand."""

from __future__ import annotations

import pytest

from mmfusion_lib.errors import InputError
from mmfusion_lib.vqa_metrics import accuracy, exact, normalise


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("an  apple\tand a pear\n", "apple and pear"),
        ("dont know", "don't know"),
        ("don't know", "don't know"),
        ("red, blue", "red blue"),  # a comma beside a space leaves nothing
        ("red/blue", "red blue"),  # a mark between words leaves a space
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("Yes!", "yes"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalise(answer, expected):
    assert normalise(answer) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    ("agree", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # left out once: 0; nine times 1/3; 9/3/10
        (2, 0.6),  # twice 1/3, eight times 2/3: 18/3/10
        (3, 0.9),  # three times 2/3, seven times 1
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_accuracy_leaves_each_person_out_once(agree, expected):
    people = ["A mug."] * agree + ["ball"] * (10 - agree)
    assert accuracy(["mug"], [people]).tolist() == pytest.approx([expected])


def test_accuracy_and_exact_are_per_item():
    people = [["yes"] * 10, ["two"] * 10]
    assert accuracy(["no", "2"], people).tolist() == [0.0, 1.0]
    assert exact(["Red.", "two", "left"], ["red", "2", "right"]).tolist() == [1.0, 1.0, 0.0]


def test_bad_input_is_refused_with_a_remedy():
    for score in (accuracy, exact):
        with pytest.raises(InputError, match=r"0 answers .* at least one"):
            score([], [])
        with pytest.raises(InputError, match=r"1 answers .* 2 questions"):
            score(["a"], ["b", "c"])
    with pytest.raises(InputError, match="Question 1 has fewer than 4 human answers"):
        accuracy(["a", "b"], [["a"] * 10, ["b"] * 3])
    with pytest.raises(InputError, match="Question 0 has fewer"):
        accuracy(["yes"], ["yes please"])
