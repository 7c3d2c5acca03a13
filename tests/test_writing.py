"""Files written whole or not at all."""

import errno
import os

import pytest

from vssm._writing import replacing


def test_a_file_has_the_rights_of_any_other_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "whole") as new:
        new.write_text("all")
    assert (tmp_path / "whole").read_text() == "all"
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match=r"No space left on device: '.*file'") as caught, replacing(path) as new:
        new.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    path = tmp_path / "none" / "file"
    with pytest.raises(FileNotFoundError) as caught, replacing(path) as new:
        new.write_text("all")
    assert caught.value.filename == str(path)
