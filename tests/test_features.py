"""Base features: the cut, the cache and its key, resuming, and what goes wrong."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image

from mmfusion_lib import features
from mmfusion_lib.data.images import ImageTransform
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError

IMAGE = EncoderConfig(
    kind="image", width=8, depth=3, heads=2, mlp_width=16, image_size=8, patch_size=4
)
TEXT = EncoderConfig(
    kind="text", width=8, depth=2, heads=2, mlp_width=16, norm="post", vocab_size=30,
    max_positions=8, readout="mean",
)  # fmt: skip
HALF = (0.5, 0.5, 0.5)
TRANSFORM = ImageTransform(8, HALF, HALF)
ROW = 5 * 8 * 4  # 4 patches and CLS, width 8, 4 bytes a number


def made(config: EncoderConfig, seed: int = 0):
    torch.manual_seed(seed)
    encoder = build_encoder(config).eval()
    for parameter in encoder.parameters():  # larger than 0.02, so that every layer matters
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def pictures(count: int, transform: ImageTransform = TRANSFORM, first: int = 0) -> features.Images:
    colours = [(20 * i % 256, 90 + i, 200 - i) for i in range(first, first + count)]
    return features.Images([Image.new("RGB", (8, 8), c) for c in colours], transform)


def tokenize(texts, max_length):
    """One token a letter, padded to the longest."""
    longest = min(max_length, max(len(text) for text in texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in zip(ids, texts):
        row[: len(text)] = torch.tensor([1 + ord(c) - ord("a") for c in text[:longest]])
    return ids, (ids > 0).long()


def extract(encoder, data, depths=(2,), **options):
    options = {"dtype": "float32", "device": "cpu", "progress": False, "batch_size": 2} | options
    return features.extract(encoder, data, depths=depths, **options)


@pytest.fixture
def encoder():
    return made(IMAGE)


def test_run_to_is_the_encoder_cut(encoder):
    batch = pictures(3).batch(0, 3)
    found = features.run_to(encoder, batch, [0, 1, 3])
    assert list(found) == [0, 1, 3] and found[3].shape == (3, 5, 8)
    torch.testing.assert_close(found[0], encoder.embed(batch.inputs))
    torch.testing.assert_close(encoder.norm(found[3]), encoder(batch.inputs))
    torch.testing.assert_close(encoder.layers[0](found[0]), found[1])


@pytest.mark.parametrize("depth", [-1, 4])
def test_wrong_depth_is_refused_and_leaves_nothing(cache, encoder, depth):
    with pytest.raises(InputError, match=f"Depth {depth} .* 3 layers: use 0 to 3"):
        extract(encoder, pictures(2), depths=[1, depth])
    assert not (cache / "features").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": []}, "No depth"),
        ({"dtype": "float16"}, "Unknown dtype 'float16'"),
        ({"pool": "cls"}, "Unknown pool 'cls'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_arguments(cache, encoder, options, words):
    with pytest.raises(InputError, match=words):
        extract(encoder, pictures(2), **options)
    with pytest.raises(InputError, match="nothing to extract"):
        extract(encoder, pictures(0))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_cached_features_give_the_same_logits(cache, encoder, depth):
    data, head = pictures(5), torch.nn.Linear(8, 4)

    def logits(tokens):
        for layer in encoder.layers[depth:]:
            tokens = layer(tokens)
        return head(encoder.readout(tokens))  # (B, 4)

    with torch.inference_mode():
        straight = logits(encoder.embed(data.batch(0, 5).inputs) if depth == 0 else
                          features.run_to(encoder, data.batch(0, 5), [depth])[depth])  # fmt: skip
        first = logits(extract(encoder, data, [depth])[depth].values)
        second = logits(extract(encoder, data, [depth])[depth].values)
    torch.testing.assert_close(first, straight, atol=1e-5, rtol=0)
    assert torch.equal(first, second)


def test_a_second_call_computes_nothing(cache, encoder, monkeypatch):
    one = extract(encoder, pictures(3))[2].values.clone()
    monkeypatch.setattr(features, "run_to", None)
    assert torch.equal(extract(encoder, pictures(3))[2].values, one)


def test_bfloat16_is_stored_bit_for_bit(cache, encoder):
    data = pictures(3)
    found = extract(encoder, data, dtype="bfloat16")[2]
    half = made(IMAGE).to(torch.bfloat16)
    with torch.inference_mode():
        inputs = data.batch(0, 2).inputs.bfloat16()
        expected = features.run_to(half, features.Batch(inputs, None), [2])[2]
    assert found.values.dtype == torch.bfloat16 and torch.equal(found.values[:2], expected)
    assert (found.folder / "values.bin").stat().st_size == 3 * ROW // 2
    assert encoder.layers[0].mlp.fc1.weight.dtype == torch.float32  # the caller's is untouched


def test_text_tokens_carry_their_mask_and_padding_is_invisible(cache):
    encoder = made(TEXT)
    data = features.Texts(["ab", "abcde"], tokenize)
    found = extract(encoder, data)[2]
    assert found.values.shape == (2, 5, 8) and found.mask.tolist()[0] == [1, 1, 0, 0, 0]
    assert found[0]["mask"].sum() == 2 and len(found) == 2
    mean = extract(encoder, data, pool="mean")[2]
    assert mean.mask is None and list(mean[0]) == ["tokens"]
    # Alone, "ab" needs no padding: its mean must be the same.
    alone = extract(encoder, features.Texts(["ab"], tokenize), pool="mean")[2]
    torch.testing.assert_close(mean.values[0], alone.values[0])
    torch.testing.assert_close(mean.values[0], found.values[0, :2].mean(0))


def test_readout_asks_the_encoder(cache, encoder):
    data = pictures(2)
    found = extract(encoder, data, [3], pool="readout")[3].values
    with torch.inference_mode():
        expected = encoder(data.batch(0, 2).inputs)[:, 0]  # the CLS token behind the last norm
    torch.testing.assert_close(found, expected)


def test_one_pass_serves_all_depths(cache, encoder, monkeypatch):
    data, calls = pictures(4), []
    monkeypatch.setattr(
        features.Images, "batch",
        lambda self, a, b, old=features.Images.batch: calls.append((a, b)) or old(self, a, b),
    )  # fmt: skip
    extract(encoder, data, [0, 1, 2, 3])
    assert calls == [(0, 1), (0, 2), (2, 4)]  # the first one learns the shape of a row


def test_key_knows_everything_that_matters(cache, encoder):
    def folder(encoder=encoder, data=None, **options):
        return next(iter(extract(encoder, data or pictures(2), **options).values())).folder.name

    nudged = made(IMAGE)
    with torch.no_grad():
        nudged.layers[0].mlp.fc1.weight[0, 0] += 1e-6
    # One head instead of two: the same names and shapes of weights, another function.
    one_head = build_encoder(dataclasses.replace(IMAGE, heads=1)).eval()
    one_head.load_state_dict(encoder.state_dict())
    names = [
        folder(),
        folder(nudged),
        folder(one_head),
        folder(depths=[1]),
        folder(dtype="bfloat16"),
        folder(pool="mean"),
        folder(data=pictures(2, dataclasses.replace(TRANSFORM, crop=True))),
        folder(data=pictures(2, ImageTransform(8, HALF, (0.5, 0.5, 0.4)))),
        folder(data=pictures(2, first=1)),
        folder(data=pictures(3)),
    ]
    assert len(set(names)) == len(names)
    assert folder(made(IMAGE)) == names[0] and folder(batch_size=1) == names[0]


def test_key_of_texts(cache):
    def key(texts, max_length=64):
        return features.Texts(texts, tokenize, max_length).digest()

    assert key(["ab", "c"]) == key(["ab", "c"])
    assert len({key(["ab", "c"]), key(["abc", ""]), key(["c", "ab"]), key(["ab", "c"], 1)}) == 4


def test_key_of_a_picture_is_its_content(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    data = path.read_bytes()

    def key(source):
        return features.Images([source], TRANSFORM).digest()

    same = {key(s) for s in (path, str(path), data, bytearray(data), {"bytes": data, "path": None},
                             {"bytes": None, "path": str(path)})}  # fmt: skip
    assert len(same) == 1
    # Decoded pictures: pixels as they will be seen. Same indices with two palettes differ.
    palettes = []
    for colour in ((255, 0, 0), (0, 255, 0)):
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette(list(colour) + [0] * 765)
        palettes.append(key(picture))
    assert palettes[0] != palettes[1]
    Image.new("RGB", (8, 8), "blue").save(path)
    assert key(path) not in same


def test_unreadable_pictures_are_named(cache, encoder, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    good = Image.new("RGB", (8, 8))
    with pytest.raises(InputError, match=r"picture 1 \(.*broken\.jpg\) is not an image"):
        extract(encoder, features.Images([good, path], TRANSFORM))
    with pytest.raises(InputError, match=r"picture 0 \(.*gone\.jpg\) cannot be read"):
        extract(encoder, features.Images([tmp_path / "gone.jpg"], TRANSFORM))


class Stops(features.Images):
    """Raises when item ``limit`` is wanted; counts what it opened."""

    limit, opened = 10**9, 0

    def batch(self, start, stop):
        if start >= self.limit:
            raise KeyboardInterrupt
        self.opened += stop - start
        return super().batch(start, stop)


def stopping(count: int, limit: int) -> Stops:
    data = Stops(pictures(count).sources, TRANSFORM)
    data.limit = limit
    return data


def test_an_interrupted_extraction_goes_on(cache, tmp_path, encoder, monkeypatch):
    whole = extract(encoder, pictures(7), [1, 3])
    expected = {d: f.values.clone() for d, f in whole.items()}
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "other"))
    data = stopping(7, limit=4)
    with pytest.raises(KeyboardInterrupt):
        extract(encoder, data, [1, 3])
    parts = sorted((tmp_path / "other/features").glob("*/values.part"))
    assert [p.stat().st_size for p in parts] == [4 * ROW, 4 * ROW]
    assert not list((tmp_path / "other/features").glob("*/meta.json"))

    with open(parts[0], "rb+") as file:  # a torn row: rows 0 to 2 are whole in both files
        file.truncate(4 * ROW - 1)
    with open(parts[1], "ab") as file:
        file.write(b"x" * 7)
    data = stopping(7, limit=10)
    found = extract(encoder, data, [1, 3])
    assert data.opened == 1 + 4  # the shape, then items 3 to 6
    for depth in (1, 3):
        torch.testing.assert_close(found[depth].values, expected[depth], atol=1e-6, rtol=0)
    assert not list((tmp_path / "other/features").glob("*/values.part"))


def test_other_depths_do_not_disturb_a_half_done_one(cache, encoder):
    with pytest.raises(KeyboardInterrupt):
        extract(encoder, stopping(6, limit=4), [1])
    data = stopping(6, limit=10)
    extract(encoder, data, [1, 2])  # depth 2 has no rows yet: both start at 0
    assert data.opened == 1 + 6


def test_stopped_between_the_last_row_and_the_meta_file(cache, encoder):
    folder = extract(encoder, pictures(4))[2].folder
    (folder / "meta.json").unlink()
    data = stopping(4, limit=10)
    found = extract(encoder, data)[2]
    assert data.opened == 1 and found.values.shape == (4, 5, 8)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_sigkill_leaves_whole_rows(cache):
    """Another process kills itself in the middle; this one goes on."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        import test_features as t
        class Kills(t.Stops):
            def batch(self, start, stop):
                if start >= 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().batch(start, stop)
        t.extract(t.made(t.IMAGE), Kills(t.pictures(6).sources, t.TRANSFORM))
        """
    )
    done = subprocess.run([sys.executable, "-c", script, os.path.dirname(__file__)])
    assert done.returncode == -signal.SIGKILL
    data = stopping(6, limit=10)
    found = extract(made(IMAGE), data)[2].values
    assert data.opened == 1 + 2
    torch.testing.assert_close(found[:4], features.run_to(
        made(IMAGE), pictures(6).batch(0, 4), [2])[2])  # fmt: skip


def failing_open(code: int, after: int):
    """``open`` that raises from its ``after``-th feature file on."""
    real, count = builtins.open, [0]

    def fake(path, mode="r", *args, **kwargs):
        if str(path).endswith("values.part") and "a" in mode:
            count[0] += 1
            if count[0] > after:
                raise OSError(code, os.strerror(code))
        return real(path, mode, *args, **kwargs)

    return fake


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_disk_is_one_sentence_and_rows_are_kept(cache, encoder, monkeypatch, code):
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", failing_open(code, after=2))
        with pytest.raises(InputError, match=r"cannot be cached .* MMFUSION_CACHE"):
            extract(encoder, pictures(6))
    assert not list((cache / "features").glob("*/values.bin"))
    data = stopping(6, limit=10)
    extract(encoder, data)
    assert data.opened == 1 + 2


def test_full_disk_while_a_row_is_written(cache, encoder, monkeypatch):
    """The system wrote half of a row before it gave up."""
    real = builtins.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[: ROW // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def fake(path, mode="r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        return Full(file) if str(path).endswith("values.part") and "a" in mode else file

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", fake)
        with pytest.raises(InputError, match="No space left"):
            extract(encoder, pictures(3))
    data = stopping(3, limit=10)
    found = extract(encoder, data)[2].values
    assert data.opened == 1 + 3
    expected = features.run_to(encoder, pictures(3).batch(0, 3), [2])[2]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_full_disk_before_the_first_row(cache, encoder, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.touch", full)
    with pytest.raises(InputError, match="No space left"):
        extract(encoder, pictures(3))


def test_a_damaged_cache_is_named(cache, encoder):
    folder = extract(encoder, pictures(3))[2].folder
    os.truncate(folder / "values.bin", 3 * ROW - 1)
    with pytest.raises(
        InputError, match=rf"values\.bin is damaged: delete the folder .*{folder.name}"
    ):
        extract(encoder, pictures(3))
    (folder / "meta.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        extract(encoder, pictures(3))
    (folder / "meta.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        extract(encoder, pictures(3))


def test_features_are_mapped_not_loaded(cache, encoder):
    found = extract(encoder, pictures(2))[2]
    meta = json.loads((found.folder / "meta.json").read_text())
    assert meta == {"shape": [2, 5, 8], "dtype": "float32"}
    found.values[0] = 0  # our copy only: the file stays as it is
    assert extract(encoder, pictures(2))[2].values[0].abs().sum() > 0
