"""The sha256 of large files is remembered as long as they are the same."""

import hashlib
import os

import pytest

from twinbench import files, sums


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Which files were read."""
    monkeypatch.setattr(sums, "LARGE", 4)
    monkeypatch.setattr(sums, "SETTLED", -1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names, plain = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: names.append(path.name) or plain(path))
    return names


def of(content):
    return hashlib.sha256(content).hexdigest()


def test_a_large_file_is_read_once(read, tmp_path):
    for name, content in (("large", b"12345"), ("small", b"123")):
        (tmp_path / name).write_bytes(content)
        assert [sums.sha256(tmp_path / name) for _ in range(3)] == 3 * [of(content)]
    assert read == ["large", "small", "small", "small"]


def test_another_content_of_the_same_size_and_time_is_seen(read, tmp_path):
    place = tmp_path / "weights"
    place.write_bytes(b"12345")
    sums.sha256(place)
    then = place.stat()
    place.write_bytes(b"54321")
    os.utime(place, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert place.stat().st_mtime_ns == then.st_mtime_ns and sums.sha256(place) == of(b"54321")


def test_what_changed_just_now_or_is_remembered_wrongly_is_read(read, tmp_path, monkeypatch):
    place = tmp_path / "weights"
    place.write_bytes(b"12345")
    sums.sha256(place)
    (kept,) = (tmp_path / "cache" / "twinbench" / "sha256").iterdir()
    for damaged in (b"", b"\xff", b"x" * 64):
        kept.write_bytes(damaged)
        assert sums.sha256(place) == of(b"12345")
    monkeypatch.setattr(sums, "SETTLED", 10)
    assert sums.sha256(place) == of(b"12345") and len(read) == 5


def test_a_cache_that_cannot_be_written_is_done_without(read, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "weights").write_bytes(b"12345")
    assert [sums.sha256(tmp_path / "weights") for _ in range(2)] == 2 * [of(b"12345")] and len(read) == 2
