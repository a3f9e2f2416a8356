import errno
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from masklet.atomic import keeping, replacing, replacing_all


def test_the_written_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_missing_folders_are_made(tmp_path):
    with replacing(tmp_path / "a" / "b" / "c.txt") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "new"


def test_the_unfinished_file_is_in_the_same_folder_and_has_the_same_suffix(tmp_path):
    with replacing(str(tmp_path / "mask.png")) as unfinished:
        assert unfinished.parent == tmp_path
        assert unfinished.suffix == ".png"
        unfinished.touch()


def test_a_name_may_have_the_maximum_length(tmp_path):
    path = tmp_path / ("图" * 83 + ".png")  # 253 bytes of 255
    path.write_bytes(b"old")
    with replacing_all(path, tmp_path / "other") as files:
        for file in files:
            file.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("no such format")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), replacing(path) as unfinished:  # noqa: PT012
        unfinished.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_a_block_that_writes_nothing_raises_and_changes_nothing(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_bytes() == b"old"


def test_a_file_that_only_its_owner_may_read_becomes_readable(tmp_path):
    with replacing(tmp_path / "private") as unfinished:
        unfinished.touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_written_is_refused_before_the_block(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)  # tests may run as root, who may write anywhere
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/mask\.png'"), replacing(tmp_path / "mask.png"):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == []


def test_a_folder_with_the_name_of_the_file_is_refused_before_the_block(tmp_path):
    (tmp_path / "mask.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"Is a directory: '.*/mask\.png'"), replacing(tmp_path / "mask.png"):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == ["mask.png"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "both"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["both"]


def test_either_all_files_of_a_group_are_replaced_or_none(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths[:2]:
        path.write_text("old")
    real, renamed = os.replace, []

    def failing(source, target):
        renamed.append(target)
        if len(renamed) == 3:
            raise OSError("the disk is gone")
        real(source, target)

    monkeypatch.setattr("masklet.atomic.os.replace", failing)

    def write():
        with replacing_all(*paths) as unfinished:
            for file in unfinished:
                file.write_text("new")

    with pytest.raises(OSError, match="the disk is gone"):
        write()
    assert [path.read_text() for path in paths[:2]] == ["old", "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    monkeypatch.undo()
    write()
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["new"] * 3


def test_what_was_written_is_kept_when_the_block_fails(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("old")
    with suppress(RuntimeError), keeping(path) as part:
        part.write_text("first line")
        assert (part.name, path.read_text()) == ("lines.part.jsonl", "old")
        raise RuntimeError
    assert path.read_text() == "first line"
    assert os.listdir(tmp_path) == ["lines.jsonl"]


def test_what_a_killed_process_left_is_not_replaced(tmp_path):
    (tmp_path / "lines.part.jsonl").write_text("left")
    with pytest.raises(FileExistsError, match="lines.part.jsonl is what"), keeping(tmp_path / "lines.jsonl"):
        pass
    assert (tmp_path / "lines.part.jsonl").read_text() == "left"


def test_kept_lines_go_to_a_device_at_once():
    with keeping("/dev/null") as part:
        assert part == Path("/dev/null")
    assert part.exists()


def test_a_file_to_which_nothing_was_written_is_removed(tmp_path):
    (tmp_path / "lines.jsonl").write_text("old")
    with keeping(tmp_path / "lines.jsonl") as part:
        part.touch()
    assert os.listdir(tmp_path) == ["lines.jsonl"]
    assert (tmp_path / "lines.jsonl").read_text() == "old"


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as place:
        place.write_bytes(b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    with replacing("/dev/null") as place:
        place.write_bytes(b"new")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.listdir(tmp_path) == ["pipe.json"]


def test_a_standard_output_that_is_a_file_is_not_replaced(tmp_path):
    code = "from masklet.atomic import replacing\nwith replacing('/dev/stdout') as f: f.write_bytes(b'new')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert os.path.islink("/dev/stdout")
