"""Shards: every sample once a pass, disjoint between processes, the same rest after a restart."""

from __future__ import annotations

import io
import json
import os
import tarfile
from itertools import islice

import datasets
import prismer_data_maker as maker
import pytest

from mmfusion_lib.data import shard_files, web_captions
from mmfusion_lib.data.images import open_image
from mmfusion_lib.data.shard_files import pack
from mmfusion_lib.data.webshards import Position, WebShards
from mmfusion_lib.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(cache):
    """Indices of shards are kept apart from those of the user, and of other tests."""


def jpeg(colour=(9, 9, 9)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(path, files: dict[str, bytes]):
    """A shard as img2dataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, caption: str | None = None) -> dict[str, bytes]:
    """A picture and its caption, in a text and in JSON."""
    words = {"caption": f"Caption {key}." if caption is None else caption}
    return {
        f"{key}.jpg": jpeg(),
        f"{key}.json": json.dumps(words).encode(),
        f"{key}.txt": words["caption"].encode(),
    }


@pytest.fixture
def folder(tmp_path):
    """Five shards of 1, 2, 3, 4 and 5 samples, 15 in all."""
    for shard in range(5):
        files = {}
        for i in range(shard + 1):
            files |= sample(f"{shard:02d}{i:03d}")
        tar(tmp_path / f"cc12m/{shard:05d}.tar", files)
    return tmp_path / "cc12m"


def ids(stream, count):
    return [item["id"] for item, _ in islice(stream, count)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_pass_has_every_sample_once(folder, world):
    """The first pass of each process ends where its position says epoch 1."""
    found = []
    for rank in range(world):
        for item, position in WebShards(folder).stream(seed=3, rank=rank, world=world):
            found.append(item["id"])
            if position.epoch:
                break
    assert len(found) == 15 and len(set(found)) == 15


def test_going_on_at_any_position_gives_the_same_rest(folder):
    """40 samples of one process are more than two passes over 15; and 12 of one of two."""
    for rank, world, length in ((0, 1, 40), (1, 2, 24)):
        where = {"seed": 5, "rank": rank, "world": world}
        whole = list(islice(WebShards(folder).stream(**where), length))
        for k in range(length - 6):
            position = whole[k][1]
            rest = list(islice(WebShards(folder).stream(position, **where), 6))
            assert rest == whole[k + 1 : k + 7], k  # pictures, texts, and positions


def test_the_order_changes_with_the_pass_and_the_seed(folder):
    first = ids(WebShards(folder).stream(seed=1), 30)
    assert first == ids(WebShards(folder).stream(seed=1), 30)
    assert sorted(first[:15]) == sorted(first[15:]) and first[:15] != first[15:]
    assert first != ids(WebShards(folder).stream(seed=2), 30)
    inside = [[i for i in part if i.startswith("00004")] for part in (first[:15], first[15:])]
    assert inside[0] != inside[1] and sorted(inside[0]) == sorted(inside[1])  # inside a shard, too


def test_a_state_survives_json_and_refuses_another_stream(folder):
    shards = WebShards(folder)
    _, position = list(islice(shards.stream(seed=1, rank=1, world=2), 4))[-1]
    where = {"seed": 1, "rank": 1, "world": 2}
    state = json.loads(json.dumps(shards.state(position, **where)))
    assert WebShards(folder).resume(state, **where) == position
    for key, value in (("seed", 2), ("rank", 0), ("world", 3)):
        with pytest.raises(InputError, match=f"begun with {key} {where[key]} and not {value}"):
            WebShards(folder).resume(state, **(where | {key: value}))
    tar(folder / "00005.tar", sample("05000"))
    with pytest.raises(InputError, match=r"00005\.tar was absent when .* is [\d,]+ bytes now"):
        WebShards(folder).resume(state, **where)
    (folder / "00005.tar").unlink()
    tar(folder / "00002.tar", {f"f{i}.jpg": jpeg() for i in range(90)})
    with pytest.raises(InputError, match=r"00002\.tar was [\d,]+ bytes when"):
        WebShards(folder).resume(state, **where)


def test_items_as_a_list(folder):
    """Shards of 1, 2, 3, 4, 5: sample 4 is the second of shard 2, sample 14 the last of shard 4."""
    shards = WebShards(folder)
    assert len(shards) == 15
    assert [shards[i]["id"] for i in (0, 1, 4, 14)] == [
        "00000.tar/00000", "00001.tar/01000", "00002.tar/02001", "00004.tar/04004",
    ]  # fmt: skip
    item = shards[4]
    assert item["captions"] == ["Caption 02001."] and item["maps"] == "cc12m/00002/02001.jpg"
    assert open_image(item["image"]).size == (3, 2)
    with pytest.raises(IndexError):
        shards[15]
    before = shards.digest
    tar(folder / "00005.tar", sample("05000"))
    assert WebShards(folder).digest != before


def test_rows_of_a_reader_can_be_packed(tmp_path):
    """5 rows at 2 a shard: 2, 2, 1; the red picture comes first; the path of the maps is kept."""
    maker.web(tmp_path)
    data = web_captions.load("train", tmp_path, source="cc12m")
    rows = datasets.concatenate_datasets([data, data, data.select([0])])
    files = pack(rows, tmp_path / "shards", size=2)
    assert [file.name for file in files] == ["00000.tar", "00001.tar", "00002.tar"]
    shards = WebShards(tmp_path / "shards")
    assert len(shards) == 5 and [shards[i]["captions"] for i in (0, 1)] == [["Row 0."], ["Row 1."]]
    assert shards[4]["maps"] == "cc12m/0/c.jpg" and shards[4]["id"] == "00002.tar/000000004"
    assert open_image(shards[0]["image"]).getpixel((0, 0))[0] > 200
    assert shards[0]["image"]["bytes"] == (tmp_path / "cc12m/0/c.jpg").read_bytes()
    again = pack(rows, tmp_path / "again", size=2)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    with pytest.raises(InputError, match="holds shards already"):
        pack(rows, tmp_path / "shards", size=2)
    with pytest.raises(InputError, match="no rows to pack"):
        pack([], tmp_path / "empty")
    missing = {"image": {"bytes": None, "path": "/none.jpg"}, "captions": ["A"], "maps": "none.jpg"}
    with pytest.raises(InputError, match=r"/none\.jpg cannot be read"):
        pack([missing], tmp_path / "missing")
    assert not list((tmp_path / "missing").glob("*.tar"))


def test_incomplete_samples_are_counted(tmp_path):
    """Of six, one has no picture, one no words, two no caption; other files do not matter."""
    files = sample("./a/1") | {"./a/1.depth.png": b"", "readme.md": b""}
    files |= {"2.txt": b"No picture."} | {"3.PNG": jpeg(), "3.cls": b"4"}
    files |= {"4.webp": jpeg(), "4.txt": b" \n"}
    files |= {"5.jpeg": jpeg(), "5.json": b'{"caption": null}'}
    files |= {"6.jpg": jpeg(), "6.json": b'{"captions": ["One.", " ", "Two."], "maps": "x/6.jpg"}'}
    shards = WebShards(tar(tmp_path / "00000.tar", files).parent)
    assert len(shards) == 2 and shards[0]["id"] == "00000.tar/a/1"
    found = {item["id"]: item for item, _ in islice(shards.stream(), 2)}
    assert sorted(found) == ["00000.tar/6", "00000.tar/a/1"]
    assert found["00000.tar/6"]["captions"] == ["One.", "Two."]
    assert found["00000.tar/6"]["maps"] == "x/6.jpg"
    assert shards.left_out.counts["samples without a picture"] == 2  # 2 and readme.md
    assert shards.left_out.counts["samples without words"] == 3  # 3, 4 and 5
    with pytest.warns(UserWarning, match=r"a: rows left out: .*3 samples without words .*tar, 3\)"):
        shards.left_out.warn("a")


def test_captions_without_a_word_are_left_out_before_anything_is_read(tmp_path):
    texts = ["...", "", " - !", "Ein Häuschen.", "猫", "4"]
    files = {}
    for number, text in enumerate(texts):
        files |= sample(f"{number}", text)
    shards = WebShards(tar(tmp_path / "00000.tar", files).parent)
    assert [shards[i]["captions"] for i in range(len(shards))] == [[text] for text in texts[3:]]
    assert shards.left_out.counts == {"samples without words": 3}
    assert len({item["id"] for item, _ in islice(shards.stream(), 9)}) == 3


def test_a_shard_is_searched_once_until_it_changes(folder, cache, monkeypatch):
    """Five shards; one gets a new time, another a new content; then the index of one is damaged."""
    (folder / "00004.tar").unlink()
    tar(folder / "00004.tar", sample("04000") | sample("04001", "..."))
    searched, scan = [], shard_files.scan
    monkeypatch.setattr(
        shard_files, "scan", lambda file, *more: searched.append(file.stem) or scan(file, *more)
    )

    def look(*expected: str):
        searched.clear()
        shards = WebShards(folder)
        count = len(shards)
        items = [shards[i] for i in range(count)]
        assert searched == list(expected) and len({item["id"] for item in items}) == count
        return count, shards.left_out.counts, shards.left_out.first

    first = look(*(f"{i:05d}" for i in range(5)))
    assert first[:2] == (11, {"samples without words": 1})
    assert look() == first  # the report, too
    os.utime(folder / "00001.tar", ns=(0, 0))
    assert look("00001") == first
    tar(folder / "00002.tar", sample("02000"))
    assert look("00002")[0] == 9
    for file in (cache / "shards").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert look(*(f"{i:05d}" for i in range(5)))[0] == 9
    assert look()[0] == 9


def test_a_pass_without_any_sample_ends(tmp_path):
    shards = WebShards(tar(tmp_path / "00000.tar", {"1.jpg": jpeg(), "1.txt": b""}).parent)
    with pytest.raises(InputError, match="no sample has a picture and words"):
        next(shards.stream())


def test_bad_shards(tmp_path, folder):
    with pytest.raises(InputError, match=r"holds no \.tar file"):
        WebShards(tmp_path)
    with pytest.raises(InputError, match="holds 5 shards for process 0 of 6"):
        next(WebShards(folder).stream(world=6))
    with pytest.raises(InputError, match="process 2 of 2"):
        next(WebShards(folder).stream(rank=2, world=2))
    for position, message in (
        (Position(0, 5, 0), "Shard 5 of 5"),
        (Position(0, 0, 9), "9 cannot be"),
    ):
        with pytest.raises(InputError, match=message):
            next(WebShards(folder).stream(position))
    whole = (folder / "00004.tar").read_bytes()
    # Cut in a header, in a picture, and behind the last sample: the empty blocks are missing.
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (700, 1024 + 100, end):
        (folder / "00004.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"00004\.tar is (no whole tar file|cut off)"):
            len(WebShards(folder))
    (folder / "00004.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(InputError, match=r"00004\.tar is no whole tar file"):
        len(WebShards(folder))


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"caption": "caf\xe9"}'])
def test_broken_words_name_shard_and_sample(tmp_path, bad):
    shards = WebShards(tar(tmp_path / "00000.tar", {"7.jpg": jpeg(), "7.json": bad}).parent)
    with pytest.raises(InputError, match=r"00000\.tar, 7\.json is no"):
        shards[0]


def test_a_name_twice_and_a_changed_shard(tmp_path):
    path = tar(tmp_path / "00000.tar", sample("1"))
    with tarfile.open(path, "a") as opened:
        opened.addfile(tarfile.TarInfo("1.jpg"))
    with pytest.raises(InputError, match=r"00000\.tar: 1\.jpg is there twice"):
        len(WebShards(tmp_path))
    shards = WebShards(tmp_path)
    tar(path, {f"{i}.jpg": jpeg() for i in range(90)})
    with pytest.raises(InputError, match="changed while it was in use"):
        len(shards)
