"""Nothing is ever half-written."""

import errno

import pytest

from mmfusion_lib import InputError, files


def test_a_failure_inside_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]  # the temporary file is gone


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")],
)
def test_disk_errors_are_one_sentence(tmp_path, number, words):
    path = tmp_path / "a.txt"
    with pytest.raises(InputError, match=words), files.atomic_path(path):
        raise OSError(number, "no")
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip_and_broken_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"é": [1, None]})
    assert files.read_json(path) == {"é": [1, None]}
    path.write_text("{")
    with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
        files.read_json(path)
    with pytest.raises(InputError, match="does not exist"):
        files.read_json(tmp_path / "b.json")


def test_digest_depends_on_content_and_on_where_parts_end():
    assert files.digest("ab", "c") != files.digest("a", "bc")
    assert files.digest({"x": 1, "y": 2}) == files.digest({"y": 2, "x": 1})
    assert files.digest(b"ab") != files.digest("ab")


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the standard's own example
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
