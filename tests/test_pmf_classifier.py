"""Your own data with PMF: fit, go on, save, load, predict, and the two commands."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch
from PIL import Image, ImageDraw

from mmfusion_lib import checkpoints, pair_training, pmf_classifier
from mmfusion_lib.__main__ import main
from mmfusion_lib.classifier import ClassifierConfig, FeatureClassifier
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.pmf_classifier import PMFClassifier, PMFClassifierConfig, fit_table
from mmfusion_lib.trainable import read_trainable, save_trainable

IMAGE = EncoderConfig(
    kind="image", width=8, depth=3, heads=2, mlp_width=16, image_size=28, patch_size=14
)
TEXT = EncoderConfig(
    kind="text", width=8, depth=3, heads=2, mlp_width=16, norm="post", vocab_size=130,
    readout="mean",
)  # fmt: skip
SMALL = PMFClassifierConfig(
    image_depth=2, text_depth=2, image_size=28, max_length=16, num_fusion_layers=1, prompts=2,
    epochs=6, batch_size=6, lr=0.2,
)  # fmt: skip
QUICK = dataclasses.replace(SMALL, epochs=4)
WORDS = {"red": "warm", "blue": "cold", "green": "fresh"}
CLS, SEP = 1, 2


def tokenize(texts, max_length):
    """One token a letter between CLS and SEP, as the real one does."""
    rows = [[CLS, *(ord(c) for c in text[: max_length - 2]), SEP] for text in texts]
    ids = torch.zeros(len(texts), max(len(row) for row in rows), dtype=torch.long)
    for row, found in zip(ids, rows):
        row[: len(found)] = torch.tensor(found)
    return ids, (ids > 0).long()


def made(config, depth, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder(dataclasses.replace(config, depth=depth or config.depth)).eval()
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def replace_encoders(monkeypatch) -> dict[str, int]:
    """Small random encoders in place of the packaged ones; the seeds name their weights."""
    seeds = {"image": 0, "text": 0}

    def image(name, depth=None):
        return made(IMAGE, depth, seeds["image"])

    def text(name, depth=None):
        return made(TEXT, depth, seeds["text"])

    monkeypatch.setattr(checkpoints, "load_image_encoder", image)
    monkeypatch.setattr(checkpoints, "load_text_encoder", text)
    monkeypatch.setattr(checkpoints, "load_tokenizer", lambda name: tokenize)
    return seeds


@pytest.fixture
def tiny(cache, monkeypatch):
    return replace_encoders(monkeypatch)


def picture(colour: str, number: int) -> Image.Image:
    image = Image.new("RGB", (28, 28), "white")
    ImageDraw.Draw(image).rectangle((number % 5, number % 7, 20, 22), fill=colour)
    return image


def items(count: int, first: int = 0):
    names = [list(WORDS)[i % 3] for i in range(first, first + count)]
    images = [picture(name, first + i) for i, name in enumerate(names)]
    return images, [f"{WORDS[name]} {i}" for i, name in enumerate(names)], names


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        replace_encoders(patch)
        return PMFClassifier.fit(*items(30), validation=items(12, 30), config=SMALL)


@pytest.fixture
def model(tiny, trained_once):
    return trained_once


@pytest.fixture
def shelf(tmp_path):
    """Thirty pictures with texts, in three class folders."""
    for i, (image, text, name) in enumerate(zip(*items(30))):
        path = tmp_path / "shelf" / name / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        path.with_suffix(".txt").write_text(text)
    return tmp_path / "shelf"


def trained(model: PMFClassifier) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.model.named_parameters() if p.requires_grad}


def same(one: PMFClassifier, two: PMFClassifier) -> bool:
    one, two = trained(one), trained(two)
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# --- fit and predict ----------------------------------------------------------------------------


def test_learns_and_predicts(model):
    images, texts, names = items(12, 60)
    found = model.predict(images, texts)
    assert sum(a == b for a, b in zip(found.labels, names)) >= 10  # chance: 4
    assert found.probabilities.shape == (12, 3)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(12))
    assert model.classes == ("blue", "green", "red") and model.validation > 0.9
    assert model.modalities == ("images", "texts") and model.chosen == f"epoch {model.epoch} of 6"
    kept = model.model.image_encoder.layers, model.model.text_encoder.layers
    assert [len(layers) for layers in kept] == [2, 2]


def test_it_answers_what_the_live_model_answers(model):
    images, texts, _ = items(5, 60)
    transform = checkpoints.image_transform("dinov2-small", size=28)
    pixels = torch.stack([transform(image) for image in images])  # (5, 3, 28, 28)
    with torch.no_grad():
        live = model.model(pixels, *tokenize(texts, 16)).logits  # (5, 3)
    torch.testing.assert_close(model.predict(images, texts).probabilities, live.softmax(-1))


def test_both_modalities_are_read(model):
    images, texts, _ = items(3, 60)
    answer = model.predict(images, texts).probabilities
    other = model.predict(images[1:] + images[:1], texts).probabilities
    assert (answer - other).abs().max() > 1e-3
    other = model.predict(images, texts[1:] + texts[:1]).probabilities
    assert (answer - other).abs().max() > 1e-3


def test_the_best_epoch_is_kept(tiny, monkeypatch):
    """Epochs 2 and 3 are the most accurate, 3 has the lower loss of the two: its weights stay."""
    scores, seen = iter([(4 / 6, 0.1), (5 / 6, 9.0), (5 / 6, 8.0), (0.0, 0.0)]), []

    def validator(data):
        def validate(network):
            seen.append([p.detach().clone() for p in network.parameters() if p.requires_grad])
            return dict(zip(("accuracy", "loss"), next(scores)))

        return validate

    monkeypatch.setattr(pair_training, "validator", validator)
    model = PMFClassifier.fit(*items(12), validation=items(6), config=QUICK)
    assert (model.epoch, model.validation, model.chosen) == (3, 5 / 6, "epoch 3 of 4")
    kept = list(trained(model).values())
    assert all(torch.equal(a, b) for a, b in zip(kept, seen[2]))
    assert not all(torch.equal(a, b) for a, b in zip(kept, seen[3]))


def test_an_empty_text_and_a_long_one(model):
    images, _, _ = items(2, 60)
    # 16 tokens: CLS, 14 letters, SEP. The two texts differ from the 15th letter on.
    one = model.predict(images, ["", "a" * 14 + "b"]).probabilities
    two = model.predict(images, ["", "a" * 14 + "c" * 40]).probabilities
    assert one.isfinite().all() and torch.equal(one, two)
    three = model.predict(images, ["", "a" * 13 + "b"]).probabilities
    assert torch.equal(one[0], three[0]) and not torch.equal(one[1], three[1])


def test_fewer_items_than_a_batch(tiny, monkeypatch):
    original, seen = pair_training.objective(), []

    def loss(model, batch):
        seen.append(len(batch["labels"]))
        return original(model, batch)

    monkeypatch.setattr(pair_training, "objective", lambda: loss)
    config = dataclasses.replace(SMALL, batch_size=64, epochs=2)
    PMFClassifier.fit(*items(5), validation=items(3), config=config)
    assert seen == [5, 5]  # an epoch is one step with all five items


# --- what is on the disk ------------------------------------------------------------------------


def test_the_seed_decides(tiny, tmp_path):
    found = [
        PMFClassifier.fit(
            *items(12), items(6), dataclasses.replace(QUICK, seed=seed), folder=tmp_path / name
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert same(found[0], found[1]) and not same(found[0], found[2])
    assert dataclasses.replace(SMALL, seed=1).training(12).seed == 1  # of the order, too


def test_a_finished_run_is_not_run_again(tiny, monkeypatch):
    first = PMFClassifier.fit(*items(12), validation=items(6), config=QUICK)

    def never():
        raise AssertionError("trained again")

    monkeypatch.setattr(pair_training, "objective", lambda: lambda model, batch: never())
    again = PMFClassifier.fit(*items(12), validation=items(6), config=QUICK)
    assert same(first, again) and (first.epoch, first.validation) == (again.epoch, again.validation)
    for change in (  # each of these is another run
        lambda: PMFClassifier.fit(*items(12), items(6), dataclasses.replace(QUICK, lr=0.1)),
        lambda: PMFClassifier.fit(*items(12, 1), items(6), QUICK),
        lambda: PMFClassifier.fit(*items(12), items(9), QUICK),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            change()


def test_a_loss_that_is_not_finite_stops_and_the_same_call_goes_on(tiny, tmp_path, monkeypatch):
    plain = PMFClassifier.fit(*items(12), validation=items(6), config=QUICK, folder=tmp_path / "a")
    calls = []

    def objective():
        loss = original()

        def broken(model, batch):
            calls.append(1)
            # 12 items in batches of 6: two steps an epoch. The fourth is in the second epoch.
            return loss(model, batch) * (float("nan") if len(calls) == 4 else 1)

        return broken

    original = pair_training.objective
    monkeypatch.setattr(pair_training, "objective", objective)
    where = tmp_path / "b" / "checkpoint.safetensors"
    with pytest.raises(InputError) as error:
        PMFClassifier.fit(*items(12), validation=items(6), config=QUICK, folder=where.parent)
    assert "The loss became nan at step 4" in str(error.value)
    assert f"{where} holds the last good step: lower lr=0.2" in str(error.value)
    assert where.is_file()
    again = PMFClassifier.fit(*items(12), validation=items(6), config=QUICK, folder=where.parent)
    assert len(calls) == 4 + 6  # steps 3 to 8: the first epoch was kept
    assert same(plain, again)


def test_a_huge_learning_rate_stops(tiny, cache):
    config = dataclasses.replace(QUICK, lr=1e30)
    with pytest.raises(InputError, match=r"at step \d.*: lower lr=1e\+30"):
        PMFClassifier.fit(*items(12), validation=items(6), config=config)
    assert not list(cache.glob("classifiers/*/checkpoint.safetensors"))  # no step was good


def test_saved_and_loaded_gives_the_same(model, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    for again in (PMFClassifier.load(path), pmf_classifier.load(path)):
        assert isinstance(again, PMFClassifier)
        assert (again.config, again.classes) == (model.config, model.classes)
        assert (again.epoch, again.validation) == (model.epoch, model.validation)
        images, texts, _ = items(3, 60)
        one, two = model.predict(images, texts), again.predict(images, texts)
        assert torch.equal(one.probabilities, two.probabilities)
    tensors, metadata = read_trainable(path)
    assert tensors.keys() == trained(model).keys()  # the encoders are not copied
    assert set(metadata["config"]["encoders"]) == {"dinov2-small", "minilm-l6"}


@pytest.mark.parametrize("kind", ["image", "text"])
def test_other_weights_are_refused(model, tiny, tmp_path, kind):
    path = tmp_path / "m.safetensors"
    model.save(path)
    tiny[kind] = 1
    name = {"image": "dinov2-small", "text": "minilm-l6"}[kind]
    with pytest.raises(InputError, match=f"trained on other weights of {name}: fit it again"):
        PMFClassifier.load(path)


def test_other_files_are_refused(model, tmp_path):
    from safetensors.torch import save_file

    for load in (PMFClassifier.load, pmf_classifier.load):
        with pytest.raises(InputError, match=r"none\.safetensors does not exist"):
            load(tmp_path / "none.safetensors")
        with pytest.raises(InputError, match="is not a classifier"):
            load(tmp_path)
    path = tmp_path / "other.safetensors"
    linear = torch.nn.Linear(2, 2)
    for spoil in (
        lambda: save_file({"x": torch.zeros(2)}, path),
        lambda: path.write_bytes(b"nonsense"),
        lambda: save_file({"x": torch.zeros(2)}, path, {"config": "{"}),
        lambda: save_file({"x": torch.zeros(2)}, path, {"config": "[]"}),
        lambda: save_trainable(linear, path, {"kind": "other"}),
        lambda: (model.save(path), path.write_bytes(path.read_bytes()[:-8])),
    ):
        spoil()
        for load in (PMFClassifier.load, pmf_classifier.load):
            with pytest.raises(InputError, match=r"other\.safetensors is not a classifier"):
                load(path)
    meta = {"kind": "PMFClassifier", "config": {"colour": 1}, "classes": []}
    save_trainable(linear, path, meta)
    with pytest.raises(InputError, match=r"another version of this library .*colour"):
        PMFClassifier.load(path)


def test_the_two_kinds_of_file_are_told_apart(model, tmp_path):
    config = ClassifierConfig(image_depth=2, image_size=28, dtype="float32")
    probe = FeatureClassifier.fit(*items(12), validation=items(6), config=config)
    probe.save(tmp_path / "probe.safetensors")
    model.save(tmp_path / "pmf.safetensors")
    assert isinstance(pmf_classifier.load(tmp_path / "probe.safetensors"), FeatureClassifier)
    assert isinstance(pmf_classifier.load(tmp_path / "pmf.safetensors"), PMFClassifier)
    with pytest.raises(InputError, match=r"is not a classifier with PMF: .*--model pmf"):
        PMFClassifier.load(tmp_path / "probe.safetensors")
    with pytest.raises(InputError, match=r"is not a classifier with a probe: .*--model probe"):
        FeatureClassifier.load(tmp_path / "pmf.safetensors")


# --- bad input ----------------------------------------------------------------------------------


def test_bad_lists(tiny, model):
    images, texts, names = items(6)
    fit, good = PMFClassifier.fit, items(6)
    cases = (
        (lambda: fit(images, texts[:5], names, good, SMALL), "5 texts for 6 items of training"),
        (lambda: fit(images[:4], texts, names, good, SMALL), "4 images for 6 items of training"),
        (lambda: fit(images, texts, names, (images, texts, names[:2]), SMALL),
         "6 images for 2 items of validation: give one image each"),
        (lambda: fit(images, texts, ["red"] * 6, good, SMALL), "training labels are 'red'"),
        (lambda: fit(images, texts, names, (images, texts, ["pink"] * 6), SMALL),
         "'pink' occurs in validation and never in train"),
        (lambda: fit(images, texts, names, ([], [], []), SMALL), "The validation has no items"),
        (lambda: fit([], [], [], good, SMALL), "The training has no items"),
        (lambda: model.predict([], []), "The prediction has no items"),
        (lambda: model.predict(images[:2], texts[:1]), "1 texts for 2 items of prediction"),
    )  # fmt: skip
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()


def test_without_texts_or_images_the_probe_is_named(tiny, model):
    images, texts, names = items(6)
    for call, kind in (
        (lambda: PMFClassifier.fit(images, None, names, items(6), SMALL), "training has no texts"),
        (lambda: PMFClassifier.fit(None, texts, names, items(6), SMALL), "training has no images"),
        (lambda: PMFClassifier.fit(*items(6), (images, None, names), SMALL), "validation has no"),
        (lambda: model.predict(images, None), "prediction has no texts"),
    ):
        with pytest.raises(InputError, match=rf"{kind}.*`fit --model probe`"):
            call()


def test_an_unreadable_picture_is_named(tiny, tmp_path):
    images, texts, names = items(6)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"picture 2 \(.*broken.png\) is not an image"):
        PMFClassifier.fit([*images[:2], str(broken), *images[3:]], texts, names, items(6), SMALL)


def test_bad_configurations():
    for field, value, words in (
        ("num_fusion_layers", 0, "num_fusion_layers=0 must be at least 1"),
        ("prompts", -1, "query_prompts=-1 must not be negative"),
        ("epochs", 0, "epochs=0 must be at least 1"),
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("lr", 0.0, "lr=0.0 must be positive"),
    ):
        with pytest.raises(InputError, match=words):
            PMFClassifierConfig(**{field: value})


def test_more_fusion_layers_than_layers(tiny):
    config = dataclasses.replace(SMALL, num_fusion_layers=3)
    with pytest.raises(InputError, match="num_fusion_layers=3, but the image encoder has 2 layers"):
        PMFClassifier.fit(*items(6), validation=items(6), config=config)


# --- fit_table and the command line -------------------------------------------------------------


def test_fit_table_on_a_folder(tiny, shelf, tmp_path):
    out = tmp_path / "m.safetensors"
    report = fit_table(shelf, out, config=SMALL)
    assert report.counts == {"train": 21, "validation": 4, "test": 5}
    assert report.modalities == ("images", "texts") and report.accuracy >= 0.8  # 4 of 5
    assert report.chosen.endswith("of 6") and f"({report.chosen} chosen there)" in str(report)
    found = PMFClassifier.load(out).predict([shelf / "red" / "00.png"], ["warm 0"])
    assert found.labels == ["red"]


def test_commands_on_a_folder(tiny, shelf, tmp_path, capsys, monkeypatch):
    values = tuple(getattr(SMALL, field.name) for field in dataclasses.fields(SMALL))
    monkeypatch.setattr(PMFClassifierConfig.__init__, "__defaults__", values)
    out = str(tmp_path / "m.safetensors")
    words = ["fit", str(shelf), "--out", out, "--model", "pmf", "--epochs", "8", "--seed", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "of 8 chosen there)" in said and "reads       images and texts\n" in said
    saved = read_trainable(out)[1]["config"]["config"]
    assert (saved["epochs"], saved["seed"]) == (8, 2)
    pictures = [str(shelf / "red/00.png"), str(shelf / "blue/01.png")]
    texts = ["--text", "warm 0", "--text", "cold 1"]
    assert main(["predict", out, *pictures, *texts]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[pictures[0], "red"], [pictures[1], "blue"]]
    assert all(1 / 3 < float(row[2]) <= 1 for row in rows)
    for words, said in (
        (["predict", out, pictures[0]], "has no texts"),
        (["predict", out, *texts], "has no images"),
        (["predict", out, pictures[0], *texts], "2 texts for 1 items"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and said in error


def test_a_table_without_pictures_leaves_no_file(tiny, tmp_path, capsys):
    path, out = tmp_path / "t.csv", tmp_path / "m.safetensors"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *list(zip(*items(30)[1:]))])
    assert main(["fit", str(path), "--out", str(out), "--model", "pmf"]) == 2
    assert "has no images: give one an item, or use a probe" in capsys.readouterr().err
    assert not out.exists()
    assert main(["fit", str(path), "--out", str(out)]) == 0  # the probe is the default
