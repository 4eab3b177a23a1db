"""MM-IMDB on made copies of both published forms, with each known fault in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from mmfusion_lib.data import build_mmimdb, mmimdb
from mmfusion_lib.data.images import open_image
from mmfusion_lib.errors import InputError

FILMS = {
    "0000005": {"genres": ["Short", "Drama"], "plot": ["A short.", "A  longer\nplot."]},
    "0000008": {"genres": ["Drama"], "plot": ["Six chars", "Six other"]},
    "0000010": {"genres": ["Film-Noir", "Drama", "Comedy"], "plot": ["It is dark."]},
    "0000012": {"genres": ["Western"], "plot": ["They ride."]},
}
SPLITS = {"train": ["0000005", "0000008"], "dev": ["0000010"], "test": ["0000012"]}
DRAMA, COMEDY, WESTERN, SHORT, NOIR = 0, 1, 19, 21, 22  # places in the order of frequency


def write_film(root, name, genres, plot, **more):
    film = {"title": f"Film {name}", "votes": 3, "genres": genres, "plot": plot} | more
    (root / "dataset" / f"{name}.json").write_text(json.dumps(film))
    Image.new("RGB", (4, 6), "green").save(root / "dataset" / f"{name}.jpeg")


def write_splits(root, **more):
    (root / "split.json").write_text(json.dumps(SPLITS | more))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "mmimdb"
    (root / "dataset").mkdir(parents=True)
    for name, film in FILMS.items():
        write_film(root, name, **film)
    write_splits(root)
    return root


def test_a_faultless_copy(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = {s: mmimdb.load(s, root=root) for s in ("train", "validation", "test")}
    train = parts["train"]
    assert train.groups == ["0000005", "0000008"] and train.rows.tolist() == [0, 1]
    assert train.texts == ["A longer plot.", "Six chars"]  # the longest; the first of equals
    assert train.images[0] == str(root / "dataset/0000005.jpeg")
    assert open_image(train.images[0]).size == (4, 6)
    assert train.several and train.labels.shape == (2, 23) and train.labels.dtype == torch.float32
    assert train.labels.nonzero().tolist() == [[0, DRAMA], [0, SHORT], [1, DRAMA]]
    assert parts["validation"].labels[0].nonzero().flatten().tolist() == [DRAMA, COMEDY, NOIR]
    assert parts["test"].labels[0].nonzero().flatten().tolist() == [WESTERN]
    assert train.classes == mmimdb.GENRES == parts["test"].classes
    assert train.classes[DRAMA] == "Drama" and train.classes[NOIR] == "Film-Noir"
    assert mmimdb.EXTRA == ("News", "Adult", "Talk-Show", "Reality-TV")


def test_extra_genres_are_ignored_or_drop_the_film(root):
    write_film(root, "0000005", ["News", "Drama"], ["News and drama."])
    write_film(root, "0000020", ["Adult"], ["An extra genre alone."])
    write_splits(root, train=[*SPLITS["train"], "0000020"])
    with pytest.warns(UserWarning, match=r"1 films without one of the 23 genres \(first: .*20\.js"):
        ignored = mmimdb.load("train", root=root)
    assert ignored.groups == ["0000005", "0000008"]
    assert ignored.labels[0].nonzero().flatten().tolist() == [DRAMA]
    with pytest.warns(
        UserWarning, match=r"train: rows left out: 2 films with News, Adult, .*05\.j"
    ):
        dropped = mmimdb.load("train", root=root, extra="drop")
    assert dropped.groups == ["0000008"]
    with pytest.raises(InputError, match="extra='keep' is unknown: use 'ignore' or 'drop'"):
        mmimdb.load("train", root=root, extra="keep")


def test_films_without_plot_or_genre_are_left_out_and_counted(root):
    write_film(root, "0000021", ["Drama"], [])
    write_film(root, "0000022", ["Drama"], [" ", ""])
    write_film(root, "0000023", [], ["No genre."])
    (root / "dataset/0000021.json").write_text('{"genres": ["Drama"]}')
    write_splits(root, test=["0000021", "0000012", "0000022", "0000023"])
    with pytest.warns(UserWarning) as caught:
        pairs = mmimdb.load("test", root=root)
    assert pairs.groups == ["0000012"]
    assert str(caught[0].message) == (
        f"mmimdb test: rows left out: 2 films without a plot (first: {root}/dataset/0000021.json); "
        f"1 films without one of the 23 genres (first: {root}/dataset/0000023.json)."
    )
    found = mmimdb.count(root)
    assert found["test films"] == 4 and found["Drama"] == 5 and found["News"] == 0
    assert found["films without a plot"] == 2 and found["films without one of the 23 genres"] == 1
    assert set(mmimdb.PUBLISHED) <= set(found)


def test_bad_copies(root, tmp_path):
    write_film(root, "0000012", ["Western", "Telenovela"], ["They ride."])
    with pytest.raises(
        InputError, match=r"0000012\.json: the genre 'Telenovela' is none of the 27"
    ):
        mmimdb.load("test", root=root)
    write_film(root, "0000012", ["Western"], "They ride.")
    with pytest.raises(InputError, match=r"0000012\.json: 'plot' is not a list of texts"):
        mmimdb.load("test", root=root)
    (root / "dataset/0000012.json").write_text("{")
    with pytest.raises(InputError, match=r"0000012\.json is not valid JSON"):
        mmimdb.load("test", root=root)
    (root / "dataset/0000010.jpeg").unlink()
    with pytest.raises(InputError, match=r"0000010\.jpeg does not exist"):
        mmimdb.load("validation", root=root)
    write_splits(root, test=["0000008"])
    with pytest.raises(InputError, match="the id '0000008' is in train and in test"):
        mmimdb.load("train", root=root)
    (root / "split.json").write_text('{"train": []}')
    with pytest.raises(InputError, match="has no list 'dev'"):
        mmimdb.load("train", root=root)
    (root / "split.json").unlink()
    with pytest.raises(InputError, match=r"split\.json does not exist: mmimdb needs split\.json"):
        mmimdb.load("train", root=root)
    (root / "mmimdb.tar.gz").touch()
    with pytest.raises(InputError, match=r"build mmimdb --source .*mmimdb\.tar\.gz --out DIR"):
        mmimdb.load("train", root=root)
    with pytest.raises(InputError, match=r"not distributed .*data_cards/mmimdb\.md"):
        mmimdb.load("train", root=tmp_path / "none")


# The archive


def pack(root, path, more=()):
    """The folder as an archive, with further (name, content) members; None makes a link."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in more:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
        archive.add(root, "mmimdb")
    return path


def test_the_archive_is_unpacked_and_reads_the_same(root, tmp_path):
    source = pack(root, tmp_path / "mmimdb.tar.gz")
    report = build_mmimdb.build(tmp_path / "out", source)
    assert report == {"films": 4, "source": "mmimdb.tar.gz"}
    out = tmp_path / "out/mmimdb"
    assert sorted(p.name for p in out.iterdir()) == ["build.json", "dataset", "split.json"]
    for split in ("train", "validation", "test"):
        before, after = mmimdb.load(split, root=root), mmimdb.load(split, root=out)
        assert before.texts == after.texts and torch.equal(before.labels, after.labels)
        assert all(map(files_equal, before.images, after.images))
    with pytest.raises(InputError, match=r"split\.json exists already"):
        build_mmimdb.build(tmp_path / "out", source)


def files_equal(one, other):
    with open(one, "rb") as a, open(other, "rb") as b:
        return a.read() == b.read()


def test_nothing_is_written_outside_the_folder(root, tmp_path):
    hostile = [
        ("../escaped.json", b"{}"),
        ("/tmp/../../escaped/dataset/1.json", b"{}"),
        ("mmimdb/dataset/../../../up.json", b"{}"),
        ("mmimdb/dataset/0000099.jpeg", None),
        ("mmimdb/run.sh", b"rm"),
    ]
    source = pack(root, tmp_path / "mmimdb.tar.gz", hostile)
    before = {p for p in tmp_path.rglob("*") if "out" not in p.parts}
    build_mmimdb.build(tmp_path / "out", source)
    assert {p for p in tmp_path.rglob("*") if "out" not in p.parts} == before
    written = sorted(p.name for p in (tmp_path / "out/mmimdb/dataset").iterdir())
    assert written == sorted(["1.json", *(f"{n}.{e}" for n in FILMS for e in ("json", "jpeg"))])
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


def test_damaged_archives_leave_nothing(root, tmp_path):
    write_film(root, "0000005", ["Drama"], [os.urandom(40_000).hex()])  # does not compress to less
    source = pack(root, tmp_path / "mmimdb.tar.gz")
    whole = source.read_bytes()
    out = tmp_path / "out"
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"mmimdb\.tar\.gz is not a readable archive"):
        build_mmimdb.build(out, source)
    assert list((out / "mmimdb").iterdir()) == []
    source.write_bytes(b"<html>404</html>" * 99)
    with pytest.raises(InputError, match="is not a readable archive"):
        build_mmimdb.build(out, source)
    with pytest.raises(InputError, match=r"cannot be written .*: free some space, or choose"):
        build_mmimdb.build(source, pack(root, tmp_path / "good.tar.gz"))  # below a file
    (root / "dataset/0000010.jpeg").unlink()
    with pytest.raises(InputError, match=r"lacks 0000010\.jpeg: fetch it again"):
        build_mmimdb.build(out, pack(root, source))
    (root / "split.json").unlink()
    with pytest.raises(InputError, match=r"holds no split\.json"):
        build_mmimdb.build(out, pack(root, source))
    with pytest.raises(InputError, match=r"does not exist: give mmimdb\.tar\.gz or"):
        build_mmimdb.build(out, tmp_path / "none.tar.gz")
    assert list((out / "mmimdb").iterdir()) == []


# The HDF5 file


class Table(list):
    """Behaves as an h5py dataset: rows, slices and attributes."""

    def __init__(self, rows, **attrs):
        super().__init__(rows)
        self.attrs = attrs


class File(dict):
    """Behaves as an open h5py file."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


WORDS = ["_UNK_", "a", "film", "of", "N", "minutes", ".", "they", "ride"]
GREY_MEAN = np.array([103.939, 116.779, 123.68])  # blue, green, red


@pytest.fixture
def hdf5(tmp_path, monkeypatch):
    """Stand-in for multimodal_imdb.hdf5 (h5py is no dependency), with a real metadata.npy."""
    rgb = [(250, 10, 60), (0, 0, 0), (255, 255, 255), (1, 128, 254)]
    crops = []
    for colour in rgb:
        bgr = np.array(colour[::-1], np.float32) - GREY_MEAN  # as make_dataset.py computes it
        crops.append(np.broadcast_to(bgr[:, None, None], (3, 256, 160)).astype(np.int32))
    names = list(reversed(mmimdb.GENRES))  # any order: they are matched by name
    genres = np.zeros((4, 23), np.int32)
    for film, row in zip(FILMS.values(), genres):
        row[[names.index(genre) for genre in film["genres"]]] = 1
    sequences = [[1, 2, 3, 4, 5, 6], [7, 8, 6], [2], [7, 8]]
    spans = {b"train": (0, 2), b"dev": (2, 3), b"test": (3, 4)}
    kinds = [("split", "S5"), ("source", "S8"), ("start", "i8"), ("stop", "i8"), ("available", "?")]
    split = [(key, source, *span, True) for key, span in spans.items()
             for source in (b"genres", b"images")]  # fmt: skip
    file = File(
        images=Table(crops),
        genres=Table(genres, target_names=json.dumps(names)),
        sequences=Table(np.array(s, np.int32) for s in sequences),
        imdb_ids=Table(np.array([*FILMS], "S7")),
    )
    file.attrs = {"split": np.array(split, kinds)}
    file.colours = rgb
    np.save(tmp_path / "metadata.npy", metadata(WORDS))
    (tmp_path / "multimodal_imdb.hdf5").touch()
    monkeypatch.setattr(build_mmimdb, "open_hdf5", lambda source: file)
    return file


def metadata(words):
    """The dictionary as make_dataset.py writes it."""
    return {
        "ix_to_word": dict(zip(range(len(words)), words)),
        "word_to_ix": dict(zip(words, range(len(words)))),
        "vocab_size": len(words),
        "lookup": np.ones((3, 4), np.float32),
    }


def test_the_hdf5_file_becomes_the_same_layout(hdf5, tmp_path):
    report = build_mmimdb.build(tmp_path / "out", tmp_path / "multimodal_imdb.hdf5")
    assert report == {"films": 4, "source": "multimodal_imdb.hdf5"}
    root = tmp_path / "out/mmimdb"
    parts = {s: mmimdb.load(s, root=root) for s in ("train", "validation", "test")}
    assert parts["train"].texts == ["a film of N minutes .", "they ride ."]
    assert [part.groups for part in parts.values()] == list(SPLITS.values())
    assert parts["train"].labels.nonzero().tolist() == [[0, DRAMA], [0, SHORT], [1, DRAMA]]
    assert parts["validation"].labels[0].nonzero().flatten().tolist() == [DRAMA, COMEDY, NOIR]
    images = [image for part in parts.values() for image in part.images]
    for image, colour in zip(images, hdf5.colours):
        picture = open_image(image)
        assert picture.size == (160, 256)  # width, height
        # Whole numbers lose up to one grey level, JPEG another.
        assert np.abs(np.asarray(picture, int) - colour).max() <= 2


class Torn(Table):
    """Behaves as a dataset of which a part cannot be read."""

    def __getitem__(self, row):
        if row == 1:
            raise OSError("can't read data (inflate() failed)")
        return super().__getitem__(row)


@pytest.mark.parametrize("key", ["sequences", "images"])
def test_a_damaged_row_is_no_full_disk(hdf5, tmp_path, key):
    hdf5[key] = Torn(hdf5[key])
    with pytest.raises(
        InputError, match=r"multimodal_imdb\.hdf5, row 1 cannot be read .*: fetch it"
    ):
        build_mmimdb.build(tmp_path / "out", tmp_path / "multimodal_imdb.hdf5")
    assert list((tmp_path / "out/mmimdb").iterdir()) == []


@pytest.mark.parametrize("protocol", [2, 3, 4])  # numpy has used each of them
@pytest.mark.parametrize(
    "first", ["ix_to_word", "word_to_ix", "word_to_ix vocab_size", "vocab_size", "lookup"]
)
def test_words_in_any_order_of_the_dictionary(tmp_path, first, protocol):
    words = ["_UNK_", *(f"word-{n}-{'x' * (n % 40)}" for n in range(3000))]  # several pickle frames
    found = metadata(words)
    with open(tmp_path / "metadata.npy", "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(np.array({key: found[key] for key in first.split()} | found), file, protocol)
    assert build_mmimdb.read_words(tmp_path / "metadata.npy") == words


class Trap:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_words_are_read_without_unpickling(tmp_path):
    trap = Trap()
    trap.path = tmp_path / "sprung"
    np.save(tmp_path / "metadata.npy", {"trap": trap} | metadata(WORDS) | {"also": trap})
    assert build_mmimdb.read_words(tmp_path / "metadata.npy") == WORDS
    assert not trap.path.exists()
    assert b"mkdir" in (tmp_path / "metadata.npy").read_bytes()  # it was there to be sprung


@pytest.mark.parametrize("fault", ["another array", "cut", "no words", "a gap", "no array"])
def test_bad_metadata(tmp_path, fault):
    path = tmp_path / "metadata.npy"
    found = metadata(WORDS)
    if fault == "no words":
        found["ix_to_word"] = found["word_to_ix"] = {}
    if fault == "a gap":
        found["ix_to_word"][10] = "beyond"
    np.save(path, np.ones((3, 3)) if fault == "another array" else found)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:300])
    if fault == "no array":
        path.write_bytes(b"PK" + path.read_bytes()[2:])
    with pytest.raises(InputError, match=r"metadata\.npy is not the published metadata\.npy"):
        build_mmimdb.read_words(path)
    path.unlink()
    with pytest.raises(InputError, match=r"metadata\.npy does not exist: it holds the words"):
        build_mmimdb.read_words(path)


def test_bad_hdf5_files(hdf5, tmp_path):
    source = tmp_path / "multimodal_imdb.hdf5"

    def refused(message):
        with pytest.raises(InputError, match=message):
            build_mmimdb.build(tmp_path / "out", source)
        assert list((tmp_path / "out/mmimdb").iterdir()) == []

    hdf5["sequences"][3] = np.array([9])
    refused("film 0000012: a word number is beyond the 9 words of metadata.npy")
    hdf5["imdb_ids"][0] = np.bytes_(b"../../x")
    refused(r"row 0: '\.\./\.\./x' is no film id")
    hdf5.attrs = {}
    refused("not train, dev and test")
    hdf5["genres"].attrs["target_names"] = json.dumps(["Drama", "Telenovela"])
    refused("its genres are Drama, Telenovela, not the 23 of MM-IMDB")
    del hdf5["sequences"]
    refused("has no 'sequences'")


def test_h5py_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)  # importing it fails
    (tmp_path / "multimodal_imdb.hdf5").touch()
    with pytest.raises(InputError, match="pip install h5py"):
        build_mmimdb.build(tmp_path / "out", tmp_path / "multimodal_imdb.hdf5")
