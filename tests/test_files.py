"""A file is written whole or not at all, and what can't be written is refused early."""

import contextlib
from pathlib import Path

import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import replacing, replacing_file, require_writable


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    target.write_bytes(b"before")
    with contextlib.suppress(RuntimeError), replacing(target) as stream:
        stream.write(b"half of")
        raise RuntimeError
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_path_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    require_writable(tmp_path / "out.npz")
    with pytest.raises(InvalidInput, match="make it first"):
        require_writable(tmp_path / "absent" / "out.npz")
    with pytest.raises(InvalidInput, match="is a directory"):
        require_writable(tmp_path)


def test_two_writers_of_one_file_do_not_take_each_others_part(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "f") as first:
        first.write_text("first")
        with replacing_file(tmp_path / "f") as second:
            second.write_text("second")
        assert (tmp_path / "f").read_text() == "second"
    assert (tmp_path / "f").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
