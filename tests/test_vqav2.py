"""VQAv2 with Visual Genome on a made tree: protocols, weights, the server's file, each fault."""

from __future__ import annotations

import json
import warnings

import prismer_data_maker as maker
import pytest

from mmfusion_lib.data import vqav2
from mmfusion_lib.errors import InputError

LIST, GENOME, TEST = "vqav2_train_val.json", "vg_qa.json", "vqav2_test.json"
HERE = maker.coco_name(9)


def test_local_training_never_sees_a_validation_picture(tmp_path):
    """Left out: picture 42 of val2014, and 2 of Visual Genome, which is the same photograph."""
    maker.vqav2(tmp_path)
    with pytest.warns(UserWarning, match=r"vqav2 train, local: .*1 questions .* not of train2014"):
        train = vqav2.load("train", tmp_path)
    assert train["id"][:] == ["90", "vg#0", "vg#2"]
    assert train["maps"][:] == [f"vqav2/{HERE}", "vg/VG_100K/1.jpg", "vg/VG_100K/3.jpg"]
    assert train["answers"][:] == [["cat", "dog"], ["a tree"], ["a tree"]]
    assert train["weights"][0] == pytest.approx([0.7, 0.3]) and train["weights"][1][0] == (
        pytest.approx(0.2)
    )
    validation = vqav2.load("validation", tmp_path)
    assert not set(train["group"][:]) & set(validation["group"][:])


def test_without_the_origins_no_question_of_visual_genome_is_trusted(tmp_path):
    (maker.vqav2(tmp_path) / "vg/image_data.json").unlink()
    with pytest.warns(
        UserWarning, match=r"3 questions of Visual Genome not listed in vg/image_data"
    ):
        assert vqav2.load("train", tmp_path)["id"][:] == ["90"]


def test_the_servers_protocol_trains_on_everything(tmp_path):
    maker.vqav2(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = vqav2.load("train", tmp_path, protocol="server")
    assert train["id"][:] == ["90", "420", "vg#0", "vg#1", "vg#2"]
    with pytest.raises(InputError, match="no validation part under protocol='server'"):
        vqav2.load("validation", tmp_path, protocol="server")
    with pytest.raises(InputError, match="no protocol 'both'"):
        vqav2.load("train", tmp_path, protocol="both")


def test_validation_has_the_ten_answers_as_given(tmp_path):
    data = vqav2.load("validation", maker.vqav2(tmp_path))
    assert data["id"][:] == ["420"] and data["question"][0] == "What colour?"
    assert data["answers"][0] == ["red"] * 8 + ["pink"] * 2
    assert data["weights"][0] == pytest.approx([0.1] * 10)
    assert data[0]["image"].size == (7, 5)


def test_answers_without_weights_weigh_as_often_as_they_are_given(tmp_path):
    """yes 3 of 4: 0.75; and two weights of one answer add up: 0.25 + 0.5."""
    rows = [
        maker.question(1, HERE, ["yes", "no", "yes", "yes "]),
        maker.question(2, HERE, ["no", "no"], [0.25, 0.5]),
        maker.question(3, HERE, "yes", 0.4),
    ]
    maker.write(maker.vqav2(tmp_path), LIST, rows)
    data = vqav2.load("train", tmp_path, protocol="server")
    assert data["answers"][:3] == [["yes", "no"], ["no"], ["yes"]]
    assert data["weights"][0] == pytest.approx([0.75, 0.25])
    assert data["weights"][1] == pytest.approx([0.75])
    assert data["weights"][2] == pytest.approx([0.4])
    numbers, answers, weights = vqav2.pairs(data.select(range(3)))
    assert numbers == [0, 0, 1, 2] and answers == ["yes", "no", "no", "yes"]
    assert weights == pytest.approx([0.75, 0.25, 0.75, 0.4])


def test_the_servers_file(tmp_path):
    data = vqav2.load("test", maker.vqav2(tmp_path))
    assert data["answers"][:] == [[], []]
    path = vqav2.write_answers(tmp_path / "results/test.json", data, ["yes", "no "])
    assert json.loads(path.read_text()) == [
        {"question_id": 70, "answer": "yes"},
        {"question_id": 71, "answer": "no"},
    ]
    with pytest.raises(InputError, match="3 answers for 2 rows"):
        vqav2.write_answers(path, data, ["yes", "no", "no"])
    train = vqav2.load("train", tmp_path, protocol="server").select([2])
    with pytest.raises(InputError, match="question_id 'vg#0' is no number"):
        vqav2.write_answers(path, train, ["a tree"])


def test_the_list_of_answers(tmp_path):
    maker.vqav2(tmp_path)
    assert vqav2.answer_list(tmp_path) == ["yes", "no", "cat"]
    for bad in (["yes", 3], ["yes", " "], ["yes", "yes"]):
        maker.write(tmp_path, "answer_list.json", bad)
        with pytest.raises(InputError, match=r"answer_list\.json, row 1: the answer"):
            vqav2.answer_list(tmp_path)


ROW = maker.question(1, HERE, ["yes"], [1.0])


@pytest.mark.parametrize(
    "file, rows, message",
    [
        (LIST, [ROW, ROW], r"val\.json, row 1: the question_id 1 is already used in .*row 0"),
        (LIST, [maker.question(1, maker.coco_name(8), "yes")], "row 0: the picture .* does not"),
        (LIST, [maker.question(1, "test2015/x_1.jpg", "yes")], "is not of train2014 or val2014"),
        (LIST, [ROW | {"question": " "}], "row 0: the question is empty"),
        (LIST, [ROW | {"question": None}], "row 0 has no field 'question' that is a text"),
        (LIST, [ROW | {"answer": None}], "row 0 has no field 'answer' that is a text or list"),
        (LIST, [ROW | {"answer": []}], "row 0: the answers .* are not texts with a posit"),
        (LIST, [ROW | {"answer": ["yes", 1], "weight": [0.5, 0.5]}], "row 0: the answers"),
        (LIST, [ROW | {"weight": [0.5, 0.5]}], "row 0: the answers"),
        (LIST, [ROW | {"weight": [0.0]}], "row 0: the answers"),
        (LIST, [ROW | {"weight": ["1"]}], "row 0: the answers"),
        (GENOME, [maker.question(1, "VG_100K/1.jpg", "")], r"qa\.json, row 0: the answer is empty"),
        (GENOME, [maker.question(1, "VG_100K/9.jpg", "a")], r"row 0: .*vg/VG_100K/9\.jpg"),
        (TEST, [{"image": maker.coco_name(7, "test2015"), "question": "Is it?"}], "'question_id'"),
        (TEST, [], "holds no question for test"),
    ],
)  # fmt: skip
def test_faults_name_file_and_row(tmp_path, file, rows, message):
    maker.write(maker.vqav2(tmp_path), file, rows)
    with pytest.raises(InputError, match=message):
        vqav2.load("test" if file == TEST else "train", tmp_path, protocol="server")


def test_a_question_without_answers(tmp_path):
    maker.vqav2(tmp_path)
    asked = {"questions": [{"question_id": 421, "image_id": 42, "question": "Why?"}]}
    maker.write(tmp_path, f"vqav2/{vqav2.QUESTIONS}", asked)
    with pytest.raises(InputError, match="questions, row 0: question 421 has no answers in"):
        vqav2.load("validation", tmp_path)


def test_counts_under_the_published_names(tmp_path):
    found = vqav2.count(maker.vqav2(tmp_path))
    assert set(vqav2.PUBLISHED) <= set(found)
    assert found["train questions, train2014"] == 1 and found["train questions, server"] == 5
    assert found["train questions of Visual Genome, local"] == 2
    assert found["test questions"] == 2 and found["answers in the list"] == 3
    (tmp_path / "vqav2" / vqav2.QUESTIONS).unlink()  # only Prismer's lists are at hand
    assert "validation questions" not in vqav2.count(tmp_path)
