"""Your own pictures with Prismer: train, go on, save, load, write; and everything that may be wrong."""

from __future__ import annotations

import csv
import errno
import functools
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prismer_maker import make_prismer

from mmfusion_lib import caption_training, checkpoints, prismer_input, prismer_training
from mmfusion_lib.__main__ import main
from mmfusion_lib.caption_items import CaptionItems, Pictures, check_pictures
from mmfusion_lib.caption_training import CaptionerConfig, split
from mmfusion_lib.captioner import Captioner
from mmfusion_lib.data import caption_table
from mmfusion_lib.data.caption_table import Row, read_rows, write_rows
from mmfusion_lib.encoder_config import CONFIGS
from mmfusion_lib.encoders import EncoderConfig
from mmfusion_lib.errors import InputError
from mmfusion_lib.experts.labels import LabelMap, write_labels
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.trainable import read_trainable, save_trainable, trainable_state

IMAGE = EncoderConfig("image", 16, 2, 2, 24, image_size=28, patch_size=14)
TEXT = replace(CONFIGS["minilm-l6"], width=16, depth=2, heads=2, mlp_width=24)
COLOURS = ("red", "blue", "lime")


tokenizer = functools.cache(checkpoints.load_tokenizer)


def tiny_prismer(name, seed=0, experts=(), **changes) -> Prismer:
    """Two layers a side; the pretrained parts are the same whatever the seed."""
    return make_prismer(IMAGE, TEXT, tokenizer(), seed=seed, experts=experts, **changes)


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch, minilm):
    monkeypatch.setattr(caption_training, "load_prismer", tiny_prismer)
    monkeypatch.chdir(tmp_path)


def table(folder: Path, rows, name="captions.csv", columns=("image", "caption")) -> Path:
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / name


@pytest.fixture
def shop() -> Path:
    """Six pictures of one colour, with captions and answers."""
    folder = Path("shop")
    names = [f"{i}.png" for i in range(6)]
    table(folder, [(n, f"a {COLOURS[i % 3]} thing") for i, n in enumerate(names)])
    asked = [(n, "Which colour?", COLOURS[i % 3]) for i, n in enumerate(names)]
    table(folder, asked, "answers.csv", ("image", "question", "answer"))
    for i, name in enumerate(names):
        Image.new("RGB", (20 + i, 30), COLOURS[i % 3]).save(folder / name)
    return folder


def fit(shop, out="m.safetensors", **options) -> Captioner:
    return Captioner.fit(shop, out, **{"epochs": 2, "batch_size": 3, "lr": 0.01} | options)


def read_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def same(a: Captioner, b: Captioner) -> bool:
    one, two = trainable_state(a.model), trainable_state(b.model)
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# --- it learns, and is kept ---------------------------------------------------------------------


def test_answers_and_captions_follow_the_picture(shop):
    asked = [(f"{i % 6}.png", "Which colour?", COLOURS[i % 3]) for i in range(90)]
    table(shop, asked, "answers.csv", ("image", "question", "answer"))
    model = fit(shop, task="answer", lr=0.03)  # 60 steps
    assert model.answers == ("blue", "lime", "red")
    paths = [shop / f"{i}.png" for i in range(3)]
    assert model.answer(paths, "Which colour?") == list(COLOURS)
    assert model.answer(paths, ["Which colour?"] * 3, ()) == list(COLOURS)  # written freely
    assert set(model.answer(paths, "Which colour?", ["wood", "stone"])) <= {"wood", "stone"}
    done = model.write(shop, "out.csv", question="Which colour?")
    assert (done.count, done.skipped) == (6, ())
    assert Path("out.csv").read_bytes().splitlines() == [
        b"image,question,answer", *(f"{i}.png,Which colour?,{COLOURS[i % 3]}".encode() for i in range(6))
    ]  # fmt: skip


def test_what_is_saved_writes_the_same(shop):
    model = fit(shop)
    again = Captioner.load("m.safetensors")
    assert same(model, again) and again.config == model.config
    # "a red thing" and its end mark are 4 tokens, in all captions: so many are written.
    assert again.lengths == model.lengths == (4, 4)
    paths = [shop / "0.png", str(shop / "1.png")]
    assert again.caption(paths) == model.caption(paths)
    tensors, metadata = read_trainable("m.safetensors")
    assert metadata["config"]["config"]["task"] == "caption"
    assert not any("words" in name or ".block." in name for name in tensors)  # frozen: not copied
    with pytest.raises(InputError, match="is the file to start from"):
        fit(shop, start="m.safetensors")


def test_what_is_written_can_be_learnt(shop):
    model = fit(shop)
    for name in ("captions2.csv", "t.tsv", "l.jsonl"):
        assert model.write(shop, shop / name).count == 6
        _, rows = read_rows(shop / name, "caption")
        assert [row.image for row in rows] == [f"{i}.png" for i in range(6)]
        assert [row.text for row in rows] == model.caption([shop / row.image for row in rows])


def test_a_start_is_gone_on_from(shop):
    first = fit(shop)
    second = fit(shop, "n.safetensors", start="m.safetensors", task="answer", lr=1e-12)
    for name, value in trainable_state(first.model).items():
        torch.testing.assert_close(trainable_state(second.model)[name], value)
    with pytest.raises(InputError, match=r"reads the experts \(\), this training \(edge\)"):
        fit(shop, "e.safetensors", start="m.safetensors", experts=["edge"])


def test_held_out_pictures_choose_the_epoch():
    rows = [Row(f"{i % 20}.png", "", "a", f"line {i}") for i in range(40)]
    first, second = split(rows, 0)
    assert (len(first), len(second)) == (36, 4)  # a tenth of 20 pictures, each with two rows
    assert not {row.image for row in first} & {row.image for row in second}
    assert split(rows[:19], 0)[1] == []
    assert split(rows, 1)[1] != second

    folder = Path("many")
    table(folder, [(f"{i}.png", f"a {COLOURS[i % 2]} thing") for i in range(20)])
    for i in range(20):
        Image.new("RGB", (9, 9), COLOURS[i % 2]).save(folder / f"{i}.png")
    report = fit(folder, epochs=3, batch_size=9).report
    assert report.counts == (18, 2) and 1 <= report.epoch <= 3
    assert report.loss > 0 and report.blind > 0
    assert f"after epoch {report.epoch}; with the pictures swapped" in str(report)
    assert "none held out" in str(replace(report, loss=None, blind=None))


def test_items_are_those_of_prismer_items(shop):
    """Lazily read, the same numbers as from tensors; and a picture is opened only when asked for."""
    model = tiny_prismer("small")
    root, rows = read_rows(shop, "caption")
    pictures = Pictures(model, root)
    looks = check_pictures(pictures, rows)
    items = CaptionItems(rows, pictures, model, looks)
    rgb = torch.stack([model.transform(shop / row.image) for row in rows])  # (6, 3, 28, 28)
    held = prismer_training.PrismerItems(
        {"rgb": rgb}, ["A picture of"] * 6, [[f"A {COLOURS[i % 3]} thing"] for i in range(6)],
        model.tokenizer, [""] * 6,
    )  # fmt: skip
    losses = []
    for data, collate in (
        (items, items.collate),
        (held, torch.utils.data.default_collate),
    ):
        losses.append(prismer_training.objective(model.eval(), collate([data[1], data[5]])))
    torch.testing.assert_close(*losses)
    # Swapped, the text of row 0 meets the picture of row 1; the last meets the first.
    assert items.swapped().names == [f"{i}.png" for i in (1, 2, 3, 4, 5, 0)]
    (shop / "2.png").unlink()
    assert items[1]["ids"].tolist()
    with pytest.raises(InputError, match=r"2\.png does not exist"):
        items[2]


def test_the_digest_knows_texts_pictures_and_maps(shop):
    model = tiny_prismer("small", experts=["edge"])
    root, rows = read_rows(shop, "caption")
    labels(shop)

    def digest(rows=rows):
        pictures = Pictures(model, root, "labels")
        return CaptionItems(rows, pictures, model, check_pictures(pictures, rows)).digest

    first = digest()
    assert digest() == first
    assert digest([rows[0]._replace(text="another"), *rows[1:]]) != first
    assert digest(rows[::-1]) != first
    Image.new("RGB", (20, 30), "pink").save(shop / "0.png")
    second = digest()
    assert second != first
    labels(shop, value=7)
    assert digest() not in (first, second)


# --- experts ------------------------------------------------------------------------------------


def labels(shop: Path, value: int = 200) -> str:
    for path in shop.glob("*.png"):
        with Image.open(path) as image:
            map_ = LabelMap("edge", np.full(image.size[::-1], value, np.uint8))
        write_labels("labels", map_, path.name)
    return "labels"


def test_label_files_are_read(shop):
    model = fit(shop, experts=["edge"], labels=labels(shop))
    again = Captioner.load("m.safetensors")
    assert model.model.config.experts == again.config.experts == ("edge",)
    # Three channels of one stem, and the latents behind 4 patches: 2 of them.
    pictures = again._pictures(shop, "labels")
    opened = [pictures("0.png")]
    assert again._encode(pictures, opened).shape == (1, 6, 16)
    assert again.write(shop, "o.csv", labels="labels").count == 6
    (Path("labels") / "edge" / "3.png").unlink()
    done = again.write(shop, "p.csv", labels="labels")
    assert done.count == 5 and "make the labels of edge first" in done.skipped[0][1]
    with pytest.raises(InputError, match=r"line 5: labels/edge/3.png does not exist"):
        fit(shop, "n.safetensors", experts=["edge"], labels="labels")
    with pytest.raises(InputError, match="reads no label maps: leave labels out"):
        fit(shop, "n.safetensors", labels="labels")
    with pytest.raises(InputError, match="'edge' is one string"):
        fit(shop, experts="edge")


class Words:
    """Label vectors of words: all entries are the length of the word."""

    def vectors(self, names):
        return torch.stack([torch.full((64,), float(len(name))) for name in names])


def test_maps_with_other_words_share_a_batch(shop, monkeypatch):
    monkeypatch.setattr(prismer_input, "label_table", lambda model: Words())
    model = tiny_prismer("small", experts=["ocr_detection"])
    for i, names in enumerate(({0: "milk"}, {0: "rye", 1: "bread"})):
        words = np.full((30, 20 + i), 255, np.uint8)
        words[:10], words[10:20] = 0, max(names)
        write_labels("labels", LabelMap("ocr_detection", words, names=names), f"{i}.png")
    root, rows = read_rows(shop, "caption")
    pictures = Pictures(model, root, "labels")
    looks = check_pictures(pictures, rows[:2])
    items = CaptionItems(rows[:2], pictures, model, looks)
    found = items.collate([items[0], items[1]])["experts"]["ocr_detection"]
    assert found["ids"].shape == (2, 28, 28)
    # One word for the first, two for the second: the table of the first is filled up with zeros.
    assert found["table"][:, :, 0].tolist() == [[4, 0], [3, 5]]
    assert prismer_training.objective(model, items.collate([items[0], items[1]])).isfinite()


def test_experts_run_where_no_labels_are_given(shop, monkeypatch):
    from mmfusion_lib.experts import make_labels

    class Edge:
        name, model, licence, megabytes = "edge", "made", "MIT", 0.0

        def __call__(self, images):
            return [LabelMap("edge", np.full(i.size[::-1], 200, np.uint8)) for i in images]

    def made(root, to, experts):
        assert (Path(root), list(experts)) == (shop, ["edge"])
        for path in shop.glob("*.png"):
            with Image.open(path) as image:
                write_labels(to, Edge()([image])[0], path.name)

    monkeypatch.setattr(make_labels, "make_labels", made)
    monkeypatch.setattr(make_labels, "load_expert", lambda name: Edge())
    fit(shop, experts=["edge"])
    again = Captioner.load("m.safetensors")
    paths = [f"{i}.png" for i in range(2)]
    monkeypatch.chdir(shop)
    found = again.caption(paths)
    assert found == again.caption(paths, labels="../m-training/labels")


# --- interrupted, changed, full -----------------------------------------------------------------


def stop_at(monkeypatch, number: int) -> None:
    real, calls = prismer_training.objective, []

    def objective(model, batch):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(prismer_training, "objective", objective)


def test_interrupted_and_resumed_gives_the_same_weights(shop, monkeypatch):
    plain = fit(shop, epochs=3)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)  # two steps an epoch: in the second epoch
        with pytest.raises(KeyboardInterrupt):
            fit(shop, "n.safetensors", epochs=3)
    assert not Path("n.safetensors").exists()
    before = read_lines("n-training/log.jsonl")
    assert [row["step"] for row in before] == [1, 2]
    again = fit(shop, "n.safetensors", epochs=3)
    assert same(plain, again)
    assert not same(plain, fit(shop, "o.safetensors", epochs=3, seed=1))


def torn():
    part = Path(".new.csv.part")
    part.write_text(part.read_text()[:-9])


@pytest.mark.parametrize(
    ("change", "done"),
    [
        (lambda: None, [2, 1]),
        (torn, [2, 2, 1]),
        (lambda: Image.new("RGB", (9, 9), "red").save("shop/0.png"), [2, 2, 1]),
    ],
)
def test_a_table_that_was_interrupted_goes_on(shop, monkeypatch, change, done):
    """Stopped in the second of three batches of two; half a line, or another picture, is done anew."""
    model, batches, encode = fit(shop), [], Captioner._encode
    monkeypatch.setattr("mmfusion_lib.captioner.BATCH", 2)
    (shop / "5.png").write_bytes(b"no picture")

    def counted(self, pictures, opened):
        batches.append(len(opened))
        if batches == [2, 2]:
            raise KeyboardInterrupt
        return encode(self, pictures, opened)

    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "_encode", counted)
        with pytest.raises(KeyboardInterrupt):
            model.write(shop, "new.csv")
        assert not Path("new.csv").exists() and Path(".new.csv.part").exists()
        change()
        batches[:] = [0]
        again = model.write(shop, "new.csv")
    assert batches == [0, *done]
    wanted = model.write(shop, "whole.csv")
    assert again.count == 5 and again.skipped == wanted.skipped and len(wanted.skipped) == 1
    assert Path("new.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not list(Path().glob(".*.part"))


def test_what_was_kept_by_another_model_is_forgotten(shop, monkeypatch):
    first, second = fit(shop), fit(shop, "n.safetensors", seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            caption_table, "write_rows", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            first.write(shop, "new.csv")
    second.write(shop, "new.csv")
    second.write(shop, "whole.csv")
    assert Path("new.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_starting_afresh_makes_labels_anew(shop, monkeypatch):
    """Labels of a picture that was replaced say what the old one showed."""
    from mmfusion_lib.experts import make_labels

    made = []

    def labels(root, to, experts):
        for path in sorted(shop.glob("*.png")):
            if not (Path(to) / "edge" / path.name).exists():
                made.append(path.name)
                size = Image.open(path).size[::-1]
                write_labels(to, LabelMap("edge", np.zeros(size, np.uint8)), path.name)

    monkeypatch.setattr(make_labels, "make_labels", labels)
    fit(shop, experts=["edge"])
    fit(shop, experts=["edge"])
    assert len(made) == 6
    fit(shop, experts=["edge"], resume=False)
    assert len(made) == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shop: table(shop, [("0.png", "a")] * 6),
         r"begun with another text at shop/captions.csv, line 2, 'a red thing'"),
        (lambda shop: table(shop, [(f"{i}.png", f"a {COLOURS[i % 3]} thing") for i in range(5)]),
         r"begun with 6 rows, not 5"),
        (lambda shop: table(shop, [("1.png", "a red thing")] * 6),
         r"begun with another picture at shop/captions.csv, line 2, '0.png'"),
        (lambda shop: Image.new("RGB", (9, 9)).save(shop / "4.png"),
         r"begun with other pixels or labels of 4.png \(shop/captions.csv, line 6\)"),
    ],
)  # fmt: skip
def test_changed_data_are_refused_with_the_difference(shop, monkeypatch, change, words):
    fit(shop, epochs=1)
    kept = Path("m-training/checkpoint.safetensors").read_bytes()
    change(shop)
    with pytest.raises(InputError, match=f"m-training holds a training that was {words}: restore"):
        fit(shop, epochs=1)
    assert Path("m-training/checkpoint.safetensors").read_bytes() == kept
    fit(shop, epochs=1, resume=False)


def test_changed_settings_are_refused_with_the_difference(shop):
    fit(shop)
    with pytest.raises(InputError, match="begun with epochs=2, not 3: restore"):
        fit(shop, epochs=3)
    fit(shop)  # as it was: done at once


def test_a_full_disk_leaves_the_old_checkpoint(shop, monkeypatch):
    plain = fit(shop, epochs=3)
    real, calls = Path.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 2:  # the second checkpoint: half of it fits
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"The disk is full while writing n-training/check"):
            fit(shop, "n.safetensors", epochs=3)
    assert sorted(path.name for path in Path("n-training").iterdir()) == [
        "checkpoint.safetensors", "given.json", "log.jsonl"
    ]  # fmt: skip
    assert same(plain, fit(shop, "n.safetensors", epochs=3))


def test_a_full_disk_leaves_no_table(shop, monkeypatch):
    """Full at the start, before the first picture; and at the end, where the texts are kept."""
    model, real = fit(shop), Path.write_text

    def full(path, *given, **options):
        if path.name.startswith(begin):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        begin = "..o.csv.part"
        with pytest.raises(InputError, match=r"disk is full while writing \.o\.csv\.part"):
            model.write(shop, "o.csv")
        assert not list(Path().glob("*o.csv*"))
        begin = ".o.csv."
        with pytest.raises(InputError, match=r"disk is full while writing o\.csv"):
            model.write(shop, "o.csv")
        assert [path.name for path in Path().glob("*o.csv*")] == [".o.csv.part"]
        monkeypatch.setattr(Captioner, "_encode", None)  # nothing is done twice
    assert model.write(shop, "o.csv").count == 6


# --- pictures, names and texts of any kind ------------------------------------------------------


def huge(path: Path) -> None:
    """A PNG whose header says 20,000 x 20,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


NAMES = ("-rf.png", "<img src=x onerror=alert(1)>.png", 'a"b,c.png', "two\nlines.png", " b.png")


def test_any_picture_and_any_name(shop):
    model = fit(shop)
    folder = Path("odd")
    folder.mkdir()
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(folder / "print.jpg")
    for name in NAMES:
        Image.new("RGB", (9, 9), "red").save(folder / name)
    huge(folder / "huge.png")
    (folder / "broken\n.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    done = model.write(folder, folder / "o.csv")
    assert done.count == 3 + len(NAMES)
    reasons = dict(done.skipped)
    assert set(reasons) == {"huge.png", "broken\n.png"}
    assert "has more than 89,000,000 pixels: shrink it" in reasons["huge.png"]
    assert reasons["broken\n.png"].startswith("'odd/broken\\n.png' is not an image")
    assert str(done).count("\n") == 2  # a line for each, whatever the names hold
    _, rows = read_rows(folder / "o.csv", "caption")
    assert {row.image for row in rows} == {"one.png", "moving.gif", "print.jpg", *NAMES}
    first, second = model.caption([folder / "-rf.png", folder / "moving.gif"])
    assert first == second  # the first frame is red
    (folder / "o.csv").rename(folder / "captions.csv")  # and all of it can be learnt from
    assert fit(folder, "n.safetensors", epochs=1).report.counts == (8, 0)


def test_a_name_that_is_no_utf8(shop):
    model = fit(shop)
    bad = shop / "\udcff.png"
    try:
        (shop / "0.png").rename(bad)
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    done = model.write(shop, "o.csv")
    assert done.count == 5 and "is no UTF-8 name: rename it" in done.skipped[0][1]
    str(done).encode()


def test_texts_are_texts(shop):
    html = '<b onclick="x()">red</b> & <script>'
    table(shop, [("0.png", html)])
    _, rows = read_rows(shop, "caption")
    assert rows[0].text == html
    model = tiny_prismer("small")
    data = CaptionItems(rows, Pictures(model, shop), model, {"0.png": ""})
    # As captions are trained on: quotes and brackets go, signs of HTML stay.
    said = model.tokenizer.decode(data[0]["ids"])
    assert said == "a picture of < b onclick = x > red < / b > & < script >"
    write_rows("o.csv", "answer", [("0.png", "<i>?", html)])
    with open("o.csv", newline="") as file:
        [record] = csv.DictReader(file)
    assert record == {"image": "0.png", "question": "<i>?", "answer": html}


def test_a_long_caption_is_cut_and_a_long_answer_refused(shop):
    model = tiny_prismer("small")
    many = " ".join(["word"] * 10_000)
    rows = [Row("0.png", "", many, "line 2")]
    data = CaptionItems(rows, Pictures(model, shop), model, {"0.png": ""})
    assert data.lengths == (31, 31)  # 30 words and the end mark
    with pytest.raises(InputError, match=r"line 2: the text has \d+ tokens .* more than 64"):
        rows = [Row("0.png", "Why?", many, "line 2")]
        CaptionItems(rows, Pictures(model, shop), model, {"0.png": ""})
    with pytest.raises(InputError, match=r"line 2: there is no word in '\(\.\.\.\)'"):
        rows = [Row("0.png", "", "(...)", "line 2")]
        CaptionItems(rows, Pictures(model, shop), model, {"0.png": ""})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("", "a cat"), "line 2: the image is empty"),
        (("0.png", " "), "line 2: the caption is empty"),
        (("none.png", "a cat"), "line 2: the picture none.png is not in shop"),
        (("no\nne.png", "a cat"), r"line 3: the picture 'no\\nne.png' is not in shop"),
        (("a" * 5000, "a cat"), "line 2: the picture a+ is not in shop"),
        (("../shop/0.png", "a cat"), "line 2: ../shop/0.png leads out of the folder"),
        (("/etc/passwd", "a cat"), "line 2: /etc/passwd leads out of the folder"),
        (("captions.csv", "a cat"), "line 2: shop/captions.csv is not an image"),
        (("huge.png", "a cat"), "line 2: shop/huge.png has more than 89,000,000 pixels"),
        (("0.png", "a", "cat"), "line 2: more fields than the header's 2"),
    ],
)
def test_bad_rows_of_captions(shop, row, words):
    huge(shop / "huge.png")
    table(shop, [row, ("1.png", "a dog")])
    with pytest.raises(InputError, match=f"captions.csv, {words}"):
        fit(shop)
    assert not Path("m.safetensors").exists() and not Path("m-training").exists()


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("", "yes", "the question is empty: complete"),
        ("?!", "yes", "the question has no words"),
        ("why " * 10_000, "yes", "the question has 10,000 words, but only 30 are read: shorten it"),
        ("Why?", "", "the answer is empty"),
    ],
)
def test_bad_questions(shop, question, answer, words):
    table(shop, [("0.png", question, answer)], "answers.csv", ("image", "question", "answer"))
    with pytest.raises(InputError, match=f"line 2: {words}"):
        fit(shop, task="answer")


def test_bad_questions_when_asked(shop):
    model = fit(shop, task="answer")
    path = [shop / "0.png"]
    for question, words in (
        ("", "The question has no words: ask something"),
        ("why " * 10_000, "The question has 10,000 words, but only 30"),
        ("a-b-c-d-e-f-g-h " * 30, r"The question has \d+ tokens, more than 64"),
    ):
        with pytest.raises(InputError, match=words):
            model.answer(path, question)
        with pytest.raises(InputError, match=words):
            model.write(shop, "o.csv", question=question)
    with pytest.raises(InputError, match="2 questions for 1 pictures"):
        model.answer(path, ["Why?", "How?"])
    for paths in ([], shop / "0.png"):
        with pytest.raises(InputError, match="is no list of pictures"):
            model.caption(paths)
    with pytest.raises(InputError, match=r"none\.png does not exist"):
        model.caption([shop / "0.png", shop / "none.png"])


def test_bad_tables(shop):
    folder = Path("empty")
    folder.mkdir()
    for path, task, words in (
        ("nowhere", "caption", "nowhere does not exist"),
        (
            folder,
            "caption",
            "empty holds no captions.csv: write one with the columns image, caption",
        ),
        (shop / "0.png", "caption", "0.png ends in '.png'"),
        (shop / "answers.csv", "caption", "there is no column 'caption', only image, question"),
        (shop, "poem", "Unknown task 'poem': use caption or answer"),
        (table(Path("bare"), []), "caption", "holds no rows"),
    ):
        with pytest.raises(InputError, match=words):
            read_rows(path, task)
    (shop / "captions.jsonl").write_text('{"image": "0.png", "caption": 5}\n')
    with pytest.raises(InputError, match=r"shop holds captions\.csv and captions\.jsonl: name"):
        read_rows(shop, "caption")
    with pytest.raises(InputError, match="line 1: the caption is 5, not a text"):
        read_rows(shop / "captions.jsonl", "caption")
    (shop / "captions.jsonl").write_text('{"image": "0.png", "caption": "\\ud83d mug"}\n')
    with pytest.raises(InputError, match=r"line 1: the caption '\\ud83d mug' holds half of a char"):
        read_rows(shop / "captions.jsonl", "caption")


def test_nothing_is_written_over(shop):
    model = fit(shop)
    before = (shop / "captions.csv").read_bytes(), (shop / "0.png").read_bytes()
    for file, words in (
        (shop / "captions.csv", "captions.csv is there already and is not written over"),
        (shop / "0.png", r"0\.png does not end in \.csv"),
        ("o.csv/", "o.csv is there already"),
        ("shop/0.png/new.csv", "shop/0.png is no folder: give a file in a folder"),
    ):
        Path("o.csv").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=words):
            model.write(shop, file)
    assert before == ((shop / "captions.csv").read_bytes(), (shop / "0.png").read_bytes())


def test_bad_files_of_models(shop):
    for path, words in (
        ("none.safetensors", "none.safetensors does not exist"),
        (str(shop / "0.png"), "0.png is no captioner"),
    ):
        with pytest.raises(InputError, match=words):
            Captioner.load(path)
    save_trainable(torch.nn.Linear(2, 2), "l.safetensors", {"kind": "other"})
    with pytest.raises(InputError, match=r"l\.safetensors is no captioner"):
        Captioner.load("l.safetensors")
    save_trainable(
        torch.nn.Linear(2, 2), "l.safetensors", {"kind": "Captioner", "config": {"x": 1}}
    )
    with pytest.raises(InputError, match="comes from another version"):
        Captioner.load("l.safetensors")


def test_a_picture_of_labels_is_no_picture(shop):
    (shop / "labels").mkdir()
    (shop / "labels" / "experts.json").write_text("{}")
    Image.new("L", (9, 9)).save(shop / "labels" / "0.png")
    (shop / ".hidden").mkdir()
    Image.new("L", (9, 9)).save(shop / ".hidden" / "0.png")
    assert caption_table.find_pictures(shop) == [f"{i}.png" for i in range(6)]


def test_bad_configurations():
    for options, words in (
        ({"task": "poem"}, "Unknown task 'poem'"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"lr": -1.0}, "lr=-1.0 must be positive"),
    ):
        with pytest.raises(InputError, match=words):
            CaptionerConfig(**options)


# --- the command line ---------------------------------------------------------------------------


def test_commands(shop, capsys):
    (shop / "bad.png").write_bytes(b"no picture")
    words = ["tune", str(shop), "--out", "m.safetensors", "--epochs", "1", "--batch", "3"]
    assert main(words) == 0
    assert "rows        6 train, 0 held out, of 6 pictures" in capsys.readouterr().out
    assert main([*words, "--seed", "1"]) == 2
    assert "begun with seed=0, not 1" in capsys.readouterr().err
    assert main([*words, "--seed", "1", "--no-resume"]) == 0
    words = ["caption", str(shop), "--model", "m.safetensors", "--out", "o.csv"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "6 pictures written to o.csv\nleft out: shop/bad.png is not an image" in said
    assert main(words) == 2  # o.csv is there
    answered = ["tune", str(shop), "--out", "a.safetensors", "--epochs", "1", "--batch", "3"]
    assert main([*answered, "--task", "answer", "--start", "m.safetensors"]) == 0
    words = ["caption", str(shop), "--model", "a.safetensors", "--out", "a.jsonl"]
    assert main([*words, "--question", "Which colour?"]) == 0
    rows = read_lines("a.jsonl")
    assert len(rows) == 6 and all(row["answer"] in COLOURS for row in rows)
    for path in shop.glob("?.png"):
        path.write_bytes(b"no picture")
    assert main([*words[:-1], "none.csv"]) == 1  # nothing could be read
    assert not Path("none.csv").exists()
