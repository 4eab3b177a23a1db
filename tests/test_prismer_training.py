"""Texts after prompts: what is learnt, what is masked, and that training and writing go together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from mmfusion_lib import checkpoints, prismer_training, scene_captioner, train
from mmfusion_lib.encoder_config import CONFIGS
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_config import PrismerConfig
from mmfusion_lib.prismer_training import PrismerItems, objective

IMAGE = EncoderConfig("image", 16, 2, 2, 24, image_size=16, patch_size=8)


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoints.load_tokenizer()


@pytest.fixture
def model(tokenizer) -> Prismer:
    torch.manual_seed(0)
    text = replace(CONFIGS["minilm-l6"], width=16, depth=2, heads=2, mlp_width=24)
    config = PrismerConfig(IMAGE, text, (), image_size=16)
    model = Prismer(build_encoder(IMAGE), build_encoder(text), config).eval()
    model.tokenizer = tokenizer
    return model


def items(tokenizer, prompts, texts, **options) -> PrismerItems:
    pictures = {"rgb": torch.randn(len(texts), 3, 16, 16, generator=torch.Generator())}
    groups = [str(i) for i in range(len(texts))]
    return PrismerItems(pictures, prompts, texts, tokenizer, groups, **options)


def test_only_the_text_and_its_end_mark_are_learnt(tokenizer):
    data = items(tokenizer, ["A picture of", ""], [["a red cat"], ["two dogs run"]])
    first, second = data[0], data[1]
    # [CLS] a picture of | a red cat [SEP]: four tokens are read, four are learnt.
    assert (first["labels"] == prismer_training.IGNORED).tolist() == [True] * 4 + [False] * 4
    assert tokenizer.decode(first["labels"][4:]) == "a red cat"
    # [CLS] | two dogs run [SEP], then three paddings.
    assert second["mask"].tolist() == [1] * 5 + [0] * 3
    assert (second["labels"] == prismer_training.IGNORED).tolist() == [True] + [False] * 4 + [
        True
    ] * 3


def test_objective_is_the_loss_of_decode(model, tokenizer):
    weights = torch.tensor([1.0, 0.5, 2.0])
    data = items(
        tokenizer, ["What is it?", "", "A"], [["a cat"], ["one long text here"], ["b"]],
        weights=weights,
    )  # fmt: skip
    batch = default_collate([data[i] for i in range(3)])
    latents = model.encode(batch["experts"])
    losses = model.decode(batch["ids"], batch["mask"], latents, batch["labels"]).loss
    torch.testing.assert_close(objective(model, batch), (losses * weights).mean())


def test_more_padding_changes_nothing(model, tokenizer):
    short = items(tokenizer, ["A picture of"] * 2, [["a cat"], ["a dog"]])
    long = items(tokenizer, ["A picture of"] * 3, [["a cat"], ["a dog"], ["one two three four"]])
    long.pictures.experts["rgb"][:2] = short.pictures.experts["rgb"]
    losses = [objective(model, default_collate([d[0], d[1]])) for d in (short, long)]
    torch.testing.assert_close(*losses)


def test_a_text_of_several_is_drawn_and_seeded(tokenizer):
    data = items(tokenizer, [""], [["red", "blue", "green"]])
    torch.manual_seed(0)
    drawn = [tokenizer.decode(data[0]["ids"]) for _ in range(20)]
    torch.manual_seed(0)
    again = [tokenizer.decode(data[0]["ids"]) for _ in range(20)]
    assert drawn == again
    assert set(drawn) == {"red", "blue", "green"}


def test_it_learns_to_say_what_it_sees(model, tokenizer):
    """Two pictures, two captions: learnt by heart, written and ranked."""
    model.requires_grad_(True)
    texts = ["a red cat on a mat", "two blue dogs in the park"]
    data = items(tokenizer, ["A picture of"] * 2, [[text] for text in texts])
    config = train.TrainConfig(epochs=120, batch_size=2, lr=2e-2, clip=None)
    result = train.fit(model, data, objective, config, progress=False)
    assert result.losses[-1] < 0.5 * result.losses[0]
    found = prismer_training.captions(model, data, num_beams=2, min_length=5)
    assert found == ["A red cat on a mat.", "Two blue dogs in the park."]
    assert prismer_training.answers(model, data, ["nothing", *texts]) == texts
    with torch.no_grad():
        expected = float(objective(model, default_collate([data[0], data[1]])))
    assert prismer_training.mean_loss(model, data) == pytest.approx(expected)


def test_without_leaves_out_maps(tokenizer):
    data = items(tokenizer, ["", ""], [["a"], ["b"]])
    data.pictures.experts["depth"] = torch.zeros(2, 1, 16, 16)
    assert set(data[0]["experts"]) == {"rgb", "depth"}
    assert set(data.without(["depth"])[0]["experts"]) == {"rgb"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [""]}, "1 prompts for 2 pictures"),
        ({"texts": [["a"], []]}, "Item 1 has no text"),
        ({"texts": [["a"], [" "]]}, "Answer 0 is empty"),
        ({"max_length": 2}, "Item 0 has 3 tokens"),
    ],
)
def test_bad_items_are_named(tokenizer, changes, message):
    given = {"prompts": ["", ""], "texts": [["a"], ["b"]]} | changes
    with pytest.raises(InputError, match=message):
        PrismerItems(
            {"rgb": torch.zeros(2, 3, 16, 16)}, tokenizer=tokenizer, groups=["0", "1"], **given
        )


def test_saved_weights_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_captioner, "PART_BYTES", 300_000)
    small = {**scene_captioner.SIZES, "image": 1, "text": 1, "adaptor_bottleneck": 8}
    monkeypatch.setattr(scene_captioner, "SIZES", small)
    model = scene_captioner.build(("depth",), seed=3)
    path = tmp_path / "captioner"
    paths = scene_captioner.save(model, path, {"recipe": "test"})
    assert len(paths) > 1
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(file.stat().st_size for file in paths) < 0.35 * 4 * count
    loaded = scene_captioner.load(str(path), experts=("depth",))
    differ, other = 0, dict(scene_captioner.build(("depth",)).named_parameters())
    for (name, was), (_, now) in zip(model.named_parameters(), loaded.named_parameters()):
        step = was.detach().abs().max() / 127  # the coarsest of the rows
        assert (was - now).abs().max() <= step / 2 + 1e-6, name
        differ += int(not torch.equal(was, other[name]))
    assert differ > 5  # another seed draws others, so loading did something

    monkeypatch.setattr(scene_captioner, "PART_BYTES", 9_000_000)
    assert scene_captioner.save(model, path) == [tmp_path / "captioner-0.safetensors"]
    assert len(list(tmp_path.iterdir())) == 1  # no part of the save before is left
    with pytest.raises(InputError, match="another model"):
        scene_captioner.load(str(path), experts=("edge", "depth"))
    monkeypatch.setattr(scene_captioner, "frozen_digest", lambda model: "other")
    with pytest.raises(InputError, match="other frozen weights"):
        scene_captioner.load(str(path), experts=("depth",))


def test_a_lost_part_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_captioner, "PART_BYTES", 300_000)
    small = {**scene_captioner.SIZES, "image": 1, "text": 1, "adaptor_bottleneck": 8}
    monkeypatch.setattr(scene_captioner, "SIZES", small)
    paths = scene_captioner.save(scene_captioner.build(()), tmp_path / "captioner")
    paths[-1].unlink()
    with pytest.raises(InputError, match="a part is lost"):
        scene_captioner.load(str(tmp_path / "captioner"), experts=())
    with pytest.raises(InputError, match=r"nothing-0\.safetensors does not exist"):
        scene_captioner.load(str(tmp_path / "nothing"))


def test_several_texts_of_one_picture(tokenizer):
    """Three texts of two pictures: the last is of the first, and no picture is copied."""
    pictures = {"rgb": torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)}
    given = [""] * 3, [["a"], ["b"], ["c"]], tokenizer, ["0", "1", "0"]
    data = PrismerItems(pictures, *given, rows=[0, 1, 0])
    seen = [float(data[i]["experts"]["rgb"][0, 0, 0]) for i in range(3)]
    assert seen == [0.0, 1.0, 0.0]
    part = data.take([2, 1])
    assert [float(part[i]["experts"]["rgb"][0, 0, 0]) for i in range(2)] == [0.0, 1.0]
    assert part.pictures.experts["rgb"].data_ptr() == pictures["rgb"].data_ptr()
    assert part.batch([1])["rgb"].unique().tolist() == [1.0]
    assert [float(x["experts"]["rgb"][0, 0, 0]) for x in (part.without(["depth"])[0],)] == [0.0]
    with pytest.raises(InputError, match="picture 2 of 2"):
        PrismerItems(pictures, *given, rows=[0, 2, 0])
    with pytest.raises(InputError, match="3 prompts for 2 rows"):
        PrismerItems(pictures, *given, rows=[0, 1])
