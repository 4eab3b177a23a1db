"""Published checkpoints in our model: what it sees, says and writes is what the oracle does.

``prismer_oracle.py`` is Prismer written from the fact sheet, apart from the library. Sizes here: width
16 for images, 24 for text, 2 blocks each, 5 latents, 4 x 4 patches.
"""

from __future__ import annotations

import pickle
import re
from functools import lru_cache
from pathlib import Path

import prismer_oracle as official
import pytest
import torch
from prismer_oracle import BASE, HUGE, LARGE, SIX, TINY, Oracle, random_oracle, stored

from mmfusion_lib import checkpoints, prismer_config
from mmfusion_lib.errors import InputError
from mmfusion_lib.official_prismer import from_official, load
from mmfusion_lib.official_prismer import prismer_config as ours_for
from mmfusion_lib.official_prismer_names import POSITIONS, TIED, UNUSED, official_names
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.prismer_cost import trainable_parameters

P14 = {"patch_size": 14, "image_resolution": 56}
IDS = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 10, 1, 1, 1]])  # 0 begins, 2 ends, 1 is padding
MASK = (IDS != 1).long()
LABELS = torch.tensor([[-100, -100, 6, 7, 8, 2], [-100, 9, 10, -100, -100, -100]])
WORDS = "text_decoder.roberta.embeddings.word_embeddings.weight"
HEAD = "text_decoder.lm_head.decoder.weight"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def batch(names: tuple[str, ...] = SIX, pixels: int = 64, size: int = 28, seed: int = 3) -> dict:
    """Two pictures with painted maps. Instances 0 and 1 lie on the left, nothing on the right."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator)

    maps = {"rgb": draw(3, pixels, pixels)}
    for name in names:
        maps[name] = draw(official.CHANNELS.get(name, 64), size, size)
    if "obj_detection" in names:
        instance = torch.full((2, 1, size, size), 255, dtype=torch.uint8)
        instance[:, :, : size // 2, : size // 2] = 0
        instance[1, :, size // 2 :, : size // 2] = 1
        maps["obj_detection"] = {"label": maps["obj_detection"], "instance": instance}
    return maps


@lru_cache
def pair(**changes) -> tuple[Oracle, Prismer]:
    """The oracle of TINY with changes, and ours with its weights."""
    config = TINY | changes
    oracle = random_oracle(config)
    return oracle, checkpoints.load_official_prismer(stored(oracle), config)


# What it sees, says and writes


@pytest.mark.parametrize("experts", [SIX, ()], ids=["prismer", "prismerz"])
@pytest.mark.parametrize("size", [{}, P14, P14 | {"image_resolution": 62}], ids=["16", "14", "62"])
def test_latents_logits_loss_and_greedy_ids_are_those_of_the_oracle(experts, size):
    oracle, model = pair(experts=experts, **size)
    maps = batch(experts, (TINY | size)["image_resolution"])
    seen = oracle.encode(maps)
    assert seen.shape == (2, 16 + 5 * bool(experts), 16)  # 62 / 14: 4 patches a side, 6 pixels over
    latents = model.encode(maps)
    close(latents, seen)
    said = model.decode(IDS, MASK, latents, LABELS)
    # At padding too, off which the official code reads answers.
    close(said.logits, oracle.decode(IDS, MASK, seen))
    close(said.loss, oracle.loss(IDS, MASK, seen, LABELS))
    assert model.decode(IDS, MASK, latents).loss is None
    for shortest in (0, 7):
        written = model.generate(
            latents, IDS[:, :3], num_beams=1, max_length=12, min_length=shortest, eos_id=2
        )
        expected = oracle.greedy(seen, IDS[:, :3], 12, shortest)
        assert written.tolist() == expected.tolist()


def test_every_entry_of_the_file_counts_in_what_is_compared():
    oracle, _ = pair()
    maps = batch()
    expected = oracle.decode(IDS, MASK, oracle.encode(maps))
    torch.manual_seed(5)
    for name, value in oracle.state_dict().items():
        if name.endswith(("key.bias", "num_batches_tracked", "position_ids")):
            continue  # the first shifts all scores of a softmax alike, the others count nothing
        if re.search(r"(layer|resblocks|perceiver_blocks)\.1\.|depth|normal|seg|ocr", name):
            continue  # as layer 0, as the stems of edges and detection
        kept = value.clone()
        value.add_(torch.rand_like(value))
        change = (oracle.decode(IDS, MASK, oracle.encode(maps)) - expected).abs().max()
        value.copy_(kept)
        assert change > 2e-4, name
    close(oracle.decode(IDS, MASK, oracle.encode(maps)), expected)


def test_greedy_stops_at_the_end_mark_of_roberta_without_a_tokenizer():
    oracle = random_oracle(TINY)
    oracle.text_decoder.lm_head.bias[2] += 7  # the end mark becomes likely
    model = load(stored(oracle), TINY)
    latents = oracle.encode(batch())
    # The second text ends after 4 tokens; where 6 must stand before the mark, after 9 as the first.
    for shortest in (0, 6):
        expected = oracle.greedy(latents, IDS[:, :2], 12, shortest)
        assert (expected == 2).any(dim=1).all() and expected.shape[1] == 9
        written = model.generate(
            latents, IDS[:, :2], num_beams=1, max_length=12, min_length=shortest
        )
        assert written.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("depth",),
        ("seg_coco",),
        ("obj_detection",),
        ("ocr_detection", "edge"),
        ("edge", "obj_detection", "normal"),
        SIX[::-1],
    ],
    ids=lambda names: "+".join(names) or "rgb",
)
def test_any_experts_may_be_missing_at_test_time(names):
    oracle, model = pair()
    maps = batch(names)
    close(model.encode(maps), oracle.encode(maps))


@pytest.mark.parametrize("name", ["seg_coco", "seg_ade"])
def test_all_segmentations_share_a_stem(name):
    oracle, model = pair(experts=("depth", name))
    for given in ("seg_coco", "seg_ade"):
        maps = batch(("depth", given))
        close(model.encode(maps), oracle.encode(maps))


def test_ids_with_a_table_are_as_good_as_painted_maps():
    oracle, model = pair(experts=("seg_coco", "ocr_detection", "obj_detection"))
    torch.manual_seed(2)
    ids = torch.randint(0, 4, (2, 28, 28))
    ids[:, :10] = 255
    classes, words, nothing = torch.randn(4, 64), torch.randn(2, 4, 64), torch.randn(64)
    rgb, instance = torch.randn(2, 3, 64, 64), ids[:, None]  # (B, h, w) -> (B, 1, h, w)
    given = {
        "rgb": rgb,
        "seg_coco": {"ids": ids, "table": classes},
        "ocr_detection": {"ids": ids, "table": words, "nothing": nothing},
        "obj_detection": {"label": {"ids": ids, "table": classes}, "instance": instance},
    }
    plain = official.painted(ids, classes)
    drawn = {
        "rgb": rgb,
        "seg_coco": plain,
        "ocr_detection": official.painted(ids, words, nothing),
        "obj_detection": {"label": plain, "instance": instance},
    }
    close(model.encode(given), oracle.encode(drawn))


def test_instance_rows_may_be_given():
    oracle, model = pair()
    maps, rows = batch(), {0: 5, 1: 64, 255: 0}
    close(model.encode(maps, rows), oracle.encode(maps, rows))
    assert (model.encode(maps, rows) - model.encode(maps)).abs().max() > 1e-3


# Positions


@pytest.mark.parametrize(
    "change",
    [
        {"image_resolution": 112},  # 4 x 4 patches become 7 x 7
        {"image_resolution": 32},
        P14 | {"image_resolution": 90},  # 6 x 6, 6 pixels over
    ],
)
def test_positions_are_resized_to_the_resolution_asked_for(change):
    trained, asked = TINY | change | {"image_resolution": 64}, TINY | change
    state = stored(random_oracle(trained))
    model = load(state, asked)
    oracle, side = Oracle(asked), asked["image_resolution"] // asked["patch_size"]
    table = official.resized_table(state[POSITIONS], side)
    oracle.load_state_dict(state | {POSITIONS: table})
    maps = batch(pixels=asked["image_resolution"])
    assert model.encode(maps).shape == (2, side**2 + 5, 16)
    close(model.encode(maps), oracle.encode(maps))


def test_pictures_of_another_size_than_the_table_are_read_too():
    oracle, model = pair(experts=())
    larger = Oracle(oracle.config | {"image_resolution": 96})
    table = official.resized_table(oracle.expert_encoder.positional_embedding, 6)
    larger.load_state_dict(stored(oracle) | {POSITIONS: table})
    maps = batch((), pixels=96)
    close(model.encode(maps), larger.encode(maps))


# The file


def test_tied_weights_are_stored_twice_or_once_under_either_name():
    oracle, model = pair()
    latents = oracle.encode(batch())
    expected = oracle.decode(IDS, MASK, latents)
    once = stored(oracle, tied="once")
    bias, copy = "text_decoder.lm_head.bias", "text_decoder.lm_head.decoder.bias"
    other = {HEAD: once[WORDS], copy: once[bias]}
    other |= {name: value for name, value in once.items() if name not in (WORDS, bias)}
    for state in (stored(oracle), once, other):
        model = load(state, TINY)
        close(model.decode(IDS, MASK, latents).logits, expected)
        names = [name for name, value in model.named_parameters() if value.shape == (30, 24)]
        assert names == ["decoder.words.weight"]  # one table, of words and head


@pytest.mark.parametrize("name", TIED)
def test_tied_weights_that_differ_are_refused(name):
    state = stored(pair()[0])
    state[name][3] += 1e-6
    with pytest.raises(InputError, match=rf"holds \S+ and {name} with different values, but"):
        load(state, TINY)


def test_statistics_are_loaded_and_used():
    oracle, model = pair()
    assert not any(module.training for module in model.modules())
    theirs = oracle.expert_encoder.conv1["seg"]["5"]
    norm = model.encoder.stems["seg"].network[4]
    assert torch.equal(norm.running_mean, theirs.running_mean) and theirs.running_mean.any()
    assert torch.equal(norm.running_var, theirs.running_var)
    assert norm.num_batches_tracked == 7
    maps = batch()
    one = model.encode({k: v[:1] for k, v in maps.items() if k != "obj_detection"})
    both = model.encode({k: v for k, v in maps.items() if k != "obj_detection"})
    close(both[:1], one)  # a picture is not read by the statistics of its batch


def test_half_precision_and_missing_buffers_are_read():
    oracle = random_oracle(TINY)
    for parameter in oracle.parameters():
        parameter.copy_(parameter.half())
    learnt = dict(oracle.named_parameters())
    state = {n: v.half() if n in learnt else v for n, v in stored(oracle, tied="once").items()}
    del state[UNUSED]
    model = load(state, TINY)
    close(model.encode(batch()), oracle.encode(batch()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_caller_keeps_its_tensors():
    state, kept = stored(pair()[0]), stored(pair()[0])
    model = load(state, TINY)
    for value in model.state_dict().values():
        value.add_(1)
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], value) for name, value in kept.items())


@pytest.mark.parametrize("experts", ["none", ["none"], [], (), None])
def test_no_experts_can_be_said_in_many_ways(experts):
    oracle, _ = pair(experts=())
    model = load(stored(oracle), TINY | {"experts": experts})
    assert model.encoder.resampler is None and not model.encoder.stems
    with pytest.raises(InputError, match="not made for the expert 'depth'"):
        model.encode(batch(("depth",)))


# Counts


@pytest.mark.parametrize(
    ("config", "experts", "entries"),
    [(BASE, SIX, 843), (BASE, (), 635), (LARGE, SIX, 1443), (LARGE, (), 1235)],
    ids=["prismer-base", "prismerz-base", "prismer-large", "prismerz-large"],
)
def test_entries_of_the_published_files(config, experts, entries):
    config = config | {"experts": experts}
    with torch.device("meta"):
        state = Oracle(config).state_dict()
    assert len(state) == entries
    assert {*official_names(ours_for(config)), *TIED, UNUSED} == set(state)
    # The number of entries depends on depths only: a narrow model of these depths is loaded.
    narrow = TINY | {name: config[name] for name in config if name.endswith("layers")}
    state = stored(random_oracle(narrow | {"experts": experts}))
    assert len(state) == entries
    load(state, narrow | {"experts": experts})


@pytest.mark.parametrize(
    ("config", "experts", "own", "pretraining", "finetuning"),
    [
        (BASE, (), 274.3, 104.2, 189.8),
        (BASE, SIX, 327.5, 157.4, 243.0),
        (LARGE, (), 872.9, 268.2, 571.5),
        (LARGE, SIX, 967.1, 362.5, 665.8),
        (HUGE, SIX, 1414.8, 482.8, 786.3),
    ],
    ids=["prismerz-base", "prismer-base", "prismerz-large", "prismer-large", "prismer-huge"],
)
def test_parameters_in_millions(config, experts, own, pretraining, finetuning):
    config = config | {"experts": experts}
    with torch.device("meta"):
        oracle = Oracle(config)
    patches = [(pixels // config["patch_size"]) ** 2 for pixels in (224, 480)]
    larger = (patches[1] - patches[0]) * config["vision_width"]  # positions at 480 pixels
    for mode, more, expected in (
        ("none", 0, own),
        ("lang_vision", 0, pretraining),
        ("vision", larger, finetuning),
    ):
        count = sum(p.numel() for n, p in oracle.named_parameters() if not frozen(n, mode))
        assert round((count + more) / 1e6, 1) == expected
        assert trainable_parameters(ours_for(config), mode) == count


def frozen(name: str, mode: str) -> bool:
    """Whether it is in the pretrained part, number 0, of a layer of a side that the mode names."""
    layers = [r"\.resblocks\.\d+\.0\."] * ("vision" in mode)
    layers += [r"\.encoder\.layer\.\d+\.0\."] * ("lang" in mode)
    return any(re.search(layer, name) for layer in layers)


# Refusals

BLOCK = "expert_encoder.transformer.resblocks.1.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({POSITIONS: None}, rf"lacks {POSITIONS}: give the whole"),
        ({f"{BLOCK}.attn.in_proj_bias": None}, r"lacks \S+resblocks\.1\.0\.attn\.in_proj_bias: "),
        ({"expert_encoder.conv1.seg.5.running_var": None}, r"lacks \S+conv1\.seg\.5\.running_var"),
        ({"expert_encoder.instance_embedding": None}, r"lacks expert_encoder\.instance_embedding"),
        ({WORDS: None, HEAD: None}, rf"lacks {WORDS}: "),
        (
            {"text_decoder.lm_head.dense.bias": None, "expert_encoder.ln_post.weight": None},
            r"lacks expert_encoder\.ln_post\.weight, text_decoder\.lm_head\.dense\.bias: ",
        ),
        ({"module.x": torch.zeros(1)}, r"has, too many, module\.x: "),
        (
            {"expert_encoder.conv1.flow.1.weight": torch.zeros(2, 1, 3, 3)},
            r"has, too many, expert_encoder\.conv1\.flow\.1\.weight",
        ),
        (
            {"encoder.positions": torch.zeros(16, 16)},  # our own name is none of theirs
            r"has, too many, encoder\.positions",
        ),
        (
            {f"{BLOCK}.attn.in_proj_weight": torch.zeros(16, 16)},
            r"in_proj_weight of shape \(16, 16\) and not \(48, 16\)",
        ),
        ({POSITIONS: torch.zeros(15, 16)}, r"embedding of shape \(15, 16\) and not \(16, 16\)"),
        ({POSITIONS: torch.zeros(16, 8)}, r"embedding of shape \(16, 8\) and not \(16, 16\)"),
        ({POSITIONS: torch.zeros(16)}, r"embedding of shape \(16,\) and not \(16, 16\)"),
        (
            {"expert_encoder.conv1.depth.1.weight": torch.zeros(2, 3, 3, 3)},
            r"depth\.1\.weight of shape \(2, 3, 3, 3\) and not \(2, 1, 3, 3\)",
        ),
        ({"optimizer": {"lr": 1}}, r"state_dict\['optimizer'\] is no tensor but dict"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, message):
    state = stored(pair()[0]) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(InputError, match=message):
        load(state, TINY)


def test_all_that_is_wrong_is_said_at_once_and_long_lists_are_cut():
    state = stored(pair()[0])
    with pytest.raises(InputError) as error:
        load(state, TINY | {"vision_layers": 3, "experts": SIX[:5], "num_latents": 4})
    # A layer has 12 entries and its adaptor 6: 12 are named, 6 counted. A stem has 5 + 4 x 5 = 25.
    assert str(error.value).count(".resblocks.2.") == 12 and " and 6 more; it has, " in str(
        error.value
    )
    assert str(error.value).count(".ocr_detection.") == 12 and " and 13 more; it has " in str(
        error.value
    )
    assert "resampler.latents of shape (5, 16) and not (4, 16): give" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_width": None}, "config has no vision_width: give patch_size, image_resolution"),
        ({"text_layers": 0}, "text_layers=0 must be a whole number of 1 or more"),
        ({"vocab_size": "30"}, "vocab_size='30' must be a whole number"),
        ({"vision_heads": 3}, "vision_width=16 is not a multiple of vision_heads=3"),
        ({"text_heads": 5}, "text_width=24 is not a multiple of text_heads=5"),
        ({"resampler_heads": 3}, "resampler_heads=3 does not divide the width 16"),
        ({"max_position_embeddings": 2}, "max_position_embeddings=2 must be 3 or more"),
        ({"image_resolution": 15}, "image_resolution=15 at least patch_size=16"),
        ({"label_smoothing": 1.5}, r"label_smoothing=1\.5 must be in"),
        ({"experts": ["depth", "flow"]}, "no expert 'flow'"),
        ({"max_position_embeddings": 20}, r"shape \(22, 24\) and not \(20, 24\)"),
    ],
)
def test_fields_that_make_no_model_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        load(stored(pair()[0]), TINY | fields)


# Files


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The published names, made tiny; base has patches of 16, large of 14 and twice the width."""
    for size, change in (("base", {}), ("large", P14 | {"vision_width": 32})):
        config = ours_for(TINY | change)
        monkeypatch.setitem(prismer_config.MODELS, f"prismer-{size}", config)
    asked = []
    monkeypatch.setattr(checkpoints, "fetch_hub", lambda name, file: asked.append(file) or fail())
    yield asked
    assert set(asked) <= {"tokenizer.json"}  # neither CLIP nor RoBERTa was fetched


def fail() -> Path:
    raise InputError("The hub cannot be reached: no tokenizer.")


def save(path: Path, change: dict | None = None) -> Oracle:
    oracle = random_oracle(TINY | (change or {}))
    torch.save(stored(oracle), path)
    return oracle


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prismer-base", {}),
        ("prismerz-base", {"experts": ()}),
        ("vqa_prismer_base", {"image_resolution": 96}),
        ("prismer-large", P14 | {"vision_width": 32}),
        ("caption_prismerz_large", P14 | {"vision_width": 32, "experts": ()}),
    ],
)
def test_a_published_folder_gives_a_model(small, tmp_path, name, change):
    oracle = save(tmp_path / "pytorch_model.bin", change)
    model = Prismer.from_official(tmp_path, name)
    pixels = oracle.config["image_resolution"]
    assert (model.config.image_size, model.transform.size) == (pixels, pixels)
    maps = batch(oracle.config["experts"], pixels)
    close(model.encode(maps), oracle.encode(maps))
    assert model.tokenizer is None and not model.training
    with pytest.raises(InputError, match=r"set model\.tokenizer"):
        model.caption(maps)


def test_safetensors_and_files_are_taken_too(small, tmp_path):
    from safetensors.torch import save_file

    oracle = random_oracle(TINY)
    save_file(stored(oracle, tied="once"), tmp_path / "model.safetensors")
    for place in (tmp_path, str(tmp_path / "model.safetensors")):
        close(from_official(place, "prismer-base").encode(batch()), oracle.encode(batch()))


def test_480_pixels_are_34_patches_of_14_and_four_pixels_over(small, tmp_path):
    save(tmp_path / "m.bin", P14 | {"vision_width": 32, "image_resolution": 480, "experts": ()})
    model = from_official(tmp_path / "m.bin", "prismerz-large")
    assert model.transform.size == 480 and model.transform.mean[0] == 0.48145466
    assert model.encode({"rgb": torch.zeros(1, 3, 480, 480)}).shape == (1, 34 * 34, 32)
    assert len(model.encoder.positions) == 34 * 34


def test_the_tokenizer_comes_by_name(small, tmp_path, monkeypatch):
    save(tmp_path / "m.bin")
    monkeypatch.setattr(checkpoints, "load_tokenizer", lambda name: f"rules of {name}")
    assert from_official(tmp_path / "m.bin", "prismer-base").tokenizer == "rules of roberta-base"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (
            {},
            "prismerz-base",
            r"m\.bin is prismer-base, not prismerz-base: give name='prismer-base'",
        ),
        ({"experts": ()}, "prismer-base", "is prismerz-base, not prismer-base"),
        ({"vision_width": 32}, "prismer-base", "is prismer-large, not prismer-base"),
        ({"text_layers": 3}, "prismer-base", r"has, too many, text_decoder\.\S+layer\.2\.0"),
        ({}, "prismer-huge", "no published checkpoint 'prismer-huge': use prismer-base"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(small, tmp_path, change, name, message):
    save(tmp_path / "m.bin", change)
    with pytest.raises(InputError, match=message):
        from_official(tmp_path / "m.bin", name)


class Code:
    """What it does when it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(small, tmp_path, form):
    mark, file = tmp_path / "code-has-run", tmp_path / "pytorch_model.bin"
    contents = {POSITIONS: torch.zeros(16, 16), "x": Code(mark)}
    if form == "torch":
        torch.save(contents, file)
    else:
        file.write_bytes(pickle.dumps(contents, protocol=2))
    with pytest.raises(InputError) as error:
        from_official(tmp_path, "prismer-base")
    said = str(error.value)
    assert f"{file} was refused: it holds more than tensors (" in said
    assert "\n" not in said and said.endswith("or as safetensors.")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read as a file of tensors"),
        (b"", "cannot be read as a file of tensors"),
        (None, r"neither pytorch_model\.bin nor model\.safetensors"),
        ({"a": torch.zeros(2)}, f"holds no {POSITIONS}: it is no checkpoint of Prismer"),
        ([torch.zeros(2)], "it is no checkpoint of Prismer"),
    ],
)
def test_other_files_are_refused(small, tmp_path, contents, message):
    file = tmp_path / "pytorch_model.bin"
    if isinstance(contents, bytes):
        file.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, file)
    with pytest.raises(InputError, match=message):
        from_official(tmp_path, "prismer-base")


def test_a_damaged_or_missing_file_is_refused(small, tmp_path):
    save(tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "half.bin").write_bytes(data[: len(data) // 2])
    (tmp_path / "half.safetensors").write_bytes(data[:100])
    for name in ("half.bin", "half.safetensors"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a file of tensors"):
            from_official(tmp_path / name, "prismer-base")
    with pytest.raises(InputError, match=r"none\.bin does not exist: give the folder"):
        from_official(tmp_path / "none.bin", "prismer-base")
