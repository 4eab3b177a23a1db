"""Your own data: fit, save, load, predict, and the two commands."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image, ImageDraw

from mmfusion_lib import checkpoints, features, probes
from mmfusion_lib.__main__ import main
from mmfusion_lib.classifier import ClassifierConfig, FeatureClassifier, fit_table
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError

IMAGE = EncoderConfig(
    kind="image", width=8, depth=3, heads=2, mlp_width=16, image_size=28, patch_size=14
)
TEXT = EncoderConfig(
    kind="text", width=8, depth=2, heads=2, mlp_width=16, norm="post", vocab_size=130,
    readout="mean",
)  # fmt: skip
SMALL = ClassifierConfig(image_depth=2, image_size=28)
WORDS = {"red": "a warm one", "blue": "a cold one", "green": "a fresh one"}


def tokenize(texts, max_length):
    """One token a letter."""
    longest = min(max_length, max(len(text) for text in texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in zip(ids, texts):
        row[: len(text)] = torch.tensor([ord(c) for c in text[:longest]])
    return ids, (ids > 0).long()


def made(config, seed):
    torch.manual_seed(seed)
    encoder = build_encoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


@pytest.fixture
def tiny(cache, monkeypatch):
    """Small random encoders in place of the packaged ones; ``tiny["seed"]`` names the weights."""
    state = {"seed": 0}
    monkeypatch.setattr(
        checkpoints, "load_image_encoder", lambda name, depth=None: made(IMAGE, state["seed"])
    )
    monkeypatch.setattr(
        checkpoints, "load_text_encoder", lambda name, depth=None: made(TEXT, state["seed"])
    )
    monkeypatch.setattr(checkpoints, "load_tokenizer", lambda name: tokenize)
    return state


def picture(colour: str, number: int) -> Image.Image:
    image = Image.new("RGB", (28, 28), "white")
    ImageDraw.Draw(image).rectangle((number % 5, number % 7, 20, 22), fill=colour)
    return image


def items(count: int, first: int = 0):
    names = [list(WORDS)[i % 3] for i in range(first, first + count)]
    images = [picture(name, first + i) for i, name in enumerate(names)]
    return images, [f"{WORDS[name]} {i}" for i, name in enumerate(names)], names


@pytest.fixture
def folder(tmp_path):
    """Thirty pictures with texts, in three class folders."""
    images, texts, names = items(30)
    for i, (image, text, name) in enumerate(zip(images, texts, names)):
        path = tmp_path / "shelf" / name / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        path.with_suffix(".txt").write_text(text)
    return tmp_path / "shelf"


@pytest.fixture
def model(tiny):
    return FeatureClassifier.fit(*items(30), validation=items(12, 30), config=SMALL)


def test_learns_and_predicts(model):
    images, texts, names = items(12, 60)
    found = model.predict(images, texts)
    assert found.labels == names
    assert found.probabilities.shape == (12, 3)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(12))
    assert model.classes == ("blue", "green", "red") and model.probe.weight.shape == (3, 16)


def test_saved_and_loaded_gives_the_same(model, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    again = FeatureClassifier.load(path)
    assert (again.config, again.classes) == (model.config, model.classes)
    assert (again.probe.decay, again.probe.validation) == (model.probe.decay, 1.0)
    images, texts, _ = items(3, 60)
    one, two = model.predict(images, texts), again.predict(images, texts)
    assert torch.equal(one.probabilities, two.probabilities)


def test_other_weights_are_refused(model, tiny, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    tiny["seed"] = 1
    with pytest.raises(InputError, match="trained on other weights of dinov2-small"):
        FeatureClassifier.load(path)


def test_other_files_are_refused(model, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="does not exist"):
        FeatureClassifier.load(tmp_path / "none.safetensors")
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    unknown = json.dumps({"config": {"colour": 1}, "classes": []})
    for spoil in (
        lambda: None,
        lambda: path.write_bytes(b"nonsense"),
        lambda: save_file({"x": torch.zeros(2)}, path, {"mmfusion_classifier": "{"}),
        lambda: save_file({"x": torch.zeros(2)}, path, {"mmfusion_classifier": unknown}),
        lambda: save_file({"x": torch.zeros(2)}, path, {"mmfusion_classifier": '{"config": {}}'}),
        lambda: (model.save(path), path.write_bytes(path.read_bytes()[:-8])),
    ):
        spoil()
        with pytest.raises(InputError, match=r"other\.safetensors is not a classifier"):
            FeatureClassifier.load(path)
    with pytest.raises(InputError, match="is not a classifier"):
        FeatureClassifier.load(tmp_path)


def test_one_modality(tiny):
    images, texts, names = items(15)
    config = ClassifierConfig(image_encoder=None)
    model = FeatureClassifier.fit(None, texts, names, (None, texts, names), config)
    assert model.predict(texts=texts[:2]).labels == names[:2]
    with pytest.raises(InputError, match="does not read images: leave them out"):
        model.predict(images[:2], texts[:2])
    with pytest.raises(InputError, match="needs texts: give one an item"):
        model.predict()
    # Without a config, what is given decides.
    model = FeatureClassifier.fit(None, texts, names, (None, texts, names))
    assert model.config.image_encoder is None
    with pytest.raises(InputError, match="both None"):
        ClassifierConfig(image_encoder=None, text_encoder=None)


def test_bad_lists(tiny, model):
    images, texts, names = items(6)
    with pytest.raises(InputError, match="5 texts for 6 items: give one text each"):
        FeatureClassifier.fit(images, texts[:5], names, items(6), SMALL)
    with pytest.raises(InputError, match="1 texts for 2 items"):
        model.predict(images[:2], texts[:1])
    with pytest.raises(InputError, match="at least two classes"):
        FeatureClassifier.fit(images, texts, ["red"] * 6, items(6), SMALL)
    with pytest.raises(InputError, match="'pink' never occurs in training"):
        FeatureClassifier.fit(images, texts, names, (images, texts, ["pink"] * 6), SMALL)


def test_a_full_disk_leaves_the_old_file(model, tmp_path, monkeypatch):
    import errno

    import safetensors.torch

    path = tmp_path / "m.safetensors"
    model.save(path)
    before = path.read_bytes()

    def full(tensors, file, metadata=None):
        with open(file, "wb") as half:
            half.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(InputError, match="disk is full"):
        model.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path, tmp_path / "cache"]


# --- fit_table and the command line -------------------------------------------------------------


def test_fit_table_on_a_folder(tiny, folder, tmp_path):
    out = tmp_path / "m.safetensors"
    report = fit_table(folder, out, seed=0, config=SMALL)
    assert report.counts == {"train": 21, "validation": 4, "test": 5}
    assert report.classes == ("blue", "green", "red")
    assert report.modalities == ("images", "texts") and report.accuracy == 1.0
    assert 0 < report.majority < 1
    text = str(report)
    assert "test        1.000 (always the commonest class: 0." in text
    assert "21 train, 4 validation, 5 test" in text and str(out) in text
    found = FeatureClassifier.load(out).predict([folder / "red" / "00.png"], ["a warm one 0"])
    assert found.labels == ["red"]


def test_the_test_part_decides_nothing(tiny, folder, tmp_path, monkeypatch):
    """Wrong labels in the test part change its accuracy and not one weight."""
    rows = [("train", "a warm one", "red"), ("train", "a cold one", "blue"),
            ("validation", "a warm one", "red"), ("validation", "a cold one", "blue")]  # fmt: skip
    saved = []
    for test in ("red", "blue", "violet"):
        path = tmp_path / f"{test}.csv"
        with open(path, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["split", "text", "label"])
            table.writerows([*rows, ("test", "a warm one", test)])
        report = fit_table(path, tmp_path / "m.safetensors")
        assert report.accuracy == (test == "red") and report.modalities == ("texts",)
        model = FeatureClassifier.load(tmp_path / "m.safetensors")
        saved.append((model.probe.weight[-1], model.probe.decay))
    assert torch.equal(saved[0][0], saved[1][0]) and saved[0][1] == saved[1][1]


def test_same_seed_same_classifier(tiny, folder, tmp_path):
    names = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for name, seed in zip(names, (0, 0, 1)):
        fit_table(folder, name, seed=seed, config=SMALL)
    one, two, other = (FeatureClassifier.load(name).probe.mean for name in names)
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_commands_on_a_folder(tiny, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ClassifierConfig.__init__, "__defaults__",
                        ("dinov2-small", "minilm-l6", 2, None, 28, 64, "float32"))  # fmt: skip
    out = str(tmp_path / "m.safetensors")
    assert main(["fit", str(folder), "--out", out]) == 0
    assert "test        1.000" in capsys.readouterr().out
    pictures = [str(folder / "red/00.png"), str(folder / "blue/01.png")]
    texts = ["--text", "a warm one 0", "--text", "a cold one 1"]
    assert main(["predict", out, *pictures, *texts]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[pictures[0], "red"], [pictures[1], "blue"]]
    assert all(1 / 3 < float(row[2]) <= 1 for row in rows)
    assert main(["predict", out, pictures[0]]) == 2
    assert "needs texts" in capsys.readouterr().err


def test_commands_on_a_table_with_other_columns(tiny, tmp_path, capsys):
    _, texts, names = items(30)
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["note", "kind"], *zip(texts, names)])
    out = str(tmp_path / "m.safetensors")
    named = ["--text-column", "note", "--label-column", "kind"]
    assert main(["fit", str(path), "--out", out, *named]) == 0
    assert "reads       texts\n" in capsys.readouterr().out
    assert main(["predict", out, "--text", "a cold one"]) == 0
    assert capsys.readouterr().out.startswith("a cold one\tblue\t")
    for words, said in (
        (["fit", str(path), "--out", out, "--label-column", "kind"], "neither an image nor a text"),
        (["fit", str(path), "--out", out, *named, "--image-column", "p"], "no column 'p'"),
        (["fit", str(path), "--out", str(tmp_path / "m.bin"), *named], "end in .safetensors"),
        (["fit", str(tmp_path / "none.csv"), "--out", out], "does not exist"),
        (["predict", str(path), "--text", "a"], "not a classifier"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_broken_picture_leaves_no_file(tiny, folder, tmp_path, capsys):
    (folder / "red" / "00.png").write_bytes(b"no picture")
    out = tmp_path / "m.safetensors"
    assert main(["fit", str(folder), "--out", str(out)]) == 2
    assert "red/00.png is not an image" in capsys.readouterr().err and not out.exists()


def test_real_encoders_tell_colours_apart(minilm, dinov2, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_root", lambda: tmp_path / "features")  # the weights stay cached
    config = ClassifierConfig(image_depth=2, text_depth=1, image_size=56)
    report = fit_table(folder, tmp_path / "m.safetensors", config=config)
    assert report.accuracy == 1.0
    model = FeatureClassifier.load(tmp_path / "m.safetensors")
    assert isinstance(model.probe, probes.Probe) and model.probe.weight.shape == (3, 768)
