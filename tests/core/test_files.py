"""Small files on disk: whole or not there, and read back in spite of what a crash has left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.core.files import (
    DamagedFileError,
    DiskFullError,
    Log,
    disk_full_in,
    read_json,
    read_log,
    write_json,
    write_log,
    write_text,
    written,
    written_folder,
)


def _full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_value_comes_back_and_its_folder_is_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "value.json"
    write_json(file, {"name": "Größe", "many": [1, 2.5, None]})
    assert read_json(file) == {"name": "Größe", "many": [1, 2.5, None]}
    assert os.listdir(file.parent) == ["value.json"]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), ValueError("not now"), KeyboardInterrupt()])
def test_a_write_that_ends_halfway_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    write_text(file, "old")
    with pytest.raises(type(error)), written(file) as stream:
        stream.write(b"ne")
        raise error
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["value.json"]


def test_a_full_disk_is_one_sentence_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "value.json"
    write_text(file, "old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full; free some space"):
        write_text(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["value.json"]
    with pytest.raises(PermissionError), disk_full_in(tmp_path):
        raise PermissionError(errno.EACCES, "denied")


def test_a_folder_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for text in ("old", "new"):
        with written_folder(folder) as partial:
            write_text(partial / text, text)
            assert not (folder / text).exists()
    assert os.listdir(tmp_path) == ["adapter"] and os.listdir(folder) == ["new"]
    with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full"), written_folder(folder) as partial:
        write_text(partial / "newer", "newer")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")  # as safetensors has it
    assert os.listdir(tmp_path) == ["adapter"] and os.listdir(folder) == ["new"]


@pytest.mark.parametrize("text", ["", '{"a": 1', "\0\0\0"])
def test_a_cut_value_is_said_to_be_cut(text: str, tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    file.write_text(text)
    with pytest.raises(DamagedFileError, match=f"{file} is not JSON .* delete it and start again"):
        read_json(file)


@pytest.mark.parametrize("torn", [b"", b'{"step": 2, "lo', b"\0\0\0\0", b'{"step": 2}'])
def test_a_log_is_read_without_its_torn_end(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert read_log(file) == []
    entries = [{"step": 0}, {"step": 1}]
    write_log(file, entries)
    file.write_bytes(file.read_bytes() + torn)
    assert read_log(file) == entries


@pytest.mark.parametrize("line", ["{", "3", "null", "\0\0", '"a"'])
def test_a_damaged_line_is_named_or_skipped(line: str, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DamagedFileError, match=f"{file}, line 2 is not a JSON object.*; remove the line or the file"):
        read_log(file)
    assert read_log(file, skip_damaged=True) == [{"step": 0}, {"step": 2}]


@pytest.mark.parametrize("left", [b"", b'{"step": 0}\n', b'{"step": 0}\n{"step": 1, "lo', b'{"ste'])
def test_what_is_appended_does_not_join_a_torn_end(left: bytes, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(left)
    before = read_log(file)
    with Log(file) as log:
        log.append([{"step": 7}, {"text": "half a pair \ud800"}])
        assert read_log(file) == [*before, {"step": 7}, {"text": "half a pair \ud800"}]  # seen at once
        log.append([])
        log.sync()
    assert len(read_log(file)) == len(before) + 2


def test_a_full_disk_takes_all_of_an_append_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "log.jsonl", os.write
    with Log(file) as log:
        log.append([{"step": 0}])
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
        with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full"):
            log.append([{"step": 1}])
        monkeypatch.setattr(os, "write", _full)
        with pytest.raises(DiskFullError):
            log.append([{"step": 1}])
        monkeypatch.undo()
        log.append([{"step": 2}])
    assert read_log(file) == [{"step": 0}, {"step": 2}]
